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

from eenet_jax.scheduler.thresholds import running_sum
from eenet_jax.types import Array

HIGHEST_GAIN = 3.0
"""Price at which no gain of accuracy pays for the cheapest step."""
LOWEST_PRICE = 1e-3


class Ranked(NamedTuple):
    """The early exits' scores and their order."""

    scores: Float[Array, "early samples"]
    order: Int[Array, "early samples"]
    falling: Float[Array, "early samples"]
    ends: Bool[Array, "early samples"]


def ranked(scores: Float[Array, "exits samples"]) -> Ranked:
    """The early exits' scores from high to low, and where a run of equals ends."""
    early = scores[:-1]
    order = jnp.argsort(early, axis=1, descending=True)
    falling = jnp.take_along_axis(early, order, axis=1)
    last = jnp.ones((falling.shape[0], 1), bool)
    ends = jnp.concatenate([falling[:, 1:] < falling[:, :-1], last], axis=1)
    return Ranked(early, order, falling, ends)


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
    A pass goes from the last exits to the first: where a sample goes that doesn't leave at an
    exit is then known from the step before.

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
    total = sample_weight.sum()

    def at_price(thresholds, price):
        value = correct - price * levels[:, None]

        def sweep(thresholds, _):
            gone = _gone_before(by_rank.scores, thresholds)

            def improve(going_on, at):
                rank, left, worth = at
                return _best_threshold(rank, left, worth, sample_weight, going_on)

            early = (by_rank, gone[:-1], value[:-1])
            return jax.lax.scan(improve, value[-1], early, reverse=True)[1], None

        thresholds, _ = jax.lax.scan(sweep, thresholds, length=sweeps)
        gone = _gone_before(by_rank.scores, thresholds)
        leaving = jnp.concatenate([gone[1:], jnp.ones_like(gone[:1])]) & ~gone
        shares = leaving @ sample_weight / total
        accuracy = ((leaving * correct) @ sample_weight).sum() / total
        return thresholds, (shares, accuracy)

    return jax.lax.scan(at_price, jnp.full(exits - 1, jnp.inf), prices)[1]


def _gone_before(scores, thresholds):
    """[exits, samples]: who has left before each exit."""
    nobody = jnp.zeros((1, scores.shape[1]), bool)
    reached = jnp.concatenate([nobody, scores >= thresholds[:, None]])
    return jnp.cumsum(reached, axis=0) > 0


def _best_threshold(by_rank, gone, value, sample_weight, going_on):
    """The best threshold of an exit given all the others, and what is got from there on.

    Args:
      by_rank: The exit's scores.
      gone: Who has left before.
      value: Of leaving here.
      sample_weight: How much each sample counts.
      going_on: Of leaving where the later thresholds say.
    """
    gain = jnp.where(gone, 0.0, sample_weight * (value - going_on))
    so_far = jnp.where(by_rank.ends, running_sum(gain[by_rank.order]), -jnp.inf)
    most = so_far.max()
    # Not argmax, which takes XLA on a processor as long as all the rest.
    place = jnp.where(so_far == most, jnp.arange(so_far.size), so_far.size).min()
    threshold = jnp.where(most > 0, by_rank.falling[place], jnp.inf)
    return jnp.where(by_rank.scores >= threshold, value, going_on), threshold


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
