"""Compacted execution driven by the host: one compiled program for each stage and bucket.

The host reads who left after each exit and gathers the others, on the device, into the buckets
that hold them at the least cost. For devices on which a call costs little beside its work, and
programs too large to hold every size at once.
"""

import jax
import numpy as np

from eenet_jax.execution.buckets import Buckets
from eenet_jax.execution.decision import Answers, Reached, compile_advance, start
from eenet_jax.execution.latency import shape_of_sample
from eenet_jax.pieces import suitable_pieces
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import PyTree


class HostCompacted:
    """Host-driven adaptive inference on survivors alone.

    Args:
      network: The network.
      policy: Fitted for its exits.
      buckets: Sizes that stages run at; the largest need not hold a batch.
    """

    def __init__(self, network: StagedNetwork, policy: Policy, buckets: Buckets):
        self._network, self._buckets = network, buckets
        self._steps = [compile_advance(network, policy, k) for k in range(network.num_exits)]
        self._start = jax.jit(lambda x: start(network, x))
        self._gather = jax.jit(Reached.take)
        self._pieces: dict[tuple[int, ...], int] = {}

    def __call__(self, variables: PyTree, x: PyTree) -> Answers:
        """Answers for a batch [batch, …], in its order, on the host."""
        count, *sides = jax.tree.leaves(x)[0].shape
        dense = tuple(sides[:2]) if self._network.dense else ()
        logits = np.zeros((count, *dense, self._network.num_classes), np.float32)
        exit_index = np.zeros(count, np.int32)
        groups = self._regroup(0, self._start(x), np.arange(count), np.arange(count))
        piece = self._piece(variables, x)
        for k in range(self._network.num_exits):
            groups = self._run_exit(k, piece, variables, groups, logits, exit_index)
        return Answers(logits, exit_index)

    def warm_up(self, variables: PyTree, x: PyTree) -> None:
        """Compile every stage and every gathering for every bucket.

        Args:
          variables: Of the network.
          x: Any batch; its values don't matter.
        """
        begun, sizes, piece = self._start(x), self._buckets.usable(0), self._piece(variables, x)
        reached = {size: self._gather(begun, _padded([0], size)) for size in sizes}
        for k, step in enumerate(self._steps):
            reached = {size: step(variables, each, piece)[0] for size, each in reached.items()}
            if k + 1 < len(self._steps):
                sizes = self._buckets.usable(k + 1)
                for each in reached.values():
                    taken = {size: self._gather(each, _padded([0], size)) for size in sizes}
                reached = taken

    def _piece(self, variables: PyTree, x: PyTree) -> int:
        """Samples that go through a stage together, however large its bucket."""
        shape = shape_of_sample(x)
        if shape not in self._pieces:
            largest = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(
                    (self._buckets.sizes[-1], *leaf.shape[1:]), leaf.dtype
                ),
                x,
            )
            self._pieces[shape] = min(suitable_pieces(self._network, variables, largest))
        return self._pieces[shape]

    def _run_exit(self, k: int, piece: int, variables, groups, logits, exit_index: np.ndarray):
        """Run exit k on every group; note who leaves; regroup the others."""
        # All groups are started before any result is awaited, so that the device stays busy.
        step = self._steps[k]
        started = [(step(variables, reached, piece), rows) for reached, rows in groups]
        survivors = []
        for (reached, out, leaves), rows in started:
            gone = np.asarray(leaves)[: len(rows)]
            logits[rows[gone]] = np.asarray(out)[: len(rows)][gone]
            exit_index[rows[gone]] = k
            survivors += self._regroup(k + 1, reached, rows, np.flatnonzero(~gone))
        return survivors

    def _regroup(self, k: int, reached: Reached, rows: np.ndarray, stay: np.ndarray) -> list:
        """The survivors of one group, gathered into the buckets of stage k."""
        if not len(stay):
            return []
        groups, first = [], 0
        for size in self._buckets.cover(k, len(stay)):
            chosen = stay[first : first + size]
            whole = len(chosen) == size == reached.probs.shape[1]
            taken = reached if whole else self._gather(reached, _padded(chosen, size))
            groups.append((taken, rows[chosen]))
            first += size
        return groups


def _padded(rows, size: int) -> np.ndarray:
    """`rows` filled up with copies of its first entry: padding computes, and is never read."""
    rows = np.asarray(rows, np.int32)
    return np.concatenate([rows, np.full(size - len(rows), rows[0], np.int32)])
