"""Stages and heads run by hand are the network; statistics move in training alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eenet_jax import networks
from eenet_jax.errors import InputError
from eenet_jax.networks.contract import MultiExitNetwork

SIDE = 8
RESNET = {
    "stage_blocks": (1, 1, 1),
    "exit_after": (1, 2),
    "width": 4,
    "input_shape": (SIDE, SIDE, 3),
}
SETTINGS = {
    "cnn": ("cnn", {"widths": (4, 6, 8), "depths": (1, 1, 1), "input_shape": (SIDE, SIDE, 3)}),
    "basic": ("resnet", {"block": "basic", **RESNET}),
    "bottleneck": ("resnet", {"block": "bottleneck", **RESNET}),
}


@functools.cache
def _made(kind: str):
    family, settings = SETTINGS[kind]
    network = networks.build(family, num_classes=5, **settings)
    return network, _moved(network.init(jax.random.key(0)))


def _moved(variables):
    """With statistics that are neither zeros nor ones, as after training."""
    draw = np.random.default_rng(1)
    moved = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * leaf + 0.3 * draw.random(leaf.shape), jnp.float32),
        variables["batch_stats"],
    )
    return {"params": variables["params"], "batch_stats": moved}


def _images(batch: int = 4):
    draw = np.random.default_rng(2)
    return jnp.asarray(draw.standard_normal((batch, SIDE, SIDE, 3)), jnp.float32)


def _by_hand(network, variables, x, train=False, key=None, wrap=lambda f: f):
    """Logits and statistics from one call a stage and one a head."""
    carry, logits, statistics = x, [], {}
    for k in range(network.num_exits):
        keys = [None, None] if key is None else [jax.random.fold_in(key, 2 * k + i) for i in (0, 1)]
        stage = wrap(lambda v, c, k=k, own=keys[0]: network.stage(k, v, c, train, own))
        head = wrap(lambda v, c, k=k, own=keys[1]: network.head(k, v, c, train, own))
        carry, statistics[f"stage_{k}"] = stage(variables, carry)
        out, statistics[f"head_{k}"] = head(variables, carry)
        logits.append(out)
    return jnp.stack(logits), {name: value for name, value in statistics.items() if value}


def _assert_trees_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", SETTINGS)
def test_staged_equals_full(kind):
    network, variables = _made(kind)
    full = jax.jit(network.apply)(variables, _images())
    staged, statistics = _by_hand(network, variables, _images(), wrap=jax.jit)
    assert full.shape == (3, 4, 5)
    np.testing.assert_allclose(staged, full, rtol=1e-5, atol=1e-6)
    _assert_trees_equal(statistics, variables["batch_stats"])
    # Exits and images say different things, so that equality means something.
    assert np.abs(np.diff(full, axis=0)).max() > 1e-2
    assert np.abs(np.diff(full, axis=1)).max() > 1e-3


def test_staged_equals_full_bit_by_bit_outside_jit():
    network, variables = _made("cnn")
    full = network.apply(variables, _images())
    staged, statistics = _by_hand(network, variables, _images())
    np.testing.assert_array_equal(staged, full)
    _assert_trees_equal(statistics, variables["batch_stats"])
    jitted = jax.jit(network.apply)(variables, _images())
    np.testing.assert_allclose(jitted, full, rtol=1e-5, atol=1e-6)


def test_staged_equals_full_in_training():
    network, variables = _made("basic")
    key = jax.random.key(3)
    full = jax.jit(network.apply_train)(variables, _images(), key)
    staged = jax.jit(lambda v, x: _by_hand(network, v, x, True, key))(variables, _images())
    np.testing.assert_allclose(staged[0], full[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(staged[1]), jax.tree.leaves(full[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["cnn", "basic"])
def test_training_moves_statistics_a_tenth_of_the_way_to_the_batch(kind):
    network, variables = _made(kind)
    images = _images()
    layer, norm = {"cnn": ("conv0", "norm0"), "basic": ("conv1", "bn1")}[kind]
    _, updated = jax.jit(network.apply_train)(variables, images, jax.random.key(0))
    kernel = variables["params"]["stage_0"][layer]["conv"]["kernel"]
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=layout)
    old = variables["batch_stats"]["stage_0"][norm]["norm"]
    new = updated["stage_0"][norm]["norm"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * y.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * y.var((0, 1, 2)), atol=1e-5)
    assert jax.tree.structure(updated) == jax.tree.structure(dict(variables["batch_stats"]))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), updated, dict(variables["batch_stats"]))
    assert all(jax.tree.leaves(moved))


def test_training_normalises_by_the_batch_and_evaluation_by_the_statistics():
    network, variables = _made("cnn")
    bent = {
        "params": variables["params"],
        "batch_stats": jax.tree.map(lambda leaf: leaf + 1.0, variables["batch_stats"]),
    }
    train = jax.jit(network.apply_train)
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        train(variables, _images(), key)[0], train(bent, _images(), key)[0]
    )
    difference = network.apply(variables, _images()) - network.apply(bent, _images())
    assert np.abs(difference).max() > 1e-2


def test_init_follows_its_key():
    network, _ = _made("cnn")
    a, b = (network.init(jax.random.key(seed)) for seed in (0, 1))
    _assert_trees_equal(_moved(a), _made("cnn")[1])
    for k in range(3):
        one, other = (v["params"][f"stage_{k}"]["conv0"]["conv"]["kernel"] for v in (a, b))
        assert np.abs(one - other).max() > 0.1
    assert a["params"].keys() == {f"{part}_{k}" for part in ("stage", "head") for k in range(3)}


def test_init_can_be_traced():
    network, _ = _made("cnn")
    key = jax.random.key(0)
    made = jax.tree.map(lambda leaf: leaf.shape, _made("cnn")[1])
    for abstract in (jax.eval_shape(network.init, key), jax.eval_shape(lambda: network.init(key))):
        assert jax.tree.map(lambda leaf: leaf.shape, abstract) == made


def test_a_network_needs_two_stages_and_a_head_each():
    network, _ = _made("cnn")
    for stages, heads in ((network.stages, network.heads[:2]), (network.stages[:1],) * 2):
        with pytest.raises(InputError, match="as many heads as stages"):
            MultiExitNetwork(
                family="cnn", settings={}, stages=stages, heads=heads, input_shape=(1,)
            )
