"""What a stream runs, compiled: taking in a batch, and answering everybody."""

import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from eenet_jax.execution.carry_over import NOBODY, CarryOver, State
from eenet_jax.execution.sides import compiled, on_side, over
from eenet_jax.pieces import suitable_pieces
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import PyTree


class Begun:
    """A state that is being computed.

    Args:
      parts: Who waits for each stage, and the answers; known once that has begun.
    """

    def __init__(self, parts: Future):
        self._parts = parts

    def state(self) -> State:
        """Once it has begun; what reads its arrays waits until they are there."""
        waiting, answers = self._parts.result()
        return State(waiting, *answers)

    def is_over(self) -> bool:
        """Whether nobody would wait for its answers."""
        if not self._parts.done():
            return False
        exits: Any = self.state().exits
        return exits.is_ready()


class LanePrograms:
    """What is compiled for samples of one shape: taking in a batch, and answering everybody.

    Args:
      network: The network.
      policy: Fitted for its exits.
      variables: Of the network.
      x: A batch of such samples, as many as are taken in together, which is rounded up to whole
        pieces; shapes count.
    """

    def __init__(self, network: StagedNetwork, policy: Policy, variables, x: PyTree):
        pieces = suitable_pieces(network, variables, x)
        self._piece = pieces[0]
        # A list is handed over in half the time that a dict of dicts takes: for hundreds of weights
        # half a millisecond a batch.
        self._weights, self._structure = jax.tree.flatten(network.prepared(variables))
        self.batch = -(-jax.tree.leaves(x)[0].shape[0] // self._piece) * self._piece
        # A batch that is going through, one that arrives, and fewer than a piece behind each exit
        # but the last.
        self.places = 2 * self.batch + sum(pieces[1:])
        self._way = CarryOver(network, policy, pieces, self.places, self.batch)
        self._empty = jax.jit(lambda weights: self._way.empty(self._variables(weights), x))
        state = jax.eval_shape(self._empty, self._weights)
        coming = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((self.batch, *leaf.shape[1:]), leaf.dtype), x
        )
        places = jax.ShapeDtypeStruct((self.batch,), np.int32)
        given = (self._weights, state.waiting, state[1:])
        # Those who wait are given away, so that nobody is copied who doesn't move.
        self._step = compiled(self._take_in, *given, coming, places, np.int32(0), donate_argnums=1)
        self._finish = compiled(self._answer_all, *given, donate_argnums=1)

    def empty(self) -> Begun:
        """Nobody on the way."""
        state = self._empty(self._weights)
        return Begun(over((state.waiting, state[1:])))

    def step(
        self, before: Begun, x: PyTree, places: np.ndarray, count: int, side: int | None
    ) -> Begun:
        """Begin to take in the first `count` samples of x [batch, …], to be answered in `places`.

        Args:
          before: So far; who waits there is given away.
          x: Samples, and filling behind them.
          places: Of their answers, [batch].
          count: Samples.
          side: Of the processor, beside others of which it runs; None: in this thread.
        """
        return self._begun(side, self._step, before, x, places, np.int32(count))

    def finish(self, before: Begun, side: int | None) -> Begun:
        """Begin to answer everybody who waits; arguments as for `step`."""
        return self._begun(side, self._finish, before)

    def _begun(self, side: int | None, program: Callable, before: Begun, *given: Any) -> Begun:
        state = before.state()
        given = (self._weights, state.waiting, state[1:], *given)
        return Begun(over(program(*given)) if side is None else on_side(side, program, *given))

    def _variables(self, weights: list) -> PyTree:
        return jax.tree.unflatten(self._structure, weights)

    def _take_in(self, weights, waiting, answers, x: PyTree, places, count):
        variables = self._variables(weights)

        def begin(i, state: State) -> State:
            first = i * self._piece
            cut = functools.partial(
                jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=self._piece
            )
            valid = first + jax.numpy.arange(self._piece) < count
            return self._way.begin(variables, jax.tree.map(cut, x), cut(places), valid, state)

        # Places are used again: what was answered in them before is no answer now.
        logits, exits = answers
        exits = exits.at[places].set(NOBODY, mode="drop")
        # No more pieces than there are samples for.
        pieces = (count + self._piece - 1) // self._piece
        state = jax.lax.fori_loop(0, pieces, begin, State(waiting, logits, exits))
        return state.waiting, state[1:]

    def _answer_all(self, weights, waiting, answers):
        state = self._way.finish(self._variables(weights), State(waiting, *answers))
        return state.waiting, state[1:]
