"""Adaptive inference on a stream: every stage runs full, whatever share leaves early.

Samples wait behind each exit, on the device, until there are enough for a whole piece, so that
nothing is padded while the stream goes on; one program takes in a batch and runs whatever has
become possible. A thread reads the source into a bounded queue and checks what it gives; all else
happens as the consumer asks for the next result, which is what keeps memory bounded when it is
slow.
"""

import dataclasses
import itertools
import threading
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from eenet_jax.errors import InputError
from eenet_jax.execution.inbox import Inbox
from eenet_jax.execution.lane import Answer, Lane
from eenet_jax.execution.lane_choice import Lanes
from eenet_jax.execution.lane_programs import LanePrograms
from eenet_jax.execution.sides import number_of_sides
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import PyTree

FAILED = -1
"""The exit of a sample without an answer."""

GLANCE_S = 0.001
"""Between two looks at whether a batch is through, while another could begin beside it."""

NOT_FINITE = "the network's answer is not finite: look at the sample"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A sample of a stream with an id of its own.

    Attributes:
      x: As the network takes it, without the batch axis.
      id: Handed on with the result.
    """

    x: PyTree
    id: Hashable = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Result:
    """What became of a sample; every sample has one.

    Attributes:
      position: Its place in the source, from 0.
      id: As given with the sample; its position where none was.
      logits: What it is answered [classes], or [height, width, classes]; None where it failed.
      exit_index: Where it left, 0-based; `FAILED`, -1, where it failed.
      error: Why there is no answer, in a line; None where there is one.
      seconds: From its arrival to its answer.
    """

    position: int
    id: Hashable
    logits: np.ndarray | None = None
    exit_index: int = FAILED
    error: str | None = None
    seconds: float = 0.0


class _Arrived(NamedTuple):
    """A sample that the source gave: its own id, when, and where it goes, or why it can't."""

    id: Hashable
    since: float
    lane: Hashable = None
    x: PyTree = None
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class _End:
    """After the last sample: what the source raised, if it did."""

    error: BaseException | None


