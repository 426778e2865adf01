"""Those who wait for a stage, and how they come together in a piece."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from eenet_jax.execution.decision import Reached, each_part
from eenet_jax.types import PyTree


class Standing(NamedTuple):
    """Where some samples stand, and where each is to be answered.

    Attributes:
      parts: Of `Reached`.
      places: Of their answers, [samples].
    """

    parts: tuple[PyTree, ...]
    places: Int[Array, " samples"]


class Waiting(NamedTuple):
    """Those who wait for a stage.

    Attributes:
      ring: `count` of its rows wait, from `first` on; after the last row comes the first one again,
        so that nobody has to move up.
      first: A scalar.
      count: A scalar.
    """

    ring: Standing
    first: Int[Array, ""]
    count: Int[Array, ""]

    def rows(self, start: Int[Array, ""] | int, count: int) -> Int[Array, " count"]:
        """Rows of so many, beginning with the one who is `start` behind the first."""
        return (self.first + start + jnp.arange(count)) % self.ring.places.size


def nobody(parts: tuple[PyTree, ...], room: int) -> Waiting:
    """Room for so many samples like these, or these shapes."""

    def empty(leaf, axis: int) -> Array:
        return jnp.zeros((*leaf.shape[:axis], room, *leaf.shape[axis + 1 :]), leaf.dtype)

    none = jnp.zeros((), jnp.int32)
    return Waiting(Standing(each_part(empty, parts), jnp.zeros(room, jnp.int32)), none, none)


def joined(
    waiting: Waiting,
    piece: Standing,
    stay: Bool[Array, " piece"],
    one_by_one: bool,
    skip: Int[Array, ""] | int = 0,
) -> Waiting:
    """Those of a piece who stay, behind those who wait: as many as there is room for.

    Args:
      waiting: For the stage that the piece comes to.
      piece: Samples.
      stay: Who of them waits from now on.
      one_by_one: Whether nobody else is touched, which suits a CPU; else all rows are scattered at
        once, which suits an accelerator.
      skip: How many of them are left out, the first ones.
    """
    size, room = stay.size, waiting.ring.places.size
    count = jnp.minimum(stay.sum() - skip, room - waiting.count)
    if one_by_one:
        rows = jnp.roll(jnp.nonzero(stay, size=size, fill_value=0)[0], -skip)
        ring = _copied(piece, waiting.ring, rows, waiting.rows(waiting.count, size), count)
    else:
        number = jnp.cumsum(stay) - 1 - skip
        behind = (waiting.first + waiting.count + number) % room
        # Rows beyond the last are written nowhere.
        rows = jnp.where(stay & (number >= 0) & (number < count), behind, room)
        ring = Standing(
            Reached(*waiting.ring.parts).put(Reached(*piece.parts), rows).parts(),
            waiting.ring.places.at[rows].set(piece.places, mode="drop"),
        )
    return waiting._replace(ring=ring, count=waiting.count + count)


def filled_up(
    waiting: Waiting, piece: Standing, stay: Bool[Array, " piece"], soon: int
) -> tuple[Bool[Array, ""], Standing, Waiting]:
    """Put those who wait in the places of those who left; for a CPU, where copying costs.

    Fewer than a piece wait, before and after. Where few have left, others of those who wait go in
    too, and those whose places they take wait: samples that come would else overtake them for as
    long as few leave.

    Args:
      waiting: For the stage that the piece comes to, with room for two pieces.
      piece: Samples before it.
      stay: Who of them goes on.
      soon: In how many pieces, about, whoever waits is to have gone in: a part of them does in
        each, at least.

    Returns:
      Whether the piece is whole, the piece, and who waits now: where too few waited to make it
      whole, they and those who stay.
    """
    size = stay.size
    gaps = size - stay.sum()
    whole = waiting.count >= gaps
    taken = jnp.where(whole, jnp.maximum(gaps, (waiting.count + soon - 1) // soon), 0)
    # The places of those who left, and then of those who stay.
    places = jnp.argsort(stay, stable=True)
    replaced = jnp.zeros(size, bool).at[places].set(jnp.arange(size) < taken)
    grown = joined(waiting, piece, stay & (replaced | ~whole), one_by_one=True)
    piece = _copied(grown.ring, piece, grown.rows(0, size), places, taken)
    return whole, piece, without(grown, taken)


def without(waiting: Waiting, count: Int[Array, ""] | int) -> Waiting:
    """When so many, or all, wait no longer, the oldest first."""
    others = jnp.maximum(waiting.count - count, 0)
    first = jnp.where(others > 0, (waiting.first + count) % waiting.ring.places.size, 0)
    return waiting._replace(first=first, count=others)


def oldest(waiting: Waiting, size: int) -> tuple[Standing, Bool[Array, " size"]]:
    """The first so many, and who of them there is.

    Args:
      waiting: For a stage.
      size: How many.
    """
    ring, rows = waiting.ring, waiting.rows(0, size)
    there = jnp.arange(size) < waiting.count
    return Standing(Reached(*ring.parts).take(rows).parts(), ring.places[rows]), there


def with_room(waiting: Waiting, room: int) -> Waiting:
    """The same with so many rows, at least as many as wait."""
    if room == waiting.ring.places.size:
        return waiting
    ring, _ = oldest(waiting, room)
    return Waiting(ring, jnp.zeros_like(waiting.first), waiting.count)


def _copied(
    source: Standing,
    target: Standing,
    rows: Int[Array, " most"],
    to: Int[Array, " most"],
    count: Int[Array, ""],
) -> Standing:
    """The first `count` of some rows of the source, in those of the target, one by one."""

    def one(i, target: Standing) -> Standing:
        def row(own: Array, other: Array, axis: int) -> Array:
            cut = jax.lax.dynamic_slice_in_dim(other, rows[i], 1, axis)
            return jax.lax.dynamic_update_slice_in_dim(own, cut, to[i], axis)

        parts = each_part(row, target.parts, source.parts)
        return Standing(parts, row(target.places, source.places, 0))

    return jax.lax.fori_loop(0, count, one, target)
