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

from eenet_jax.confidence import measure_score, sum_in_fixed_order
from eenet_jax.errors import InputError
from eenet_jax.policies.certify import accuracy_interval
from eenet_jax.policies.choice import (
    Contender,
    baseline_contenders,
    best_of,
    choose,
    fold_parts,
)
from eenet_jax.policies.max_prob import fit_max_prob
from eenet_jax.policies.policy import Policy
from eenet_jax.policies.problem import NUMBERS_A_CALL, Problem, policy_fields, problem_scores
from eenet_jax.scheduler.combination import fit_combination
from eenet_jax.scheduler.features import exit_features, num_features
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
        if not self.caution >= 0:
            raise InputError(f"caution is {self.caution}: give 0 or more")
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
        seen = None if measures is None else measures[: k + 1]
        if self.measure:
            return measure_score(self.measure, probs[: k + 1], seen)
        self._check_classes(probs.shape[-1])
        now, last = jnp.asarray(self.now[k]), jnp.asarray(self.last[k])
        return _gain_at(now, last, self.gain_share, probs[: k + 1], seen, len(self.now))

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
        self._check_classes(probs.shape[-1])
        seen = None if measures is None else measures[: k + 1]
        row = jnp.asarray(self.now[k])
        return jax.nn.sigmoid(_log_odds_at(row[None], probs[: k + 1], seen, len(self.now))[0])

    def __post_init__(self):
        exits, width = len(self.thresholds), num_features(len(self.thresholds)) + 2
        if self.measure and self.measure not in MEASURES:
            raise InputError(f"measure '{self.measure}' is unknown: known are {MEASURES}")
        for name in ("now", "last"):
            shape = getattr(self, name).shape
            if len(shape) != 2 or shape[0] != exits or shape[1] < width or shape != self.now.shape:
                raise InputError(f"{name} has shape {shape}, of {exits} exits")

    def _check_classes(self, classes: int) -> None:
        exits, width = self.now.shape
        wanted = width - num_features(exits)
        if classes != wanted:
            raise InputError(
                f"probs has {classes} classes, the policy was fitted to {wanted}: use the"
                " network that it was fitted to"
            )


@functools.partial(jax.jit, static_argnames="exits")
def _log_odds_at(rows, probs, measures, exits):
    """Log-odds [rows, samples] by rows of weights."""
    features, answers = exit_features(probs, measures, exits)
    width = features.shape[1]
    linear = [sum_in_fixed_order(features * row[None, :width]) for row in rows]
    return jnp.stack([each + row[width:][answers] for each, row in zip(linear, rows, strict=True)])


# One program from probabilities to score: compiled in pieces, its last bits would differ.
@functools.partial(jax.jit, static_argnames="exits")
def _gain_at(now, last, share, probs, measures, exits):
    now, last = _log_odds_at(jnp.stack([now, last]), probs, measures, exits)
    return gain_score(now, last, share)


@functools.partial(jax.jit, static_argnames="exits")
def _features_at(probs, measures, exits):
    return exit_features(probs, measures, exits)


