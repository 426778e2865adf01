"""`eenet_paper`: the paper's scheduler, fitted by the paper's losses from random starts.

Source: Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet (2024).
"""

import dataclasses

import jax
import numpy as np

from eenet_jax.policies.linear import LinearPolicy, linear_scores
from eenet_jax.policies.problem import (
    Problem,
    both_ends,
    fixed_thresholds,
    joined,
    policy_fields,
    simulated_family,
)
from eenet_jax.scheduler.network import random_params
from eenet_jax.scheduler.paper_solver import Samples, SolverSettings, solve
from eenet_jax.scheduler.settings import check_whole

TILTS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class EENetPaperSettings(SolverSettings):
    """The paper's fit; see `SolverSettings`. The defaults reach in seconds what it reaches slowly.

    The published optimisation is restarts=10, epochs=1000, lr=3e-5, l2=1e-2.

    Attributes:
      restarts: Random starts a budget.
    """

    restarts: int = 3
    epochs: int = 300
    lr: float = 1e-3
    l2: float = 1e-4

    def __post_init__(self):
        super().__post_init__()
        check_whole(self, 1, "restarts")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EENetPaper(LinearPolicy):
    """The score is g, unclipped; see `LinearPolicy`."""

    name = "eenet_paper"


def fit_eenet_paper(problem: Problem, settings: EENetPaperSettings, seed: int) -> list[EENetPaper]:
    """Fit g and h from random starts, and keep the most accurate restart that meets its budget.

    Thresholds come from the mean assignment p̄. Where their realised validation cost is
    above the budget, p̄ is tilted to p̄_k·s^k with the largest s < 1 that meets it; where
    even that fails, all leave at exit 1. A p̄ that stays below the budget is left as it is.

    Args:
      problem: Validation predictions, costs and budgets.
      settings: The optimisation.
      seed: Draws starts and permutations.

    Returns:
      One policy a budget.
    """
    exits, _, classes = problem.predictions.probs.shape
    runs = len(problem.budgets) * settings.restarts
    random = np.random.default_rng(seed)
    start = random_params(random, runs, exits, classes, settings.hidden_ratio)
    solve_key = jax.random.key(seed)
    samples = Samples(problem.predictions.probs, problem.measures, problem.correct)
    budgets = np.repeat(np.asarray(problem.budgets), settings.restarts)
    fitted = solve(samples, problem.costs.costs, budgets, start, settings, solve_key)
    weights = np.asarray(fitted.params.scores)
    shares = np.asarray(fitted.distribution)
    candidates = [
        _policy(problem, weights[run], shares[run], float(budgets[run])) for run in range(runs)
    ]
    by_budget = [
        candidates[first : first + settings.restarts] for first in range(0, runs, settings.restarts)
    ]
    return [max(group, key=lambda each: each.info["validation_accuracy"]) for group in by_budget]


def _policy(problem, weights, shares, budget):
    scores = linear_scores(weights, problem)
    thresholds = _thresholds_within(problem, scores, shares, budget)
    return EENetPaper(weights=weights, **policy_fields(problem, scores, thresholds, budget))


def _thresholds_within(problem, scores, shares, budget):
    exits = scores.shape[0]
    logs = np.concatenate([[0.0], -np.geomspace(1e-4, 20.0, TILTS - 1)])
    tilted = np.log(np.maximum(shares, 1e-30).astype(np.float64)) + logs[:, None] * np.arange(exits)
    tilted = np.exp(tilted - tilted.max(1, keepdims=True))
    tilted /= tilted.sum(1, keepdims=True)
    family = simulated_family(problem, scores, tilted)
    if family.costs[0] <= budget:
        return family.thresholds[0]
    ends = fixed_thresholds(problem, scores, both_ends(exits))
    whole = joined([family, ends])
    return whole.thresholds[whole.within(budget)]
