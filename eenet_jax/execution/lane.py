"""Samples of one shape on their way through a network, on the device, batch after batch."""

import math
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np

from eenet_jax.execution.lane_programs import Begun, LanePrograms
from eenet_jax.types import PyTree

Answered = tuple[list[int], np.ndarray, list[int]]
"""Positions, their logits [positions, …] and their exits."""
Answer = Callable[[list[int], np.ndarray, list[int]], None]
"""Takes what is `Answered`."""

IN_FLIGHT = 3
"""Batches whose memory is in use: one that is filled, one that waits, one that goes through."""
ALIGNMENT = 64
"""Bytes: memory that begins at a multiple of them a CPU device takes as it is, uncopied."""


class Lane:
    """Samples of one shape on their way; batches take turns on the tracks.

    Args:
      programs: Compiled for them.
      answer: Takes those who leave.
      overlap: Whether the device is handed a track's batch while the one before is going through,
        so that it never waits for the host; the answers that are read then are those before that
        one's.
      tracks: Batches that go through at once, beside each other, survivors waiting among those of
        their own track.
      sides: Of the processor, of which each step takes the next; None: the thread that takes in.
    """

    def __init__(
        self,
        programs: LanePrograms,
        answer: Answer,
        overlap: bool,
        tracks: int,
        sides: Iterator[int | None],
    ):
        self._batch, self._answer = programs.batch, answer
        self._tracks = [_Track(programs, overlap, sides) for _ in range(tracks)]
        self._turns = 0
        self._begun: list[tuple[int, PyTree]] = []

    def add(self, position: int, x: PyTree) -> None:
        """A sample arrives; a full batch is taken in."""
        self._begun.append((position, x))
        if len(self._begun) == self._batch:
            self._take_in()

    def settle(self) -> None:
        """Wait for what is going through, and hand over the answers."""
        for track in self._tracks:
            self._hand_over(track.answered())

    def hand_over(self) -> bool:
        """Hand over the answers that are there by now. Whether something is still going through."""
        over = [track for track in self._tracks if track.is_over()]
        for track in over:
            self._hand_over(track.answered())
        return len(over) < len(self._tracks)

    def finish(self) -> None:
        """Answer everybody who is here."""
        self.hurry(sys.maxsize)

    def hurry(self, position: int) -> None:
        """Answer everybody up to a position, and who waits on the same tracks."""
        if self._begun and self._begun[0][0] <= position:
            self._take_in()
        # Whoever has an answer by now hurries nobody.
        for track in self._holding(position):
            self._hand_over(track.answered())
        late = self._holding(position)
        # All of them before any is waited for.
        for track in late:
            track.finish()
        for track in late:
            self._hand_over(track.answered())

    def _holding(self, position: int) -> list["_Track"]:
        return [track for track in self._tracks if track.holds_up_to(position)]

    def _take_in(self) -> None:
        begun, self._begun = self._begun, []
        track = self._tracks[self._turns % len(self._tracks)]
        self._turns += 1
        # While the track goes on.
        self._hand_over(track.take_in(begun))

    def _hand_over(self, answered: Answered | None) -> None:
        if answered is not None and answered[0]:
            self._answer(*answered)


class _Track:
    """Batches that follow one another, and who of them waits.

    Args:
      programs: What runs here.
      overlap: See `Lane`.
      sides: See `Lane`.
    """

    def __init__(self, programs: LanePrograms, overlap: bool, sides: Iterator[int | None]):
        self._programs, self._overlap, self._sides = programs, overlap, sides
        self._state = self._before = programs.empty()
        self._positions = np.full(programs.places, -1, np.int64)
        # The step that each place's sample came with, and how many there have been.
        self._came = np.zeros(programs.places, np.int64)
        self._steps = 0
        self._batches: list[PyTree] = []

    def answered(self) -> Answered | None:
        """Wait for what is going through: who has been answered."""
        return self._answered(self._state, self._steps)

    def is_over(self) -> bool:
        """Whether nothing is going through."""
        return self._state.is_over()

    def holds_up_to(self, position: int) -> bool:
        """Whether a sample of this position or an earlier one is on its way here."""
        here = self._positions[self._positions >= 0]
        return bool((here <= position).any())

    def finish(self) -> None:
        """Begin to answer everybody who is here."""
        self._state = self._programs.finish(self._state, next(self._sides))

    def take_in(self, begun: list[tuple[int, PyTree]]) -> Answered | None:
        """Begin a batch of positions and samples, or a part of one: who was answered before it."""
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
        self._state = self._programs.step(self._state, batch, places, len(begun), next(self._sides))
        return answered

    def _answered(self, known: Begun, steps: int) -> Answered | None:
        """Who was answered by then; their places are free."""
        outstanding = np.flatnonzero((self._positions >= 0) & (self._came <= steps))
        if not len(outstanding):
            return None
        state = known.state()
        exits = np.asarray(state.exits)[outstanding]
        places = outstanding[exits >= 0]
        # A copy, for the places are used again.
        logits = np.asarray(state.logits)[places]
        positions, left = self._positions[places].tolist(), exits[exits >= 0].tolist()
        self._positions[places] = -1
        return positions, logits, left

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
