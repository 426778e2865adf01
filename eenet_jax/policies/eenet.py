"""`eenet`: the best scheduler of this package, never knowingly worse than a baseline.

It fits the paper's losses from `max_prob`'s own solution, and takes what it learned only
where that is better on samples it was not fitted on.

Source: Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet
(2024), for the scores and losses; the start and the choice are this package's own.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from eenet_jax.errors import InputError
from eenet_jax.policies.candidates import (
    Candidate,
    Solution,
    curved_candidate,
    geometric_candidate,
    learned_candidate,
    patience_candidate,
    static_candidate,
)
from eenet_jax.policies.linear import LinearPolicy
from eenet_jax.policies.problem import Problem, policy_fields
from eenet_jax.scheduler.simulation import first_exit
from eenet_jax.scheduler.solver import SolverSettings
from eenet_jax.types import MEASURES

FEWEST_SAMPLES_A_FOLD = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class EENetSettings(SolverSettings):
    """How `eenet` fits and chooses; see `SolverSettings` for the optimisation.

    Attributes:
      folds: Parts the validation samples are cut into to judge candidates.
      baseline_caution: Standard errors by which another baseline must be better than
        `max_prob` to replace it.
      curved_caution: The same for exit distributions that are not geometric.
      learned_caution: The same for learned weights, of which there are many.
    """

    folds: int = 4
    baseline_caution: float = 0.5
    curved_caution: float = 1.0
    learned_caution: float = 2.0
    epochs: int = 40
    lr: float = 3e-3
    l2: float = 1e-3
    anchor_to_start: bool = True
    alpha_budget: float = 1.0
    patience_epochs: int = 40
    tilt: bool = True
    budget_slack: float = 0.01
    measures: tuple[str, ...] = MEASURES

    def __post_init__(self):
        super().__post_init__()
        if self.exit_distribution != "stick_breaking":
            raise InputError(
                f"exit_distribution '{self.exit_distribution}' can't express where eenet"
                " starts: use stick_breaking, or the policy eenet_paper"
            )
        if self.folds < 2:
            raise InputError(f"folds is {self.folds}: give 2 or more")
        for name in ("baseline_caution", "curved_caution", "learned_caution"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}: give 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EENet(LinearPolicy):
    """The score is g, unclipped; it may weigh every measure, so as to hold each baseline."""

    name = "eenet"


def fit_eenet(problem: Problem, settings: EENetSettings, seed: int) -> list[EENet]:
    """Fit every candidate, and keep for each budget the one that does best out of sample.

    Candidates are `max_prob`, the other baselines, curved exit distributions, and the
    learned scheduler. Each is fitted on all folds but one and judged on that one, in
    turn; the judgement is the paired difference to `max_prob`, less `caution` standard
    errors, and `max_prob` stays where no difference is left. The solution kept is the
    chosen candidate's on all samples, whose realised cost is not above the budget.

    Args:
      problem: Validation predictions, costs and budgets.
      settings: The optimisation and the choice.
      seed: Draws folds, h's hidden layer and permutations.

    Returns:
      One policy a budget.
    """
    held_out = _folds(problem.predictions.num_samples, settings.folds, seed)
    present = np.concatenate([problem.everyone[None], ~held_out])
    candidates = _candidates(problem, present, settings, seed)
    return [_choose(problem, candidates, held_out, place) for place in range(len(problem.budgets))]


def _folds(samples: int, wanted: int, seed: int) -> Bool[np.ndarray, "folds samples"]:
    """Which samples each fold holds out; none where there are too few samples to judge by."""
    folds = min(wanted, samples // FEWEST_SAMPLES_A_FOLD)
    if folds < 2:
        return np.zeros((0, samples), bool)
    part = np.random.default_rng(seed).permutation(samples) % folds
    return part[None] == np.arange(folds)[:, None]


def _candidates(problem, present, settings, seed):
    origin = geometric_candidate(problem, "max", present, 0.0)
    if len(present) == 1:
        return [origin]
    caution = settings.baseline_caution
    return [
        origin,
        geometric_candidate(problem, "entropy", present, caution),
        geometric_candidate(problem, "vote", present, caution),
        patience_candidate(problem, present, caution),
        static_candidate(problem, present, caution),
        curved_candidate(problem, present, settings.curved_caution),
        learned_candidate(problem, present, origin, settings, settings.learned_caution, seed),
    ]


def _choose(
    problem: Problem,
    candidates: list[Candidate],
    held_out: Bool[np.ndarray, "folds samples"],
    place: int,
) -> EENet:
    values = [_out_of_sample(problem, each, held_out, place) for each in candidates]
    gains = [value - values[0] for value in values]
    bounds = [
        gain.mean() - each.caution * gain.std() / np.sqrt(gain.size)
        for gain, each in zip(gains, candidates, strict=True)
    ]
    # argmax takes the first of equals: max_prob.
    best = candidates[int(np.argmax(bounds))]
    solution = best.solutions[0][place]
    fields = policy_fields(problem, solution.scores, solution.thresholds, problem.budgets[place])
    judged = {each.name: float(gain.mean()) for each, gain in zip(candidates, gains, strict=True)}
    fields["info"] |= {"chosen": best.name, "out_of_sample_gain_over_max_prob": judged}
    return EENet(weights=solution.weights, **fields)


def _out_of_sample(
    problem: Problem,
    candidate: Candidate,
    held_out: Bool[np.ndarray, "folds samples"],
    place: int,
) -> Float[np.ndarray, " samples"]:
    """`correct` of each sample, from the solution that has not seen it.

    What a fold happens to cost above or below plan is charged at the price that accuracy
    has along the static exits, so that candidates are compared at equal cost.
    """
    values = np.zeros(problem.predictions.num_samples)
    price = _price_of_accuracy(problem, problem.budgets[place])
    costs = np.asarray(problem.costs.costs)
    for out, solutions in zip(held_out, candidate.solutions[1:], strict=True):
        solution: Solution = solutions[place]
        exits = np.asarray(first_exit(solution.scores, solution.thresholds))[out]
        right = problem.correct[:, out][exits, np.arange(exits.size)]
        values[out] = right - price * (costs[exits] - solution.cost)
    return values


def _price_of_accuracy(problem: Problem, budget: float) -> float:
    """Accuracy per unit of cost, between the exits on either side of the budget."""
    costs = np.asarray(problem.costs.costs)
    upper = int(np.clip(np.searchsorted(costs, budget), 1, len(costs) - 1))
    accuracies = problem.correct.mean(1, dtype=np.float64)
    gain = accuracies[upper] - accuracies[upper - 1]
    return max(0.0, float(gain / (costs[upper] - costs[upper - 1])))
