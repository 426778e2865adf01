"""Survivors waiting between pieces of samples, inside one program.

Every piece runs through the first stage; survivors are copied behind those who wait for the next
stage, which runs on the place where they wait as soon as that is full. On a CPU, where copying
costs, survivors stay where they are if the next stage takes pieces of the same size and as many
wait as have left: those fill the gaps. So no stage sees padding before the end, and no call is made
from the host. Batches are compacted so, and streams.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from eenet_jax.execution.decision import Answers, Reached, advance, start
from eenet_jax.execution.sizes import switch_sizes
from eenet_jax.execution.waiting import (
    Standing,
    Waiting,
    filled_up,
    joined,
    nobody,
    oldest,
    with_room,
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

    def waiting_for(self, k: int) -> Waiting:
        """Who waits for stage k, 1 or a later one."""
        return self.waiting[k - 1]

    def with_waiting(self, k: int, waiting: Waiting) -> "State":
        """With these waiting for stage k."""
        return self._replace(waiting=(*self.waiting[: k - 1], waiting, *self.waiting[k:]))

    def taken(self, k: int, size: int) -> tuple[Standing, Array, "State"]:
        """`oldest` of those who wait for stage k, and the state without them."""
        waiting = self.waiting_for(k)
        piece, there = oldest(waiting, size)
        return piece, there, self.with_waiting(k, without(waiting, size))


class CarryOver:
    """The stages of a network on pieces of samples; to be used inside `jax.jit`.

    Args:
      network: The network.
      policy: Fitted for its exits.
      pieces: Samples that each stage runs on, at most those of a batch.
      places: For answers; samples are given theirs as they begin.
      batch: Samples that one program begins.
    """

    def __init__(
        self,
        network: StagedNetwork,
        policy: Policy,
        pieces: Sequence[int],
        places: int,
        batch: int,
    ):
        self._network, self._policy = network, policy
        self._pieces, self._places = pieces, places
        self._batch = batch
        self._on_a_cpu = jax.default_backend() == "cpu"

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
        for k, room in enumerate([*self._rooms(), 0]):
            forward = functools.partial(self._advance, k)
            reached, logits, _ = jax.eval_shape(forward, variables, reached)
            waiting.append(nobody(reached, room))
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
        piece = Standing(start(self._network, x).parts(), places)
        return self._go_on(variables, 0, piece, valid, state)

    def finish(self, variables: PyTree, state: State) -> State:
        """Answer everybody who waits; nothing runs where nobody does."""
        # Each stage in turn passes on all that waited for it.
        most = itertools.accumulate(piece - 1 for piece in self._pieces[1:])
        rooms = map(max, self._rooms(), most)
        later = state._replace(waiting=tuple(map(with_room, state.waiting, rooms)))
        for k in range(1, self._network.num_exits):
            # Nobody ever waits for pieces of one.
            if max(self._pieces[: k + 1]) > 1:
                later = self._run_all(variables, k, later)
        nobody_waits = (without(each, each.ring.places.size) for each in state.waiting)
        return later._replace(waiting=tuple(nobody_waits))

    def _rooms(self) -> list[int]:
        """Rows for those who wait for each stage but the first."""
        # What fills up a piece is taken from them after others have come.
        return [
            piece * (2 if self._fills_up(k) else 1) for k, piece in enumerate(self._pieces[1:], 1)
        ]

    def _fills_up(self, k: int) -> bool:
        """Whether those who wait for stage k fill up pieces of the stage before."""
        return self._on_a_cpu and self._pieces[k] == self._pieces[k - 1] > 1

    def _go_on(self, variables: PyTree, k: int, piece: Standing, valid, state: State) -> State:
        """Stage k on a piece, and every later one that has a whole piece by then."""
        piece, stay, state = self._run(variables, k, piece, valid, state)
        return self._hand_on(variables, k + 1, piece, stay, state)

    def _hand_on(self, variables: PyTree, k: int, piece: Standing, stay, state: State) -> State:
        """Those of a piece who stay come to stage k, which runs where there are enough for it."""
        if k == self._network.num_exits:
            return state
        size = self._pieces[k]
        if self._fills_up(k):
            soon = self._batch // size  # Within about a batch.
            runs, piece, others = filled_up(state.waiting_for(k), piece, stay, soon)
            state = state.with_waiting(k, others)
        elif size == self._pieces[k - 1] == 1:
            # It stays or it leaves, and nobody waits.
            runs = stay[0]
        else:
            return self._gather(variables, k, piece, stay, state)

        def run(state: State) -> State:
            return self._go_on(variables, k, piece, jnp.ones(size, bool), state)

        return self._if(runs, run, state)

    def _gather(self, variables: PyTree, k: int, piece: Standing, stay, state: State) -> State:
        """Those of a piece who stay join those who wait for stage k, which runs on them whenever
        there is no room for more."""
        size, coming = self._pieces[k], stay.sum()

        def more(at: tuple[Array, State]) -> Array:
            return at[0] < coming

        def join(at: tuple[Array, State]) -> tuple[Array, State]:
            # First in their places, then the stage on all of them: where it is the other way round
            # XLA copies them all, lest they be overwritten before they are read.
            joining, state = at
            before = state.waiting_for(k)
            after = joined(before, piece, stay, self._on_a_cpu, joining)

            def run(state: State) -> State:
                everybody = state.waiting_for(k)
                state = self._go_on(variables, k, everybody.ring, jnp.ones(size, bool), state)
                return state.with_waiting(k, without(everybody, size))

            state = self._if(after.count == size, run, state.with_waiting(k, after))
            return joining + after.count - before.count, state

        _, state = jax.lax.while_loop(more, join, (jnp.zeros((), jnp.int32), state))
        return state

    def _if(self, condition: Array, run: Callable[[State], State], state: State) -> State:
        if self._batch == 1 or not self._on_a_cpu:
            # On a CPU a loop of one round is faster by a hundredth of the full pass, but prepares
            # as much for no round as for one, which is a third of one sample's time. XLA takes
            # nothing out of a loop that it knows to end after a round.
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
            piece, there, state = state.taken(k, size)
            piece, stay, state = self._run(variables, k, piece, there, state)
            if k + 1 == self._network.num_exits:
                return state
            more = joined(state.waiting_for(k + 1), piece, stay, one_by_one=self._on_a_cpu)
            return state.with_waiting(k + 1, more)

        branches = [functools.partial(on, size) for size in sizes]

        def run(state: State) -> State:
            count = jnp.minimum(state.waiting_for(k).count, sizes[-1])
            return jax.lax.switch(jnp.searchsorted(jnp.asarray(sizes), count), branches, state)

        return jax.lax.while_loop(lambda state: state.waiting_for(k).count > 0, run, state)

    def _run(
        self, variables: PyTree, k: int, piece: Standing, valid, state: State
    ) -> tuple[Standing, Array, State]:
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
    way, piece = CarryOver(network, policy, pieces, batch, batch), pieces[0]

    def begin(i, state: State) -> State:
        # The last piece reaches back where the batch doesn't divide; who was there is not counted.
        first = jnp.minimum(i * piece, batch - piece)
        cut = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, piece), x)
        places = first + jnp.arange(piece)
        return way.begin(variables, cut, places, places >= i * piece, state)

    state = jax.lax.fori_loop(0, -(-batch // piece), begin, way.empty(variables, x))
    state = way.finish(variables, state)
    return Answers(state.logits, state.exits)
