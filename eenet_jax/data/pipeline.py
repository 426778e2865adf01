"""Batches: endless, shuffled and resumable for training; complete and in order for evaluation.

Grain runs over step numbers, not over samples: a batch is one slice of the epoch's
permutation and one gather, and the whole state of the iterator is the number of the next step.
"""

import functools
import sys
from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int64

from eenet_jax.data.datasets import ImageSplit
from eenet_jax.data.permutation import permutation
from eenet_jax.errors import InputError

Batch = dict[str, np.ndarray]


def steps_per_epoch(split: ImageSplit, batch_size: int) -> int:
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


def train_batches(split: ImageSplit, *, batch_size: int, seed: int) -> grain.DatasetIterator[Batch]:
    """Endless batches, shuffled anew each epoch, not augmented.

    Args:
      split: What to draw from.
      batch_size: Samples a batch; what is left at an epoch's end is dropped.
      seed: Fixes every epoch's order.

    Returns:
      An iterator of `image` uint8 [batch, height, width, channels], `label` int32 [batch],
      `id` int64 [batch]. `get_state()` and `set_state()` resume it exactly, and Orbax saves
      it as it is.

    Raises:
      InputError: `batch_size` is larger than the split.
    """
    steps = steps_per_epoch(split, batch_size)
    batches = grain.MapDataset.range(sys.maxsize).map(
        functools.partial(_train_batch, split, batch_size, steps, _EpochOrder(len(split), seed))
    )
    # A batch takes about a tenth of a millisecond: threads and buffers would only cost.
    in_line = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(batches.to_iter_dataset(in_line))


class _EpochOrder:
    """The permutation of an epoch; the last one asked for is kept."""

    def __init__(self, size: int, seed: int):
        self._size = size
        self._seed = seed
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    def of(self, epoch: int) -> Int64[np.ndarray, " samples"]:
        if epoch != self._epoch:
            # Epochs count from 1 here: permutation(size, seed) chooses the validation split.
            self._order = permutation(self._size, self._seed, epoch + 1)
            self._epoch = epoch
        return self._order


def _train_batch(
    split: ImageSplit, batch_size: int, steps: int, order: _EpochOrder, step: int
) -> Batch:
    epoch, position = divmod(step, steps)
    start = position * batch_size
    return split.gather(order.of(epoch)[start : start + batch_size])


def eval_batches(split: ImageSplit, *, batch_size: int) -> Iterator[Batch]:
    """Every sample once, in order, in batches of one size.

    Args:
      split: What to evaluate on.
      batch_size: Samples a batch. The last one is filled up with copies of its last sample.

    Yields:
      As `train_batches`, and `mask` bool [batch]: False where a sample is filling.

    Raises:
      InputError: `batch_size` is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    # A function of its own, so that bad input raises here and not at the first batch.
    return _eval_batches(split, batch_size)


def _eval_batches(split: ImageSplit, batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(split), batch_size):
        positions = np.arange(start, start + batch_size)
        mask = positions < len(split)
        yield {**split.gather(np.minimum(positions, len(split) - 1)), "mask": mask}
