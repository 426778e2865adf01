"""Adaptive inference on a stream: every stage runs full batches, whatever share leaves early.

Samples wait in a buffer at each exit until it holds a batch, so that nothing is padded while the
stream goes on. A thread reads the source into a bounded queue; everything else happens as the
consumer asks for the next result, which is what keeps memory bounded when it is slow.
"""

import dataclasses
import queue
import threading
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from eenet_jax.errors import InputError
from eenet_jax.execution.buckets import Buckets, default_buckets
from eenet_jax.execution.carry_over import CarryOver, Left, Programs, padded
from eenet_jax.execution.lanes import Lanes
from eenet_jax.policies.policy import Policy
from eenet_jax.types import PyTree, StagedNetwork

POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A sample of a stream with an id of its own.

    Attributes:
      x: As the network takes it, without the batch axis.
      id: Handed on with the result.
    """

    x: PyTree
    id: Hashable = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What became of a sample; every sample has one.

    Attributes:
      position: Its place in the source, from 0.
      id: As given with the sample; its position where none was.
      logits: What it is answered [classes], or [height, width, classes]; None where it failed.
      exit_index: Where it left, 0-based; -1 where it failed.
      error: Why there is no answer, in a line; None where there is one.
      seconds: From its arrival to its answer.
    """

    position: int
    id: Hashable
    logits: np.ndarray | None = None
    exit_index: int = -1
    error: str | None = None
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class _End:
    """After the last sample: what the source raised, if it did."""

    error: BaseException | None


@dataclasses.dataclass
class _Lane:
    """Samples of one shape."""

    way: CarryOver
    begun: list[PyTree] = dataclasses.field(default_factory=list)
    positions: list[int] = dataclasses.field(default_factory=list)


