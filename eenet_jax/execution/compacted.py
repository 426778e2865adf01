"""Compacted execution: after each exit the survivors are gathered into power-of-two buckets.

The host reads who left, gathers the others, and runs the next stage on them alone, so that the
work shrinks with the batch. Every stage is compiled once for each bucket size.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np

from eenet_jax.errors import InputError
from eenet_jax.execution.decision import Answers, Reached, compile_advance, start
from eenet_jax.policies.policy import Policy
from eenet_jax.types import PyTree, StagedNetwork

SMALLEST_BUCKET = 8
FULL_ENOUGH = 0.75


def split_into_buckets(count: int, largest: int, smallest: int = SMALLEST_BUCKET) -> list[int]:
    """Power-of-two bucket sizes that hold `count` samples with little padding.

    A bucket is used where it is at least three quarters full, and otherwise a smaller one
    first: 152 survivors of 256 go into 128 + 32, not into 256.

    Args:
      count: Samples to hold.
      largest: The greatest bucket, a power of two.
      smallest: The least, a power of two; what is left over is padded up to it.

    Returns:
      Sizes in the order in which they are filled; all but the last are full.
    """
    sizes = []
    while count > 0:
        size = min(largest, max(smallest, 1 << math.ceil(math.log2(count))))
        if size > smallest and count < FULL_ENOUGH * size:
            size //= 2
        sizes.append(size)
        count -= size
    return sizes


class Compacted:
    """Host-driven adaptive inference on survivors alone.

    Args:
      network: The network.
      policy: Fitted for its exits.
      batch_size: The greatest batch it will be given.
    """

    def __init__(self, network: StagedNetwork, policy: Policy, batch_size: int):
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} must be at least 1")
        self._network = network
        self._largest = 1 << int(math.log2(batch_size))
        self._smallest = min(SMALLEST_BUCKET, self._largest)
        self._buckets = self._buckets_up_to(self._largest)
        # A whole batch of which nobody has left yet needs no bucket.
        self._sizes = {batch_size, *self._buckets}
        self._steps = [compile_advance(network, policy, k) for k in range(network.num_exits)]
        self._start = jax.jit(lambda x: start(network, x))
        self._gather = jax.jit(Reached.take)

    def __call__(self, variables: PyTree, x: PyTree) -> Answers:
        """Answers for a batch [batch, …], in its order, on the host."""
        count, *sides = jax.tree.leaves(x)[0].shape
        dense = sides[:2] if self._network.dense else ()
        logits = np.zeros((count, *dense, self._network.num_classes), np.float32)
        exit_index = np.zeros(count, np.int32)
        groups = self._regroup(self._start(x), np.arange(count), np.arange(count))
        for k in range(self._network.num_exits):
            groups = self._run_exit(k, variables, groups, logits, exit_index)
        return Answers(logits, exit_index)

    def warm_up(self, variables: PyTree, x: PyTree) -> None:
        """Compile every stage and every gathering for every bucket.

        Args:
          variables: Of the network.
          x: Any batch; its values don't matter.
        """
        reached = {size: self._gather(self._start(x), _padded([0], size)) for size in self._sizes}
        for step in self._steps:
            reached = {size: step(variables, each)[0] for size, each in reached.items()}
            for size, each in reached.items():
                for smaller in self._buckets_up_to(size):
                    jax.block_until_ready(self._gather(each, _padded([0], smaller)))

    def _buckets_up_to(self, size: int) -> list[int]:
        """Powers of two from the smallest bucket to `size`."""
        lowest, highest = int(math.log2(self._smallest)), int(math.log2(size))
        return [1 << power for power in range(lowest, highest + 1)]

    def _run_exit(self, k: int, variables, groups, logits: np.ndarray, exit_index: np.ndarray):
        """Run exit k on every group; note who leaves; regroup the others."""
        # All groups are started before any result is awaited, so that the device stays busy.
        started = [(self._steps[k](variables, reached), rows) for reached, rows in groups]
        survivors = []
        for (reached, out, leaves), rows in started:
            gone = np.asarray(leaves)[: len(rows)]
            logits[rows[gone]] = np.asarray(out)[: len(rows)][gone]
            exit_index[rows[gone]] = k
            survivors += self._regroup(reached, rows, np.flatnonzero(~gone))
        return survivors

    def _regroup(self, reached: Reached, rows: np.ndarray, stay: np.ndarray) -> list:
        """The survivors of one group, gathered into buckets."""
        if len(stay) == len(rows) and reached.probs.shape[1] in self._sizes:
            return [(reached, rows)]
        groups, start_at = [], 0
        for size in split_into_buckets(len(stay), self._largest, self._smallest):
            chosen = stay[start_at : start_at + size]
            groups.append((self._gather(reached, _padded(chosen, size)), rows[chosen]))
            start_at += size
        return groups


def _padded(rows: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """`rows` filled up with copies of its first entry: padding computes, and is never read."""
    rows = np.asarray(rows, np.int32)
    return np.concatenate([rows, np.full(size - len(rows), rows[0], np.int32)])
