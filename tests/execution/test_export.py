"""A bundle answers as the network that it was exported from, or says in one line why it can't."""

import csv
import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from text_sets import VOCABULARY, write_tokenizer
from tiny_run import write_run

import eenet_jax
from eenet_jax import cli, networks
from eenet_jax.artifacts import read_json
from eenet_jax.data import datasets, inputs
from eenet_jax.dense import all_image_means
from eenet_jax.errors import InputError
from eenet_jax.execution.bundle import BundleAnswers
from eenet_jax.execution.export import ImagePreprocessing, TextPreprocessing, export_bundle
from eenet_jax.execution.manifest import WEIGHTS_FILE
from eenet_jax.execution.run_bundle import answer_rows
from eenet_jax.policies.eenet import EENet, num_features
from eenet_jax.policies.max_prob import MaxProb
from eenet_jax.policies.policy import Policy

CLASSES, LARGE, SMALL = 3, 5, 2
IMAGE = {"num_classes": CLASSES, "input_shape": (8, 8, 3)}
FAMILIES = {
    "cnn": {"widths": (2, 2, 2), "depths": (1, 1, 1), "strides": (1, 2, 1), **IMAGE},
    "resnet": {"block": "basic", "stage_blocks": (1, 1), "exit_after": (1,), "width": 4, **IMAGE},
    "densenet": {"stage_layers": (1, 1), "growth_rate": 4, "exit_after": (1,), **IMAGE},
    "msdnet": {
        "base": 1,
        "step": 1,
        "num_scales": 2,
        "channels": 2,
        "growth_rate": 2,
        "growth_factor": (1, 1),
        "bottleneck_factor": None,
        "reduction": 0.0,
        "num_exits": 2,
        "stem": "cifar",
        **IMAGE,
    },
    "bert": {
        "layers": 2,
        "width": 8,
        "heads": 2,
        "mlp_width": 8,
        "vocab_size": 14,
        "max_positions": 9,
        "exit_after": (1,),
        "pooling": "mean",
        "num_classes": CLASSES,
    },
    "hrnet": {
        "width": 2,
        "stage_modules": (1, 1, 1, 1),
        "stage_blocks": (1, 1, 1, 1),
        "stem_channels": 2,
        "bottleneck_width": 1,
        "head_channels": 2,
        **IMAGE,
    },
}
NAMES = ("ant", "bee", "cat")
PREPROCESSING = ImagePreprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


@functools.cache
def _network(family: str):
    """A network whose exits and samples say different things."""
    network = networks.build(family, **FAMILIES[family])
    variables = network.init(jax.random.key(0))
    draw = np.random.default_rng(0)

    def moved(leaf):
        return (leaf + 0.3 * draw.random(leaf.shape)).astype(np.float32)

    # Statistics as after training; BERT has none, and begins with weights close to 0.
    name = "params" if family == "bert" else "batch_stats"
    return network, {**variables, name: jax.tree.map(moved, variables[name])}


@functools.cache
def _samples(family: str):
    draw = np.random.default_rng(1)
    if family != "bert":
        return draw.normal(0, 2, (LARGE, *IMAGE["input_shape"])).astype(np.float32)
    mask = np.arange(7)[None] < np.asarray([7, 6, 3, 5, 2])[:, None]
    ids = np.where(mask, draw.integers(4, 12, mask.shape), 0)
    return {"input_ids": ids.astype(np.int32), "attention_mask": mask.astype(np.int32)}


@functools.cache
def _said(family: str):
    """The full network's logits, softmax outputs and, for dense prediction, measures."""
    network, variables = _network(family)
    logits = jax.jit(network.apply)(variables, _samples(family))
    if not network.dense:
        return np.asarray(logits), np.asarray(jax.nn.softmax(logits)), None
    return np.asarray(logits), *map(np.asarray, all_image_means(logits))


