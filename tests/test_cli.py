"""The command line: help, what bad input gets (one line, status 2, nothing written), and `fit`."""

import contextlib
import csv
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from synthetic_exits import synthetic
from tiny_run import SOURCE, tiny_config, write_run

import eenet_jax
from eenet_jax import cli
from eenet_jax.errors import InputError
from eenet_jax.scale import compile as scale
from eenet_jax.scale.measured import Compiled
from eenet_jax.training import processes
from eenet_jax.types import ExitPredictions

COSTS = (1.0, 2.5, 4.0)
SECOND_OF_TWO = ("--num-processes", "2", "--process-id", "1")
OPTIONS = {
    "data": ["--from", "--data-dir", "list", "prepare"],
    "compile": ["--topology", "--batch", "--fsdp", "--out"],
    "train": ["--out", "--data-dir", "--settings"],
    "predict": ["--splits", "--data-dir"],
    "costs": ["--latency", "--batch-size", "--repeats"],
    "fit": ["--predictions", "--test", "--costs", "--budgets", "--policies", "--seed", "--out"],
    "run": [
        "--fit",
        "--policy",
        "--budgets",
        "--strategies",
        "--batch-size",
        "--samples",
        "--bundle",
        "--inputs",
        "--out",
    ],
    "export": ["--fit", "--policy", "--budget", "--out", "--platforms"],
    "report": ["--out", "--title", "--readme", "--section"],
    "convert": ["--network", "--dataset", "--build", "--tokenizer", "--out"],
    "demo": ["--out"],
}


