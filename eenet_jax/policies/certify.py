"""What a limited sample certifies of a policy, without assumptions on the distribution.

Everything here holds for exchangeable samples: those to come must be like those that it was
judged on.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int

DIRICHLET_DRAWS = 20_000
NORMAL_QUANTILE_95 = 1.959964
LARGEST_BET = 0.75
"""Share of the highest bet that can't ruin the bettor."""


def bets_against(
    margin: Float[np.ndarray, "policies samples"], lowest: float, confidence: float
) -> Bool[np.ndarray, " policies"]:
    """Whether samples show, at this confidence, that the mean margin is above 0.

    A gambler bets on each next sample's margin, with stakes set by the samples before it. If
    the mean is not above 0 the game is unfair to her, and her capital reaches 1/(1 - confidence)
    times its start with probability at most 1 - confidence (Ville's inequality).

    Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting
    (2023), section 4, their stakes for a fixed number of samples.

    Args:
      margin: Bounded, in random order.
      lowest: The least a margin can be, below 0.
      confidence: Between 0 and 1.
    """
    count = margin.shape[1]
    goal = math.log(1 / (1 - confidence))
    seen = np.arange(1, count + 1)
    mean = np.cumsum(margin, axis=1) / seen
    spread = (0.25 + np.cumsum((margin - mean) ** 2, axis=1)) / (seen + 1)
    before = np.concatenate([np.full((len(margin), 1), 0.25), spread[:, :-1]], axis=1)
    stake = np.minimum(np.sqrt(2 * goal / (before * count)), LARGEST_BET / -lowest)
    capital = np.cumsum(np.log1p(stake * margin), axis=1)
    return capital.max(1) >= goal


def last_certified(certified: Bool[np.ndarray, " policies"]) -> int:
    """Place of the last policy before the first that is not certified; -1 where the first is not.

    Testing in an order fixed beforehand, and stopping at the first failure, keeps the
    probability of any false certificate at that of one test.

    Source: fixed-sequence testing in Angelopoulos et al., Learn then Test (2021).
    """
    return len(certified) - 1 if certified.all() else int(np.argmin(certified)) - 1


def true_cost_quantiles(
    left: Int[np.ndarray, " exits"],
    sure_exit: int,
    costs: tuple[float, ...],
    levels: tuple[float, ...],
) -> list[float]:
    """Quantiles of the true mean cost of thresholds that let these numbers leave.

    Where the thresholds are set one exit after the other at a sample's own score, and the
    numbers were fixed beforehand, the true exit rates are Dirichlet distributed with the
    numbers as parameters, one more where whoever is left leaves: whatever the distribution of
    scores, if they are continuous. Tied scores let more leave early than asked.

    Source: Tukey, Nonparametric estimation II: statistically equivalent blocks (1947).

    Args:
      left: How many samples leave at each exit.
      sure_exit: The first exit that takes whoever is left.
      costs: Cost of each exit.
      levels: Of the quantiles, between 0 and 1.

    Returns:
      Quantiles of draws, a little further from the middle than asked for, so that the number
      of draws does not make them too close to it.
    """
    shape = np.asarray(left, np.float64).copy()
    shape[sure_exit] += 1
    reached = np.flatnonzero(shape)
    if len(reached) == 1:
        return [float(costs[reached[0]])] * len(levels)
    shape = shape[reached]
    drawn = np.random.default_rng(0).dirichlet(shape, DIRICHLET_DRAWS)
    spent = drawn @ np.asarray(costs, np.float64)[reached]
    return [float(np.quantile(spent, _outward(level))) for level in levels]


def _outward(level: float) -> float:
    """The level of a quantile of the draws that lies beyond the true one, but once in 40 times."""
    slack = NORMAL_QUANTILE_95 * math.sqrt(level * (1 - level) / DIRICHLET_DRAWS)
    return float(np.clip(level + math.copysign(slack, level - 0.5), 0.0, 1.0))


def accuracy_interval(right: Float[np.ndarray, " samples"]) -> list[float]:
    """The 95 % interval of the true mean of values from 0 to 1.

    Exact enough for shares between; where all are 0 or all 1 it still has a width.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).

    Args:
      right: `correct` of each sample at its exit, which nothing was fitted to.
    """
    square = NORMAL_QUANTILE_95**2
    count, mean = right.size, float(right.mean(dtype=np.float64))
    middle = (mean + square / (2 * count)) / (1 + square / count)
    spread = math.sqrt(mean * (1 - mean) / count + square / (4 * count**2))
    half_width = NORMAL_QUANTILE_95 * spread / (1 + square / count)
    return [max(0.0, middle - half_width), min(1.0, middle + half_width)]
