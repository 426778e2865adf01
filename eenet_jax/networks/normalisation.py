"""Batch normalisation, whose gradients take two sums and one pass over the feature maps.

Differentiated step by step it takes twice as many, and a map of differences is kept for it.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from eenet_jax.networks import whole_batch

EPSILON = 1e-5
"""Added to a variance; PyTorch's default."""

Maps = Float[Array, "*batch channels"]
Channels = Float[Array, " channels"]


def moments(x: Maps) -> tuple[Channels, Channels]:
    """Mean and variance of every channel over all devices' samples, in float32 at least.

    Args:
      x: Feature maps.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes, devices = tuple(range(x.ndim - 1)), whole_batch.devices()
    means = whole_batch.added_up(x.mean(axes), (x * x).mean(axes))
    mean, square = (each / devices for each in means)
    return mean, jnp.maximum(square - mean * mean, 0)


def normalise(x: Maps, mean: Channels, variance: Channels, scale: Channels, bias: Channels) -> Maps:
    """Feature maps with these moments, scaled and moved, in their own dtype.

    Args:
      x: Feature maps.
      mean: To be 0.
      variance: To be 1.
      scale: Then the deviation.
      bias: Then the mean.
    """
    return scaled(x, *factor_and_constant(mean, variance, scale, bias))


def factor_and_constant(
    mean: Channels, variance: Channels, scale: Channels, bias: Channels
) -> tuple[Channels, Channels]:
    """What `normalise` multiplies every channel by, and adds to it."""
    factor = lax.rsqrt(variance + EPSILON) * scale
    return factor, bias - mean * factor


def scaled(x: Maps, factor: Channels, constant: Channels) -> Maps:
    """Feature maps, channel by channel, times a factor plus a constant, in their own dtype."""
    factor, constant = _along(x, factor, constant)
    return (x * factor + constant).astype(x.dtype)


@jax.custom_vjp
def batch_normalise(x: Maps, scale: Channels, bias: Channels) -> tuple[Maps, Channels, Channels]:
    """Feature maps normalised by their own moments, and those, through which no gradient goes.

    Where a device has a part of a batch (`whole_batch.cut_over`) they are those of all of it, and
    the gradients of `scale` and `bias` those of the part, to be added up as all weights' are.

    Args:
      x: Feature maps.
      scale: Of every channel, afterwards.
      bias: Likewise.
    """
    mean, variance = moments(x)
    return normalise(x, mean, variance, scale, bias), mean, variance


def _forward(x: Array, scale: Array, bias: Array):
    normalised, mean, variance = batch_normalise(x, scale, bias)
    return (normalised, mean, variance), (x, scale, bias, mean, variance)


def _backward(kept: tuple[Array, ...], gradients: tuple[Array, Array, Array]):
    """Source: Ioffe and Szegedy 2015, "Batch Normalization", section 3."""
    x, scale, bias, mean, variance = kept
    axes = tuple(range(x.ndim - 1))
    count = whole_batch.devices() * (x.size // x.shape[-1])
    gradient = gradients[0].astype(mean.dtype)
    inverse = lax.rsqrt(variance + EPSILON)
    of_bias = gradient.sum(axes)
    of_scale = (gradient * (x - _along(x, mean)[0])).sum(axes) * inverse
    # inverse · scale · (gradient - its mean - normalised · the mean of gradient · normalised), as
    # a multiple of each map and a constant: what is divided, is divided once a channel.
    factor = inverse * scale
    of_every_scale, of_every_bias = whole_batch.added_up(of_scale, of_bias)
    of_x = -factor * inverse * of_every_scale / count
    constant = -factor * of_every_bias / count - of_x * mean
    factor, of_x, constant = _along(x, factor, of_x, constant)
    return (
        (factor * gradient + of_x * x + constant).astype(x.dtype),
        of_scale.astype(scale.dtype),
        of_bias.astype(bias.dtype),
    )


batch_normalise.defvjp(_forward, _backward)


def _along(x: Array, *of_channels: Array) -> list[Array]:
    """With as many axes as x."""
    return [each.reshape((1,) * (x.ndim - 1) + each.shape) for each in of_channels]
