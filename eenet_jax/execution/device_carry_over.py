"""Compacted execution in small pieces inside one program, survivors waiting between them.

A loop over pieces of the batch runs the first stage; survivors are copied behind those who wait
for the next stage, which runs as soon as a whole piece waits for it. So no stage sees padding
before the end, nothing leaves the cache that held it, and no call is made from the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from eenet_jax.execution.decision import Answers, Reached, advance, each_part, start
from eenet_jax.policies.policy import Policy
from eenet_jax.types import PyTree, StagedNetwork


class _Waiting(NamedTuple):
    """Those who wait for a stage: the first `count` rows of two pieces."""

    parts: tuple[PyTree, ...]
    places: Array
    count: Array


class _State(NamedTuple):
    """Who waits for each stage but the first, and all answers so far."""

    waiting: tuple[_Waiting, ...]
    logits: Array
    exits: Array


def carried_over(
    network: StagedNetwork, policy: Policy, piece: int, variables: PyTree, x: PyTree
) -> Answers:
    """Answers for a batch; may be traced.

    Args:
      network: The network.
      policy: Fitted for its exits.
      piece: Samples that every stage runs on, at most those of the batch.
      variables: Of the network.
      x: The batch [batch, …].
    """
    batch = jax.tree.leaves(x)[0].shape[0]
    stages = _Stages(network, policy, variables, piece, batch)
    state = jax.lax.fori_loop(
        0, -(-batch // piece), lambda i, state: stages.begin(i, x, state), stages.empty(x)
    )
    for k in range(1, network.num_exits):
        state = stages.finish(k, stages.run_whole_pieces(k, state))
    return Answers(state.logits, state.exits)


class _Stages:
    """The stages of one batch, by their numbers from 0."""

    def __init__(self, network: StagedNetwork, policy: Policy, variables, piece: int, batch: int):
        self._network, self._policy, self._variables = network, policy, variables
        self._piece, self._batch = piece, batch

    def empty(self, x: PyTree) -> _State:
        """Nobody waits, and nobody is answered."""
        reached = jax.eval_shape(lambda x: start(self._network, self._slice(x, 0)).parts(), x)
        waiting, logits = [], None
        for k in range(self._network.num_exits):
            reached, logits = jax.eval_shape(
                lambda parts, k=k: self._advance(k, parts)[:2], reached
            )
            waiting.append(self._nobody(reached))
        assert logits is not None
        answers = jnp.zeros((self._batch, *logits.shape[1:]), logits.dtype)
        # Nobody waits behind the last stage.
        return _State(tuple(waiting[:-1]), answers, jnp.zeros(self._batch, jnp.int32))

    def _nobody(self, parts: tuple[PyTree, ...]) -> _Waiting:
        def room(leaf, axis: int):
            rows = (*leaf.shape[:axis], 2 * self._piece, *leaf.shape[axis + 1 :])
            return jnp.zeros(rows, leaf.dtype)

        empty = each_part(room, parts)
        return _Waiting(empty, jnp.zeros(2 * self._piece, jnp.int32), jnp.zeros((), jnp.int32))

    def _slice(self, x: PyTree, first) -> PyTree:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, self._piece), x)

    def _advance(self, k: int, parts: tuple[PyTree, ...]):
        after, logits, leaves = advance(
            self._network, self._policy, k, self._variables, Reached(*parts)
        )
        return after.parts(), logits, leaves

    def begin(self, i, x: PyTree, state: _State) -> _State:
        """The first stage on piece i, and whatever has become possible by it."""
        # The last piece reaches back where the batch doesn't divide; who was there is not counted.
        first = jnp.minimum(i * self._piece, self._batch - self._piece)
        places = first + jnp.arange(self._piece)
        parts = start(self._network, self._slice(x, first)).parts()
        state = self._run(0, parts, places, places >= i * self._piece, state)
        for k in range(1, self._network.num_exits):
            state = self.run_whole_pieces(k, state)
        return state

    def run_whole_pieces(self, k: int, state: _State) -> _State:
        """Stage k as long as a whole piece waits for it."""
        return jax.lax.while_loop(
            lambda state: state.waiting[k - 1].count >= self._piece,
            lambda state: self._run_first(k, self._piece, state),
            state,
        )

    def finish(self, k: int, state: _State) -> _State:
        """Stage k on those who are left, fewer than a piece: the smallest size that holds them."""
        sizes = finishing_sizes(self._piece)
        branches = [lambda state: state]
        branches += [lambda state, size=size: self._run_first(k, size, state) for size in sizes]
        count = state.waiting[k - 1].count
        which = jnp.where(count == 0, 0, 1 + jnp.searchsorted(jnp.asarray(sizes), count))
        return jax.lax.switch(which, branches, state)

    def _run_first(self, k: int, size: int, state: _State) -> _State:
        """Stage k on the first `size` who wait for it; the others move up."""
        ours = state.waiting[k - 1]
        parts = each_part(lambda leaf, axis: _cut(leaf, axis, 0, size), ours.parts)
        valid = jnp.arange(size) < ours.count
        places = ours.places[:size]
        others = _Waiting(
            each_part(lambda leaf, axis: _moved_up(leaf, axis, size), ours.parts),
            _moved_up(ours.places, 0, size),
            jnp.maximum(ours.count - size, 0),
        )
        waiting = (*state.waiting[: k - 1], others, *state.waiting[k:])
        return self._run(k, parts, places, valid, state._replace(waiting=waiting))

    def _run(self, k: int, parts, places, valid, state: _State) -> _State:
        after, said, leaves = self._advance(k, parts)
        # Whoever stays, and what only fills up, is written nowhere.
        target = jnp.where(valid & leaves, places, self._batch)
        state = state._replace(
            logits=state.logits.at[target].set(said, mode="drop"),
            exits=state.exits.at[target].set(k, mode="drop"),
        )
        if k + 1 == self._network.num_exits:
            return state
        grown = self._append(state.waiting[k], after, places, valid & ~leaves)
        waiting = (*state.waiting[:k], grown, *state.waiting[k + 1 :])
        return state._replace(waiting=waiting)

    def _append(self, waiting: _Waiting, parts, places, stay) -> _Waiting:
        behind = waiting.count + jnp.cumsum(stay) - 1
        positions = jnp.where(stay, behind, 2 * self._piece)
        return _Waiting(
            Reached(*waiting.parts).put(Reached(*parts), positions).parts(),
            waiting.places.at[positions].set(places, mode="drop"),
            waiting.count + stay.sum(),
        )


def finishing_sizes(piece: int) -> list[int]:
    """Sizes, rising, that a stage is finished with: a quarter, a half, and a whole piece."""
    return sorted({-(-piece // 4), -(-piece // 2), piece})


def _cut(leaf: Array, axis: int, first: int, last: int) -> Array:
    return jax.lax.slice_in_dim(leaf, first, last, axis=axis)


def _moved_up(leaf: Array, axis: int, by: int) -> Array:
    """Rows from `by` on at the front; what is left behind them is read by nobody."""
    rest = _cut(leaf, axis, by, leaf.shape[axis])
    return jax.lax.dynamic_update_slice_in_dim(leaf, rest, 0, axis)
