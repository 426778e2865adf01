"""What a policy would do: who leaves where, at what accuracy and cost, from predictions alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from eenet_jax.scheduler.thresholds import leave_by_quota
from eenet_jax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What leaving at given exits comes to.

    Attributes:
      accuracy: Mean `correct` at the chosen exits.
      cost: Realised mean cost, in the cost table's unit.
      exit_rates: Share of the samples that leaves at each exit.
    """

    accuracy: float
    cost: float
    exit_rates: tuple[float, ...]


@jax.jit
def first_exit(
    scores: Float[Array, "exits samples"], thresholds: Float[Array, " exits"]
) -> Int[Array, " samples"]:
    """The first exit (0-based) whose score reaches its threshold; the last takes the others."""
    reached = scores >= thresholds[:, None]
    last = jnp.ones_like(reached[:1])
    return jnp.argmax(jnp.concatenate([reached[:-1], last]), axis=0)


def mean_cost(
    exit_counts: Int[np.ndarray, "*batch exits"], costs: tuple[float, ...]
) -> Float[np.ndarray, "*batch"]:
    """Mean cost of samples that left in these numbers, in double precision.

    Rates come before the sum, so that all samples at one exit cost exactly what it costs.
    """
    counts = np.asarray(exit_counts, np.float64)
    rates = counts / counts.sum(-1, keepdims=True)
    return np.asarray((rates * np.asarray(costs, np.float64)).sum(-1))


def outcome(
    exits: Int[np.ndarray, " samples"],
    correct: Float[np.ndarray, "exits samples"],
    costs: tuple[float, ...],
) -> Outcome:
    """What leaving at these exits comes to.

    Args:
      exits: Exit of each sample, 0-based.
      correct: How right each exit is on each sample.
      costs: Cost of each exit.
    """
    exits = np.asarray(exits)
    counts = np.bincount(exits, minlength=len(costs))
    chosen = np.asarray(correct)[exits, np.arange(exits.size)]
    return Outcome(
        accuracy=float(chosen.mean(dtype=np.float64)),
        cost=float(mean_cost(counts, costs)),
        exit_rates=tuple(float(rate) for rate in counts / exits.size),
    )


@jax.jit
def simulate_quotas(
    scores: Float[Array, "exits samples"],
    correct: Float[Array, "exits samples"],
    quotas: Int[Array, "members quotas"],
) -> tuple[Float[Array, "members exits"], Int[Array, "members exits"], Float[Array, " members"]]:
    """Set thresholds from each of many quotas, and see who leaves where.

    Args:
      scores: Exit scores.
      correct: How right each exit is on each sample.
      quotas: Members of a family: how many samples each exit but the last is asked to take.

    Returns:
      Thresholds, number of samples leaving at each exit, and summed `correct`.
    """

    def simulate(quota):
        thresholds, left = leave_by_quota(scores, quota, jnp.ones(scores.shape[1], bool))
        # As products, which are several times as fast as sums on a processor.
        counts = jnp.einsum("kn,n->k", left, jnp.ones(left.shape[1]), precision="highest")
        right = jnp.einsum("kn,kn->", left, correct, precision="highest")
        return thresholds, counts.astype(int), right

    return jax.vmap(simulate)(quotas)


def settle(
    scores: Float[np.ndarray, "exits samples"], quota: Int[np.ndarray, " quotas"]
) -> tuple[Float[np.ndarray, " exits"], Int[np.ndarray, " exits"]]:
    """The threshold routine for one quota, without a program to compile for it.

    An exit that takes all who are left has the threshold -∞, so that it does on new samples.

    Args:
      scores: Exit scores.
      quota: How many samples each exit but the last is asked to take.

    Returns:
      Thresholds, and how many leave at each exit.
    """
    thresholds = np.full(len(scores), -np.inf, np.float32)
    left = np.zeros(len(scores), int)
    remaining = np.ones(scores.shape[1], bool)
    for k, asked in enumerate(np.minimum(quota, remaining.size)):
        staying = scores[k, remaining]
        asked = min(asked, staying.size)
        thresholds[k] = np.partition(staying, -asked)[-asked] if asked else np.inf
        leaving = remaining & (scores[k] >= thresholds[k])
        remaining &= ~leaving
        left[k] = leaving.sum()
        if not remaining.any():
            thresholds[k:] = -np.inf
            return thresholds, left
    left[-1] = remaining.sum()
    return thresholds, left


def lowered_to_budget(
    scores: Float[np.ndarray, "exits samples"],
    thresholds: Float[np.ndarray, " exits"],
    costs: tuple[float, ...],
    budget: float,
) -> Float[np.ndarray, " exits"]:
    """The thresholds, the first of them lowered as far as the realised cost asks for.

    As few samples more leave at the first exit as pay for what is over the budget. Lowering a
    threshold makes a policy cheaper on any other samples too.

    Args:
      scores: Exit scores.
      thresholds: One an exit.
      costs: Cost of each exit.
      budget: Mean cost allowed, at least the first cost.
    """
    exits = np.asarray(first_exit(scores, thresholds))
    if mean_cost(np.bincount(exits, minlength=len(costs)), costs) <= budget:
        return thresholds
    prices = np.asarray(costs, np.float64)
    staying = np.flatnonzero(exits > 0)
    staying = staying[np.argsort(-scores[0, staying], kind="stable")]
    saved = np.cumsum(prices[exits[staying]] - prices[0])
    over = (prices[exits].mean() - budget) * exits.size
    lowered = np.asarray(thresholds).copy()
    # By the sums, and a sample more for each time that rounding disagrees with them.
    for place in range(int(np.searchsorted(saved, over)), len(staying)):
        lowered[0] = scores[0, staying[place]]
        left = np.bincount(np.asarray(first_exit(scores, lowered)), minlength=len(costs))
        if mean_cost(left, costs) <= budget:
            return lowered
    return np.full_like(lowered, -np.inf)