class Stream:
    """Adaptive inference on an endless stream.

    Args:
      network: The network.
      variables: Its weights.
      policy: Fitted for its exits.
      batch_size: The greatest batch that a stage runs on.
      buckets: Sizes that stages run at; by default powers of two up to `batch_size`.
      max_wait_s: A sample that has been on its way for longer is not kept waiting for others;
        None: it may wait until the stream ends.
      ordered: Whether results come in the order of arrival; else as soon as they are there.
      capacity: Samples that may be on their way, or answered and held back for order; the
        oldest is hurried along where there would be more. Eight batches an exit by default.
      lengths: Of tokens, that texts are padded to; by default powers of two from 8 up to the
        network's own length. A text is a lane with others of its padded length.

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
        buckets: Buckets | None = None,
        max_wait_s: float | None = None,
        ordered: bool = False,
        capacity: int | None = None,
        lengths: Sequence[int] | None = None,
    ):
        self._network, self._variables = network, variables
        self._buckets = buckets or default_buckets(network.num_exits, batch_size)
        least = (network.num_exits + 1) * max(self._buckets.regular)
        self._capacity = 8 * least if capacity is None else capacity
        if self._capacity < least:
            raise InputError(
                f"capacity {capacity} is below what the buffers hold: give {least} or more"
            )
        if max_wait_s is not None and not max_wait_s > 0:
            raise InputError(f"max_wait_s is {max_wait_s}: give seconds above 0, or None")
        self._max_wait_s = float("inf") if max_wait_s is None else max_wait_s
        self._ordered = ordered
        self._lanes = Lanes(network, lengths)
        self._programs = Programs(network, policy)

    def warm_up(self, x: PyTree) -> None:
        """Compile all that samples of this shape may need; else that happens as they come.

        Args:
          x: A sample.
        """
        _, x = self._lanes.place(x)
        batch = jax.tree.map(lambda leaf: np.stack([leaf] * self._buckets.regular[0]), x)
        self._programs.warm_up(self._variables, self._programs.start(batch), self._buckets)

    def __call__(self, source: Iterable[Any]) -> Iterator[Result]:
        """Results of all samples of a source, each once.

        Args:
          source: Samples as the network takes them without the batch axis, or `Sample`s.

        Yields:
          A result a sample. One that the network can't take has an error.

        Raises:
          Whatever the source raises, once what it gave before is answered.
        """
        return _Pass(self).results(source)

    def lane(self, answer) -> _Lane:
        """An empty one."""
        return _Lane(CarryOver(self._programs, self._variables, self._buckets, answer))

    def begin(self, lane: _Lane) -> None:
        """Run the first stage on what has arrived in a lane, in the cheapest batches."""
        samples, positions = lane.begun, np.asarray(lane.positions)
        lane.begun, lane.positions = [], []
        first = 0
        for size in self._buckets.cover(0, len(samples)):
            rows = padded(np.arange(first, min(first + size, len(samples))), size)
            batch = jax.tree.map(lambda *leaves: np.stack(leaves), *(samples[i] for i in rows))
            lane.way.offer(self._programs.start(batch), positions[first : first + size])
            first += size


class _Pass:
    """One source on its way: what has arrived, what is held back."""

    def __init__(self, stream: Stream):
        self._stream = stream
        self._lanes: dict[Hashable, _Lane] = {}
        # Of all that have no result yet, in the order of arrival.
        self._arrived: dict[int, tuple[Hashable, float]] = {}
        self._ready: dict[int, Result] = {}
        self._next = 0
        self._count = 0
        # Room for a batch, so that reading goes on while stages run.
        self._queue: queue.Queue[Any] = queue.Queue(max(stream._buckets.regular))
        self._stopped = threading.Event()

    def results(self, source: Iterable[Any]) -> Iterator[Result]:
        threading.Thread(target=self._read, args=(source,), daemon=True).start()
        try:
            end = None
            while end is None:
                end = self._take_in()
                self._hurry(self._overdue())
                yield from self._released()
            self._finish()
            yield from self._released()
            if end.error is not None:
                raise end.error
        finally:
            self._stopped.set()

    def _read(self, source: Iterable[Any]) -> None:
        """In a thread of its own: the source may block."""
        error = None
        try:
            for x in source:
                if not self._put((x, time.perf_counter())):
                    return
        except BaseException as raised:
            error = raised
        self._put(_End(error))

    def _put(self, item: Any) -> bool:
        """Wait for room; False where nobody wants results any more."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def _take_in(self) -> _End | None:
        """Take in all samples that are there; wait for one where nothing else is to be done."""
        # All of them first, so that a full batch is found where there are enough for one.
        for _ in range(self._queue.maxsize):
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return self._wait()
            if isinstance(item, _End):
                return item
            self._admit(*item)
        return None

    def _wait(self) -> _End | None:
        """The queue is empty: see to what is running, then wait as long as nobody is overdue."""
        for lane in self._lanes.values():
            lane.way.settle()
        if self._ready and not self._ordered_behind():
            return None
        try:
            item = self._queue.get(timeout=self._patience())
        except queue.Empty:
            return None
        return item if isinstance(item, _End) else self._admit(*item)

    def _ordered_behind(self) -> bool:
        """Whether all that is ready is held back for the order's sake."""
        return self._stream._ordered and self._next not in self._ready

    def _patience(self) -> float | None:
        """Seconds until the sample that arrived first is overdue."""
        if not self._arrived or self._stream._max_wait_s == float("inf"):
            return None
        _, since = next(iter(self._arrived.values()))
        return max(0.0, since + self._stream._max_wait_s - time.perf_counter())

    def _admit(self, x: Any, now: float) -> None:
        position, self._count = self._count, self._count + 1
        own = x.id if isinstance(x, Sample) and x.id is not None else position
        self._arrived[position] = (own, now)
        try:
            key, placed = self._stream._lanes.place(x.x if isinstance(x, Sample) else x)
        except InputError as error:
            self._note(position, error=str(error))
            return
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = self._stream.lane(self._answer)
        lane.begun.append(placed)
        lane.positions.append(position)
        if len(lane.begun) == self._stream._buckets.regular[0]:
            self._stream.begin(lane)

    def _answer(self, left: Left) -> None:
        for position, logits in zip(left.tags.tolist(), left.logits, strict=True):
            if np.isfinite(logits).all():
                self._note(position, logits=logits.copy(), exit_index=left.exit)
            else:
                self._note(position, error="the network's answer is not finite")

    def _note(self, position: int, **fields: Any) -> None:
        own, since = self._arrived.pop(position)
        seconds = time.perf_counter() - since
        self._ready[position] = Result(position=position, id=own, seconds=seconds, **fields)

    def _overdue(self) -> int:
        """Samples up to this position are not kept waiting; -1 where all may wait."""
        limit = time.perf_counter() - self._stream._max_wait_s
        overdue = -1
        for position, (_, since) in self._arrived.items():
            if since > limit:
                break
            overdue = position
        if self._too_full():
            overdue = max(overdue, next(iter(self._arrived)))
        return overdue

    def _too_full(self) -> bool:
        held = len(self._arrived) + len(self._ready)
        return bool(self._arrived) and held > self._stream._capacity

    def _hurry(self, overdue: int) -> None:
        """See that samples up to this position get their answers, with those who wait beside."""
        if overdue < 0:
            return
        for lane in self._lanes.values():
            if lane.positions and lane.positions[0] <= overdue:
                self._stream.begin(lane)
            lane.way.settle()
            for k in range(1, self._stream._network.num_exits):
                if any(at == k and tags.min() <= overdue for at, tags in lane.way.waiting()):
                    lane.way.flush(k)
                    lane.way.settle()

    def _finish(self) -> None:
        for lane in self._lanes.values():
            self._stream.begin(lane)
            lane.way.finish()

    def _released(self) -> Iterator[Result]:
        """What may be handed out by now."""
        if not self._stream._ordered:
            while self._ready:
                yield self._ready.pop(next(iter(self._ready)))
            return
        while self._next in self._ready:
            self._next += 1
            yield self._ready.pop(self._next - 1)
