"""Sums over a whole batch, of which a device may have a part in hand."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

_AXES: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("axes", default=())


@contextlib.contextmanager
def cut_over(axes: Sequence[str]) -> Iterator[None]:
    """What is traced inside has a device's part of a batch in hand. Elsewhere it is all of it.

    Args:
      axes: Of the `shard_map` around, by which the first axis of every batch is cut, in order.
        It has to be one with `check_vma=False`: gradients of weights come out as the device's own.
    """
    token = _AXES.set(tuple(axes))
    try:
        yield
    finally:
        _AXES.reset(token)


def devices() -> int:
    """How many have a part of the batch."""
    axes = _AXES.get()
    return lax.axis_size(axes) if axes else 1


def first_sample(samples: int) -> Array:
    """The place in the whole batch of the first of those in hand.

    Args:
      samples: In hand, as many as on every other device.
    """
    axes = _AXES.get()
    return samples * lax.axis_index(axes) if axes else jnp.zeros((), jnp.int32)


def added_up(*parts: Array) -> tuple[Array, ...]:
    """The sums over all devices of arrays of one shape, sent together.

    Args:
      parts: Of this device.
    """
    axes = _AXES.get()
    return tuple(lax.psum(jnp.stack(parts), axes)) if axes else parts
