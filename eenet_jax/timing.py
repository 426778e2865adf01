"""How long calls take: one alone, or several beside one another."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from eenet_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Repeated measurements of one call.

    Attributes:
      seconds: Of each, in order; several that were timed in turn have as many.
    """

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread_s(self) -> float:
        """Greatest minus least, seconds."""
        return max(self.seconds) - min(self.seconds)

    @property
    def repeats(self) -> int:
        """How many."""
        return len(self.seconds)


def measure(run: Callable[[], Any], repeats: int = 7, limit_s: float = math.inf) -> Timing:
    """Time a call, after one that warms up; every result is waited for.

    Args:
      run: The call.
      repeats: How often.
      limit_s: Seconds after which it is not repeated further.

    Raises:
      InputError: `repeats` is not positive.
    """
    _check_repeats(repeats)
    jax.block_until_ready(run())
    seconds = []
    while len(seconds) < repeats and sum(seconds) < limit_s:
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return Timing(seconds=tuple(seconds))


def measure_in_turn(
    runs: Mapping[str, Callable[[], object]], repeats: int = 7, limit_s: float = math.inf
) -> dict[str, Timing]:
    """Time several calls beside one another, turn by turn, after a turn that warms up.

    Args:
      runs: The calls, by name; each returns when its work is done, and not before.
      repeats: Timed turns.
      limit_s: Seconds of timed turns after which none begins.

    Raises:
      InputError: `repeats` is not positive.
    """
    _check_repeats(repeats)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    began = time.perf_counter()
    for turn in range(repeats):
        if turn and time.perf_counter() - began > limit_s:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(seconds=tuple(taken)) for name, taken in seconds.items()}


def _check_repeats(repeats: int) -> None:
    if repeats < 1:
        raise InputError(f"repeats is {repeats}: give 1 or more")
