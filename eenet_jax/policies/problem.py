"""What a policy is fitted to, and the members of threshold families that meet a budget."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from eenet_jax.confidence import measures_at
from eenet_jax.errors import InputError
from eenet_jax.policies.certify import accuracy_interval, true_cost_quantiles
from eenet_jax.scheduler.simulation import Outcome, first_exit, mean_cost, outcome, simulate_quotas
from eenet_jax.scheduler.thresholds import exit_quota, geometric
from eenet_jax.types import MEASURES, Array, CostTable, ExitPredictions

COARSE_MEMBERS = 512
FINE_MEMBERS = 64
MEMBERS_A_CALL = 128


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Validation predictions, costs, and the budgets to fit.

    Attributes:
      predictions: What every exit says of every validation sample.
      costs: Cost of each exit and their unit.
      budgets: Average costs per sample, each between the first cost and the last.
    """

    predictions: ExitPredictions
    costs: CostTable
    budgets: tuple[float, ...]

    def __post_init__(self):
        self.costs.check_exits(self.predictions.num_exits)
        if not self.budgets:
            raise InputError("no budgets: give at least one, in the cost table's unit")
        for budget in self.budgets:
            self.costs.check_budget(budget)

    @functools.cached_property
    def correct(self) -> Float[np.ndarray, "exits samples"]:
        """How right each exit is on each sample."""
        return self.predictions.correctness()

    @property
    def everyone(self) -> Bool[np.ndarray, " samples"]:
        """All samples."""
        return np.ones(self.predictions.num_samples, bool)

    @functools.cached_property
    def measures(self) -> Float[np.ndarray, "exits samples 5"]:
        """The confidence measures, as given or computed."""
        given = self.predictions.measures
        if given is not None:
            return given
        probs = self.predictions.probs
        return np.stack([np.asarray(measures_at(probs[: k + 1])) for k in range(len(probs))])

    def outcome(self, exits: np.ndarray) -> Outcome:
        """What leaving at these exits comes to on validation."""
        return outcome(exits, self.correct, self.costs.costs)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """Sets of thresholds, and what each comes to on the samples they were set on.

    Attributes:
      thresholds: [members, exits].
      costs: Realised mean cost of each member.
      accuracies: Mean `correct` of each member.
    """

    thresholds: Float[np.ndarray, "members exits"]
    costs: Float[np.ndarray, " members"]
    accuracies: Float[np.ndarray, " members"]

    def filling(self, budgets: Sequence[float]) -> Float[np.ndarray, "budgets exits"]:
        """Thresholds of the member `within` each budget."""
        return self.thresholds[[self.within(budget) for budget in budgets]]

    def within(self, budget: float) -> int:
        """The member of the largest realised cost within the budget; of equals, the most accurate.

        Raises:
          InputError: no member meets the budget.
        """
        if not (self.costs <= budget).any():
            raise InputError(f"budget {budget:g} is met by no member of the family")
        met = np.where(self.costs <= budget, self.costs, -np.inf)
        return int(np.lexsort((self.accuracies, met))[-1])


def joined(families: Iterable[Family]) -> Family:
    """One family of all members."""
    families = list(families)
    return Family(
        thresholds=np.concatenate([family.thresholds for family in families]),
        costs=np.concatenate([family.costs for family in families]),
        accuracies=np.concatenate([family.accuracies for family in families]),
    )


def fixed_thresholds(
    problem: Problem,
    scores: Float[Array, "exits samples"],
    thresholds: Float[np.ndarray, "members exits"],
) -> Family:
    """A family of given thresholds, simulated one by one (for a handful of members)."""
    thresholds = np.asarray(thresholds, np.float32)
    outcomes = [
        outcome(np.asarray(first_exit(scores, row)), problem.correct, problem.costs.costs)
        for row in thresholds
    ]
    return Family(
        thresholds=thresholds,
        costs=np.asarray([each.cost for each in outcomes]),
        accuracies=np.asarray([each.accuracy for each in outcomes]),
    )


def both_ends(exits: int) -> Float[np.ndarray, "2 {exits}"]:
    """Thresholds at which all leave at the first exit, and at which all reach the last."""
    ends = np.full((2, exits), np.inf, np.float32)
    ends[0, 0] = -np.inf
    ends[:, -1] = -np.inf
    return ends


