"""Samples of one shape on their way through a network, on the device, batch after batch."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from eenet_jax.execution.carry_over import NOBODY, CarryOver, State
from eenet_jax.pieces import suitable_pieces
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import PyTree

Answer = Callable[[list[int], np.ndarray, list[int]], None]
"""Takes positions, their logits [positions, …] and their exits."""

IN_FLIGHT = 3
"""Batches whose memory is in use: one that is filled, one that waits, one that goes through."""
ALIGNMENT = 64
"""Bytes: memory that begins at a multiple of them a CPU device takes as it is, uncopied."""


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
        # Those who wait are given away, so that nobody is copied who doesn't move.
        self._step = jax.jit(self._take_in, donate_argnums=1)
        self._finish = jax.jit(self._answer_all, donate_argnums=1)

    def empty(self) -> State:
        """Nobody on the way."""
        return self._empty(self._weights)

    def step(self, state: State, x: PyTree, places: np.ndarray, count: int) -> State:
        """Take in the first `count` samples of x [batch, …]; they are answered in `places`."""
        return self._joined(self._step(self._weights, state.waiting, state[1:], x, places, count))

    def finish(self, state: State) -> State:
        """Answer everybody who waits."""
        return self._joined(self._finish(self._weights, state.waiting, state[1:]))

    def _variables(self, weights: list) -> PyTree:
        return jax.tree.unflatten(self._structure, weights)

    def _joined(self, parts: tuple) -> State:
        waiting, answers = parts
        return State(waiting, *answers)

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


class Lane:
    """Samples of one shape on their way.

    Args:
      programs: Compiled for them.
      answer: Takes those who leave.
      overlap: Whether the device is handed a batch while the one before is going through, so that
        it never waits for the host; the answers that are read then are those before that one's.
    """

    def __init__(self, programs: LanePrograms, answer: Answer, overlap: bool):
        self._programs, self._answer, self._overlap = programs, answer, overlap
        self._state = self._before = programs.empty()
        self._positions = np.full(programs.places, -1, np.int64)
        # The step that each place's sample came with, and how many there have been.
        self._came = np.zeros(programs.places, np.int64)
        self._steps = 0
        self._begun: list[tuple[int, PyTree]] = []
        self._batches: list[PyTree] = []

    def add(self, position: int, x: PyTree) -> None:
        """A sample arrives; a full batch is taken in."""
        self._begun.append((position, x))
        if len(self._begun) == self._programs.batch:
            self._take_in()

    def settle(self) -> None:
        """Wait for what is going through, and hand over the answers."""
        self._hand_over(self._answered(self._state, self._steps))

    def _answered(self, state: State, steps: int) -> tuple[list[int], np.ndarray, list[int]] | None:
        """Positions, logits and exits of those who were answered by then; their places are free."""
        outstanding = np.flatnonzero((self._positions >= 0) & (self._came <= steps))
        if not len(outstanding):
            return None
        exits = np.asarray(state.exits)[outstanding]
        places = outstanding[exits >= 0]
        # A copy, for the places are used again.
        logits = np.asarray(state.logits)[places]
        positions, left = self._positions[places].tolist(), exits[exits >= 0].tolist()
        self._positions[places] = -1
        return positions, logits, left

    def _hand_over(self, answered: tuple[list[int], np.ndarray, list[int]] | None) -> None:
        if answered is not None and answered[0]:
            self._answer(*answered)

    def holds_up_to(self, position: int) -> bool:
        """Whether a sample of this position or an earlier one is on its way here."""
        here = self._positions[self._positions >= 0]
        arrived = self._begun[0][0] if self._begun else position + 1
        return arrived <= position or bool((here <= position).any())

    def finish(self) -> None:
        """Answer everybody who is here."""
        if self._begun:
            self._take_in()
        if (self._positions >= 0).any():
            self._state = self._programs.finish(self._state)
            self.settle()

    def _take_in(self) -> None:
        begun, self._begun = self._begun, []
        filled = [x for _, x in begun] + [begun[0][1]] * (self._programs.batch - len(begun))
        batch = jax.tree.map(
            lambda room, *leaves: np.stack(leaves, out=room), self._room(filled[0]), *filled
        )
        # Only now, so that stacking went on beside what was running.
        known = (self._before, self._steps - 1) if self._overlap else (self._state, self._steps)
        answered = self._answered(*known)
        free = np.flatnonzero(self._positions < 0)[: len(begun)]
        places = np.full(self._programs.batch, self._programs.places, np.int32)
        places[: len(begun)] = free
        self._positions[free] = [position for position, _ in begun]
        self._steps += 1
        self._came[free] = self._steps
        self._before = self._state
        self._state = self._programs.step(self._state, batch, places, len(begun))
        # While that runs.
        self._hand_over(answered)

    def _room(self, x: PyTree) -> PyTree:
        """Memory for a batch of such samples, which no step that is under way reads.

        Before the last batch was handed over, the step two before it was known to be over. New
        memory takes longer to get than to fill.
        """
        if len(self._batches) < IN_FLIGHT:
            size = self._programs.batch
            self._batches.append(
                jax.tree.map(lambda leaf: _aligned((size, *leaf.shape), leaf.dtype), x)
            )
        return self._batches[self._steps % IN_FLIGHT]


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    count = math.prod(shape) * dtype.itemsize
    memory = np.empty(count + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + count].view(dtype).reshape(shape)
