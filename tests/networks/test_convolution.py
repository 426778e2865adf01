"""Gradients in pieces are XLA's own, of every size, stride and batch; and are what a CPU uses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eenet_jax.networks import convolution
from eenet_jax.networks.convolution import convolve, input_gradient, kernel_gradient

DRAW = np.random.default_rng(0)


def reference(x, kernel, stride):
    half = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((half, half),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def arrays(batch, side, size, channels, features, dtype=np.float32):
    x = DRAW.normal(size=(batch, side, side + 1, channels)).astype(dtype)
    kernel = DRAW.normal(size=(size, size, channels, features)).astype(dtype)
    return jnp.asarray(x), jnp.asarray(kernel)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("batch", "side", "features"), [(6, 8, 2), (5, 7, 40)])
def test_values_and_gradients_are_those_of_the_plain_convolution(
    monkeypatch, size, stride, batch, side, features
):
    x, kernel = arrays(batch, side, size, 3, features)
    # Pieces of two where the batch divides, of one where it doesn't.
    width, pixels = size * size * 3, -(-side // stride) * -(-(side + 1) // stride)
    monkeypatch.setattr(convolution, "PIECE_BYTES", 2 * 4 * width * pixels)
    expected, back = jax.vjp(functools.partial(reference, stride=stride), x, kernel)
    np.testing.assert_allclose(convolve(x, kernel, stride), expected, rtol=1e-4, atol=1e-4)
    gradient = jnp.asarray(DRAW.normal(size=expected.shape), jnp.float32)
    of_input, of_kernel = back(gradient)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
    close(input_gradient(x, kernel, gradient, stride), of_input)
    close(kernel_gradient(x, kernel, gradient, stride), of_kernel)
    _, own = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
    for found, wanted in zip(own(gradient), (of_input, of_kernel), strict=True):
        close(found, wanted)


def test_one_cpu_works_in_pieces_and_several_devices_do_not(monkeypatch):
    x, kernel = arrays(4, 8, 3, 3, 20)

    def traced():
        loss = jax.grad(lambda kernel: convolve(x, kernel, 1).sum())
        return str(jax.make_jaxpr(loss)(kernel))

    whole = traced()
    assert "while" not in whole
    assert "4,9,9,20" not in whole
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.clear_caches()
    in_pieces = traced()
    assert "while" in in_pieces or "scan" in in_pieces
    # Nine rows from eight: what makes XLA use all cores.
    assert "4,9,9,20" in in_pieces
    for size, stride, side in ((3, 1, 8), (3, 2, 8), (3, 2, 7), (5, 2, 8), (1, 1, 8)):
        x, kernel = arrays(4, side, size, 3, 20)
        loss = functools.partial(lambda stride, of, *at: (of(*at, stride) ** 2).sum(), stride)
        found = jax.jit(jax.value_and_grad(functools.partial(loss, convolve), (0, 1)))(x, kernel)
        expected = jax.value_and_grad(functools.partial(loss, reference), (0, 1))(x, kernel)
        for own, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("batch", "on_all_cores"), [("b", True), ("4", True), ("3", False)])
def test_a_convolution_that_halves_uses_all_cores_where_there_are_some_samples(
    monkeypatch, batch, on_all_cores
):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.clear_caches()
    shape = jax.export.symbolic_shape(f"{batch}, 8, 9, 3")
    x, kernel = arrays(5 if batch == "b" else int(batch), 8, 3, 3, 20)
    given = [jax.ShapeDtypeStruct(each, jnp.float32) for each in (shape, kernel.shape)]
    exported = jax.export.export(jax.jit(functools.partial(convolve, stride=2)))(*given)
    assert ("lhs_dilate = [2, 1]" in exported.mlir_module()) == on_all_cores
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(exported.call(x, kernel), reference(x, kernel, 2))


def test_sums_are_float32_whatever_the_maps_are():
    x, kernel = arrays(64, 8, 3, 3, 4)
    gradient = jnp.asarray(DRAW.normal(size=(64, 8, 9, 4)), jnp.float32)
    half = [jnp.asarray(each, jnp.bfloat16) for each in (x, kernel, gradient)]
    found = kernel_gradient(*half, 1)
    assert found.dtype == jnp.bfloat16
    wide = kernel_gradient(*(each.astype(jnp.float32) for each in half), 1)
    np.testing.assert_allclose(
        np.asarray(found, np.float32), wide, rtol=2**-7, atol=2**-7 * np.abs(wide).max()
    )