def simulated_family(
    problem: Problem,
    scores: Float[Array, "exits samples"],
    distributions: Float[np.ndarray, "members exits"],
) -> Family:
    """The family that the threshold routine makes of many exit distributions."""
    count = problem.predictions.num_samples
    quotas = exit_quota(distributions, count)
    # One shape for every call, whatever the number of members: one compilation.
    calls = -(-len(quotas) // MEMBERS_A_CALL)
    filled = np.resize(quotas, (calls * MEMBERS_A_CALL, quotas.shape[1]))
    parts = [simulate_quotas(scores, problem.correct, chunk) for chunk in np.split(filled, calls)]
    thresholds, left, correct = (
        np.concatenate([np.asarray(part[item]) for part in parts])[: len(quotas)]
        for item in range(3)
    )
    return Family(
        thresholds=thresholds,
        costs=mean_cost(left, problem.costs.costs),
        accuracies=correct.astype(np.float64) / count,
    )


def geometric_family(
    problem: Problem,
    scores: Float[Array, "exits samples"],
) -> Family:
    """p_k ∝ s^k, s from "all but none leave first" to "all but none stay", and both ends.

    The sweep is coarse over all orders of magnitude, then fine around each budget.

    Args:
      problem: Predictions, costs and budgets.
      scores: Exit scores.
    """
    exits = scores.shape[0]
    reach = np.log(10.0 * problem.predictions.num_samples)
    logs = np.linspace(-reach, reach, COARSE_MEMBERS)
    coarse = simulated_family(problem, scores, geometric(logs, exits))
    fine_logs = np.concatenate([_around(coarse, logs, budget) for budget in problem.budgets])
    fine = simulated_family(problem, scores, geometric(fine_logs, exits))
    return joined([coarse, fine, fixed_thresholds(problem, scores, both_ends(exits))])


def _around(coarse: Family, logs: np.ndarray, budget: float) -> np.ndarray:
    """Members between the best one within the budget and the next."""
    met = np.where(coarse.costs <= budget, coarse.costs, -np.inf)
    place = int(met.argmax()) if np.isfinite(met).any() else 0
    low, high = logs[max(place - 1, 0)], logs[min(place + 2, len(logs) - 1)]
    return np.linspace(low, high, FINE_MEMBERS)


def measure_scores(problem: Problem, name: str) -> Float[np.ndarray, "exits samples"]:
    """One measure at every exit, the bits being those that a policy gives at inference."""
    return np.ascontiguousarray(problem.measures[..., MEASURES.index(name)])


def policy_fields(
    problem: Problem,
    scores: Float[Array, "exits samples"],
    thresholds: Float[np.ndarray, " exits"],
    budget: float,
) -> dict[str, Any]:
    """What every policy is made from, its outcome on validation included."""
    exits = np.asarray(first_exit(scores, thresholds))
    result = problem.outcome(exits)
    left = np.bincount(exits, minlength=problem.predictions.num_exits)
    right = problem.correct[exits, np.arange(exits.size)]
    return {
        "budget": budget,
        "thresholds": np.asarray(thresholds, np.float32),
        "costs": problem.costs.costs,
        "unit": problem.costs.unit,
        "info": {
            "validation_accuracy": result.accuracy,
            "validation_cost": result.cost,
            "validation_exit_rates": list(result.exit_rates),
            "cost_interval_95": true_cost_quantiles(
                left, int(np.argmax(thresholds == -np.inf)), problem.costs.costs, (0.025, 0.975)
            ),
            "accuracy_interval_95": accuracy_interval(right),
        },
    }


def geometric_thresholds(
    problem: Problem, scores: Float[np.ndarray, "exits samples"]
) -> Float[np.ndarray, "budgets exits"]:
    """For each budget, the thresholds of the geometric family that fill it best."""
    return geometric_family(problem, scores).filling(problem.budgets)


def geometric_solutions(problem: Problem, name: str) -> list[dict[str, Any]]:
    """For each budget, the fields of the policy that scores by a measure and fills it best."""
    scores = measure_scores(problem, name)
    return [
        policy_fields(problem, scores, thresholds, budget)
        for thresholds, budget in zip(
            geometric_thresholds(problem, scores), problem.budgets, strict=True
        )
    ]
