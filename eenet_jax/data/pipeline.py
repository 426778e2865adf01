"""Batches: endless, shuffled and resumable for training; complete for evaluation.

Grain runs over step numbers, not over samples: a batch is one row of the epoch's plan and one
gather, and the whole state of the iterator is the number of the next step. Samples of similar
size share a batch where the split says which are similar.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator

import grain
import numpy as np
from jaxtyping import Int64

from eenet_jax.data.permutation import permutation
from eenet_jax.data.read_ahead import ReadAhead
from eenet_jax.data.split import Batch, Rows, Split
from eenet_jax.errors import InputError

_BATCH_ORDER = 2**32  # Beyond every seed, so that the order of batches has a stream of its own.


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Full batches in one epoch of training; the remainder waits for the next shuffle.

    Raises:
      InputError: there is no full batch.
    """
    if not 1 <= batch_size <= len(split):
        raise InputError(
            f"batch_size {batch_size} of {len(split):,} {split.split} samples:"
            f" give one from 1 to {len(split)}"
        )
    return len(split) // batch_size


def train_batches(
    split: Split, *, batch_size: int, seed: int, rows: Rows | None = None
) -> grain.DatasetIterator[Batch]:
    """Endless batches, shuffled anew each epoch; what the device augments is not augmented yet.

    Args:
      split: What to draw from.
      batch_size: Samples a batch; what is left at an epoch's end is dropped.
      seed: Fixes every epoch's order, and the augmentation done while reading.
      rows: Which of every batch's samples are wanted, as they would be in the whole batch: one
        process's share. All by default.

    Returns:
      An iterator of what `Split.gather_training` returns. `get_state()` and `set_state()` resume
      it exactly, and Orbax saves it as it is.

    Raises:
      InputError: `batch_size` is larger than the split.
    """
    steps = steps_per_epoch(split, batch_size)
    plan = _EpochPlan(split, batch_size, steps, seed)
    rows = np.arange(batch_size) if rows is None else rows
    make = functools.partial(_train_batch, split, steps, plan, seed, rows)
    return _batches(make, sys.maxsize, split.workers)


def _batches(
    make: Callable[[int], Batch], count: int, workers: int
) -> grain.DatasetIterator[Batch]:
    """Batches 0 to `count` - 1, made when they are asked for or ahead by processes of their own."""
    if workers:
        return ReadAhead(make, count, workers)
    # A batch in memory takes about a tenth of a millisecond: threads and buffers would only cost.
    in_line = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(grain.MapDataset.range(count).map(make).to_iter_dataset(in_line))


class _EpochPlan:
    """Which samples each step of an epoch gets; the last epoch asked for is kept."""

    def __init__(self, split: Split, batch_size: int, steps: int, seed: int):
        self._size, self._buckets = len(split), split.buckets
        self._shape = (steps, batch_size)
        self._seed = seed
        self._epoch = -1
        self._plan = np.zeros(self._shape, np.int64)

    def of(self, epoch: int) -> Int64[np.ndarray, "steps batch"]:
        if epoch != self._epoch:
            # Epochs count from 1 here: permutation(size, seed) chooses the validation split.
            order = permutation(self._size, self._seed, epoch + 1)[: np.prod(self._shape)]
            self._plan = self._bucketed(order, epoch).reshape(self._shape)
            self._epoch = epoch
        return self._plan

    def _bucketed(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """Buckets one after the other, cut into batches, the batches shuffled."""
        if self._buckets is None:
            return order
        by_bucket = order[np.argsort(self._buckets[order], kind="stable")].reshape(self._shape)
        return by_bucket[permutation(self._shape[0], self._seed + _BATCH_ORDER, epoch + 1)]


def _train_batch(
    split: Split, steps: int, plan: _EpochPlan, seed: int, rows: Rows, step: int
) -> Batch:
    epoch, position = divmod(step, steps)
    # A stream of its own for every step: a resumed run draws as the unbroken one would have.
    draw = np.random.Generator(np.random.Philox(key=np.asarray([seed, step], np.uint64)))
    return split.gather_training(plan.of(epoch)[position], draw, rows)


def eval_batches(split: Split, *, batch_size: int, rows: Rows | None = None) -> Iterator[Batch]:
    """Every sample once, in batches of one size: in order, or bucket by bucket.

    Args:
      split: What to evaluate on.
      batch_size: Samples a batch. The last one is filled up with copies of its last sample.
      rows: As in `train_batches`.

    Yields:
      What `Split.gather` returns; `position` int64 [batch], the samples' places in the split;
      and `mask` bool [batch]: False where a sample is filling.

    Raises:
      InputError: `batch_size` is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    # A function of its own, so that bad input raises here and not at the first batch.
    rows = np.arange(batch_size) if rows is None else rows
    return _eval_batches(split, batch_size, rows)


def _eval_batches(split: Split, batch_size: int, rows: Rows) -> Iterator[Batch]:
    order = np.arange(len(split))
    if split.buckets is not None:
        order = np.argsort(split.buckets, kind="stable")
    make = functools.partial(_eval_batch, split, order, batch_size, rows)
    batches = _batches(make, -(-len(split) // batch_size), split.workers)
    # Closed whether or not all are taken: reading processes would wait for somebody to go on.
    with contextlib.closing(batches):
        yield from batches


def _eval_batch(split: Split, order: np.ndarray, batch_size: int, rows: Rows, number: int) -> Batch:
    places = np.arange(number * batch_size, (number + 1) * batch_size)
    positions = order[np.minimum(places, len(split) - 1)]
    return {
        **split.gather(positions, rows),
        "position": positions[rows],
        "mask": (places < len(split))[rows],
    }
