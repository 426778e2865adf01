"""Survivors waiting between pieces of samples, inside one program.

Every piece runs through the first stage; survivors are copied behind those who wait for the next
stage, which runs as soon as a whole piece waits for it. On a CPU, where copying costs, survivors
stay where they are if the next stage takes pieces of the same size, and those who wait fill the
gaps. So no stage sees padding before the end, little leaves the cache that held it, and no call is
made from the host. Batches are compacted so, and streams.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from eenet_jax.execution.decision import Answers, Reached, advance, start
from eenet_jax.execution.sizes import switch_sizes
from eenet_jax.execution.waiting import (
    Rows,
    Waiting,
    filled_up,
    joined,
    nobody,
    oldest,
    oldest_together,
    without,
)
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import PyTree

NOBODY = -1
"""The exit of a place that has no answer yet."""


class State(NamedTuple):
    """Who waits for each stage but the first, and the answers [places, …] so far."""

    waiting: tuple[Waiting, ...]
    logits: Array
    exits: Array

    def waiting_for(self, k: int, waiting: Waiting) -> "State":
        """With these waiting for stage k."""
        return self._replace(waiting=(*self.waiting[: k - 1], waiting, *self.waiting[k:]))


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
        # An accelerator moves a whole piece in little more time than some rows of it.
        self._fill_up = jax.default_backend() == "cpu"

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
            waiting.append(nobody(reached, rows))
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
        piece = Rows(start(self._network, x).parts(), places)
        piece, stay, state = self._run(variables, 0, piece, valid, state)
        return self._hand_on(variables, 1, piece, stay, state)

    def finish(self, variables: PyTree, state: State) -> State:
        """Answer everybody who waits; nothing runs where nobody does."""
        for k in range(1, self._network.num_exits):
            state = self._run_all(variables, k, state)
        return state

    def _hand_on(self, variables: PyTree, k: int, piece: Rows, stay, state: State) -> State:
        """Those of a piece who stay come to stage k, which runs where there are enough for it."""
        if k == self._network.num_exits:
            return state
        size, alike = self._pieces[k], self._pieces[k] == self._pieces[k - 1]
        if alike and size == 1:
            # It stays or it leaves, and nobody waits.
            runs = stay[0]
        elif alike and self._fill_up:
            runs, piece, left = filled_up(state.waiting[k - 1], piece, stay)
            state = state.waiting_for(k, left)
        else:
            state = state.waiting_for(k, joined(state.waiting[k - 1], piece, stay))
            return self._run_whole_pieces(variables, k, state)

        def run(state: State) -> State:
            after, stay, state = self._run(variables, k, piece, jnp.ones(size, bool), state)
            return self._hand_on(variables, k + 1, after, stay, state)

        return self._where(runs, run, state)

    def _run_whole_pieces(self, variables: PyTree, k: int, state: State) -> State:
        """Stage k as long as a whole piece waits for it.

        Pieces lie together: they are taken whole until `finish`, which leaves nobody.
        """
        size = self._pieces[k]

        def enough(state: State) -> Array:
            return state.waiting[k - 1].count >= size

        def run(state: State) -> State:
            ours = state.waiting[k - 1]
            piece, everybody = oldest_together(ours, size), jnp.ones(size, bool)
            state = state.waiting_for(k, without(ours, size))
            after, stay, state = self._run(variables, k, piece, everybody, state)
            return self._hand_on(variables, k + 1, after, stay, state)

        return jax.lax.while_loop(enough, run, state)

    def _where(self, condition: Array, run: Callable[[State], State], state: State) -> State:
        if self._alone:
            # A loop prepares as much for no round as for one: a third of one sample's time. Where
            # more begin, what waits is copied less by it than by this.
            return jax.lax.cond(condition, run, lambda state: state, state)
        _, state = jax.lax.while_loop(
            lambda at: at[0], lambda at: (jnp.zeros((), bool), run(at[1])), (condition, state)
        )
        return state

    def _run_all(self, variables: PyTree, k: int, state: State) -> State:
        """Stage k on everybody who waits for it, the last of them in the smallest size that holds
        them."""
        sizes = switch_sizes(self._pieces[k])

        def on(size: int, state: State) -> State:
            ours = state.waiting[k - 1]
            piece, valid = oldest(ours, size)
            state = state.waiting_for(k, without(ours, size))
            after, stay, state = self._run(variables, k, piece, valid, state)
            if k + 1 == self._network.num_exits:
                return state
            return state.waiting_for(k + 1, joined(state.waiting[k], after, stay))

        branches = [functools.partial(on, size) for size in sizes]

        def run(state: State) -> State:
            count = jnp.minimum(state.waiting[k - 1].count, sizes[-1])
            return jax.lax.switch(jnp.searchsorted(jnp.asarray(sizes), count), branches, state)

        return jax.lax.while_loop(lambda state: state.waiting[k - 1].count > 0, run, state)

    def _run(
        self, variables: PyTree, k: int, piece: Rows, valid, state: State
    ) -> tuple[Rows, Array, State]:
        """Stage k on a piece: where its samples stand then, who of them stays, and the answers."""
        after, said, leaves = self._advance(k, variables, piece.parts)
        # Whoever stays, and what only fills up, is written nowhere.
        target = jnp.where(valid & leaves, piece.places, self._places)
        state = state._replace(
            logits=state.logits.at[target].set(said, mode="drop"),
            exits=state.exits.at[target].set(k, mode="drop"),
        )
        return piece._replace(parts=after), valid & ~leaves, state

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
