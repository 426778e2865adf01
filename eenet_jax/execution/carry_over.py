"""Stages on full batches: survivors wait in a buffer at each exit until it is full.

The host reads who left and copies the others to the next stage's buffer, on the device. A stage
runs when its buffer is full, the deepest first, or when somebody can't wait any longer, and then
on the smallest batches that hold those who are there. Nothing here knows where samples come from.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Int

from eenet_jax.execution.buckets import Buckets, positions_in
from eenet_jax.execution.decision import Reached, compile_advance, start
from eenet_jax.policies.policy import Policy
from eenet_jax.types import PyTree, StagedNetwork

Tags = Int[np.ndarray, " samples"]


@dataclasses.dataclass(frozen=True)
class Left:
    """Samples that left together.

    Attributes:
      tags: As they were offered.
      logits: What they are answered, [samples, …, classes].
      exit: 0-based.
    """

    tags: Tags
    logits: np.ndarray
    exit: int


class Programs:
    """What is compiled of a network and a policy: every exit, and copying between buffers.

    Args:
      network: The network.
      policy: Fitted for its exits.
    """

    def __init__(self, network: StagedNetwork, policy: Policy):
        self.num_exits = network.num_exits
        self.exits = [compile_advance(network, policy, k) for k in range(network.num_exits)]
        self.start = jax.jit(lambda x: start(network, x))
        self.take = jax.jit(Reached.take)
        # The buffer is given away, so that a row is copied once and nothing else moves.
        self.fill = jax.jit(Reached.put, donate_argnums=0)

    def warm_up(self, variables: PyTree, begun: Reached, buckets: Buckets) -> None:
        """Compile all that samples of this shape may need.

        Args:
          variables: Of the network.
          begun: From `start`; its values don't matter.
          buckets: The sizes that stages run at.
        """
        first = np.zeros(1, np.int32)
        reached = {size: self.take(begun, padded(first, size)) for size in buckets.usable(0)}
        for k, step in enumerate(self.exits):
            reached = {size: step(variables, each)[0] for size, each in reached.items()}
            if k + 1 < self.num_exits:
                reached = self._warm_up_copies(reached, buckets.usable(k + 1))

    def _warm_up_copies(self, sources: dict[int, Reached], sizes: Sequence[int]):
        """Compile what may be copied from stage to stage; returns an input of each size."""
        regular, first = sizes[-1], np.zeros(1, np.int32)
        taken = {}
        for rows, source in sources.items():
            taken = {size: self.take(source, padded(first, size)) for size in sizes}
            nowhere = positions_in(regular, rows, first[:0], 0)
            taken[regular] = self.fill(taken[regular], source, nowhere)
        return {size: self.take(taken[regular], padded(first, size)) for size in sizes}


@dataclasses.dataclass
class _Buffer:
    reached: Reached
    tags: Tags


@dataclasses.dataclass(frozen=True)
class _Running:
    exit: int
    after: Reached
    logits: jax.Array
    leaves: jax.Array
    tags: Tags


class CarryOver:
    """Samples of one shape on their way through a network.

    Args:
      programs: Compiled for the network and the policy.
      variables: Of the network.
      buckets: The sizes that stages run at.
      answer: Takes those who leave, as soon as it is known.
      ahead: Calls that may be running while the host does something else.
    """

    def __init__(
        self,
        programs: Programs,
        variables: PyTree,
        buckets: Buckets,
        answer: Callable[[Left], None],
        ahead: int = 1,
    ):
        self._programs, self._variables = programs, variables
        self._buckets, self._answer, self._ahead = buckets, answer, ahead
        self._waiting: list[_Buffer | None] = [None] * programs.num_exits
        self._running: collections.deque[_Running] = collections.deque()
        self._nothing_follows = False

    def offer(self, reached: Reached, tags: Tags, *, last: bool = False) -> None:
        """Run the first stage on samples that begin.

        Args:
          reached: From `start`, as many rows as one of the sizes.
          tags: Of the rows, from the first; further rows are filling.
          last: Whether nothing follows until somebody is answered: survivors need no buffer.
        """
        self._nothing_follows = last
        self._run(0, reached, tags)

    def waiting(self) -> Iterator[tuple[int, Tags]]:
        """The exits at which somebody waits, 0-based, and who."""
        for k, buffer in enumerate(self._waiting):
            if buffer is not None:
                yield k, buffer.tags

    def settle(self) -> None:
        """Wait for everything that is running, and for what that makes run."""
        while self._running:
            self._settle_one()

    def flush(self, k: int) -> None:
        """Run stage k on those who wait for it, however few."""
        buffer, self._waiting[k] = self._waiting[k], None
        if buffer is not None:
            self._run_in_buckets(k, buffer.reached, np.arange(len(buffer.tags)), buffer.tags)

    def finish(self) -> None:
        """Answer everybody who has been offered."""
        self.settle()
        for k in range(1, self._programs.num_exits):
            self.flush(k)
            self.settle()
        self._nothing_follows = False

    def _run(self, k: int, reached: Reached, tags: Tags) -> None:
        after, logits, leaves = self._programs.exits[k](self._variables, reached)
        self._running.append(_Running(k, after, logits, leaves, tags))
        while len(self._running) > self._ahead:
            self._settle_one()

    def _settle_one(self) -> None:
        done = self._running.popleft()
        gone: Bool[np.ndarray, " samples"] = np.asarray(done.leaves)[: len(done.tags)]
        if gone.any():
            logits = np.asarray(done.logits)[: len(done.tags)][gone]
            self._answer(Left(done.tags[gone], logits, done.exit))
        stay = np.flatnonzero(~gone)
        if len(stay):
            self._pass_on(done.exit + 1, done.after, stay, done.tags[stay])

    def _pass_on(self, k: int, source: Reached, rows: np.ndarray, tags: Tags) -> None:
        """Survivors go to the buffer of stage k; a full one is run."""
        if self._is_last_for(k):
            rows, tags = self._top_up(k, source, rows, tags)
            self.flush(k)
            return self._run_in_buckets(k, source, rows, tags)
        while len(rows):
            rows, tags = self._top_up(k, source, rows, tags, begin=True)

    def _is_last_for(self, k: int) -> bool:
        """Whether nobody else will come to stage k before somebody is offered anew."""
        earlier = any(buffer is not None for buffer in self._waiting[:k])
        return self._nothing_follows and not self._running and not earlier

    def _top_up(self, k: int, source: Reached, rows, tags: Tags, begin: bool = False):
        """Copy as many rows as the buffer of stage k has room for; returns the others."""
        size, buffer = self._buckets.regular[k], self._waiting[k]
        if buffer is None:
            if not begin:
                return rows, tags
            now = rows[:size]
            if len(now) == size == source.rows:
                buffer = _Buffer(source, tags[:size])
            else:
                buffer = _Buffer(self._programs.take(source, padded(now, size)), tags[:size])
        else:
            now = rows[: size - len(buffer.tags)]
            positions = positions_in(size, source.rows, now, len(buffer.tags))
            filled = self._programs.fill(buffer.reached, source, positions)
            buffer = _Buffer(filled, np.concatenate([buffer.tags, tags[: len(now)]]))
        self._waiting[k] = buffer
        if len(buffer.tags) == size:
            self._waiting[k] = None
            self._run(k, buffer.reached, buffer.tags)
        return rows[len(now) :], tags[len(now) :]

    def _run_in_buckets(self, k: int, source: Reached, rows: np.ndarray, tags: Tags) -> None:
        """Stage k on rows of `source`, in the cheapest sizes that hold them."""
        first = 0
        groups = []
        for size in self._buckets.cover(k, len(rows)):
            chosen = slice(first, first + size)
            everything = len(rows) == size == source.rows
            taken = (
                source if everything else self._programs.take(source, padded(rows[chosen], size))
            )
            groups.append((taken, tags[chosen]))
            first += size
        for taken, whose in groups:
            self._run(k, taken, whose)


def padded(rows: np.ndarray, size: int) -> np.ndarray:
    """`rows` filled up with copies of its first entry: filling computes, and is never read."""
    rows = np.asarray(rows, np.int32)
    return np.concatenate([rows, np.full(size - len(rows), rows[0], np.int32)])
