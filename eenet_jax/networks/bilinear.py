"""Bilinear resizing of feature maps as PyTorch computes it, an axis at a time.

Every pixel wanted is a weighted sum of two; the gradient is a weighted sum too, of as many pixels
as were made of one. Both are gathered: on a CPU two to four times as fast as products with the
interpolation matrix, whose gradient, made by JAX from a gather, would be a scatter, and slow.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Maps = Float[Array, "batch _height _width channels"]


def resize_bilinear(x: Maps, size: Sequence[int], align_corners: bool) -> Maps:
    """Resize without anti-aliasing, as PyTorch's `interpolate(mode="bilinear")`.

    Args:
      x: Feature maps [batch, height, width, channels].
      size: (height, width) wanted, in pixels.
      align_corners: As PyTorch's argument of that name.

    Returns:
      The maps at that size.
    """
    for axis, length in zip((1, 2), size, strict=True):
        if x.shape[axis] != length:
            x = _resize_axis(x, axis, length, align_corners)
    return x


@functools.cache
def interpolation_matrix(
    inputs: int, outputs: int, align_corners: bool
) -> Float[np.ndarray, "outputs inputs"]:
    """The linear map from `inputs` samples along an axis to `outputs`.

    Args:
      inputs: Pixels given.
      outputs: Pixels wanted.
      align_corners: Whether the first and the last pixels' centres stay where they are;
        otherwise the borders of the image do.

    Returns:
      Every row sums to 1 and has at most two entries.
    """
    wanted = np.arange(outputs)
    if align_corners:
        at = wanted * ((inputs - 1) / max(outputs - 1, 1))
    else:
        at = np.clip((wanted + 0.5) * (inputs / outputs) - 0.5, 0, inputs - 1)
    low = np.minimum(np.floor(at).astype(int), inputs - 1)
    high = np.minimum(low + 1, inputs - 1)
    matrix = np.zeros((outputs, inputs))
    matrix[wanted, low] += 1 - (at - low)
    matrix[wanted, high] += at - low
    return matrix


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _resize_axis(x: Maps, axis: int, length: int, align_corners: bool) -> Maps:
    return _gather_sum(x, interpolation_matrix(x.shape[axis], length, align_corners), axis)


def _resize_axis_forward(x: Maps, axis: int, length: int, align_corners: bool):
    # Of x its length alone is needed, which an array without channels tells.
    return _resize_axis(x, axis, length, align_corners), x[..., :0]


def _resize_axis_backward(axis: int, length: int, align_corners: bool, empty, gradient: Maps):
    matrix = interpolation_matrix(empty.shape[axis], length, align_corners)
    return (_gather_sum(gradient, matrix.T, axis),)


_resize_axis.defvjp(_resize_axis_forward, _resize_axis_backward)


def _gather_sum(x: Maps, matrix: np.ndarray, axis: int) -> Maps:
    """The product of a sparse matrix with an axis of x, one gather for each entry of its rows."""
    entries = max(1, np.count_nonzero(matrix, axis=1).max())
    places = np.argsort(matrix == 0, axis=1, kind="stable")[:, :entries]
    weights = np.take_along_axis(matrix, places, 1)
    places, weights = places.T, _along(weights.T.astype(x.dtype), axis, x.ndim)
    terms = [
        jnp.take(x, place, axis, mode="clip") * weight
        for place, weight in zip(places, weights, strict=True)
    ]
    return functools.reduce(operator.add, terms)


def _along(weights: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Rows of weights, each shaped to multiply an array of that rank along `axis`."""
    shape = [1] * rank
    shape[axis] = weights.shape[1]
    return weights.reshape(-1, *shape)