def _policy(family: str) -> Policy:
    """Thresholds halfway between two samples' scores, so that some leave everywhere."""
    exits = _network(family)[0].num_exits
    fields = {
        "budget": 1.5,
        "unit": "MMACs",
        "costs": tuple(1.0 + k for k in range(exits)),
        "thresholds": np.full(exits, -np.inf, np.float32),
    }
    policy = MaxProb(**fields)
    if family == "cnn":
        shape = (exits, num_features(exits) + CLASSES)
        now, last = np.random.default_rng(2).normal(0, 0.3, (2, *shape)).astype(np.float32)
        weights = np.tril(np.full((exits, exits), 0.4, np.float32))
        policy = EENet(
            measure="", gain_share=0.8, now=now, last=last, answer_weights=weights, **fields
        )
    scores = np.sort(policy.scores(*_said(family)[1:]), axis=1)
    thresholds = scores[:, 2:4].mean(1).astype(np.float32)
    return dataclasses.replace(policy, thresholds=thresholds)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bundles")


def _exported(folder: Path, family: str) -> Path:
    """The family's bundle, exported once."""
    out = folder / family
    if not out.exists():
        network, variables = _network(family)
        preprocessing = PREPROCESSING
        if family == "bert":
            tokenizer = write_tokenizer(folder / "encoder") / "tokenizer.json"
            preprocessing = TextPreprocessing(tokenizer=tokenizer, max_length=7)
        export_bundle(
            network,
            variables,
            _policy(family),
            out=out,
            class_names=NAMES,
            preprocessing=preprocessing,
        )
    return out


def _close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_answers_as_its_network(folder, family):
    bundle = eenet_jax.load_bundle(_exported(folder, family))
    logits, probs, measures = _said(family)
    policy = _policy(family)
    exits = policy.decide(probs, measures)
    assert len(np.unique(exits)) > 1
    answers = logits
    if policy.answer_weights is not None:
        answers = np.stack([policy.answer_logits(k, probs[: k + 1]) for k in range(len(probs))])
    wanted = answers[exits, np.arange(LARGE)]
    np.testing.assert_array_equal(bundle.policy.decide(probs, measures), exits)
    found = bundle.run(_samples(family))
    np.testing.assert_array_equal(found.exit_index, exits)
    _close(found.logits, wanted)
    np.testing.assert_array_equal(found.classes, wanted.argmax(-1))
    # The same functions on a batch of another size.
    few = jax.tree.map(lambda leaf: leaf[:SMALL], _samples(family))
    _close(bundle.network.apply(bundle.variables, few), logits[:, :SMALL])
    np.testing.assert_array_equal(bundle.run(few).exit_index, exits[:SMALL])
    assert bundle.class_names == NAMES
    assert (bundle.policy.budget, bundle.policy.unit) == (1.5, "MMACs")


def test_the_last_batch_is_filled_up_and_shorter_texts_are_taken(folder):
    bundle = eenet_jax.load_bundle(_exported(folder, "bert"))
    texts = ["a b c d e", "h g f e", "c", "d a b", ""]
    prepared = bundle.prepare(texts)
    assert prepared["input_ids"].tolist()[1] == [2, *(VOCABULARY[w] for w in "hgfe"), 3, 0]
    np.testing.assert_array_equal(prepared["attention_mask"].sum(1), [7, 6, 3, 5, 2])
    # A text beyond the tokenizer's length is cut there, its [SEP] kept.
    assert bundle.prepare(["a b c d e f g h"])["input_ids"].tolist() == [[2, 4, 5, 6, 7, 8, 3]]
    network, variables = _network("bert")
    wanted = np.asarray(jax.jit(network.apply)(variables, prepared))
    for found, places in (
        (bundle.run(texts, batch_size=SMALL), np.arange(5)),
        (bundle.run(texts[2:3]), np.asarray([2])),
    ):
        _close(found.logits, wanted[found.exit_index, places])


