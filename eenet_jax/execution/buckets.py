"""The batch sizes that stages run at, and how a number of samples is divided into them."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

from eenet_jax.errors import InputError
from eenet_jax.execution.latency import StageLatency

SMALLEST = 8
LAUNCH_IN_SAMPLES = 8
"""What a call costs beside its samples where nothing was measured, in samples."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Buckets:
    """Sizes of batches that are compiled, the same for every stage, and what they cost.

    Attributes:
      sizes: Samples, rising.
      cost: Of stage k on a batch of each size, in any unit, [exits, sizes].
    """

    sizes: tuple[int, ...]
    cost: Float[np.ndarray, "exits sizes"]

    def __post_init__(self):
        rising = list(self.sizes) == sorted(set(self.sizes))
        if not rising or min(self.sizes, default=0) < 1 or self.cost.shape[1] != len(self.sizes):
            raise InputError(
                f"sizes {list(self.sizes)} must rise from 1 or more, with a cost each for every"
                f" stage, not {self.cost.shape}"
            )
        if not (self.cost > 0).all():
            raise InputError("cost of a bucket must be positive for every stage and size")

    @functools.cached_property
    def regular(self) -> tuple[int, ...]:
        """For each stage the size that costs least per sample: what it runs at while it can."""
        return tuple(int(self.sizes[i]) for i in (self.cost / np.asarray(self.sizes)).argmin(1))

    def usable(self, k: int) -> tuple[int, ...]:
        """Sizes up to the regular one of stage k (0-based)."""
        return tuple(size for size in self.sizes if size <= self.regular[k])

    def cover(self, k: int, count: int) -> list[int]:
        """Sizes, falling, that hold `count` samples of stage k at the least cost together.

        Args:
          k: 0-based.
          count: Samples to hold; the last size may be filled in part.
        """
        regular = self.regular[k]
        # What regular batches hold is settled, so that the table need not follow the count.
        whole = max(0, count // regular - 1)
        rest, chosen = count - whole * regular, [regular] * whole
        choices = self._choices[k]
        while rest > 0:
            chosen.append(choices[rest])
            rest -= choices[rest]
        return sorted(chosen, reverse=True)

    def cost_of(self, k: int, count: int) -> float:
        """What `cover` costs together, in the unit of `cost`."""
        return float(sum(self.cost[k, self.sizes.index(size)] for size in self.cover(k, count)))

    @functools.cached_property
    def _choices(self) -> list[list[int]]:
        """For each stage and count below twice its regular size, the size to take next."""
        return [self._best_next(k) for k in range(len(self.cost))]

    def _best_next(self, k: int) -> list[int]:
        usable = self.usable(k)
        price = dict(zip(self.sizes, self.cost[k].tolist(), strict=True))
        least, choices = [0.0], [0]
        for count in range(1, 2 * self.regular[k]):
            # Of equal ones the larger: fewer calls.
            total, size = min((price[size] + least[max(0, count - size)], -size) for size in usable)
            least.append(total)
            choices.append(-size)
        return choices


def default_buckets(num_exits: int, batch_size: int) -> Buckets:
    """Powers of two from 8 to the batch, a call counting as much as 8 samples.

    Args:
      num_exits: K.
      batch_size: The greatest batch; it is a size itself.

    Raises:
      InputError: `batch_size` is not positive.
    """
    sizes = bucket_sizes(batch_size)
    cost = np.asarray(sizes, np.float64) + LAUNCH_IN_SAMPLES
    return Buckets(sizes=sizes, cost=np.tile(cost, (num_exits, 1)))


def bucket_sizes(batch_size: int) -> tuple[int, ...]:
    """Powers of two from 8 to the batch, and the batch.

    Raises:
      InputError: `batch_size` is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    powers = {1 << power for power in range(batch_size.bit_length())}
    return tuple(sorted({size for size in powers if size >= SMALLEST} | {batch_size}))


def measured_buckets(latency: StageLatency, batch_size: int) -> Buckets:
    """The sizes that were measured, up to the batch, at the seconds they took.

    Raises:
      InputError: none is as small as the batch.
    """
    kept = [i for i, size in enumerate(latency.sizes) if size <= batch_size]
    if not kept:
        raise InputError(
            f"batch_size {batch_size} is below every size that was measured"
            f" ({', '.join(map(str, latency.sizes))}): measure again"
        )
    return Buckets(sizes=tuple(latency.sizes[i] for i in kept), cost=latency.seconds[:, kept])
