"""Policies that hold on samples to come: a cost, or a loss of accuracy, at a stated confidence.

Half of the validation samples fit the policies; the other half, which they have not seen, sets
thresholds and certifies.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from eenet_jax.errors import InputError
from eenet_jax.policies.certify import (
    accuracy_interval,
    bets_against,
    last_certified,
    true_cost_quantiles,
)
from eenet_jax.policies.policy import Policy
from eenet_jax.policies.problem import Problem, both_ends, policy_fields
from eenet_jax.scheduler.settings import is_number
from eenet_jax.scheduler.simulation import lowered_to_budget, settle
from eenet_jax.scheduler.thresholds import ceil_quota

FEWEST_SAMPLES = 40
LARGEST_CONFIDENCE = 0.999
LADDER = 40
"""Budgets among which the cheapest policy within an accuracy drop is looked for."""
COARSE_LADDER = 8
"""Budgets tried where scores are too coarse to set thresholds by numbers of samples."""
LARGEST_TIE = 0.02
SHRINKAGE = 40
"""Steps in which an exit distribution is moved to the first exit until its cost is certified."""

Fit = Callable[[Problem], list[Policy]]


def halves(problem: Problem, seed: int) -> tuple[Problem, Problem]:
    """The samples that policies are fitted on, and those that certify, drawn at random.

    Raises:
      InputError: there are too few samples to certify anything.
    """
    count = problem.predictions.num_samples
    if count < FEWEST_SAMPLES:
        raise InputError(
            f"{count} samples are too few for a confidence: give at least {FEWEST_SAMPLES},"
            " or fit without"
        )
    order = np.random.default_rng(seed).permutation(count)
    parts = (order[: count // 2], order[count // 2 :])
    fitted_on, certified_on = (
        dataclasses.replace(problem, predictions=problem.predictions.take(part)) for part in parts
    )
    return fitted_on, certified_on


def check_confidence(confidence: float) -> None:
    """Raise InputError unless it lies between ½ and what can be told from draws."""
    if not (is_number(confidence) and 0.5 <= confidence <= LARGEST_CONFIDENCE):
        raise InputError(
            f"confidence is {confidence!r}: give one from 0.5 to {LARGEST_CONFIDENCE}, e.g. 0.95"
        )


def check_drop(drop: float) -> None:
    """Raise InputError unless it lies above 0 and below 1."""
    if not (is_number(drop) and 0 < drop < 1):
        raise InputError(
            f"max_accuracy_drop is {drop!r}: give a fraction above 0 and below 1, e.g. 0.005"
        )


def within_confidence(problem: Problem, fit: Fit, confidence: float, seed: int) -> list[Policy]:
    """Policies whose true mean cost is above the budget with probability at most 1 - confidence.

    Args:
      problem: Validation predictions, costs and budgets.
      fit: Fits one policy a budget.
      confidence: Of each policy by itself.
      seed: Draws the halves.

    Returns:
      One policy a budget; its realised cost on all validation samples is within it too.
    """
    check_confidence(confidence)
    parts = halves(problem, seed)
    fitted_on, certified_on = parts
    # Aimed a little below the budget to begin with, rather than cut down afterwards.
    aims = [_aim(certified_on, policy, confidence) for policy in fit(fitted_on)]
    aimed = fit(dataclasses.replace(fitted_on, budgets=tuple(aims)))
    return [
        _certified_cost(problem, parts, fit, policy, budget, confidence)
        for policy, budget in zip(aimed, problem.budgets, strict=True)
    ]


def _rates(policy: Policy) -> Float[np.ndarray, " exits"]:
    return np.asarray(policy.info["validation_exit_rates"], np.float64)


def _aim(certified_on: Problem, policy: Policy, confidence: float) -> float:
    """The budget less what the draw of the certifying samples may add to the cost."""
    costs = np.asarray(certified_on.costs.costs)
    rates = _rates(policy)
    variance = max(0.0, float(rates @ costs**2 - (rates @ costs) ** 2))
    error = math.sqrt(variance / certified_on.predictions.num_samples)
    quantile = statistics.NormalDist().inv_cdf(confidence)
    return max(float(costs[0]), policy.budget - quantile * error)


def _certified_cost(
    problem: Problem,
    parts: tuple[Problem, Problem],
    fit: Fit,
    policy: Policy,
    budget: float,
    confidence: float,
) -> Policy:
    fitted_on, certified_on = parts
    if not _is_sure(policy):
        if _is_coarse(fitted_on, policy):
            policy = _within_by_bets(parts, fit, budget, confidence)
        else:
            policy = _within_by_quota(certified_on, policy, budget, confidence)
    return _completed(problem, certified_on, policy, budget, {"certified": "cost"}, confidence)


def _is_sure(policy: Policy) -> bool:
    """Whether all leave at one exit, whatever the samples, so that the cost is known."""
    return bool(np.isinf(policy.thresholds).all())


def _is_coarse(problem: Problem, policy: Policy) -> bool:
    """Whether many samples share a score at a threshold, so that no number of them can be cut off.

    Votes and counts of agreement do; so do probabilities that are 1 to the last bit.
    """
    scores = policy.scores(problem.predictions.probs, problem.predictions.measures)[:-1]
    tied = (scores == policy.thresholds[:-1, None]).mean(axis=1)
    return bool(tied.max() > LARGEST_TIE)


def _all_leave_first(policy: Policy) -> Policy:
    return dataclasses.replace(policy, thresholds=np.full_like(policy.thresholds, -np.inf))


def _within_by_quota(
    certified_on: Problem, policy: Policy, budget: float, confidence: float
) -> Policy:
    """The policy's exit rates on new samples, moved to the first exit as far as it takes."""
    costs = certified_on.costs.costs
    rates, first = _rates(policy), np.eye(len(costs))[0]
    scores = policy.scores(certified_on.predictions.probs, certified_on.predictions.measures)
    count = scores.shape[1]
    for step in range(SHRINKAGE):
        moved = (step / SHRINKAGE) ** 2
        quota = np.asarray(ceil_quota((1 - moved) * rates + moved * first, count))
        asked = np.append(quota, max(0, count - quota.sum()))
        sure_exit = int(np.flatnonzero(asked)[-1])
        if true_cost_quantiles(asked, sure_exit, costs, (confidence,))[0] <= budget:
            return dataclasses.replace(policy, thresholds=settle(scores, quota)[0])
    return _all_leave_first(policy)