def refused(capsys, *arguments) -> str:
    """The one line on stderr that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert "Traceback" not in printed.err + printed.out
    assert printed.err.startswith("eenet: ")
    assert printed.err.endswith("\n")
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


def helped(capsys, *arguments) -> str:
    """What a command prints that ends well, by itself or with status 0."""
    capsys.readouterr()
    code = 0
    try:
        cli.main(list(arguments))
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert (code or 0, printed.err) == (0, "")
    return printed.out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    synthetic(samples=60, seed=0).save(folder / "val.npz")
    synthetic(samples=60, seed=1).save(folder / "test.npz")
    synthetic(samples=60, exits=2).save(folder / "two_exits.npz")
    synthetic(samples=60, classes=5).save(folder / "five_classes.npz")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    write_run(folder)
    return folder


def test_help_names_every_verb_with_what_it_does(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        shown = helped(capsys, *arguments)
        for verb, kind in cli.VERBS.items():
            assert f"  {verb} " in shown
            assert kind.__doc__.splitlines()[0] in shown


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_its_options(capsys, verb):
    shown = helped(capsys, verb, "--help")
    assert f"usage: eenet {verb}" in shown
    for option in OPTIONS[verb]:
        assert option in shown


def test_train_lists_the_settings_of_its_config(capsys):
    shown = helped(capsys, "train", "digits_cnn", "--settings")
    for setting in ("--training.learning-rate", "--data.batch-size", "--seed", "--network.name"):
        assert setting in shown


def test_the_data_sets_are_listed(capsys):
    shown = helped(capsys, "data", "list")
    assert "digits        10 classes, images (8, 8, 1)" in shown
    assert "cifar100      100 classes, images (32, 32, 3)" in shown
    assert "sst2          2 classes, texts" in shown
    assert "camvid        11 classes, labelled images (360, 480, 3)" in shown
    assert helped(capsys, "data", "prepare", "digits") == "digits is ready; it is embedded\n"


def fit_arguments(folder, destination, **changes):
    options = {
        "predictions": folder / "val.npz",
        "costs": "1,2.5,4",
        "budgets": "2",
        "policies": "vote",
        "out": destination,
    } | changes
    arguments = ["fit"]
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name}", value]
    return arguments


def test_fit_writes_the_frontier_as_fixed_and_its_policies_redo_every_row(capsys, folder, tmp_path):
    out = tmp_path / "fit"
    options = {"budgets": "1,2.50,3e0", "policies": "max_prob,patience"}
    helped(
        capsys,
        *map(str, fit_arguments(folder, out, test=folder / "test.npz", seed=3, **options)),
    )
    with (out / "frontier.csv").open() as source:
        header, *lines = csv.reader(source)
    assert ",".join(header).startswith(
        "policy,budget,split,accuracy,cost,exit_rate_1,exit_rate_2,exit_rate_3"
    )
    names, budgets = ("max_prob", "patience", "static", "oracle"), ("1", "2.50", "3e0")
    assert [line[:3] for line in lines] == [
        [name, budget, split] for name in names for budget in budgets for split in ("val", "test")
    ]
    splits = {split: ExitPredictions.load(folder / f"{split}.npz") for split in ("val", "test")}
    for policy, budget, split, *numbers in lines:
        accuracy, cost, *rates = map(float, numbers[:5])
        assert cost == pytest.approx(np.dot(rates, COSTS))
        assert sum(rates) == pytest.approx(1)
        if policy == "oracle":
            continue
        path = out / "policies" / f"{policy}-{budget}.json"
        assert json.loads(path.read_text())["policy"] == policy
        predictions = splits[split]
        exits = eenet_jax.load_policy(path).decide(predictions.probs)
        samples = np.arange(60)
        right = predictions.probs[exits, samples].argmax(-1) == predictions.labels
        assert accuracy == pytest.approx(right.mean())
        assert cost == pytest.approx(np.asarray(COSTS)[exits].mean())
        assert rates == pytest.approx([np.mean(exits == k) for k in range(3)])
        if split == "val":
            assert cost <= float(budget) + 1e-9
    assert len(list((out / "policies").glob("*.json"))) == 9


def test_a_single_array_is_no_archive(capsys, folder, tmp_path):
    with (tmp_path / "bad.npz").open("wb") as sink:
        np.save(sink, GOOD.probs)
    changes = {"predictions": tmp_path / "bad.npz"}
    complaint = refused(capsys, *fit_arguments(folder, tmp_path / "out", **changes))
    assert "not a readable .npz" in complaint


def test_half_precision_is_accepted_and_renormalised(capsys, folder, tmp_path):
    val = synthetic(samples=60, seed=0)
    np.savez(tmp_path / "half.npz", probs=val.probs.astype(np.float16), labels=val.labels)
    loaded = ExitPredictions.load(tmp_path / "half.npz")
    assert loaded.probs.dtype == np.float32
    np.testing.assert_allclose(loaded.probs.sum(-1), 1, atol=1e-6)
    helped(
        capsys,
        *map(str, fit_arguments(folder, tmp_path / "out", predictions=tmp_path / "half.npz")),
    )
    assert (tmp_path / "out" / "frontier.csv").exists()


def spoiled(**changes):
    good = synthetic(samples=60, seed=0)
    members = {"probs": good.probs.copy(), "labels": good.labels.copy()} | changes
    return {name: value for name, value in members.items() if value is not None}


def with_value(value):
    probs = synthetic(samples=60, seed=0).probs.copy()
    probs[1, 2, 3] = value
    return probs


GOOD = synthetic(samples=60, seed=0)
BAD_PREDICTIONS = {
    "no probs": (spoiled(probs=None), "no array 'probs'"),
    "no labels": (spoiled(labels=None), "no array 'labels'"),
    "NaN": (spoiled(probs=with_value(np.nan)), "1 values that are NaN"),
    "negative": (spoiled(probs=with_value(-0.5)), "not logits"),
    "sums": (spoiled(probs=with_value(1.5)), "not to 1 within 0.001"),
    "one exit": (spoiled(probs=GOOD.probs[:1]), "1 exit"),
    "one class": (spoiled(probs=np.ones((3, 60, 1), np.float32)), "1 class"),
    "no samples": (spoiled(probs=GOOD.probs[:, :0], labels=GOOD.labels[:0]), "no samples"),
    "two axes": (spoiled(probs=GOOD.probs[0]), "[exits, samples, classes]"),
    "label C": (spoiled(labels=np.full(60, 4)), "classes run from 0 to 3"),
    "label -1": (spoiled(labels=np.full(60, -1)), "labels holds -1"),
    "label half": (spoiled(labels=np.full(60, 0.5)), "integer class indices"),
    "labels short": (spoiled(labels=GOOD.labels[:9]), "probs asks for (60,)"),
    "pickled": (spoiled(labels=np.asarray([{}] * 60, object)), "not a readable .npz"),
    "integers": (spoiled(probs=np.ones((3, 60, 4), np.int64)), "floating-point"),
}


@pytest.mark.parametrize("kind", BAD_PREDICTIONS)
@pytest.mark.parametrize("option", ["predictions", "test"])
def test_predictions_that_are_none_are_refused(capsys, folder, tmp_path, kind, option):
    members, words = BAD_PREDICTIONS[kind]
    np.savez(tmp_path / "bad.npz", **members)
    changes = {option: tmp_path / "bad.npz"}
    complaint = refused(capsys, *fit_arguments(folder, tmp_path / "out", **changes))
    assert words in complaint
    assert "bad.npz" in complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"probs,labels\n", b"\x93NUMPY\x01\x00", None])
def test_a_file_that_is_no_archive_or_half_of_one_is_refused(capsys, folder, tmp_path, content):
    whole = (folder / "val.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(whole[: len(whole) // 2] if content is None else content)
    changes = {"predictions": tmp_path / "bad.npz"}
    complaint = refused(capsys, *fit_arguments(folder, tmp_path / "out", **changes))
    assert "not a readable .npz" in complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"predictions": "none.npz"}, "no predictions file at 'none.npz'"),
        ({"test": "two_exits.npz"}, "has 2 exits"),
        ({"test": "five_classes.npz"}, "has 5 classes"),
        ({"costs": "1,2"}, "2 costs for 3 exits"),
        ({"costs": "1,2,3,4"}, "4 costs for 3 exits"),
        ({"costs": "1,1,2"}, "must increase strictly"),
        ({"costs": "0,1,2"}, "must be positive"),
        ({"costs": "1,2,nan"}, "must be positive and finite"),
        ({"costs": "none.json"}, "no cost table at 'none.json'"),
        ({"costs": "val.npz"}, "val.npz"),
        ({"budgets": "0.9"}, "budget 0.9 is out of range: give one from 1.0 to 4.0"),
        ({"budgets": "2,4.1"}, "budget 4.1 is out of range: give one from 1.0 to 4.0"),
        ({"budgets": "two"}, "budget 'two' is no number"),
        ({"budgets": "nan"}, "budget 'nan' is not finite"),
        ({"budgets": "1,,2"}, "'1,,2' has an empty entry"),
        ({"budgets": ""}, "empty entry"),
        ({"budgets": "2,2"}, "given twice"),
        ({"policies": "vote,branchynet"}, "policy 'branchynet' is unknown: known are eenet"),
        ({"policies": "vote,vote"}, "given twice"),
        ({"seed": "x"}, "--seed"),
        ({"seed": "1.5"}, "--seed"),
        ({"sed": "1"}, "--sed"),
        ({"predictions": None}, "--predictions"),
        ({"costs": None}, "--costs"),
        ({"budgets": None}, "--budgets"),
        ({"out": None}, "--out"),
    ],
)
def test_fit_refuses_bad_options(capsys, folder, tmp_path, monkeypatch, changes, words):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    complaint = refused(capsys, *fit_arguments(folder, tmp_path / "out", **changes))
    assert words in complaint
    assert not (tmp_path / "out").exists()
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "unknown verb 'fly': choose one of data, train"),
        (["--fly"], "unknown verb '--fly'"),
        (["data"], "list"),
        (["data", "fetch"], "fetch"),
        (["data", "prepare"], "no data set named: give one of digits, cifar10"),
        (["data", "prepare", "mnist"], "unknown data set 'mnist': choose from digits"),
        (["train"], "CONFIG"),
        (["train", "mnist_mlp"], "no config 'mnist_mlp': give a .py file, or one of"),
        (["train", "none.py"], "no config file at 'none.py'"),
        (["train", "tiny.py", "--training.epochs", "x"], "training.epochs"),
        (["train", "tiny.py", "--training.epoch", "3"], "training.epoch"),
        (["train", "tiny.py", "--training.epochs", "0"], "training.epochs is 0"),
        (["train", "tiny.py", "--training.epochs", "0"], "(see `eenet train tiny.py --settings`)"),
        (["train", "tiny.py", "--training.optimizer", "adam"], "training.optimizer"),
        (["train", "tiny.py", "--training.learning-rate", "-1"], "learning_rate is -1.0"),
        (["train", "tiny.py", "--data.dataset", "mnist"], "unknown data set 'mnist'"),
        (["train", "tiny.py", "--data.val-size", "2000"], "val_size 2000"),
        (["train", "tiny.py", "--data.batch-size", "998"], "batch_size 998"),
        (["train", "tiny.py", "--network.name", "resnet57"], "network 'resnet57' is unknown"),
        (["compile", "tiny.py", "--topology", "v5e"], "give a chip and a slice"),
        (["compile", "tiny.py", "--topology", "v9:2x2"], "chip 'v9' is not known"),
        (["compile", "tiny.py"], "--topology"),
        (["train", "tiny.py", "--fsdp", "3"], "fsdp is 3, of 2 devices: give one of 1, 2"),
        (["train", "tiny.py", "--process-id", "0"], "coordinator is missing"),
        (
            ["train", "tiny.py", "--coordinator", "localhost:99999", *SECOND_OF_TWO],
            "give a port from 1 to 65535",
        ),
        (
            ["train", "tiny.py", "--coordinator", "h:1", *SECOND_OF_TWO, "--process-id", "2"],
            "process_id is 2: give a number from 0 to 1",
        ),
        (["train", "tiny.py", "--seed"], "--seed"),
        (["train", "tiny.py", "--seed", "one"], "--seed"),
        (["train", "tiny.py", "extra"], "extra"),
        (["train", "tiny.py", "--data.dataset", "cifar10"], "eenet data prepare cifar10"),
        (["predict"], "RUN"),
        (["predict", "none"], "'none' holds no run"),
        (["costs", "none"], "'none' holds no run"),
        (["costs", "none", "--repeats", "x"], "--repeats"),
        (["run", "none"], "none"),
        (["report", "none"], "none"),
        (["report"], "FOLDERS"),
        (["demo", "--fast"], "--fast"),
    ],
)
def test_every_verb_refuses_bad_input(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(SOURCE)
    assert words.lower() in refused(capsys, *arguments).lower()
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py"] in (
        [],
        ["__pycache__"],
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "--splits", "val,dev"], "unknown split 'dev'"),
        (["predict", "--splits", "val,"], "empty entry"),
        (["costs", "--repeats", "0", "--latency"], "repeats is 0"),
        (["costs", "--batch-size", "0", "--latency"], "batch_size is 0"),
        (["run", "--policy", "eenet"], "holds no policies: fit some"),
        (["run", "--budgets", "3"], "holds no policies: fit some"),
        (["report"], "frontier.csv"),
    ],
)
def test_verbs_on_a_run_refuse_bad_input(capsys, run, arguments, words):
    before = sorted(run.rglob("*"))
    verb, *options = arguments
    assert words in refused(capsys, verb, run, *options)
    assert sorted(run.rglob("*")) == before


def test_adaptive_inference_refuses_bad_input(capsys, run, folder, tmp_path):
    out = tmp_path / "fit"
    two = folder / "two_exits.npz"
    helped(capsys, *map(str, fit_arguments(folder, out, predictions=two, costs="1,2")))
    wrong = tmp_path / "wrong"
    helped(capsys, *map(str, fit_arguments(folder, wrong)))
    before = sorted(out.rglob("*"))
    for options, words in (
        (["--budgets", "1.5"], "no policy 'vote' was fitted for budget 1.5 (there are"),
        (["--strategies", "masked,magic"], "'magic' is unknown"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--samples", "0"], "samples is 0"),
        (["--repeats", "0"], "repeats is 0"),
        (["--fit", str(wrong)], "is for 3 exits"),
    ):
        arguments = ["run", run, "--fit", out, "--policy", "vote", *options]
        assert words in refused(capsys, *arguments)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"no archive at all"])
def test_an_archive_that_is_none_is_refused(capsys, tmp_path, content):
    source = tmp_path / "source"
    source.mkdir()
    arguments = ["data", "prepare", "cifar10", "--data-dir", tmp_path / "data", "--from", source]
    assert "source" in refused(capsys, *arguments)
    (source / "cifar-10-binary.tar.gz").write_bytes(content)
    assert "cifar-10-binary.tar.gz" in refused(capsys, *arguments)
    assert "cifar-10-binary.tar.gz" in refused(
        capsys, *arguments[:-1], source / "cifar-10-binary.tar.gz"
    )
    assert "nowhere" in refused(capsys, *arguments[:-1], tmp_path / "nowhere")
    assert not (tmp_path / "data").exists()


def test_a_folder_with_files_of_another_size_is_refused(capsys, tmp_path):
    unpacked = tmp_path / "cifar-10-batches-bin"
    unpacked.mkdir()
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (unpacked / name).write_bytes(b"\0" * 3073)
    arguments = ["data", "prepare", "cifar10", "--data-dir", tmp_path / "data", "--from", tmp_path]
    assert "data_batch_1.bin" in refused(capsys, *arguments)
    assert not (tmp_path / "data").exists()


def test_a_file_where_a_folder_belongs_is_refused(capsys, folder, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert "out" in refused(capsys, *fit_arguments(folder, tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "a file"


def test_as_a_process_the_line_is_the_same(folder, tmp_path):
    arguments = map(str, fit_arguments(folder, tmp_path / "out", budgets="9"))
    ended = subprocess.run(
        [sys.executable, "-m", "eenet_jax.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("eenet: budget 9")
    assert ended.stderr.endswith("out of range: give one from 1.0 to 4.0 cost\n")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert not (tmp_path / "out").exists()


def test_output_that_nobody_reads_on_ends_without_a_word():
    command = [sys.executable, "-m", "eenet_jax.cli", "train", "digits_cnn", "--settings"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize(("fits", "status"), [(True, 0), (False, 3)])
def test_what_does_not_fit_a_slice_has_a_status_of_its_own(
    tmp_path, monkeypatch, capsys, fits, status
):
    program = Compiled(
        name="solver", samples=0, compile_seconds=1.0, memory_bytes=3e10, fits=fits,
        flops=1e9, bytes_accessed=1e9,
    )  # fmt: skip
    report = scale.SliceReport(
        topology="v5e:2x2", devices=4, fsdp=1, batch_size=64, config=tiny_config(),
        programs={"solver": program}, weight_bytes=4, versions={},
    )  # fmt: skip
    monkeypatch.setattr(scale, "compile_run", lambda *given, **options: report)
    out = tmp_path / "slice.json"
    command = ["compile", "digits_cnn", "--topology", "v5e:2x2", "--out", str(out)]
    with contextlib.nullcontext() if fits else pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert (stop.value.code if stop else 0) == status
    assert json.loads(out.read_text())["fits"] == fits
    assert ("does not fit" in capsys.readouterr().out) != fits


def test_a_first_process_that_has_no_address_is_named(monkeypatch):
    monkeypatch.setattr(processes, "SEEN_SECONDS", 0)
    for host in ("nowhere.invalid", "a..b"):
        with pytest.raises(InputError, match=f"'{host}' has no address here"):
            processes._check_address(f"{host}:1234")
