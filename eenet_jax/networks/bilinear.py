"""Bilinear resizing of feature maps as PyTorch computes it, by one matrix product an axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


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
      Float32; every row sums to 1 and has at most two entries.
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
    return matrix.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("size", "align_corners"))
def resize_bilinear(
    x: Float[Array, "batch height width channels"], size: tuple[int, int], align_corners: bool
) -> Float[Array, "batch _height _width channels"]:
    """Resize without anti-aliasing, as PyTorch's `interpolate(mode="bilinear")`.

    Args:
      x: Feature maps.
      size: (height, width) wanted, in pixels.
      align_corners: As PyTorch's argument of that name.

    Returns:
      The maps at that size.
    """
    if x.shape[1:3] == size:
        return x
    rows = interpolation_matrix(x.shape[1], size[0], align_corners)
    columns = interpolation_matrix(x.shape[2], size[1], align_corners)
    # Columns last: the product that makes the most pixels then runs over whole rows.
    x = jnp.einsum("oh,bhwc->bowc", rows.astype(x.dtype), x)
    return jnp.einsum("ow,bhwc->bhoc", columns.astype(x.dtype), x)