def solver_samples(problem: Problem) -> Samples:
    """Features, answers, measures and correctness of the problem's samples."""
    probs, given = problem.predictions.probs, problem.predictions.measures
    exits, count, classes = probs.shape
    step = max(1, NUMBERS_A_CALL // (classes * exits))
    features, answers = [], []
    for k in range(exits):
        parts = [
            _features_at(
                probs[: k + 1, first : first + step],
                None if given is None else given[: k + 1, first : first + step],
                exits,
            )
            for first in range(0, count, step)
        ]
        features.append(np.concatenate([np.asarray(part[0]) for part in parts]))
        answers.append(np.concatenate([np.asarray(part[1]) for part in parts]))
    return Samples(
        np.stack(features), np.stack(answers).astype(np.int32), problem.measures, problem.correct
    )


def fit_eenet(problem: Problem, settings: EENetSettings, seed: int) -> list[EENet]:
    """Fit every score and exit distribution, and keep for each budget what does best out of sample.

    Args:
      problem: Validation predictions, costs and budgets.
      settings: The solver and the choice.
      seed: Draws folds and resampled weights.

    Returns:
      One policy a budget; its realised validation cost is not above the budget, and no
      baseline has a higher cross-fitted validation accuracy within it.
    """
    held_out = fold_parts(problem.predictions.num_samples, settings.folds, seed)
    baselines = baseline_contenders(problem, held_out)
    if not len(held_out):
        return [_from_baseline(problem, each) for each in best_of(baselines)]
    if settings.answers == "own":
        return _fit(problem, baselines, held_out, settings, seed)
    weights, combined = _answered_by_all(problem)
    fitted = _fit(combined, baselines, held_out, settings, seed)
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


def _fit(problem, baselines, held_out, settings: EENetSettings, seed: int) -> list[EENet]:
    """One policy a budget, of the solver's scores and the baselines."""
    low, high = problem.costs.costs[0], problem.costs.costs[-1]
    grid = low + (high - low) * (np.arange(GRID_BUDGETS) + 0.5) / GRID_BUDGETS
    solved = solve(
        solver_samples(problem),
        problem.predictions.num_classes,
        problem.costs.costs,
        (*problem.budgets, *grid.tolist()),
        held_out,
        settings,
        jax.random.key(seed),
    )
    chosen = choose(
        problem,
        np.asarray(solved.held_out_correct),
        (np.asarray([*problem.budgets, *grid]) - low) / (high - low),
        baselines,
        _score_names(settings),
        settings.caution,
    )
    scores: dict[str, np.ndarray] = {}
    return [
        _policy(problem, settings, solved, contender, place, scores)
        for place, contender in enumerate(chosen)
    ]


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


def _policy(problem, settings, solved, contender: Contender, place, scores) -> EENet:
    if contender.thresholds is not None:
        return _from_baseline(problem, contender)
    which = _score_names(settings).index(contender.name)
    shared = _shared_fields(problem, settings, solved.chances, which)
    if contender.name not in scores:
        blank = np.full(problem.predictions.num_exits, -np.inf, np.float32)
        unset = EENet(budget=0.0, thresholds=blank, costs=problem.costs.costs, **shared)
        scores[contender.name] = problem_scores(unset, problem)
    score = scores[contender.name]
    budget = problem.budgets[place]
    quota = ceil_quota(solved.distributions[which, contender.place], score.shape[1])
    thresholds, _ = settle(score, np.asarray(quota))
    thresholds = lowered_to_budget(score, thresholds, problem.costs.costs, budget)
    fields = policy_fields(problem, score, thresholds, budget)
    fields["info"] |= contender.info | {"accuracy_interval_95": accuracy_interval(contender.right)}
    return EENet(**shared, **fields)


def _shared_fields(
    problem: Problem, settings: SolverSettings, chances: Chances | None, which: int
) -> dict[str, Any]:
    """The score's fields: a measure, or a share of the gain and the chances' weights."""
    measures = settings.score_measures
    if which < len(measures):
        return _measure_fields(problem, measures[which])
    assert chances is not None
    now, last = (
        np.concatenate([np.asarray(each.linear), np.asarray(each.by_class)], axis=1)
        for each in chances
    )
    share = settings.gain_shares[which - len(measures)]
    return {"measure": "", "gain_share": float(share), "now": now, "last": last}


def _measure_fields(problem: Problem, measure: str) -> dict[str, Any]:
    exits, _, classes = problem.predictions.probs.shape
    nothing = np.zeros((exits, num_features(exits) + classes), np.float32)
    return {"measure": measure, "gain_share": 0.0, "now": nothing, "last": nothing}


def _from_baseline(problem: Problem, contender: Contender) -> EENet:
    assert contender.thresholds is not None
    scores = problem.measures[..., MEASURES.index(contender.measure)]
    fields = policy_fields(problem, scores, contender.thresholds, contender.budget)
    fields["info"] = contender.info | fields["info"]
    fields["info"]["accuracy_interval_95"] = accuracy_interval(contender.right)
    return EENet(**_measure_fields(problem, contender.measure), **fields)
