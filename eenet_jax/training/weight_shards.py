"""Weights that devices share: gathered to be used, their gradients added up and cut again.

All of it is for functions inside `jax.shard_map` over the axes of `sharding.AXES`. There it is this
file, not a compiler's heuristics, that says which weights and gradients are sent.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from eenet_jax.training.sharding import AXES
from eenet_jax.types import PyTree

_LANES = 128
_TILE = 16 * _LANES
"""Elements of 16 bits in a tile of a TPU's memory, or of 32 bits in two. Where parts don't fill
tiles, its compiler adds up whole arrays on every device instead and sends twice as much; where they
fill an odd number of 32 bits' tiles, it sends the last one by itself."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True)
class Shard:
    """What a device has of an array of weights.

    Attributes:
      values: Its part, or all.
      axis: That is cut over the mesh's `fsdp`; None where every device has all.
    """

    values: jax.Array
    axis: int | None


def padded(elements: int) -> int:
    """How many elements of each device's part are sent, the parts of a stage or head together.

    Args:
      elements: That the part has.
    """
    return -(-elements // _TILE) * _TILE


def as_shards(weights: PyTree, specs: PyTree) -> PyTree:
    """Weights with what has to be known to gather them.

    Args:
      weights: Arrays as they are inside `shard_map`.
      specs: How each was cut, from `Layout.specs`.
    """

    def shard(values: jax.Array, spec: PartitionSpec) -> Shard:
        cut = [axis for axis, name in enumerate(spec) if name is not None]
        return Shard(values, cut[0] if cut else None)

    return jax.tree.map(shard, weights, specs)


def values_of(shards: PyTree) -> PyTree:
    """The arrays alone."""
    return jax.tree.map(lambda shard: shard.values, shards, is_leaf=_is_shard)


def gathered(shards: PyTree, whole_later: bool = False) -> PyTree:
    """Whole weights. Their gradients come back added up over all devices, and cut like them.

    Args:
      shards: From `as_shards`; of one dtype, as what is added up is sent together.
      whole_later: Leaves the gradients of weights that are whole to `whole_added_up`, which can
        wait for the last micro-batch.
    """
    leaves, tree = jax.tree.flatten(shards, is_leaf=_is_shard)
    axes = tuple(leaf.axis for leaf in leaves)
    return tree.unflatten(_gathered(axes, whole_later, [leaf.values for leaf in leaves]))


def whole_added_up(gradients: PyTree) -> PyTree:
    """Gradients of which those of whole weights are a device's own, added up over all devices.

    Args:
      gradients: `Shard`s.
    """
    leaves, tree = jax.tree.flatten(gradients, is_leaf=_is_shard)
    whole = iter(_added_up([leaf.values for leaf in leaves if leaf.axis is None]))
    return tree.unflatten(
        leaf if leaf.axis is not None else Shard(next(whole), None) for leaf in leaves
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gathered(
    axes: tuple[int | None, ...], whole_later: bool, values: list[jax.Array]
) -> list[jax.Array]:
    del whole_later
    return [
        each if axis is None else lax.all_gather(each, "fsdp", axis=axis, tiled=True)
        for each, axis in zip(values, axes, strict=True)
    ]


def _forward(axes: tuple[int | None, ...], whole_later: bool, values: list[jax.Array]):
    return _gathered(axes, whole_later, values), None


def _backward(axes: tuple[int | None, ...], whole_later: bool, _: None, gradients: list[jax.Array]):
    pairs = list(zip(gradients, axes, strict=True))
    whole_ones = [each for each, axis in pairs if axis is None]
    whole = iter(whole_ones if whole_later else _added_up(whole_ones))
    cut = iter(_added_up_and_cut([(each, axis) for each, axis in pairs if axis is not None]))
    return ([next(whole if axis is None else cut) for axis in axes],)


_gathered.defvjp(_forward, _backward)


def _added_up(gradients: list[jax.Array]) -> Sequence[jax.Array]:
    return lax.psum(gradients, AXES) if gradients else []


def _added_up_and_cut(gradients: list[tuple[jax.Array, int]]) -> list[jax.Array]:
    """Each device's parts of the sums: over its group first, and of the parts over all groups."""
    if not gradients:
        return []
    fsdp = lax.axis_size("fsdp")
    axis_first = [jnp.moveaxis(each, axis, 0) for each, axis in gradients]
    rows = [each.reshape(fsdp, -1) for each in axis_first]
    bucket = jnp.concatenate(rows, axis=1)
    width = padded(bucket.shape[1])
    bucket = jnp.pad(bucket, ((0, 0), (0, width - bucket.shape[1])))
    own = lax.psum_scatter(bucket.reshape(fsdp, -1, _LANES), "fsdp")
    # Else the TPU compiler cuts parts of a large row out first, and adds up whole arrays for it.
    own = lax.optimization_barrier(lax.psum(own, "data").reshape(-1))
    found, begin = [], 0
    for row, each, (_, axis) in zip(rows, axis_first, gradients, strict=True):
        part = own[begin : begin + row.shape[1]]
        begin += row.shape[1]
        part = part.reshape(each.shape[0] // fsdp, *each.shape[1:])
        found.append(jnp.moveaxis(part, 0, axis))
    return found


def _is_shard(leaf: Any) -> bool:
    return isinstance(leaf, Shard)
