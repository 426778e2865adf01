"""The convolution of every backbone here; a CPU gets there in its own way.

There XLA is led to the kernel that uses all cores. Its own gradients transpose whole batches of
feature maps: that of the kernel is made a sum over pieces of the batch that a core's cache holds, a
matrix product each, and that of the input a plain convolution of what was spread out. Elsewhere
all of it is XLA's.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from eenet_jax.networks.materialise import behind_a_loop
from eenet_jax.networks.one_cpu import on_one_cpu

Maps = Float[Array, "batch height width channels"]
Features = Float[Array, "batch _height _width features"]
Kernel = Float[Array, "size size channels features"]

PIECE_BYTES = 2**21
"""Of what a piece of the batch is spread to. A half of it takes as long; twice as much does where a
core's second cache holds more than a megabyte, and a fifth longer where it does not."""

FEW_CHANNELS = 16
"""Of input and of result: with no more, XLA uses its other kernel by itself."""

FEW_SAMPLES = 4
"""With fewer, one core is as fast as two for a convolution that halves its input."""

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Maps, kernel: Kernel, stride: int) -> Features:
    """A convolution padded by half the kernel's size, without a bias.

    Args:
      x: Feature maps.
      kernel: Of an odd size.
      stride: In pixels, down and across.
    """
    plain = functools.partial(_plain, stride)
    return on_one_cpu(x, kernel, cpu=functools.partial(_on_all_cores, stride), default=plain)


def _plain(stride: int, x: Array, kernel: Array, rows_more: int = 0) -> Array:
    if kernel.shape[0] == 1:
        # A matrix product, whose gradient is a third as long on a CPU.
        return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0])
    half = kernel.shape[0] // 2
    padding = ((half, half + rows_more), (half, half))
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)


def _on_all_cores(stride: int, x: Array, kernel: Array) -> Array:
    """The same on a CPU.

    XLA has two kernels there. The one that it prefers uses a single core in jaxlib 0.10; it does
    not take a convolution whose result has more rows than its input, one of an input with rows in
    between, nor one of few channels.
    """
    size, *channels = kernel.shape[1:]
    if size == 1 or max(channels) <= FEW_CHANNELS:
        return _plain(stride, x, kernel)
    if stride == 1:
        return _plain(stride, x, kernel, rows_more=1)[:, :-1]
    samples = x.shape[0]
    # How many is not known where a program is exported for any batch.
    if isinstance(samples, int) and samples < FEW_SAMPLES:
        return _plain(stride, x, kernel)
    # Twice the distances in an input of twice the rows, of which every other one is seen.
    half = size // 2
    return lax.conv_general_dilated(
        x, kernel, (2 * stride, stride), ((2 * half, 2 * half), (half, half)),
        lhs_dilation=(2, 1), rhs_dilation=(2, 1), dimension_numbers=_LAYOUT,
    )  # fmt: skip


def _forward(x: Array, kernel: Array, stride: int):
    return convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    plain = functools.partial(_plain_gradients, stride)
    in_pieces = functools.partial(_gradients_on_a_cpu, stride)
    return on_one_cpu(*kept, gradient, cpu=in_pieces, default=plain)


convolve.defvjp(_forward, _backward)


def _plain_gradients(stride: int, x: Array, kernel: Array, gradient: Array):
    return jax.vjp(functools.partial(_plain, stride), x, kernel)[1](gradient)


def _gradients_on_a_cpu(stride: int, x: Array, kernel: Array, gradient: Array):
    return (
        input_gradient(x, kernel, gradient, stride),
        kernel_gradient(x, kernel, gradient, stride),
    )


def input_gradient(x: Array, kernel: Array, gradient: Array, stride: int) -> Array:
    """The gradient of `convolve`'s input.

    Args:
      x: What was convolved.
      kernel: By what.
      gradient: Of the result.
      stride: Of the convolution.
    """
    size, sides = kernel.shape[0], x.shape[1:3]
    if size == 1:
        return jax.vjp(lambda x: _plain(stride, x, kernel), x)[1](gradient)[0]
    # Spread out to the input's size, zeros between: a convolution that XLA has a fast path for.
    behind = [
        side - (stride * (out - 1) + 1)
        for side, out in zip(sides, gradient.shape[1:3], strict=True)
    ]
    none, rows, columns = (0, 0, 0), *((0, more, stride - 1) for more in behind)
    spread = lax.pad(gradient, jnp.zeros((), gradient.dtype), (none, rows, columns, none))
    return _on_all_cores(1, spread, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


def kernel_gradient(x: Array, kernel: Array, gradient: Array, stride: int) -> Array:
    """The gradient of `convolve`'s kernel, summed over pieces of the batch.

    Arguments are those of `input_gradient`.
    """
    size, channels, features = kernel.shape[0], *kernel.shape[2:]
    dtype = jnp.promote_types(gradient.dtype, jnp.float32)
    row_width = size * channels
    # The narrower of both is the one that is transposed.
    narrow = features < row_width

    def rows(x: Array, gradient: Array) -> Array:
        """[features, size · row_width], or [row_width, size · features]: by rows of the kernel."""
        height, width = gradient.shape[1:3]
        seen, coming = _rows_seen(x, size, stride, width), gradient.reshape(-1, features)
        found = []
        for row in range(size):
            here = seen[:, row : row + stride * (height - 1) + 1 : stride].reshape(-1, row_width)
            pair = (coming, here) if narrow else (here, coming)
            found.append(jnp.einsum("pi,po->io", *pair, preferred_element_type=dtype))
        return jnp.concatenate(found, axis=1)

    if size == 1:
        # A product whose transpose XLA would compute instead takes twice as long.
        total = behind_a_loop(rows(x, gradient))
    else:
        spread = gradient.dtype.itemsize * row_width * (x.shape[1] + size - 1) * gradient.shape[2]
        piece = _divisor(len(x), PIECE_BYTES // spread)

        def add(number: Array, total: Array) -> Array:
            own, coming = (
                lax.dynamic_slice_in_dim(each, number * piece, piece) for each in (x, gradient)
            )
            return total + rows(own, coming)

        shape = (features, size * row_width) if narrow else (row_width, size * features)
        total = lax.fori_loop(0, len(x) // piece, add, jnp.zeros(shape, dtype))
    total = total.T if narrow else total.reshape(row_width, size, features).swapaxes(0, 1)
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _rows_seen(x: Array, size: int, stride: int, width: int) -> Array:
    """[batch, height + size - 1, width, size · channels]: what a row of the kernel sees."""
    half = size // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    reach = stride * (width - 1) + 1
    return jnp.concatenate([padded[:, :, j : j + reach : stride] for j in range(size)], axis=-1)


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most so much; 1 at least."""
    return max(each for each in range(1, number + 1) if number % each == 0 and each <= max(1, most))
