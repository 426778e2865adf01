"""Batch normalisation is Flax's, and its gradients are those made step by step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from eenet_jax import networks
from eenet_jax.networks import whole_batch
from eenet_jax.networks.layers import BatchNorm
from eenet_jax.networks.normalisation import batch_normalise, moments
from eenet_jax.training.sharding import AXES, make_layout

DRAW = np.random.default_rng(0)


def arrays(shape, dtype=np.float32):
    channels = shape[-1]
    x = 3 + DRAW.normal(size=shape) * DRAW.uniform(0.5, 2, channels)
    scale, bias = DRAW.normal(size=channels), DRAW.normal(size=channels)
    return tuple(jnp.asarray(each.astype(dtype)) for each in (x, scale, bias))


def test_it_is_flax_s_normalisation_with_its_names_and_statistics():
    x, scale, bias = arrays((6, 5, 4, 3))
    ours, theirs = BatchNorm(), nn.BatchNorm(momentum=0.9, epsilon=1e-5)
    params = {"scale": scale, "bias": bias}
    stats = {"mean": jnp.asarray([1.0, 2.0, 3.0]), "var": jnp.asarray([0.5, 1.5, 2.5])}
    variables = {"params": {"norm": params}, "batch_stats": {"norm": stats}}
    flat = {"params": params, "batch_stats": stats}
    begun = ours.init(jax.random.key(0), x, True)
    assert jax.tree.structure(begun) == jax.tree.structure(variables)
    np.testing.assert_array_equal(begun["batch_stats"]["norm"]["var"], 1)
    found, after = ours.apply(variables, x, True, mutable="batch_stats")
    wanted, then = theirs.apply(flat, x, use_running_average=False, mutable="batch_stats")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for name in ("mean", "var"):
        kept = after["batch_stats"]["norm"][name]
        np.testing.assert_allclose(kept, then["batch_stats"][name], rtol=1e-6)
    found = ours.apply(variables, x, False)
    wanted = theirs.apply(flat, x, use_running_average=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (40, 7)])
def test_gradients_are_those_made_step_by_step(shape):
    def step_by_step(x, scale, bias):
        mean, variance = moments(x)
        (mean, variance, scale, bias) = (
            each[(None,) * (x.ndim - 1)] for each in (mean, variance, scale, bias)
        )
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias

    given = arrays(shape)
    gradient = jnp.asarray(DRAW.normal(size=shape).astype(np.float32))
    wanted, back = jax.vjp(step_by_step, *given)
    found, own = jax.vjp(lambda *given: batch_normalise(*given)[0], *given)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(own(gradient), back(gradient), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_moments_of_half_precision_are_float32():
    x, scale, bias = arrays((512, 4), np.float32)
    half = x.astype(jnp.bfloat16)
    normalised, mean, variance = batch_normalise(half, scale, bias)
    assert normalised.dtype == jnp.bfloat16
    assert mean.dtype == variance.dtype == jnp.float32
    wide = np.asarray(half, np.float32)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, wide.var(0), rtol=1e-4)


def test_of_a_part_of_a_batch_moments_and_gradients_are_those_of_all_of_it():
    x, scale, bias = arrays((8, 3, 4, 5))
    (weighing,) = arrays((8, 3, 4, 5))[:1]
    layout = make_layout()
    samples, whole = layout.batch.spec, PartitionSpec()

    def loss(x, scale, bias, weighing):
        normalised, *seen = batch_normalise(x, scale, bias)
        return (normalised * weighing).sum(), seen

    def all_of(*given):
        gradients, seen = jax.grad(loss, (0, 1, 2), has_aux=True)(*given)
        return *gradients, *seen

    def on_own_samples(*given):
        with whole_batch.cut_over(AXES):
            of_x, of_scale, of_bias, *seen = all_of(*given)
        # Of the weights, each device's own gradients: whoever uses them adds them up.
        return of_x, *(jax.lax.psum(each, AXES) for each in (of_scale, of_bias)), *seen

    apart = jax.shard_map(
        on_own_samples,
        mesh=layout.mesh,
        in_specs=(samples, whole, whole, samples),
        out_specs=(samples, *(whole,) * 4),
        check_vma=False,
    )
    found = jax.jit(apart)(x, scale, bias, weighing)
    expected = all_of(x, scale, bias, weighing)
    for each, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=1e-4)


def test_folded_batchnorms_give_the_same_numbers_with_fewer_arrays():
    network = networks.build(
        "resnet", stage_blocks=(1, 1), exit_after=(1,), width=4, input_shape=(8, 8, 3)
    )
    draw = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: draw.uniform(0.5, 1.5, leaf.shape).astype(np.float32),
        network.init(jax.random.key(0)),
    )
    images = jnp.asarray(draw.normal(size=(2, 8, 8, 3)), jnp.float32)
    prepared = network.prepared(variables)
    batchnorms = len(jax.tree.leaves(variables["batch_stats"])) // 2
    # Of mean, variance, scale and bias two are left.
    assert len(jax.tree.leaves(prepared)) == len(jax.tree.leaves(variables)) - 2 * batchnorms
    kernel = prepared["params"]["stage_0"]["conv1"]["conv"]["kernel"]
    assert kernel is variables["params"]["stage_0"]["conv1"]["conv"]["kernel"]
    wanted = network.apply(variables, images)
    np.testing.assert_allclose(network.apply(prepared, images), wanted, rtol=1e-5)
    np.testing.assert_array_equal(
        network.apply(network.prepared(prepared), images), network.apply(prepared, images)
    )


def test_a_network_without_batchnorms_is_prepared_as_it_is():
    network = networks.build("bert", layers=2, width=8, heads=2, mlp_width=8, exit_after=(1,))
    variables = jax.eval_shape(network.init, jax.random.key(0))
    assert network.prepared(variables) == variables
