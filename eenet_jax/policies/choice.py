"""Which score `eenet` takes for a budget: judged on samples that it was not fitted on."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from eenet_jax.policies.patience import patience_family
from eenet_jax.policies.problem import Problem, geometric_thresholds, measure_scores
from eenet_jax.policies.static import static_thresholds
from eenet_jax.scheduler.simulation import first_exit

FEWEST_SAMPLES_A_FOLD = 5
BUDGET_BANDWIDTH = 0.1
"""How far, in shares of the range of costs, evidence at one budget speaks for another."""

MEASURE_OF_BASELINE = {
    "max_prob": "max",
    "entropy": "entropy",
    "vote": "vote",
    "patience": "patience",
    "static": "max",
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Contender:
    """One way to meet one budget.

    Attributes:
      name: A baseline's, a measure's whose exit distribution is searched, or a gain's.
      budget: The budget.
      right: `correct` of each sample at the exit it is sent to, by what has not seen it.
      thresholds: A baseline's thresholds.
      place: Of the budget, among the solver's, whose exit distribution is taken.
      info: What is said of the choice in the policy's file.
    """

    name: str
    budget: float
    right: Float[np.ndarray, " samples"]
    thresholds: Float[np.ndarray, " exits"] | None = None
    place: int = -1
    info: dict[str, Any] = dataclasses.field(default_factory=dict)


def fold_parts(samples: int, wanted: int, seed: int) -> Bool[np.ndarray, "folds samples"]:
    """Which samples each fold holds out; none where there are too few samples to judge by."""
    folds = min(wanted, samples // FEWEST_SAMPLES_A_FOLD)
    if folds < 2:
        return np.zeros((0, samples), bool)
    part = np.random.default_rng(seed).permutation(samples) % folds
    return part[None] == np.arange(folds)[:, None]


def baseline_contenders(
    problem: Problem, held_out: Bool[np.ndarray, "folds samples"]
) -> list[list[Contender]]:
    """Every baseline for every budget, `[baselines][budgets]`, `max_prob` first.

    But for `static` no baseline's thresholds look at labels, so that validation accuracy is
    already cross-fitted; `static` chooses its exit on the other folds.
    """
    found = []
    for name, measure in MEASURE_OF_BASELINE.items():
        scores = measure_scores(problem, measure)
        members = zip(problem.budgets, _baseline_thresholds(problem, name, scores), strict=True)
        found.append([_contender(problem, held_out, name, scores, *each) for each in members])
    return found


def _baseline_thresholds(problem: Problem, name: str, scores):
    """[budgets, exits]."""
    if name == "static":
        everyone = problem.everyone
        return [static_thresholds(problem, everyone, budget) for budget in problem.budgets]
    if name == "patience":
        return patience_family(problem, scores).filling(problem.budgets)
    return geometric_thresholds(problem, scores)


def _contender(problem: Problem, held_out, name: str, scores, budget: float, thresholds):
    exits = np.asarray(first_exit(scores, thresholds))
    if name == "static":
        for out in held_out:
            others = static_thresholds(problem, ~out, budget)
            exits = np.where(out, int(np.argmax(others == -np.inf)), exits)
    return Contender(
        name=name,
        budget=budget,
        right=problem.correct[exits, np.arange(exits.size)],
        thresholds=thresholds,
    )


def best_of(baselines: list[list[Contender]]) -> list[Contender]:
    """For each budget the baseline that is best on validation; all there is for few samples."""
    found = []
    for rivals in zip(*baselines, strict=True):
        accuracies = {each.name: float(each.right.mean(dtype=np.float64)) for each in rivals}
        best = max(rivals, key=lambda each: accuracies[each.name])
        found.append(dataclasses.replace(best, info={"chosen": best.name}))
    return found


def choose(
    problem: Problem,
    right: Float[np.ndarray, "scores budgets samples"],
    levels: Float[np.ndarray, " budgets"],
    baselines: list[list[Contender]],
    names: list[str],
    caution: float,
) -> list[Contender]:
    """The contender taken for each of the problem's budgets.

    Scores are compared by their accuracy at the budget and around it, less `caution` standard
    errors of the paired difference to the first. The best of those is taken whose accuracy at
    the budget itself is not below any baseline's; where there is none, the best of those that
    reach as much with a smaller budget, as happens where accuracy hardly rises any more; and
    where there is none either, the best baseline.

    Args:
      problem: Its budgets come first in `right` and `levels`.
      right: Cross-fitted `correct` of each sample; the first score is the reference.
      levels: The budgets on a scale from 0, the first cost, to 1, the last.
      baselines: `[baselines][budgets]`.
      names: Of the scores.
      caution: Standard errors.
    """
    accuracy = right.mean(2, dtype=np.float64)
    asked = np.arange(len(levels)) < len(problem.budgets)
    near = np.exp(-0.5 * ((levels[:, None] - levels[None]) / BUDGET_BANDWIDTH) ** 2)
    # What else was asked for says nothing: a policy depends on its own budget alone.
    near = np.where(asked[None] & ~np.eye(len(levels), dtype=bool), 0.0, near)
    near = (near / near.sum(1, keepdims=True)).astype(np.float32)
    smooth = np.einsum("jb,sbn->sjn", near, right, optimize=True)
    chosen = []
    for place in range(len(problem.budgets)):
        rivals = [each[place] for each in baselines]
        theirs = {each.name: float(each.right.mean(dtype=np.float64)) for each in rivals}
        best = max(rivals, key=lambda each: theirs[each.name])
        enough = accuracy >= theirs[best.name]
        here = np.arange(len(levels)) == place
        for allowed in (enough & here[None], enough & (~asked & (levels < levels[place]))[None]):
            if allowed.any():
                which, at = _most_merit(smooth, allowed, smooth[0, place], caution)
                best = Contender(
                    name=names[which], budget=problem.budgets[place], right=right[which, at],
                    place=at,
                )  # fmt: skip
                break
        ours = dict(zip(names, accuracy[:, place].tolist(), strict=True))
        info = {
            "chosen": best.name,
            "chosen_cross_fitted_accuracy": float(best.right.mean(dtype=np.float64)),
            "cross_fitted_accuracy": ours | theirs,
        }
        chosen.append(dataclasses.replace(best, info=info))
    return chosen


def _most_merit(
    smooth: Float[np.ndarray, "scores budgets samples"],
    allowed: Bool[np.ndarray, "scores budgets"],
    reference: Float[np.ndarray, " samples"],
    caution: float,
) -> tuple[int, int]:
    """Score and budget of the largest lead over the reference, less its standard errors."""
    pairs = np.argwhere(allowed)
    merits = []
    for which, at in pairs:
        lead = smooth[which, at] - reference
        merits.append(lead.mean() - caution * lead.std() / np.sqrt(lead.size))
    which, at = pairs[int(np.argmax(merits))]
    return int(which), int(at)