def test_images_are_normalised_by_the_bundle(folder):
    bundle = eenet_jax.load_bundle(_exported(folder, "cnn"))
    images = np.random.default_rng(3).integers(0, 256, (SMALL, 8, 8, 3), np.uint8)
    wanted = (images / 255.0 - np.asarray(PREPROCESSING.mean)) / np.asarray(PREPROCESSING.std)
    np.testing.assert_allclose(bundle.prepare(images), wanted, rtol=1e-5, atol=1e-6)
    by_bytes, by_floats = bundle.run(images), bundle.run(wanted)
    np.testing.assert_allclose(by_bytes.logits, by_floats.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "raw", "message"),
    [
        ("cnn", np.zeros((2, 8, 9, 3), np.uint8), r"images have shape \(2, 8, 9, 3\): the network"),
        ("cnn", np.zeros((0, 8, 8, 3), np.uint8), "no samples are given"),
        ("cnn", np.zeros((2, 8, 8, 3), np.int32), "images are int32: give uint8 to what"),
        ("cnn", np.full((2, 8, 8, 3), np.nan), "images hold values that are NaN"),
        ("cnn", ["a text"], r"images have shape \(1,\)"),
        ("bert", [], "takes a list of texts, at least one"),
        ("bert", "a text", "takes a list of texts, at least one"),
        ("bert", np.zeros((2, 8, 8, 3)), "takes a list of texts, at least one"),
        ("bert", {"input_ids": np.zeros((1, 4), int)}, "tokens are wanted, not ..input_ids"),
        ("bert", (1, 10, 0), "texts of 10 tokens: the network takes up to 9"),
        ("bert", (1, 4, 14), "input_ids hold 14: the vocabulary runs from 0 to 14 - 1"),
        ("bert", (0, 4, 0), "no samples are given"),
    ],
)
def test_samples_that_are_none_of_the_networks(folder, family, raw, message):
    bundle = eenet_jax.load_bundle(_exported(folder, family))
    if isinstance(raw, tuple):
        samples, length, token = raw
        ids = np.full((samples, length), token, np.int64)
        raw = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for call in (bundle.prepare, bundle.run):
        with pytest.raises(InputError, match=message):
            call(raw)


WITHOUT_NETWORKS = """
import sys
import importlib.abc

class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.startswith("eenet_jax.networks") or name.split(".")[0] == "flax":
            raise ImportError("refused: " + name)

sys.meta_path.insert(0, Refusing())
import numpy as np
import eenet_jax

try:
    import eenet_jax.networks
    sys.exit("not refused")
except ImportError:
    pass
from eenet_jax.execution import compacted, host_compacted, masked, planning, prediction, streaming

for folder, samples, out in zip(*[iter(sys.argv[1:])] * 3):
    bundle = eenet_jax.load_bundle(folder)
    with np.load(samples) as archive:
        raw = dict(archive)
    found = bundle.run(raw.get("images", raw))
    np.savez(out, logits=found.logits, exit_index=found.exit_index)
"""


def test_a_bundle_runs_where_networks_and_flax_cannot_be_imported(folder, tmp_path):
    arguments = []
    for family in ("resnet", "bert"):
        raw, samples = _samples(family), tmp_path / f"{family}.npz"
        np.savez(samples, **(raw if family == "bert" else {"images": raw}))
        arguments += [_exported(folder, family), samples, tmp_path / f"{family}_out.npz"]
    script = [sys.executable, "-c", WITHOUT_NETWORKS, *map(str, arguments)]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    for family in ("resnet", "bert"):
        logits, probs, _ = _said(family)
        exits = _policy(family).decide(probs)
        with np.load(tmp_path / f"{family}_out.npz") as found:
            np.testing.assert_array_equal(found["exit_index"], exits)
            _close(found["logits"], logits[exits, np.arange(LARGE)])


