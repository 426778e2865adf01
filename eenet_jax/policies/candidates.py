"""What `eenet` chooses from: every baseline, curved exit distributions, and the learned scheduler.

A candidate is a way to turn samples and a budget into g's weights and thresholds. Each is
applied to all validation samples, and to all but one fold in turn, so that it can be
judged on samples that it has not seen.
"""

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool, Float

from eenet_jax.policies.linear import linear_scores
from eenet_jax.policies.patience import patience_family
from eenet_jax.policies.problem import (
    Family,
    Problem,
    both_ends,
    fixed_thresholds,
    geometric_family,
    joined,
    simulated_family,
)
from eenet_jax.policies.static import static_thresholds
from eenet_jax.scheduler.network import (
    SchedulerParams,
    measure_weights,
    random_params,
    stick_logits,
)
from eenet_jax.scheduler.solver import Samples, SolverSettings, solve
from eenet_jax.scheduler.thresholds import tilts_to_costs
from eenet_jax.types import Array

CURVATURES = (-6.0, -3.0, -1.5, -0.7, 0.7, 1.5, 3.0, 6.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """One candidate's answer to one budget, from one set of samples.

    Attributes:
      weights: g's weights.
      scores: g at every exit and sample, those it was not fitted on included.
      thresholds: One an exit.
      cost: Realised mean cost on the samples it was fitted on.
      accuracy: Mean `correct` on the samples it was fitted on.
    """

    weights: Float[np.ndarray, "exits weights"]
    scores: Float[np.ndarray, "exits samples"]
    thresholds: Float[np.ndarray, " exits"]
    cost: float
    accuracy: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A way to meet budgets.

    Attributes:
      name: What it is called in a policy's `info`.
      caution: Standard errors by which it must be better than `max_prob` to be preferred.
      solutions: [sets of samples][budgets]; the first set is all samples.
    """

    name: str
    caution: float
    solutions: list[list[Solution]]


def _chosen(family: Family, weights: Array, scores: Array, budget: float) -> Solution:
    place = family.within(budget)
    return Solution(
        weights=np.asarray(weights),
        scores=np.asarray(scores),
        thresholds=family.thresholds[place],
        cost=float(family.costs[place]),
        accuracy=float(family.accuracies[place]),
    )


def _one_hot(problem: Problem, measure: str) -> tuple[np.ndarray, np.ndarray]:
    exits, _, classes = problem.predictions.probs.shape
    weights = measure_weights(measure, exits, classes)
    return weights, linear_scores(weights, problem)


def geometric_candidate(
    problem: Problem, measure: str, present: Bool[np.ndarray, "sets samples"], caution: float
) -> Candidate:
    """One measure with the geometric exit distribution: `max_prob`, `entropy`, `vote`."""
    weights, scores = _one_hot(problem, measure)
    families = [geometric_family(problem, scores, some) for some in present]
    solutions = [
        [_chosen(family, weights, scores, budget) for budget in problem.budgets]
        for family in families
    ]
    name = "max_prob" if measure == "max" else measure
    return Candidate(name=name, caution=caution, solutions=solutions)


def patience_candidate(
    problem: Problem, present: Bool[np.ndarray, "sets samples"], caution: float
) -> Candidate:
    """`patience`, whose integer g expresses with all its weight on that measure."""
    weights, scores = _one_hot(problem, "patience")
    families = [patience_family(problem, scores, some) for some in present]
    solutions = [
        [_chosen(family, weights, scores, budget) for budget in problem.budgets]
        for family in families
    ]
    return Candidate(name="patience", caution=caution, solutions=solutions)


def static_candidate(
    problem: Problem, present: Bool[np.ndarray, "sets samples"], caution: float
) -> Candidate:
    """`static`: one exit for everyone, a matter of thresholds alone."""
    weights, scores = _one_hot(problem, "max")

    def answer(some, budget):
        thresholds = static_thresholds(problem, some, budget)[None]
        family = fixed_thresholds(problem, scores, some, thresholds)
        return _chosen(family, weights, scores, budget)

    solutions = [[answer(some, budget) for budget in problem.budgets] for some in present]
    return Candidate(name="static", caution=caution, solutions=solutions)


def near_budget_family(
    problem: Problem,
    scores: Float[Array, "exits samples"],
    present: Bool[np.ndarray, " samples"],
    log_shares: Float[np.ndarray, "shapes exits"],
    budget: float,
) -> Family:
    """Exit distributions tilted to mean costs around a budget, most of them just below it.

    Args:
      problem: Predictions and costs.
      scores: Exit scores.
      present: The samples to set thresholds on.
      log_shares: log p of each distribution to tilt.
      budget: The budget.
    """
    first, last = problem.costs.costs[0], problem.costs.costs[-1]
    below = budget - (budget - first) * np.geomspace(1e-4, 0.3, 23)
    above = budget + (last - budget) * np.geomspace(1e-4, 0.05, 8)
    targets = np.concatenate([below, [budget], above]).astype(np.float32)
    costs = np.asarray(problem.costs.costs, np.float32)
    members = np.concatenate(
        [
            np.asarray(tilts_to_costs(shape.astype(np.float32), costs, targets))
            for shape in log_shares
        ]
    )
    ends = fixed_thresholds(problem, scores, present, both_ends(len(costs)))
    return joined([simulated_family(problem, scores, present, members), ends])


def curved_candidate(
    problem: Problem, present: Bool[np.ndarray, "sets samples"], caution: float
) -> Candidate:
    """`max_prob` with log p quadratic in k instead of linear: of all curvatures, the best."""
    weights, scores = _one_hot(problem, "max")
    exits = scores.shape[0]
    place = np.linspace(-1.0, 1.0, exits)
    shapes = np.asarray([[bend * spot**2 for spot in place] for bend in CURVATURES])

    def answer(some, budget):
        families = [
            near_budget_family(problem, scores, some, shape[None], budget) for shape in shapes
        ]
        found = [_chosen(family, weights, scores, budget) for family in families]
        return max(found, key=lambda solution: solution.accuracy)

    solutions = [[answer(some, budget) for budget in problem.budgets] for some in present]
    return Candidate(name="curved", caution=caution, solutions=solutions)


def learned_candidate(
    problem: Problem,
    present: Bool[np.ndarray, "sets samples"],
    origin: Candidate,
    settings: SolverSettings,
    caution: float,
    seed: int,
) -> Candidate:
    """The paper's losses, started at `max_prob`'s own solution for the same samples and budget.

    Args:
      problem: Predictions, costs and budgets.
      present: Sets of samples to fit on.
      origin: `max_prob`'s solutions.
      settings: The optimisation.
      caution: Standard errors by which it must be better.
      seed: Draws h's hidden layer and the permutations.
    """
    sets, count = len(present), len(problem.budgets)
    answers = [(s, b) for s in range(sets) for b in range(count)]
    rates = [_exit_rates(problem, origin.solutions[s][b], present[s]) for s, b in answers]
    start = _start(problem, origin.solutions[0][0].weights, np.stack(rates), settings, seed)
    fitted = solve(
        Samples(problem.predictions.probs, problem.measures, problem.correct),
        problem.costs.costs,
        np.asarray([problem.budgets[b] for _, b in answers]),
        np.stack([present[s] for s, _ in answers]),
        start,
        settings,
        jax.random.key(seed),
    )
    weights = np.asarray(fitted.params.scores)
    log_shares = np.log(np.asarray(fitted.distribution) + 1e-30)
    found = []
    for run, (s, b) in enumerate(answers):
        scores, budget = linear_scores(weights[run], problem), problem.budgets[b]
        family = near_budget_family(problem, scores, present[s], log_shares[run][None], budget)
        found.append(_chosen(family, weights[run], scores, budget))
    solutions = [found[s * count : (s + 1) * count] for s in range(sets)]
    return Candidate(name="learned", caution=caution, solutions=solutions)


def _exit_rates(problem, solution, present):
    reached = (solution.scores >= solution.thresholds[:, None])[:-1]
    exits = np.concatenate([reached, np.ones_like(reached[:1])]).argmax(0)[present]
    return np.bincount(exits, minlength=len(solution.thresholds)) / exits.size


def _start(problem, weights, rates, settings, seed):
    """All of g's weight on max, h's output at the geometric solution whatever its input."""
    exits, _, classes = problem.predictions.probs.shape
    random = np.random.default_rng(seed)
    drawn = random_params(random, 1, exits, classes, settings.hidden_ratio).assignment
    runs = len(rates)
    repeated = jax.tree.map(lambda leaf: np.repeat(leaf, runs, axis=0), drawn)
    return SchedulerParams(
        scores=np.repeat(weights[None], runs, axis=0),
        assignment=repeated._replace(
            out=np.zeros_like(repeated.out),
            out_bias=np.stack([stick_logits(rate) for rate in rates]),
        ),
    )
