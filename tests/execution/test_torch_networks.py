"""PyTorch twins of the benchmark give our networks' logits; skipped where PyTorch is missing."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from eenet_jax.errors import InputError
from eenet_jax.networks import build
from eenet_jax.types import PyTree

torch = pytest.importorskip("torch")

SOURCE = Path(__file__).parents[2] / "experiments" / "benchmarks" / "torch_networks.py"
RESNETS = {
    "basic": {"block": "basic", "stage_blocks": (2, 1, 1), "exit_after": (1, 2), "width": 8},
    "bottleneck": {"block": "bottleneck", "stage_blocks": (1, 2), "exit_after": (2,), "width": 8},
}
BERT = {
    "layers": 3, "width": 16, "heads": 2, "mlp_width": 24, "vocab_size": 40,
    "max_positions": 12, "exit_after": (1, 2), "num_classes": 3,
}  # fmt: skip


def _load():
    specification = importlib.util.spec_from_file_location("torch_networks", SOURCE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


twins = _load()


def _drawn(network, seed: int = 0) -> PyTree:
    """Variables of which none is 0 or 1 throughout, statistics and biases included."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if kind == "kernel" else 4
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map_with_path(draw, shapes)


def _images(network, batch: int = 6) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, *network.input_shape)).astype(np.float32)


def _texts(length: int = 10) -> PyTree:
    """Padded to several lengths, with ids beyond the vocabulary in the padding, types given."""
    rng = np.random.default_rng(2)
    mask = (np.arange(length) < np.array([10, 7, 1, 5, 0])[:, None]).astype(np.int32)
    ids = np.where(mask, rng.integers(0, 40, mask.shape), 99).astype(np.int32)
    types = rng.integers(0, 2, mask.shape).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("settings", RESNETS.values(), ids=RESNETS)
def test_resnets_give_the_same_logits(settings, channels_last):
    network = build("resnet", input_shape=(9, 8, 3), num_classes=5, **settings)
    variables = _drawn(network)
    twin = twins.torch_network(network, variables, channels_last=channels_last)
    assert twin.num_exits == network.num_exits
    assert twins.largest_difference(network, variables, twin, _images(network)) < 1e-5


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_bert_gives_the_same_logits(pooling):
    network = build("bert", pooling=pooling, **BERT)
    variables = _drawn(network)
    twin = twins.torch_network(network, variables)
    assert twins.largest_difference(network, variables, twin, _texts()) < 1e-5
    without_types = {k: v for k, v in _texts().items() if k != "token_type_ids"}
    assert twins.largest_difference(network, variables, twin, without_types) < 1e-5


def test_other_weights_are_noticed():
    network = build("bert", **BERT)
    twin = twins.torch_network(network, _drawn(network))
    with pytest.raises(RuntimeError, match="the twin of bert is off"):
        twins.largest_difference(network, _drawn(network, seed=1), twin, _texts())


def test_families_without_a_twin_are_refused():
    network = build("cnn")
    with pytest.raises(InputError, match="has no PyTorch twin"):
        twins.torch_network(network, {})


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("resnet", [0, 2, 1, 2, 0, 1]),
        ("resnet", [0] * 6),
        ("resnet", [2] * 6),
        ("resnet", [1, 0, 1, 1, 0, 0]),
        ("bert", [1, 0, 2, 1, 2]),
    ],
    ids=str,
)
def test_survivors_run_alone_get_the_logits_of_the_full_pass(family, wanted):
    if family == "bert":
        network, x = build("bert", **BERT), _texts()
    else:
        network = build("resnet", input_shape=(8, 8, 3), num_classes=5, **RESNETS["basic"])
        x = _images(network)
    twin, given = twins.torch_network(network, _drawn(network)), twins.torch_input(x)
    exits_wanted, seen = torch.tensor(wanted), []

    def decide(k, probs):
        with_all = torch.stack(logits).softmax(-1)[: k + 1, rows[-1]]
        torch.testing.assert_close(probs, with_all)
        seen.append(k)
        leaves = exits_wanted[rows[-1]] == k
        rows.append(rows[-1][~leaves])
        return leaves

    with torch.inference_mode():
        logits, rows = twin.full(given), [torch.arange(len(wanted))]
        answers, exits = twins.compacted(twin, decide, given)
        expected = torch.stack(logits)[exits_wanted, torch.arange(len(wanted))]
    assert exits.tolist() == wanted
    assert seen == list(range(min(max(wanted) + 1, twin.num_exits - 1)))
    torch.testing.assert_close(answers, expected)