def _refused(capsys, *arguments) -> str:
    """The one line that a command ends with, with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert printed.startswith("eenet: ")
    assert printed.count("\n") == 1
    return printed


@pytest.fixture
def copy(folder, tmp_path, monkeypatch):
    """A function to copy a family's bundle, while nothing may be deserialised."""

    def copied(family: str = "cnn") -> Path:
        return Path(shutil.copytree(_exported(folder, family), tmp_path / family))

    def deserialised(data):
        raise AssertionError("deserialised before all was verified")

    monkeypatch.setattr(jax.export, "deserialize", deserialised)
    return copied


def _flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place < 0 else place] ^= 1
    path.write_bytes(content)


FILES = (
    "manifest.json",
    "stage_0.stablehlo",
    "head_2.stablehlo",
    "policy_1.stablehlo",
    "preprocess.stablehlo",
    WEIGHTS_FILE,
)


@pytest.mark.parametrize("name", [*FILES, "tokenizer.json"])
def test_one_bit_flipped_is_refused(copy, capsys, tmp_path, name):
    bundle = copy("bert" if name == "tokenizer.json" else "cnn")
    _flip(bundle / name)
    with pytest.raises(InputError, match=name):
        eenet_jax.load_bundle(bundle)
    said = _refused(capsys, "run", "--bundle", bundle, "--inputs", tmp_path / "none.npz")
    assert str(bundle / name) in said


def test_no_bit_of_a_manifest_can_be_flipped(copy):
    path = copy() / "manifest.json"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).choice(len(whole), 60, replace=False):
        _flip(path, int(place))
        with pytest.raises(InputError, match=r"manifest\.json|is no bundle"):
            eenet_jax.load_bundle(path.parent)
        path.write_bytes(whole)


def _drop(bundle: Path) -> str:
    (bundle / "head_1.stablehlo").unlink()
    return "head_1.stablehlo' is missing from the bundle"


def _add(bundle: Path) -> str:
    (bundle / "stage_9.stablehlo").write_bytes(b"more")
    return "stage_9.stablehlo' is none of the bundle's files"


def _truncate(bundle: Path) -> str:
    path = bundle / "manifest.json"
    path.write_text(path.read_text()[:200])
    return "manifest.json' is not a readable bundle's manifest"


def _remove_manifest(bundle: Path) -> str:
    (bundle / "manifest.json").unlink()
    return "no bundle's manifest at"


def _of_somebody_else(bundle: Path) -> str:
    (bundle / "manifest.json").write_text('{"format": "another", "version": 1}')
    return "is no bundle: give a folder that"


def _of_the_future(bundle: Path) -> str:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(read_json(path) | {"version": 2, "unheard_of": {}}))
    return "manifest.json' is of version 2, and this eenet_jax reads up to 1"


def _of_no_version(bundle: Path) -> str:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(read_json(path) | {"version": "1"}))
    return "manifest.json' has the version '1', which is none"


@pytest.mark.parametrize(
    "change",
    [
        _drop,
        _add,
        _truncate,
        _remove_manifest,
        _of_somebody_else,
        _of_the_future,
        _of_no_version,
    ],
)
def test_a_bundle_that_is_not_whole_or_not_ours_is_refused(copy, capsys, tmp_path, change):
    bundle = copy()
    message = change(bundle)
    with pytest.raises(InputError, match=message):
        eenet_jax.load_bundle(bundle)
    said = _refused(capsys, "run", "--bundle", bundle, "--inputs", tmp_path / "none.npz")
    assert message in said


def test_a_bundle_for_another_platform_is_refused(tmp_path):
    network, variables = _network("cnn")
    export_bundle(network, variables, _policy("cnn"), out=tmp_path / "tpu", platforms=("tpu",))
    with pytest.raises(InputError, match="was exported for tpu and not for cpu: export it again"):
        eenet_jax.load_bundle(tmp_path / "tpu")


def test_a_bundle_holds_no_path_of_this_machine(folder):
    for family in ("cnn", "bert"):
        for path in _exported(folder, family).iterdir():
            content = path.read_bytes()
            assert str(Path(eenet_jax.__file__).parent).encode() not in content, path
            assert str(folder).encode() not in content, path


