"""Compacted execution driven by the host: later stages run on survivors alone, in buckets.

The host reads who left after each exit, so that the work shrinks with the batch. Every stage is
compiled once for each bucket. Where small batches cost less per sample than the whole one does,
as on a processor whose cache holds the small ones, a batch goes through in pieces.
"""

import jax
import numpy as np

from eenet_jax.execution.buckets import Buckets, default_buckets
from eenet_jax.execution.carry_over import CarryOver, Left, Programs, padded
from eenet_jax.execution.decision import Answers
from eenet_jax.policies.policy import Policy
from eenet_jax.types import PyTree, StagedNetwork


class Compacted:
    """Host-driven adaptive inference on survivors alone.

    Args:
      network: The network.
      policy: Fitted for its exits.
      batch_size: The greatest batch it will be given.
      buckets: Sizes that stages run at; by default powers of two up to the batch.
    """

    def __init__(
        self,
        network: StagedNetwork,
        policy: Policy,
        batch_size: int,
        buckets: Buckets | None = None,
    ):
        self._network = network
        self._buckets = buckets or default_buckets(network.num_exits, batch_size)
        self._programs = Programs(network, policy)

    def __call__(self, variables: PyTree, x: PyTree) -> Answers:
        """Answers for a batch [batch, …], in its order, on the host."""
        count, *sides = jax.tree.leaves(x)[0].shape
        dense = tuple(sides[:2]) if self._network.dense else ()
        logits = np.zeros((count, *dense, self._network.num_classes), np.float32)
        exit_index = np.zeros(count, np.int32)

        def answer(left: Left) -> None:
            logits[left.tags], exit_index[left.tags] = left.logits, left.exit

        way = CarryOver(self._programs, variables, self._buckets, answer)
        sizes, first = self._buckets.cover(0, count), 0
        begun = self._programs.start(x)
        for size in sizes:
            rows = np.arange(first, min(first + size, count))
            piece = begun if size == count else self._programs.take(begun, padded(rows, size))
            first += size
            way.offer(piece, rows, last=first >= count)
        way.finish()
        return Answers(logits, exit_index)

    def warm_up(self, variables: PyTree, x: PyTree) -> None:
        """Compile all that a batch of this size may need.

        Args:
          variables: Of the network.
          x: A batch; its values don't matter.
        """
        self._programs.warm_up(variables, self._programs.start(x), self._buckets)
