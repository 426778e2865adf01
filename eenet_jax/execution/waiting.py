"""Those who wait for a stage, and how they come together in a piece."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from eenet_jax.execution.decision import Reached, each_part
from eenet_jax.types import PyTree


class Rows(NamedTuple):
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
      rows: `count` of them wait, from row `first` on; after the last row comes the first one again,
        so that nobody has to move up.
      first: A scalar.
      count: A scalar.
    """

    rows: Rows
    first: Int[Array, ""]
    count: Int[Array, ""]


def nobody(parts: tuple[PyTree, ...], rows: int) -> Waiting:
    """Room for so many samples like these, or these shapes."""

    def room(leaf, axis: int) -> Array:
        return jnp.zeros((*leaf.shape[:axis], rows, *leaf.shape[axis + 1 :]), leaf.dtype)

    none = jnp.zeros((), jnp.int32)
    return Waiting(Rows(each_part(room, parts), jnp.zeros(rows, jnp.int32)), none, none)


def joined(waiting: Waiting, piece: Rows, stay: Bool[Array, " piece"]) -> Waiting:
    """Those of a piece who stay, behind those who wait."""
    behind = (waiting.first + waiting.count + jnp.arange(stay.size)) % waiting.rows.places.size
    # The first rows of this order are those who stay.
    order = jnp.argsort(~stay, stable=True)
    rows = copied(piece, waiting.rows, order, behind, stay.sum())
    return waiting._replace(rows=rows, count=waiting.count + stay.sum())


def filled_up(
    waiting: Waiting, piece: Rows, stay: Bool[Array, " piece"]
) -> tuple[Bool[Array, ""], Rows, Waiting]:
    """Put those who wait in the place of those who left, and nobody else anywhere.

    Fewer than a piece wait, before and after. The first of them goes in even where nobody has left,
    and whoever is in that row waits: else one could wait for ever.

    Args:
      waiting: For the stage that the piece comes to.
      piece: Samples before it.
      stay: Who of them goes on.

    Returns:
      Whether the piece is whole, the piece, and who waits now. Where too few waited, they do so
      still, and those who stay with them.
    """
    size, rows = stay.size, waiting.rows.places.size
    gaps = size - stay.sum()
    whole = waiting.count >= gaps
    taken = jnp.where(whole, jnp.minimum(waiting.count, gaps + 1), 0)
    # Those who left first; of those who stay one gives way where one more is taken than left.
    order = jnp.argsort(stay, stable=True)
    replaced = jnp.zeros(size, bool).at[order].set(jnp.arange(size) < taken)
    grown = joined(waiting, piece, stay & (replaced | ~whole))
    oldest = (waiting.first + jnp.arange(size)) % rows
    piece = copied(grown.rows, piece, oldest, order, taken)
    return whole, piece, without(grown, taken)


def without(waiting: Waiting, count: Int[Array, ""] | int) -> Waiting:
    """When so many, or all, are no longer waiting, the oldest first."""
    left = jnp.maximum(waiting.count - count, 0)
    first = jnp.where(left > 0, (waiting.first + count) % waiting.rows.places.size, 0)
    return waiting._replace(first=first, count=left)


def oldest(waiting: Waiting, size: int) -> tuple[Rows, Bool[Array, " size"]]:
    """The first so many, and who of them there is."""
    rows = (waiting.first + jnp.arange(size)) % waiting.rows.places.size
    parts = Reached(*waiting.rows.parts).take(rows).parts()
    return Rows(parts, waiting.rows.places[rows]), jnp.arange(size) < waiting.count


def oldest_together(waiting: Waiting, size: int) -> Rows:
    """`oldest`, where they lie in rows one after the other, which costs less."""

    def cut(leaf, axis: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(leaf, waiting.first, size, axis)

    return Rows(each_part(cut, waiting.rows.parts), cut(waiting.rows.places, 0))


def copied(
    source: Rows,
    target: Rows,
    rows: Int[Array, " most"],
    to: Int[Array, " most"],
    count: Int[Array, ""],
) -> Rows:
    """Some samples in the rows of others.

    Args:
      source: Where they are taken from.
      target: Whose rows they take.
      rows: Of the source.
      to: Rows of the target; none twice.
      count: Of those only so many, the first.
    """
    way = _one_by_one if jax.default_backend() == "cpu" else _at_once
    return way(source, target, rows, to, count)


def _one_by_one(source, target, rows, to, count) -> Rows:
    # What isn't copied isn't touched: on a CPU copying is what waiting costs.
    def one(i, target: Rows) -> Rows:
        def row(own, other, axis: int) -> Array:
            cut = jax.lax.dynamic_slice_in_dim(other, rows[i], 1, axis)
            return jax.lax.dynamic_update_slice_in_dim(own, cut, to[i], axis)

        return _each(row, target, source)

    return jax.lax.fori_loop(0, count, one, target)


def _at_once(source, target, rows, to, count) -> Rows:
    # Rows beyond the last are written nowhere.
    positions = jnp.where(jnp.arange(to.size) < count, to, target.places.size)
    parts = Reached(*source.parts).take(rows)
    return Rows(
        Reached(*target.parts).put(parts, positions).parts(),
        target.places.at[positions].set(source.places[rows], mode="drop"),
    )


def _each(function: Callable[[Array, Array, int], Array], a: Rows, b: Rows) -> Rows:
    (carry, *passed), (other, *others) = a.parts, b.parts
    return Rows(
        (
            jax.tree.map(lambda own, its: function(own, its, 0), carry, other),
            *jax.tree.map(lambda own, its: function(own, its, 1), passed, others),
        ),
        function(a.places, b.places, 0),
    )