def test_what_is_no_bundle_is_never_written_over(tmp_path):
    network, variables = _network("cnn")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("all of it")
    for out in (theirs, theirs / "thesis.txt"):
        with pytest.raises(InputError, match="is there and is no bundle: give another place"):
            export_bundle(network, variables, _policy("cnn"), out=out)
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]
    assert (theirs / "thesis.txt").read_text() == "all of it"
    # A bundle is, and so is an empty folder.
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        export_bundle(network, variables, _policy("cnn"), out=tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "theirs"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "resnet"}, "policy 'max_prob' is for 2 exits, the network has 3"),
        ({"class_names": ("ant",)}, "1 class_names for 3 classes"),
        ({"platforms": ("abacus",)}, "platform 'abacus' is unknown: choose of cpu, cuda, tpu"),
        ({"platforms": ()}, r"platforms \[\]: give each once, at least one"),
        (
            {"preprocessing": ImagePreprocessing(mean=(0.5,), std=(0.2,))},
            "preprocessing has 1 means and 1 deviations",
        ),
        (
            {"preprocessing": TextPreprocessing(tokenizer=Path("tokenizer.json"), max_length=3)},
            "preprocessing is of texts, the network takes image",
        ),
    ],
)
def test_parts_that_do_not_belong_together(tmp_path, changes, message):
    network, variables = _network("cnn")
    policy = _policy(changes.pop("policy", "cnn"))
    with pytest.raises(InputError, match=message):
        export_bundle(network, variables, policy, out=tmp_path / "out", **changes)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with policies for two budgets, and its network."""
    folder = tmp_path_factory.mktemp("run") / "run"
    made = write_run(folder)
    fields = {"unit": "MMACs", "costs": (1.0, 3.0)}
    for budget, threshold in (("1.50", 0.9), ("2", 0.99)):
        thresholds = np.asarray([threshold, -np.inf], np.float32)
        policy = MaxProb(budget=float(budget), thresholds=thresholds, **fields)
        policy.save(folder / "policies" / f"max_prob-{budget}.json")
    return folder, *made


def test_a_run_is_exported_and_its_bundle_answers_a_file(run, tmp_path, capsys):
    folder, network, variables = run
    out, answers = tmp_path / "bundle", tmp_path / "answers.csv"
    export = ["export", str(folder), "--policy", "max_prob", "--out", str(out)]
    said = _refused(capsys, *export)
    assert "for 2 budgets: choose one by --budget, of 1.50, 2" in said
    assert not out.exists()
    cli.main([*export, "--budget", "1.50"])
    manifest = read_json(out / "manifest.json")
    assert (manifest["policy"], manifest["budget"], manifest["unit"]) == ("max_prob", 1.5, "MMACs")
    assert manifest["thresholds"] == [float(np.float32(0.9)), "-inf"]
    assert manifest["class_names"] == list(datasets.get("digits").class_names)

    split = datasets.open_split("digits", "test")
    batch = split.gather(np.arange(50))
    np.savez(tmp_path / "digits.npz", images=batch["image"], labels=batch["label"])
    command = ["run", "--bundle", out, "--inputs", tmp_path / "digits.npz", "--out", answers]
    cli.main([*map(str, command), "--batch-size", "32"])
    printed = capsys.readouterr().out

    made = inputs.evaluation_inputs(batch, split.spec)
    np.testing.assert_allclose(eenet_jax.load_bundle(out).prepare(batch["image"]), made, atol=1e-6)
    probs = np.asarray(jax.nn.softmax(jax.jit(network.apply)(variables, made)))
    exits = np.where(probs[0].max(-1) >= np.float32(0.9), 0, 1)
    chosen = probs[exits, np.arange(50)]
    with answers.open(newline="") as source:
        rows = list(csv.DictReader(source))
    assert list(rows[0]) == ["index", "class", "class_name", "probability", "exit_index"]
    assert [int(row["index"]) for row in rows] == list(range(50))
    assert [int(row["exit_index"]) for row in rows] == exits.tolist()
    assert [int(row["class"]) for row in rows] == chosen.argmax(-1).tolist()
    names = [split.spec.class_names[int(row["class"])] for row in rows]
    assert [row["class_name"] for row in rows] == names
    np.testing.assert_allclose([float(row["probability"]) for row in rows], chosen.max(-1), 1e-4)
    share = 100 * float((exits == 0).mean())
    assert 0 < share < 100
    assert f"left {share:.1f} % at exit 1, {100 - share:.1f} % at exit 2" in printed
    assert f"mean cost {np.asarray([1.0, 3.0])[exits].mean():.6g} MMACs" in printed
    assert f"accuracy {(chosen.argmax(-1) == batch['label']).mean():.4f}" in printed


def test_a_file_of_texts_is_answered_line_by_line(folder, tmp_path):
    (tmp_path / "texts.txt").write_text("a b c\nd\u2028e\n\nh g f e\n", encoding="utf-8")
    answers = tmp_path / "answers.csv"
    bundle = _exported(folder, "bert")
    arguments = ["--bundle", bundle, "--inputs", tmp_path / "texts.txt", "--out", answers]
    cli.main(["run", *map(str, arguments)])
    wanted = eenet_jax.load_bundle(bundle).run(["a b c", "d\u2028e", "", "h g f e"])
    with answers.open(newline="") as source:
        rows = list(csv.DictReader(source))
    assert [int(row["class"]) for row in rows] == wanted.classes.tolist()
    assert [row["class_name"] for row in rows] == [NAMES[each] for each in wanted.classes]


def test_of_labelled_pixels_the_commonest_class_is_named():
    probs = np.asarray([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], [[0.6, 0.3, 0.1], [0.2, 0.1, 0.7]]])
    logits = np.log(np.stack([probs, probs[..., [2, 1, 0]]])).astype(np.float32)
    answers = BundleAnswers(logits=logits, exit_index=np.asarray([1, 0]), classes=logits.argmax(-1))
    assert list(answer_rows(answers, NAMES))[1:] == [
        (0, 0, "ant", "0.4", 1),
        (1, 2, "cat", "0.4", 0),
    ]


def test_commands_that_cannot_be_run(folder, run, tmp_path, capsys):
    bundle = _exported(folder, "cnn")
    assert "give a run's folder, or --bundle with --inputs" in _refused(capsys, "run")
    both = _refused(capsys, "run", run[0], "--bundle", bundle)
    assert "--bundle means nothing with RUN" in both
    given = ["run", "--bundle", bundle, "--inputs"]
    assert "no inputs at" in _refused(capsys, *given, tmp_path / "none.npz")
    other = _refused(capsys, *given, tmp_path / "none.npz", "--budgets", "2")
    assert "--budgets means nothing with --bundle" in other
    for arrays, message in (
        ({"pixels": np.zeros(3)}, "has ['pixels']: give images, or input_ids"),
        ({"images": np.zeros((2, 8, 8, 1), np.uint8)}, "images have shape (2, 8, 8, 1)"),
        (
            {"images": np.zeros((2, 8, 8, 3)), "labels": np.asarray([0, 3])},
            "labels run from 0 to 3: the bundle's classes run from 0 to 2",
        ),
        (
            {"images": np.zeros((2, 8, 8, 3)), "labels": np.asarray([0])},
            "labels are int64 of shape (1,): give whole numbers (2,)",
        ),
    ):
        np.savez(tmp_path / "samples.npz", **arrays)
        assert message in _refused(capsys, *given, tmp_path / "samples.npz")
    (tmp_path / "samples.npz").write_bytes(b"PK")
    assert "is not a readable .npz archive" in _refused(capsys, *given, tmp_path / "samples.npz")
