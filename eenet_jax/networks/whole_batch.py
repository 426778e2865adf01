"""Sums over a whole batch, of which a device may have a part in hand."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def batch_axes() -> tuple[str, ...]:
    """The axes of a mesh that samples are cut over: those of the `shard_map` around, if any."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def devices() -> int:
    """How many have a part of the batch."""
    axes = batch_axes()
    return lax.axis_size(axes) if axes else 1


def first_sample(samples: int) -> Array:
    """The place in the whole batch of the first of those in hand.

    Args:
      samples: In hand, as many as on every other device.
    """
    axes = batch_axes()
    return samples * lax.axis_index(axes) if axes else jnp.zeros((), jnp.int32)


def added_up(*parts: Array) -> tuple[Array, ...]:
    """The sums over all devices of arrays of one shape, sent together.

    Args:
      parts: Of this device.
    """
    axes = batch_axes()
    return tuple(lax.psum(jnp.stack(parts), axes)) if axes else parts
