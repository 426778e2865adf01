"""`fit`: policies for budgets, from predictions and costs."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eenet_jax.config import check_seed
from eenet_jax.errors import InputError
from eenet_jax.policies.eenet import EENetSettings, fit_eenet
from eenet_jax.policies.eenet_paper import EENetPaperSettings, fit_eenet_paper
from eenet_jax.policies.entropy import fit_entropy
from eenet_jax.policies.guarantee import within_confidence, within_drop
from eenet_jax.policies.max_prob import fit_max_prob
from eenet_jax.policies.patience import fit_patience
from eenet_jax.policies.policy import Policy
from eenet_jax.policies.problem import Problem
from eenet_jax.policies.static import fit_static
from eenet_jax.policies.vote import fit_vote
from eenet_jax.types import CostTable, ExitPredictions

LEARNED: dict[str, tuple[Callable[..., list], type]] = {
    "eenet": (fit_eenet, EENetSettings),
    "eenet_paper": (fit_eenet_paper, EENetPaperSettings),
}
BASELINES: dict[str, Callable[[Problem], list]] = {
    "max_prob": fit_max_prob,
    "entropy": fit_entropy,
    "patience": fit_patience,
    "vote": fit_vote,
    "static": fit_static,
}
POLICY_NAMES = (*LEARNED, *BASELINES)


def fit(
    predictions: ExitPredictions | str | Path,
    costs: CostTable | str | Path | Sequence[float],
    budgets: Sequence[float | int | str],
    *,
    policy: str = "eenet",
    seed: int = 0,
    confidence: float | None = None,
    **settings: Any,
) -> list[Policy]:
    """Fit one policy a budget on validation predictions.

    Args:
      predictions: Validation predictions, or the path of an `.npz` file of them.
      costs: Cost of each exit: a table, numbers, `"1,2,4,8"`, or the path of a JSON file.
      budgets: Average costs per sample, in the table's unit.
      policy: One of `POLICY_NAMES`.
      seed: Draws everything random.
      confidence: For example 0.95: each policy's true mean cost, on samples like these, is
        above its budget with probability at most 1 - confidence. Without it the budget holds
        on the validation samples.
      **settings: Settings of the policy, e.g. `folds`; see `EENetSettings` and
        `EENetPaperSettings`. The baselines have none.

    Returns:
      Policies in the order of the budgets; the realised validation cost of each is not
      above its budget.

    Raises:
      InputError: an argument is unknown or out of range, or files are no good.
    """
    check_policy_name(policy)
    check_seed("seed", seed)
    chosen = settings_of(policy, settings)
    if isinstance(budgets, int | float):
        raise InputError(f"budgets is {budgets}: give several, or [{budgets}]")
    problem = Problem(
        predictions=_loaded(predictions),
        costs=CostTable.parse(costs),
        budgets=tuple(parse_budget(budget) for budget in budgets),
    )
    return fit_problem(problem, policy, chosen, seed, confidence)


def fit_cheapest(
    predictions: ExitPredictions | str | Path,
    costs: CostTable | str | Path | Sequence[float],
    *,
    max_accuracy_drop: float,
    confidence: float = 0.95,
    policy: str = "eenet",
    seed: int = 0,
    **settings: Any,
) -> Policy:
    """Fit the cheapest policy that loses at most so much accuracy against the full network.

    Args:
      predictions: Validation predictions, or the path of an `.npz` file of them.
      costs: As for `fit`.
      max_accuracy_drop: A fraction: 0.005 is half a point.
      confidence: With at least this probability, on samples like these, the policy's true
        accuracy is not further below the last exit's.
      policy: One of `POLICY_NAMES`.
      seed: Draws everything random.
      **settings: As for `fit`.

    Returns:
      A policy whose budget is what it costs on the validation samples; one that sends all to
      the last exit where nothing cheaper can be certified.

    Raises:
      InputError: an argument is unknown or out of range, files are no good, or there are too
        few samples to certify anything.
    """
    check_policy_name(policy)
    check_seed("seed", seed)
    chosen = settings_of(policy, settings)
    table = CostTable.parse(costs)
    problem = Problem(predictions=_loaded(predictions), costs=table, budgets=(table.costs[-1],))
    return fit_problem_cheapest(problem, policy, chosen, seed, max_accuracy_drop, confidence)


def _loaded(predictions: Any) -> ExitPredictions:
    """Predictions as they are, or from their file."""
    if isinstance(predictions, ExitPredictions):
        return predictions
    if isinstance(predictions, str | Path):
        return ExitPredictions.load(predictions)
    raise InputError(
        f"predictions is a {type(predictions).__name__}: give the path of an .npz file, or"
        " ExitPredictions(probs=…, labels=…)"
    )


def fit_problem_cheapest(
    problem: Problem, policy: str, settings: Any, seed: int, drop: float, confidence: float
) -> Policy:
    """`fit_cheapest`, everything checked already; `settings` are those of `settings_of`."""

    def fit_part(part: Problem) -> list[Policy]:
        return fit_problem(part, policy, settings, seed)

    return within_drop(problem, fit_part, drop, confidence, seed)


def fit_problem(
    problem: Problem, policy: str, settings: Any, seed: int, confidence: float | None = None
) -> list[Policy]:
    """`fit`, everything checked already; `settings` are those of `settings_of`."""

    def fit_part(part: Problem) -> list[Policy]:
        if policy in BASELINES:
            return BASELINES[policy](part)
        return LEARNED[policy][0](part, settings, seed)

    if confidence is None:
        return fit_part(problem)
    return within_confidence(problem, fit_part, confidence, seed)


def check_policy_name(policy: str) -> None:
    """Raise InputError, listing the known names, unless this is one of them."""
    if policy not in POLICY_NAMES:
        raise InputError(f"policy '{policy}' is unknown: known are {', '.join(POLICY_NAMES)}")


def setting_names(policy: str) -> tuple[str, ...]:
    """The settings that a policy takes."""
    if policy not in LEARNED:
        return ()
    return tuple(field.name for field in dataclasses.fields(LEARNED[policy][1]))


def settings_of(policy: str, settings: Mapping[str, Any]) -> Any:
    """A policy's settings object, None for a baseline.

    Raises:
      InputError: the policy has no setting of such a name, or the value is out of range.
    """
    unknown = sorted(set(settings) - set(setting_names(policy)))
    if unknown:
        known = ", ".join(setting_names(policy)) or "none"
        raise InputError(f"setting '{unknown[0]}' is unknown to '{policy}': it takes {known}")
    return LEARNED[policy][1](**settings) if policy in LEARNED else None


def parse_budget(value: float | int | str) -> float:
    """A budget as a finite number.

    Raises:
      InputError: it is none.
    """
    try:
        budget = float(value)
    except (TypeError, ValueError):
        raise InputError(f"budget '{value}' is no number: give one in the cost unit") from None
    if not math.isfinite(budget):
        raise InputError(f"budget '{value}' is not finite: give a number in the cost unit")
    return budget