class Stream:
    """Adaptive inference on an endless stream.

    Programs are compiled as samples of a new shape come, under what is set for the thread then (a
    precision, say).

    Args:
      network: The network.
      variables: Its weights.
      policy: Fitted for its exits.
      batch_size: Samples that are taken in together; they go through in pieces that suit the
        device, see `suitable_pieces`.
      max_wait_s: A sample that has been on its way for longer is not kept waiting for others;
        None: it may wait until the stream ends. It is seen to when the consumer asks for a
        result, and no sooner.
      ordered: Whether results come in the order of arrival; else as soon as they are there.
      capacity: Samples that may be on their way, or answered and held back for order; the
        oldest are hurried along where there would be more. By default what all lanes can hold.
      lengths: Of tokens, that texts are padded to; by default powers of two from 8 up to the
        longest that the network takes. A text waits in a lane with others of its length.
      overlap: Whether the device is handed a batch while the one before is going through: it never
        waits for the host then, and answers are read a batch later. By default everywhere but on
        a CPU, where the host's work takes the cores that stages run on.
      tracks: Batches that are on their way at once, each among those who wait on its own track. By
        default two on a CPU of several cores, which fill each other's gaps, else one. With one, a
        sample is answered a batch sooner, and half as many wait; `capacity` is by default what all
        tracks hold, and where it is less than that, batches are hurried along that aren't full.

    Raises:
      InputError: a setting is out of range.
    """

    def __init__(
        self,
        network: StagedNetwork,
        variables: PyTree,
        policy: Policy,
        *,
        batch_size: int = 64,
        max_wait_s: float | None = None,
        ordered: bool = False,
        capacity: int | None = None,
        lengths: Sequence[int] | None = None,
        overlap: bool | None = None,
        tracks: int | None = None,
    ):
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} must be at least 1")
        if max_wait_s is not None and not max_wait_s > 0:
            raise InputError(f"max_wait_s is {max_wait_s}: give seconds above 0, or None")
        if tracks is not None and tracks < 1:
            raise InputError(
                f"tracks is {tracks}: give 1 or more, or None for what suits the device"
            )
        self._network, self._variables, self._policy = network, variables, policy
        self.batch_size, self.ordered = batch_size, ordered
        self.overlap = jax.default_backend() != "cpu" if overlap is None else overlap
        self.max_wait_s = float("inf") if max_wait_s is None else max_wait_s
        self.lanes = Lanes(network, lengths)
        self.tracks = number_of_sides() if tracks is None else tracks
        # Lanes share them: what comes one after the other runs beside each other.
        self._sides = itertools.cycle(range(self.tracks) if self.tracks > 1 else [None])
        # A track of a lane holds a batch that begins, one that goes through, and at most as many
        # behind each exit.
        most = self.lanes.count * self.tracks * (network.num_exits + 2) * batch_size
        self.capacity = most if capacity is None else capacity
        if self.capacity < 2 * batch_size:
            raise InputError(
                f"capacity {capacity} is less than two batches: give {2 * batch_size} or more"
            )
        self._programs: dict[Hashable, LanePrograms] = {}

    def warm_up(self, x: PyTree) -> None:
        """Compile all that samples of this shape need; else that happens as the first come.

        Args:
          x: A sample.
        """
        key, placed = self.lanes.place(x)
        lane = self.new_lane(key, placed, lambda positions, logits, left: None)
        lane.add(0, placed)
        lane.finish()

    def new_lane(self, key: Hashable, x: PyTree, answer: Answer) -> Lane:
        """An empty lane for samples like this one."""
        if key not in self._programs:
            alone = jax.tree.map(lambda leaf: leaf[None].repeat(self.batch_size, 0), x)
            self._programs[key] = LanePrograms(self._network, self._policy, self._variables, alone)
        return Lane(self._programs[key], answer, self.overlap, self.tracks, self._sides)

    def answers(self, samples: Iterable[Any]) -> list[Result]:
        """Results of samples that all have an answer, in the order of arrival.

        Args:
          samples: As for calling the stream; they must end.

        Raises:
          InputError: a sample has no answer.
        """
        results = sorted(self(samples), key=lambda result: result.position)
        for result in results:
            if result.error is not None:
                raise InputError(f"sample {result.position} got no answer: {result.error}")
        return results

    def __call__(self, source: Iterable[Any]) -> Iterator[Result]:
        """Results of all samples of a source, each once.

        The source is read in a thread of its own. Where the consumer stops, that thread ends
        with the next sample; it can't be stopped inside the source.

        Args:
          source: Samples as the network takes them without the batch axis, or `Sample`s.

        Yields:
          A result a sample. One that the network can't take has an error.

        Raises:
          Whatever the source raises, once what it gave before is answered.
        """
        return _Pass(self).results(source)