def _within_by_bets(
    parts: tuple[Problem, Problem], fit: Fit, budget: float, confidence: float
) -> Policy:
    """The dearest of a few policies, tested from the cheapest on, whose cost is certified."""
    fitted_on, certified_on = parts
    costs = np.asarray(certified_on.costs.costs)
    steps = np.linspace(costs[0], budget, COARSE_LADDER)
    policies = fit(dataclasses.replace(fitted_on, budgets=tuple(steps.tolist())))
    policies = sorted(policies, key=lambda each: each.info["validation_cost"])
    given = certified_on.predictions
    spent = np.stack([costs[each.decide(given.probs, given.measures)] for each in policies])
    # In shares of the range of costs: bets are placed by how far margins of order 1 spread.
    scale = costs[-1] - costs[0]
    lowest = min((budget - costs[-1]) / scale, -1e-9)
    # What all leave at, whatever the samples, needs no bet.
    known = [_is_sure(each) and each.info["validation_cost"] <= budget for each in policies]
    margin = (budget - spent) / scale
    certified = bets_against(margin, float(lowest), confidence) | np.asarray(known)
    place = last_certified(certified)
    return policies[place] if place >= 0 else _all_leave_first(policies[0])


def _completed(
    problem: Problem,
    certified_on: Problem,
    policy: Policy,
    budget: float,
    info: dict[str, Any],
    confidence: float,
) -> Policy:
    """The policy with what it comes to on all samples, its first threshold low enough for them.

    Lowering a threshold makes a policy cheaper on any sample: what is certified stays so. The
    intervals are from the samples that neither score nor distribution was fitted on.
    """
    scores = policy.scores(problem.predictions.probs, problem.predictions.measures)
    thresholds = lowered_to_budget(scores, policy.thresholds, problem.costs.costs, budget)
    fields = policy_fields(_as_answered(problem, policy), scores, thresholds, budget)
    policy = dataclasses.replace(policy, thresholds=thresholds)
    given = certified_on.predictions
    exits = policy.decide(given.probs, given.measures)
    right = policy.correct_at(given, exits)
    left = np.bincount(exits, minlength=policy.num_exits)
    sure_exit = int(np.argmax(thresholds == -np.inf))
    kept = {name: policy.info[name] for name in ("chosen",) if name in policy.info}
    fields["info"] |= (
        kept
        | info
        | {
            "confidence": confidence,
            "certified_on": given.num_samples,
            "accuracy_interval_95": accuracy_interval(right),
            "cost_interval_95": true_cost_quantiles(
                left, sure_exit, problem.costs.costs, (0.025, 0.975)
            ),
        }
    )
    return dataclasses.replace(policy, **fields)


