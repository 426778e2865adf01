"""The exit distribution, searched directly: what share of the samples should leave where.

The thresholds of one score are improved one exit at a time, each to its exact optimum on the
samples given the others: a sorted pass and a cumulative sum. Doing so for many prices of a unit
of cost traces the accuracy that thresholds can buy, and a budget takes the best mixture of two
points of that trace.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from eenet_jax.types import Array

HIGHEST_GAIN = 3.0
"""Price at which no gain of accuracy pays for the cheapest step."""
LOWEST_PRICE = 1e-3


class Ranked(NamedTuple):
    """Scores and their order, exit by exit."""

    scores: Float[Array, "exits samples"]
    order: Int[Array, "early samples"]
    falling: Float[Array, "early samples"]
    ends: Bool[Array, "early samples"]


def ranked(scores: Float[Array, "exits samples"]) -> Ranked:
    """The early exits' scores from high to low, and where a run of equals ends."""
    order = jnp.argsort(scores[:-1], axis=1, descending=True)
    falling = jnp.take_along_axis(scores[:-1], order, axis=1)
    last = jnp.ones((falling.shape[0], 1), bool)
    ends = jnp.concatenate([falling[:, 1:] < falling[:, :-1], last], axis=1)
    return Ranked(scores, order, falling, ends)


def cost_levels(costs: tuple[float, ...]) -> Float[np.ndarray, " exits"]:
    """Costs mapped to 0..1."""
    values = np.asarray(costs, np.float64)
    return (values - values[0]) / (values[-1] - values[0])


def price_grid(costs: tuple[float, ...], count: int) -> Float[np.ndarray, " prices"]:
    """Accuracy asked for a unit of `cost_levels`: 0, then geometric up to "nothing pays".

    Args:
      costs: Cost of each exit.
      count: How many.
    """
    cheapest = np.diff(cost_levels(costs)).min()
    rising = np.geomspace(LOWEST_PRICE, HIGHEST_GAIN / cheapest, count - 1)
    return np.concatenate([[0.0], rising]).astype(np.float32)


def price_path(
    scores: Float[Array, "exits samples"],
    correct: Float[Array, "exits samples"],
    sample_weight: Float[Array, " samples"],
    levels: Float[Array, " exits"],
    prices: Float[Array, " prices"],
    sweeps: int,
) -> tuple[Float[Array, "prices exits"], Float[Array, " prices"]]:
    """Exit distribution and accuracy of the thresholds that are best at each price.

    Each price starts from the thresholds of the one before, the first from "nobody leaves".

    Args:
      scores: Exit scores.
      correct: How right each exit is on each sample.
      sample_weight: How much each sample counts.
      levels: `cost_levels`.
      prices: `price_grid`.
      sweeps: Passes over the exits at each price.
    """
    exits = scores.shape[0]
    by_rank = ranked(scores)
    turns = jnp.tile(jnp.arange(exits - 2, -1, -1), sweeps)
    total = sample_weight.sum()

    def at_price(thresholds, price):
        value = correct - price * levels[:, None]

        def improve(thresholds, k):
            return _best_threshold(by_rank, value, sample_weight, thresholds, k), None

        thresholds, _ = jax.lax.scan(improve, thresholds, turns)
        leaving = _leaving(scores, thresholds)
        shares = leaving @ sample_weight / total
        accuracy = ((leaving * correct) @ sample_weight).sum() / total
        return thresholds, (shares, accuracy)

    start = jnp.full(exits, jnp.inf).at[-1].set(-jnp.inf)
    return jax.lax.scan(at_price, start, prices)[1]


def _reached(scores, thresholds):
    last = jnp.arange(scores.shape[0]) == scores.shape[0] - 1
    return (scores >= thresholds[:, None]) | last[:, None]


def _leaving(scores, thresholds):
    reached = _reached(scores, thresholds)
    return reached & (jnp.cumsum(reached, axis=0) == 1)


def _best_threshold(by_rank, value, sample_weight, thresholds, k):
    """The threshold of exit k that is best given all the others."""
    reached = _reached(by_rank.scores, thresholds)
    place = jnp.arange(reached.shape[0])[:, None]
    gone = (reached & (place < k)).any(0)
    later = reached & (place > k)
    leaves_later = later & (jnp.cumsum(later, axis=0) == 1)
    going_on = jnp.where(leaves_later, value, 0.0).sum(0)
    gain = jnp.where(gone, 0.0, sample_weight * (value[k] - going_on))
    so_far = jnp.where(by_rank.ends[k], jnp.cumsum(gain[by_rank.order[k]]), -jnp.inf)
    best = jnp.argmax(so_far)
    threshold = jnp.where(so_far[best] > 0, by_rank.falling[k, best], jnp.inf)
    return thresholds.at[k].set(threshold)


def best_mixtures(
    shares: Float[Array, "points exits"],
    accuracies: Float[Array, " points"],
    levels: Float[Array, " exits"],
    budgets: Float[Array, " budgets"],
) -> Float[Array, "budgets exits"]:
    """For each budget the mixture of two points that is most accurate at no more cost.

    A mixture of exit distributions costs the mixture of their costs.

    Args:
      shares: Exit distributions; one of them costs no more than any budget.
      accuracies: Of each.
      levels: `cost_levels`.
      budgets: On the same scale.
    """
    costs = shares @ levels

    def mix(budget):
        # Of rounding alone: where costs span orders of magnitude an exit is worth little more.
        tolerance = 1e-6 * budget
        low, high = costs[:, None], costs[None, :]
        rise = (budget - low) / jnp.maximum(high - low, 1e-30)
        toward = jnp.where(high <= budget + tolerance, 1.0, jnp.clip(rise, 0.0, 1.0))
        value = accuracies[:, None] * (1 - toward) + accuracies[None] * toward
        value = jnp.where(low <= budget + tolerance, value, -jnp.inf)
        first, second = jnp.unravel_index(jnp.argmax(value), value.shape)
        part = toward[first, second]
        return shares[first] * (1 - part) + shares[second] * part

    return jax.vmap(mix)(budgets)


def fit_distributions(
    scores: Float[Array, "exits samples"],
    correct: Float[Array, "exits samples"],
    sample_weight: Float[Array, " samples"],
    levels: Float[Array, " exits"],
    prices: Float[Array, " prices"],
    budgets: Float[Array, " budgets"],
    sweeps: int,
) -> Float[Array, "budgets exits"]:
    """The exit distribution that is best on the samples for each budget.

    Args:
      scores: Exit scores.
      correct: How right each exit is on each sample.
      sample_weight: How much each sample counts.
      levels: `cost_levels`.
      prices: `price_grid`.
      budgets: On the scale of `levels`.
      sweeps: Passes over the exits at each price.
    """
    with jax.default_matmul_precision("highest"):
        shares, accuracies = price_path(scores, correct, sample_weight, levels, prices, sweeps)
        alone = correct @ sample_weight / sample_weight.sum()
        shares = jnp.concatenate([shares, jnp.eye(scores.shape[0])])
        accuracies = jnp.concatenate([accuracies, alone])
        return best_mixtures(shares, accuracies, levels, budgets)
