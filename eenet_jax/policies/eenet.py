"""`eenet`: leave where going on gains least, with the exit distribution that buys most.

The score is linear in what an exit sees, through two calibrated chances: that the exit's answer
is right, and that the full network's will be. Which score and which exit distribution is taken
is decided on samples that neither was fitted on, and every baseline may win.

Source: Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet (2024), for
learned scores, exit distributions and the thresholds made of them; the score as a gain, the
search and the choice are this package's own.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from eenet_jax.confidence import measure_score, measures_at, sum_in_fixed_order
from eenet_jax.errors import InputError
from eenet_jax.policies.certify import accuracy_interval
from eenet_jax.policies.choice import (
    MEASURE_OF_BASELINE,
    Contender,
    baseline_contenders,
    best_of,
    choose,
    fold_parts,
)
from eenet_jax.policies.max_prob import fit_max_prob
from eenet_jax.policies.policy import Policy, sample_blocks
from eenet_jax.policies.problem import Problem, measure_scores, policy_fields
from eenet_jax.scheduler.combination import fit_combination
from eenet_jax.scheduler.features import exit_features, num_features
from eenet_jax.scheduler.settings import check_number
from eenet_jax.scheduler.simulation import lowered_to_budget, settle
from eenet_jax.scheduler.solver import (
    Chances,
    Samples,
    SolverSettings,
    gain_score,
    solve,
)
from eenet_jax.scheduler.thresholds import ceil_quota
from eenet_jax.types import MEASURES, Array

ANSWERS = ("own", "combined")
GRID_BUDGETS = 12
"""Budgets over the whole range on which scores are judged, beside those asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EENetSettings(SolverSettings):
    """How `eenet` fits and chooses; see `SolverSettings`.

    Attributes:
      caution: Standard errors by which another score must be better than the first of
        `score_measures` to replace it, its exit distribution searched alike.
      answers: "own", the exit's, or "combined", those of all exits passed.
    """

    caution: float = 0.5
    answers: str = "own"

    def __post_init__(self):
        super().__post_init__()
        check_number(self, "caution", zero=True)
        if self.answers not in ANSWERS:
            raise InputError(f"answers is '{self.answers}': give one of {', '.join(ANSWERS)}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EENet(Policy):
    """The score is one confidence measure, or the gain that two linear log-odds give.

    Attributes:
      measure: The measure, one of `MEASURES`; empty for the gain.
      gain_share: How much of the full network's chance counts; see `gain_score`.
      now: Weights [exits, features + classes] of the log-odds that the exit is right, on
        `exit_features` and on its answer, one-hot.
      last: The same for the full network's being right.
    """

    name = "eenet"

    measure: str
    gain_share: float
    now: Float[np.ndarray, "exits weights"]
    last: Float[np.ndarray, "exits weights"]

    def score(
        self,
        k: int,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Float[Array, " samples"]:
        """The measure or the gain at exit k; see `Policy.score`."""
        self.check_seen(k, probs)
        if self.measure:
            seen = None if measures is None else measures[: k + 1]
            return measure_score(self.measure, probs[: k + 1], seen)
        features, answers = self._seen(k, probs, measures)
        return _gain(self.now[k], self.last[k], self.gain_share, features, answers)

    def chance(
        self,
        k: int,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Float[Array, " samples"]:
        """The calibrated chance that exit k is right; the measure itself where that is the score.

        Args:
          k: Exit index, 0-based.
          probs: Softmax outputs of exits 0..k.
          measures: Dense prediction only: image means of the measures at the same exits.
        """
        if self.measure:
            return self.score(k, probs, measures)
        self.check_seen(k, probs)
        return jax.nn.sigmoid(_log_odds(self.now[k], *self._seen(k, probs, measures)))

    def _seen(self, k, probs, measures):
        """What the exit's features are, and its answers."""
        exits, width = self.now.shape
        classes, wanted = probs.shape[-1], width - num_features(exits)
        if classes != wanted:
            raise InputError(
                f"probs has {classes} classes, the policy was fitted to {wanted}: use the"
                " network that it was fitted to"
            )
        probs = jnp.asarray(probs[: k + 1])
        own = measures_at(probs) if measures is None else jnp.asarray(measures[k])
        return exit_features(probs, own, exits)

    def __post_init__(self):
        exits, width = len(self.thresholds), num_features(len(self.thresholds)) + 2
        if self.measure and self.measure not in MEASURES:
            raise InputError(f"measure '{self.measure}' is unknown: known are {MEASURES}")
        for name in ("now", "last"):
            shape = getattr(self, name).shape
            if len(shape) != 2 or shape[0] != exits or shape[1] < width or shape != self.now.shape:
                raise InputError(f"{name} has shape {shape}, of {exits} exits")


@jax.jit
def _log_odds(weights, features, answers):
    width = features.shape[1]
    return sum_in_fixed_order(features * weights[None, :width]) + weights[width:][answers]


@jax.jit
def _gain(now, last, share, features, answers):
    now, last = (_log_odds(weights, features, answers) for weights in (now, last))
    return gain_score(now, last, share)


def solver_samples(problem: Problem) -> Samples:
    """Features, answers, measures and correctness of the problem's samples."""
    probs, measures = problem.predictions.probs, problem.measures
    exits = len(probs)

    def seen_at(k: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            exit_features(probs[: k + 1, block], measures[k, block], exits)
            for block in sample_blocks(probs)
        ]
        features, answers = (np.concatenate(part) for part in zip(*parts, strict=True))
        return features, answers.astype(np.int32)

    features, answers = (np.stack(each) for each in zip(*map(seen_at, range(exits)), strict=True))
    return Samples(features, answers, measures, problem.correct)


def fit_eenet(problem: Problem, settings: EENetSettings, seed: int) -> list[EENet]:
    """Fit every score and exit distribution, and keep for each budget what does best out of sample.

    Args:
      problem: Validation predictions, costs and budgets.
      settings: The solver and the choice.
      seed: Draws the folds.

    Returns:
      One policy a budget; its realised validation cost is not above the budget, and no
      baseline has a higher cross-fitted validation accuracy within it.
    """
    held_out = fold_parts(problem.predictions.num_samples, settings.folds, seed)
    baselines = baseline_contenders(problem, held_out)
    if not len(held_out):
        return [_from_baseline(problem, each) for each in best_of(baselines)]
    weights, answered = None, problem
    if settings.answers == "combined":
        weights, answered = _answered_by_all(problem)
    fitted = _fit(answered, baselines, held_out, settings)
    if weights is None:
        return fitted
    return [
        _answering(problem, policy, weights, [each[place] for each in baselines])
        for place, policy in enumerate(fitted)
    ]


def _answering(
    problem: Problem, policy: EENet, weights: np.ndarray, rivals: list[Contender]
) -> EENet:
    """The policy with combined answers; where a baseline won, it did so with its own."""
    for rival in rivals:
        if rival.name == policy.info["chosen"]:
            return _from_baseline(problem, dataclasses.replace(rival, info=dict(policy.info)))
    return dataclasses.replace(policy, answer_weights=weights)


def _fit(problem: Problem, baselines, held_out, settings: EENetSettings) -> list[EENet]:
    """One policy a budget, of the solver's scores and the baselines."""
    low, high = problem.costs.costs[0], problem.costs.costs[-1]
    grid = low + (high - low) * (np.arange(GRID_BUDGETS) + 0.5) / GRID_BUDGETS
    budgets = (*problem.budgets, *grid.tolist())
    samples = solver_samples(problem)
    classes = problem.predictions.num_classes
    solved = solve(samples, classes, problem.costs.costs, budgets, held_out, settings)
    names = _score_names(settings)
    chosen = choose(
        problem,
        np.asarray(solved.held_out_correct),
        (np.asarray(budgets) - low) / (high - low),
        baselines,
        names,
        settings.caution,
    )
    scored = functools.cache(
        lambda which: _scored(problem, samples, settings, solved.chances, which)
    )
    found = []
    for contender in chosen:
        if contender.thresholds is not None:
            found.append(_from_baseline(problem, contender))
            continue
        which = names.index(contender.name)
        distribution = solved.distributions[which, contender.place]
        found.append(_policy(problem, contender, distribution, *scored(which)))
    return found


def _answered_by_all(problem: Problem) -> tuple[np.ndarray, Problem]:
    """Weights of combined answers, and the problem in which these are what is right."""
    predictions = problem.predictions
    if predictions.correct is not None:
        raise InputError("answers is 'combined': labelled pixels are answered by one exit, own")
    weights = fit_combination(predictions.probs, predictions.labels)
    blank = dataclasses.replace(fit_max_prob(problem)[0], answer_weights=weights)
    combined = dataclasses.replace(predictions, correct=blank.correctness(predictions))
    return weights, dataclasses.replace(problem, predictions=combined)


def _score_names(settings: SolverSettings) -> list[str]:
    searched = (f"searched-{measure}" for measure in settings.score_measures)
    return [*searched, *(f"gain-{share:g}" for share in settings.gain_shares)]


def _scored(
    problem: Problem, samples: Samples, settings: SolverSettings, chances: Chances, which: int
) -> tuple[dict[str, Any], Float[np.ndarray, "exits samples"]]:
    """A score's fields, and its values by the very programs that inference runs."""
    measures = settings.score_measures
    if which < len(measures):
        name = measures[which]
        return _measure_fields(problem, name), measure_scores(problem, name)
    now, last = (
        np.concatenate([np.asarray(each.linear), np.asarray(each.by_class)], axis=1)
        for each in chances
    )
    share = float(settings.gain_shares[which - len(measures)])
    exits = zip(now, last, samples.features, samples.answers, strict=True)
    scores = [np.asarray(_gain(row, other, share, *seen)) for row, other, *seen in exits]
    return {"measure": "", "gain_share": share, "now": now, "last": last}, np.stack(scores)


def _policy(
    problem: Problem, contender: Contender, distribution, fields: dict[str, Any], scores
) -> EENet:
    quota = ceil_quota(distribution, scores.shape[1])
    thresholds, _ = settle(scores, np.asarray(quota))
    thresholds = lowered_to_budget(scores, thresholds, problem.costs.costs, contender.budget)
    found = policy_fields(problem, scores, thresholds, contender.budget)
    found["info"] |= contender.info | {"accuracy_interval_95": accuracy_interval(contender.right)}
    return EENet(**fields, **found)


def _measure_fields(problem: Problem, measure: str) -> dict[str, Any]:
    exits, _, classes = problem.predictions.probs.shape
    nothing = np.zeros((exits, num_features(exits) + classes), np.float32)
    return {"measure": measure, "gain_share": 0.0, "now": nothing, "last": nothing}


def _from_baseline(problem: Problem, contender: Contender) -> EENet:
    assert contender.thresholds is not None
    measure = MEASURE_OF_BASELINE[contender.name]
    scores = measure_scores(problem, measure)
    fields = policy_fields(problem, scores, contender.thresholds, contender.budget)
    fields["info"] = contender.info | fields["info"]
    fields["info"]["accuracy_interval_95"] = accuracy_interval(contender.right)
    return EENet(**_measure_fields(problem, measure), **fields)