def _as_answered(problem: Problem, policy: Policy) -> Problem:
    """The problem, right being what the policy's answers are."""
    if policy.answer_weights is None:
        return problem
    given = problem.predictions
    answered = dataclasses.replace(given, correct=policy.correctness(given))
    return dataclasses.replace(problem, predictions=answered)


def within_drop(problem: Problem, fit: Fit, drop: float, confidence: float, seed: int) -> Policy:
    """The cheapest policy certified to lose at most so much accuracy against the last exit.

    Policies for budgets over the whole range are fitted on one half, and tested on the other
    from the dearest on; the last one before the first failure is taken. With probability at
    least `confidence` its true accuracy is not more than `drop` below the last exit's.

    Args:
      problem: Validation predictions and costs; its budgets don't matter.
      fit: Fits one policy a budget.
      drop: Largest loss of accuracy, a fraction.
      confidence: Of the certificate.
      seed: Draws the halves.

    Returns:
      A policy whose budget is its realised validation cost; the full network where nothing
      cheaper can be certified.
    """
    check_confidence(confidence)
    check_drop(drop)
    fitted_on, certified_on = halves(problem, seed)
    costs = problem.costs.costs
    policies = fit(dataclasses.replace(fitted_on, budgets=_ladder(costs)))
    full = dataclasses.replace(
        policies[0], thresholds=both_ends(len(costs))[1], answer_weights=None,
        info={"chosen": "full network"},
    )  # fmt: skip
    policies = sorted(policies, key=lambda each: -each.info["validation_cost"])
    lost = np.stack([_lost(certified_on, policy) for policy in policies])
    place = last_certified(bets_against(drop - lost, drop - 1.0, confidence))
    chosen = policies[place] if place >= 0 else full
    info = {"certified": "accuracy_drop", "max_accuracy_drop": drop}
    budget = _own_budget(problem, chosen)
    return _completed(problem, certified_on, chosen, budget, info, confidence)


def _ladder(costs: tuple[float, ...]) -> tuple[float, ...]:
    """Budgets over the range, evenly and by equal ratios, and every exit's own cost."""
    even = np.linspace(costs[0], costs[-1], LADDER)
    by_ratio = np.clip(np.geomspace(costs[0], costs[-1], LADDER // 2), costs[0], costs[-1])
    return tuple(np.unique(np.concatenate([even, by_ratio, costs])).tolist())


def _lost(problem: Problem, policy: Policy) -> Float[np.ndarray, " samples"]:
    """How much less right each sample is than at the last exit."""
    predictions = problem.predictions
    exits = policy.decide(predictions.probs, predictions.measures)
    return problem.correct[-1] - policy.correct_at(predictions, exits)


def _own_budget(problem: Problem, policy: Policy) -> float:
    """What the policy costs on all samples, rounded up to five digits, the last cost at most."""
    predictions = problem.predictions
    cost = problem.outcome(policy.decide(predictions.probs, predictions.measures)).cost
    unit = 10.0 ** (math.floor(math.log10(cost)) - 4)
    steps = math.ceil(cost / unit - 1e-6)
    rounded = float(f"{steps * unit:.6g}")
    rounded = rounded if rounded >= cost else float(f"{(steps + 1) * unit:.6g}")
    return min(rounded, problem.costs.costs[-1])