class _Pass:
    """One source on its way: what has arrived, what is held back."""

    def __init__(self, stream: Stream):
        self._stream = stream
        self._lanes: dict[Hashable, Lane] = {}
        # Of all that have no result yet, in the order of arrival.
        self._arrived: dict[int, tuple[Hashable, float]] = {}
        self._ready: dict[int, Result] = {}
        self._next = 0
        self._count = 0
        # Room for a batch, so that reading goes on while stages run.
        self._inbox = Inbox(stream.batch_size)

    def results(self, source: Iterable[Any]) -> Iterator[Result]:
        """See `Stream`, when it is called."""
        threading.Thread(target=self._read, args=(source,), daemon=True).start()
        try:
            end = None
            while end is None:
                end = self._take_in()
                self._hurry(self._overdue())
                yield from self._released()
            self._hurry(self._count)
            yield from self._released()
            if end.error is not None:
                raise end.error
        finally:
            self._inbox.close()

    def _read(self, source: Iterable[Any]) -> None:
        """In a thread of its own: the source may block, and stages run beside the checks."""
        error = None
        try:
            for x in source:
                if not self._inbox.put(self._checked(x, time.perf_counter())):
                    return
        except BaseException as raised:
            error = raised
        self._inbox.put(_End(error))

    def _checked(self, x: Any, now: float) -> _Arrived:
        own, x = (x.id, x.x) if isinstance(x, Sample) else (None, x)
        try:
            return _Arrived(own, now, *self._stream.lanes.place(x))
        except InputError as error:
            return _Arrived(own, now, error=str(error))

    def _take_in(self) -> _End | None:
        """Take in the samples that are there, a batch at most; wait for one where none is."""
        # All of them first, so that a full batch is found where there are enough for one.
        for _ in range(self._inbox.room):
            try:
                item = self._inbox.take()
            except IndexError:
                self._wait()
                return None
            if isinstance(item, _End):
                return item
            self._admit(item)
            if self._is_full():
                return None
        return None

    def _wait(self) -> None:
        """Nothing has come: see to what is running, and wait as long as nobody is overdue."""
        running = self._see_to_what_runs()
        patience = self._patience()
        if running:
            # Whichever is first: a sample, or the end of what is running.
            patience = GLANCE_S if patience is None else min(patience, GLANCE_S)
        if not any(self._may_go(position) for position in self._ready):
            self._inbox.wait(patience)

    def _see_to_what_runs(self) -> bool:
        """Hand over what is answered. Whether something still runs that another may run beside."""
        if self._stream.tracks == 1:
            self._settle()
            return False
        running = [lane.hand_over() for lane in self._lanes.values()]
        return any(running)

    def _settle(self) -> None:
        for lane in self._lanes.values():
            lane.settle()

    def _may_go(self, position: int) -> bool:
        return not self._stream.ordered or position == self._next

    def _patience(self) -> float | None:
        """Seconds until the sample that arrived first is overdue."""
        if not self._arrived or self._stream.max_wait_s == float("inf"):
            return None
        _, since = next(iter(self._arrived.values()))
        return max(0.0, since + self._stream.max_wait_s - time.perf_counter())

    def _admit(self, sample: _Arrived) -> None:
        position, self._count = self._count, self._count + 1
        own = position if sample.id is None else sample.id
        if sample.error is not None:
            seconds = time.perf_counter() - sample.since
            self._ready[position] = Result(
                position=position, id=own, error=sample.error, seconds=seconds
            )
            return
        self._arrived[position] = (own, sample.since)
        if sample.lane not in self._lanes:
            lane = self._stream.new_lane(sample.lane, sample.x, self._answer)
            self._lanes[sample.lane] = lane
        self._lanes[sample.lane].add(position, sample.x)

    def _answer(self, positions: list[int], logits: np.ndarray, left: list[int]) -> None:
        now = time.perf_counter()
        finite = np.asarray(np.isfinite(logits).reshape(len(logits), -1).all(1)).tolist()
        for position, said, k, fine in zip(positions, logits, left, finite, strict=True):
            own, since = self._arrived.pop(position)
            self._ready[position] = Result(
                position=position,
                id=own,
                logits=said if fine else None,
                exit_index=k if fine else FAILED,
                error=None if fine else NOT_FINITE,
                seconds=now - since,
            )

    def _overdue(self) -> int:
        """Samples up to this position are not kept waiting; -1 where all may wait."""
        limit = time.perf_counter() - self._stream.max_wait_s
        overdue = -1
        for position, (_, since) in self._arrived.items():
            if since > limit:
                break
            overdue = position
        if self._has_no_room():
            # What can be answered makes some; else the older half of those on their way.
            self._settle()
            if self._has_no_room():
                waiting = list(self._arrived)
                overdue = max(overdue, waiting[len(waiting) // 2])
        return overdue

    def _has_no_room(self) -> bool:
        held_back = len(self._ready) if self._stream.ordered else 0
        return bool(self._arrived) and len(self._arrived) + held_back >= self._stream.capacity

    def _is_full(self) -> bool:
        return len(self._arrived) + len(self._ready) >= self._stream.capacity

    def _hurry(self, overdue: int) -> None:
        """See that samples up to this position get their answers, with those who wait beside."""
        if overdue < 0:
            return
        for lane in self._lanes.values():
            lane.hurry(overdue)

    def _released(self) -> Iterator[Result]:
        """What may be handed out by now."""
        if not self._stream.ordered:
            while self._ready:
                yield self._ready.pop(next(iter(self._ready)))
            return
        while self._next in self._ready:
            self._next += 1
            yield self._ready.pop(self._next - 1)
