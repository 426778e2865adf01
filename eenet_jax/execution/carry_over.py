"""Survivors waiting between pieces of samples, inside one program.

Every piece runs through the first stage; survivors are copied behind those who wait for the next
stage, which runs as soon as a whole piece waits for it. So no stage sees padding before the end,
nothing leaves the cache that held it, and no call is made from the host. Batches are compacted so,
and streams.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from eenet_jax.execution.decision import Answers, Reached, advance, each_part, start
from eenet_jax.execution.sizes import switch_sizes
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import PyTree

NOBODY = -1
"""The exit of a place that has no answer yet."""


class Waiting(NamedTuple):
    """Those who wait for a stage: `count` rows from `first` on, and where they are to be answered.

    After the last row comes the first one again, so that nobody has to move up.
    """

    parts: tuple[PyTree, ...]
    places: Array
    first: Array
    count: Array


class State(NamedTuple):
    """Who waits for each stage but the first, and the answers [places, …] so far."""

    waiting: tuple[Waiting, ...]
    logits: Array
    exits: Array


class CarryOver:
    """The stages of a network on pieces of samples; to be used inside `jax.jit`.

    Args:
      network: The network.
      policy: Fitted for its exits.
      pieces: Samples that each stage runs on.
      places: For answers; samples are given theirs as they begin.
      alone: Whether a program begins one sample and no more.
    """

    def __init__(
        self,
        network: StagedNetwork,
        policy: Policy,
        pieces: Sequence[int],
        places: int,
        alone: bool = False,
    ):
        self._network, self._policy = network, policy
        self._pieces, self._places = pieces, places
        self._alone = alone

    def empty(self, variables: PyTree, x: PyTree) -> State:
        """Nobody waits, and nobody is answered.

        Args:
          variables: Of the network.
          x: Any samples [batch, …], or their shapes.
        """
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((self._pieces[0], *leaf.shape[1:]), leaf.dtype), x
        )
        reached = jax.eval_shape(lambda x: start(self._network, x).parts(), shapes)
        waiting, logits = [], None
        # Nobody waits behind the last stage.
        for k, rows in enumerate([*_rooms(self._pieces), 0]):
            forward = functools.partial(self._advance, k)
            reached, logits, _ = jax.eval_shape(forward, variables, reached)
            waiting.append(_nobody(reached, rows))
        assert logits is not None
        answers = jnp.zeros((self._places, *logits.shape[1:]), logits.dtype)
        return State(tuple(waiting[:-1]), answers, jnp.full(self._places, NOBODY, jnp.int32))

    def begin(self, variables: PyTree, x: PyTree, places, valid, state: State) -> State:
        """The first stage on a piece, and every other that has a whole piece by then.

        Args:
          variables: Of the network.
          x: A piece of the first stage [piece, …].
          places: Where each of its samples is to be answered, [piece].
          valid: Which of them are samples; the others are filling, [piece].
          state: So far.
        """
        parts = start(self._network, x).parts()
        state = self._run(variables, 0, parts, places, valid, state)
        for k in range(1, self._network.num_exits):
            state = self._run_whole_pieces(variables, k, state)
        return state

    def finish(self, variables: PyTree, state: State) -> State:
        """Answer everybody who waits; nothing runs where nobody does."""
        for k in range(1, self._network.num_exits):
            state = self._run_all(variables, k, state)
        return state

    def _run_whole_pieces(self, variables: PyTree, k: int, state: State) -> State:
        """Stage k as long as a whole piece waits for it."""
        piece = self._pieces[k]

        def enough(state: State) -> Array:
            return state.waiting[k - 1].count >= piece

        run = functools.partial(self._run_first, variables, k, piece)
        if self._alone:
            # A loop prepares as much for no round as for many: a third of one sample's time. Where
            # more begin, what waits is copied less by it than by this.
            return jax.lax.cond(enough(state), run, lambda state: state, state)
        return jax.lax.while_loop(enough, run, state)

    def _run_all(self, variables: PyTree, k: int, state: State) -> State:
        """Stage k on everybody who waits for it, the last of them in the smallest size that holds
        them."""
        sizes = switch_sizes(self._pieces[k])
        branches = [functools.partial(self._run_first, variables, k, size) for size in sizes]

        def run(state: State) -> State:
            count = jnp.minimum(state.waiting[k - 1].count, sizes[-1])
            return jax.lax.switch(jnp.searchsorted(jnp.asarray(sizes), count), branches, state)

        return jax.lax.while_loop(lambda state: state.waiting[k - 1].count > 0, run, state)

    def _run_first(self, variables: PyTree, k: int, size: int, state: State) -> State:
        """Stage k on the first `size` who wait for it.

        They lie together: pieces are taken whole until a last one that leaves nobody.
        """
        ours = state.waiting[k - 1]
        parts = each_part(lambda leaf, axis: _cut(leaf, axis, ours.first, size), ours.parts)
        valid = jnp.arange(size) < ours.count
        places = _cut(ours.places, 0, ours.first, size)
        left = jnp.maximum(ours.count - size, 0)
        first = jnp.where(left > 0, (ours.first + size) % ours.places.size, 0)
        others = ours._replace(first=first, count=left)
        waiting = (*state.waiting[: k - 1], others, *state.waiting[k:])
        return self._run(variables, k, parts, places, valid, state._replace(waiting=waiting))

    def _run(self, variables: PyTree, k: int, parts, places, valid, state: State) -> State:
        after, said, leaves = self._advance(k, variables, parts)
        # Whoever stays, and what only fills up, is written nowhere.
        target = jnp.where(valid & leaves, places, self._places)
        state = state._replace(
            logits=state.logits.at[target].set(said, mode="drop"),
            exits=state.exits.at[target].set(k, mode="drop"),
        )
        if k + 1 == self._network.num_exits:
            return state
        grown = _with_more(state.waiting[k], after, places, valid & ~leaves)
        waiting = (*state.waiting[:k], grown, *state.waiting[k + 1 :])
        return state._replace(waiting=waiting)

    def _advance(self, k: int, variables: PyTree, parts: tuple[PyTree, ...]):
        after, logits, leaves = advance(self._network, self._policy, k, variables, Reached(*parts))
        return after.parts(), logits, leaves


def carried_over(
    network: StagedNetwork, policy: Policy, pieces: Sequence[int], variables: PyTree, x: PyTree
) -> Answers:
    """Answers for a batch; may be traced.

    Args:
      network: The network.
      policy: Fitted for its exits.
      pieces: Samples that each stage runs on, at most those of the batch.
      variables: Of the network.
      x: The batch [batch, …].
    """
    batch = jax.tree.leaves(x)[0].shape[0]
    way, piece = CarryOver(network, policy, pieces, batch), pieces[0]

    def begin(i, state: State) -> State:
        # The last piece reaches back where the batch doesn't divide; who was there is not counted.
        first = jnp.minimum(i * piece, batch - piece)
        cut = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, piece), x)
        places = first + jnp.arange(piece)
        return way.begin(variables, cut, places, places >= i * piece, state)

    state = jax.lax.fori_loop(0, -(-batch // piece), begin, way.empty(variables, x))
    state = way.finish(variables, state)
    return Answers(state.logits, state.exits)


def _rooms(pieces: Sequence[int]) -> list[int]:
    """Rows for those who may wait for each stage but the first, in whole pieces of that stage."""
    rooms, coming, at_the_end = [], pieces[0], 0
    for piece in pieces[1:]:
        # While samples begin, fewer than a piece wait and so many more may come. At the end each
        # stage in turn passes on all that waited for it, so that later ones need more room.
        while_they_begin, at_the_end = piece - 1 + coming, at_the_end + piece - 1
        rooms.append(-(-max(while_they_begin, at_the_end) // piece) * piece)
        coming = while_they_begin // piece * piece
    return rooms


def _nobody(parts: tuple[PyTree, ...], rows: int) -> Waiting:
    def room(leaf, axis: int) -> Array:
        return jnp.zeros((*leaf.shape[:axis], rows, *leaf.shape[axis + 1 :]), leaf.dtype)

    none = jnp.zeros((), jnp.int32)
    return Waiting(each_part(room, parts), jnp.zeros(rows, jnp.int32), none, none)


def _with_more(waiting: Waiting, parts, places, stay) -> Waiting:
    """Those of a piece who stay, behind those who wait."""
    rows = waiting.places.size
    behind = (waiting.first + waiting.count + jnp.cumsum(stay) - 1) % rows
    positions = jnp.where(stay, behind, rows)
    return waiting._replace(
        parts=Reached(*waiting.parts).put(Reached(*parts), positions).parts(),
        places=waiting.places.at[positions].set(places, mode="drop"),
        count=waiting.count + stay.sum(),
    )


def _cut(leaf: Array, axis: int, first: Array, count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(leaf, first, count, axis=axis)
