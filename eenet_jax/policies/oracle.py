"""`oracle`: the most that any choice of exits could reach, a bound and no policy."""

import numpy as np
from jaxtyping import Float, Int


def oracle_exits(
    correct: Float[np.ndarray, "exits samples"], costs: tuple[float, ...], budget: float
) -> Int[np.ndarray, " samples"]:
    """The exits of the highest mean `correct` at a mean cost not above the budget.

    All start at exit 1; steps up each sample's concave hull of `correct` over cost are
    taken in order of gain per cost while they are paid for. With 0/1 labels and budget
    enough that is the first correct exit, and exit 1 for samples that are never right.

    Args:
      correct: How right each exit is on each sample.
      costs: Cost of each exit.
      budget: Mean cost allowed, at least the first cost.

    Returns:
      Exit of each sample, 0-based.
    """
    slopes, targets = _hull_steps(np.asarray(correct, np.float64), np.asarray(costs))
    steps, samples = slopes.shape
    # Sorted stably with earlier steps first, a sample's steps stay in order: its slopes fall.
    order = np.argsort(-slopes, axis=None, kind="stable")
    order = order[np.isfinite(slopes.ravel()[order])]
    before = np.concatenate([np.zeros((1, samples), int), targets[:-1]]) if steps else targets
    prices = np.asarray(costs)[targets] - np.asarray(costs)[before]
    spent = np.cumsum(prices.ravel()[order])
    allowed = (budget - costs[0]) * samples
    taken = order[spent <= allowed * (1 + 1e-12)]
    exits = np.zeros(samples, np.int64)
    np.maximum.at(exits, taken % samples, targets.ravel()[taken])
    return exits


def _hull_steps(
    correct: Float[np.ndarray, "exits samples"], costs: Float[np.ndarray, " exits"]
) -> tuple[Float[np.ndarray, "steps samples"], Int[np.ndarray, "steps samples"]]:
    """Gain per cost of each step up the hulls, and the exit it leads to; -∞ past the top."""
    exits, samples = correct.shape
    here = np.zeros(samples, np.int64)
    everyone = np.arange(samples)
    slopes, targets = [], []
    for _ in range(exits - 1):
        price = costs[:, None] - costs[here][None]
        gain = correct - correct[here, everyone][None]
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where((price > 0) & (gain > 0), gain / price, -np.inf)
        best = slope.argmax(0)
        slopes.append(slope[best, everyone])
        here = np.where(np.isfinite(slopes[-1]), best, here)
        targets.append(here)
    return np.stack(slopes), np.stack(targets)
