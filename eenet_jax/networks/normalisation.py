"""Batch normalisation; on a CPU its gradients are made of fewer passes over the feature maps.

XLA differentiates it step by step, and writes a map of differences in between. In closed form they
take two sums and one pass (Ioffe and Szegedy 2015, "Batch Normalization", section 3). Elsewhere,
and where a batch is cut over several devices, they are XLA's.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

EPSILON = 1e-5
"""Added to a variance; PyTorch's default."""

Maps = Float[Array, "*batch channels"]
Channels = Float[Array, " channels"]


def moments(x: Maps) -> tuple[Channels, Channels]:
    """Mean and variance of every channel, in float32 at least.

    Args:
      x: Feature maps.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.maximum((x * x).mean(axes) - mean * mean, 0)


def normalise(x: Maps, mean: Channels, variance: Channels, scale: Channels, bias: Channels) -> Maps:
    """Feature maps with these moments, scaled and moved, in their own dtype.

    Args:
      x: Feature maps.
      mean: To be 0.
      variance: To be 1.
      scale: Then the deviation.
      bias: Then the mean.
    """
    factor = lax.rsqrt(variance + EPSILON) * scale
    mean, factor, bias = _along(x, mean, factor, bias)
    return ((x - mean) * factor + bias).astype(x.dtype)


def _along(x: Array, *of_channels: Array) -> list[Array]:
    """With as many axes as x."""
    return [each.reshape((1,) * (x.ndim - 1) + each.shape) for each in of_channels]


@jax.custom_vjp
def batch_normalise(x: Maps, scale: Channels, bias: Channels) -> tuple[Maps, Channels, Channels]:
    """Feature maps normalised by their own moments, and those, which have no gradient.

    Args:
      x: Feature maps.
      scale: Of every channel, afterwards.
      bias: Likewise.
    """
    mean, variance = moments(x)
    # A multiple and a constant: what is subtracted first would be written down for the gradients.
    factor = lax.rsqrt(variance + EPSILON) * scale
    multiple, constant = _along(x, factor, bias - mean * factor)
    return (x * multiple + constant).astype(x.dtype), mean, variance


def _forward(x: Array, scale: Array, bias: Array):
    normalised, mean, variance = batch_normalise(x, scale, bias)
    return (normalised, mean, variance), (x, scale, bias, mean, variance)


def _backward(kept: tuple[Array, ...], gradients: tuple[Array, Array, Array]):
    # A batch cut over several devices is XLA's to sum.
    if jax.device_count() > 1:
        return plain_gradients(*kept, gradients[0])
    return lax.platform_dependent(
        *kept, gradients[0], cpu=closed_gradients, default=plain_gradients
    )


batch_normalise.defvjp(_forward, _backward)


def plain_gradients(x: Array, scale: Array, bias: Array, mean, variance, gradient: Array):
    """Of feature maps, scale and bias, step by step.

    Args:
      x: Feature maps.
      scale: As they were normalised.
      bias: Likewise.
      mean: Of x.
      variance: Of x.
      gradient: Of what was normalised.
    """
    del mean, variance

    def normalised(x: Array, scale: Array, bias: Array) -> Array:
        return normalise(x, *moments(x), scale, bias)

    return jax.vjp(normalised, x, scale, bias)[1](gradient)


def closed_gradients(x: Array, scale: Array, bias: Array, mean, variance, gradient: Array):
    """The same in closed form; arguments are those of `plain_gradients`."""
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    wide = gradient.astype(mean.dtype)
    inverse = lax.rsqrt(variance + EPSILON)
    of_bias = wide.sum(axes)
    of_scale = (wide * (x - _along(x, mean)[0])).sum(axes) * inverse
    # inverse · scale · (gradient - mean of it - normalised · mean of gradient · normalised) as
    # one multiple of each map and a constant, for what is divided here is divided once a channel.
    factor = inverse * scale
    of_x = -factor * inverse * of_scale / count
    constant = -factor * of_bias / count - of_x * mean
    factor, of_x, constant = _along(x, factor, of_x, constant)
    return (
        (factor * wide + of_x * x + constant).astype(x.dtype),
        of_scale.astype(scale.dtype),
        of_bias.astype(bias.dtype),
    )
