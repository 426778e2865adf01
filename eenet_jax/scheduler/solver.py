"""The solver: scores and exit distributions for all budgets and resamplings at once.

A score says what a sample gains by going on: the calibrated chance that the exit is wrong
against the chance that the full network is. Chances are logistic regressions; exit
distributions are searched directly (`distribution`), on resampled weights whose results are
averaged. Each candidate score is judged on folds it was not fitted on.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key

from eenet_jax.errors import InputError
from eenet_jax.scheduler.distribution import cost_levels, fit_distributions, price_grid
from eenet_jax.scheduler.logistic import LogisticWeights, fit_logistic
from eenet_jax.scheduler.parallel import Devices, chunk_size, over_devices, useful_devices
from eenet_jax.scheduler.simulation import first_exit
from eenet_jax.scheduler.thresholds import ceil_quota, thresholds_from_quota
from eenet_jax.types import MEASURES, Array

FLOATS_A_SEARCH = 24
"""Arrays of [exits, samples] that one search keeps, measured generously."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """How scores and exit distributions are fitted.

    Attributes:
      folds: Parts the samples are cut into; candidates are judged on the part left out.
      resamplings: Resampled fits of each exit distribution, averaged; of those that only
        judge a score, a quarter as many.
      prices: Prices of a unit of cost at which thresholds are optimised.
      sweeps: Passes over the exits at each price.
      ridge: Penalty on the standardised features of a chance.
      class_ridge: Penalty on a chance's intercepts by answer.
      gain_shares: How much of the full network's chance counts against going on, a score
        each: 0 is the chance of being right, 1 the expected gain of going on.
      score_measures: Confidence measures that are scores of their own.
      memory_limit_gb: Memory that the fits of a device may take at once, in 10^9 bytes.
    """

    folds: int = 5
    resamplings: int = 8
    prices: int = 48
    sweeps: int = 3
    ridge: float = 3.0
    class_ridge: float = 1.0
    gain_shares: tuple[float, ...] = (0.0, 0.8, 1.0)
    score_measures: tuple[str, ...] = ("max", "margin")
    memory_limit_gb: float = 1.0

    def __post_init__(self):
        for name, least in (("folds", 2), ("resamplings", 1), ("prices", 3), ("sweeps", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}: give a whole number, {least} or more")
        for name in ("ridge", "class_ridge", "memory_limit_gb"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InputError(f"{name} is {value!r}: give a number above 0")
        for name in ("gain_shares", "score_measures"):
            value = getattr(self, name)
            # As typed on a command line: a list, or one alone.
            alone = isinstance(value, str | int | float)
            object.__setattr__(self, name, (value,) if alone else tuple(value))
        for share in self.gain_shares:
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                raise InputError(f"gain_shares has {share!r}: give numbers from 0 to 1")
        for name in self.score_measures:
            if name not in MEASURES:
                raise InputError(f"measure '{name}' is unknown: give some of {', '.join(MEASURES)}")
        if not (self.score_measures or self.gain_shares):
            raise InputError(
                "score_measures and gain_shares are both empty: give at least one score"
            )


class Chances(NamedTuple):
    """Log-odds that an exit's answer is right, and that the full network's is."""

    now: LogisticWeights
    last: LogisticWeights


class Samples(NamedTuple):
    """What the solver sees.

    Attributes:
      features: `exit_features` of every exit.
      answers: Each exit's answer.
      measures: Confidence measures in the order of `MEASURES`.
      correct: How right each exit is.
    """

    features: Float[Array, "exits samples features"]
    answers: Int[Array, "exits samples"]
    measures: Float[Array, "exits samples 5"]
    correct: Float[Array, "exits samples"]


class Solved(NamedTuple):
    """What was found, by candidate score: those of `measures`, then of `gain_shares`.

    Attributes:
      chances: Weights of every exit, fitted to all samples.
      distributions: Exit distribution for each budget, fitted to all samples.
      held_out_correct: `correct` of each sample where the candidate fitted without its fold
        would have sent it within the budget.
    """

    chances: Chances
    distributions: Float[Array, "scores budgets exits"]
    held_out_correct: Float[Array, "scores budgets samples"]


def gain_score(
    now: Float[Array, "*shape"], last: Float[Array, "*shape"], share: float | Float[Array, ""]
) -> Float[Array, "*shape"]:
    """share·P(full network wrong) - P(exit wrong), from the log-odds of being right.

    Up to a constant this is P(exit right) - share·P(full network right); chances of being
    wrong keep their digits where all are near 1.
    """
    return share * jax.nn.sigmoid(-last) - jax.nn.sigmoid(-now)


def solve(
    samples: Samples,
    num_classes: int,
    costs: tuple[float, ...],
    budgets: tuple[float, ...],
    held_out: Bool[np.ndarray, "folds samples"],
    settings: SolverSettings,
    key: Key[Array, ""],
    devices: Devices | None = None,
) -> Solved:
    """Fit every candidate score and its exit distributions to all samples and to all but a fold.

    Args:
      samples: Features, answers, measures and correctness.
      num_classes: C.
      costs: Cost of each exit.
      budgets: Average costs per sample.
      held_out: Which samples each fold leaves out; may have no folds.
      settings: How to fit.
      key: Draws the resampling.
      devices: That share the fits; `useful_devices` by default.
    """
    low, high = costs[0], costs[-1]
    shared = _Shared(
        samples=jax.tree.map(jnp.asarray, samples),
        levels=jnp.asarray(cost_levels(costs), jnp.float32),
        prices=jnp.asarray(price_grid(costs, settings.prices)),
        budgets=jnp.asarray((np.asarray(budgets) - low) / (high - low), jnp.float32),
        held_out=jnp.asarray(held_out),
        key=key,
    )
    scores, folds = len(settings.score_measures) + len(settings.gain_shares), len(held_out)
    everyone = np.stack(_pairs(scores, 1), axis=1)
    judged = np.stack(_pairs(scores, folds), axis=1).reshape(-1, 2)
    fit_all, fit_folds = _programs(settings, num_classes, devices or useful_devices())
    chances, found = fit_all(shared, everyone)
    right = np.zeros((scores, len(budgets), held_out.shape[1]), np.float32)
    if folds:
        # A sample is in one fold; elsewhere its column is 0.
        right = fit_folds(shared, judged).reshape(scores, folds, len(budgets), -1).sum(1)
    return Solved(jax.tree.map(lambda leaf: leaf[0], chances), found, right)


class _Shared(NamedTuple):
    samples: Samples
    levels: Float[Array, " exits"]
    prices: Float[Array, " prices"]
    budgets: Float[Array, " budgets"]
    held_out: Bool[Array, "folds samples"]
    key: Key[Array, ""]


@functools.cache
def _programs(settings: SolverSettings, num_classes: int, devices: Devices):
    """Fits to all samples, and to all but a fold with judgement on it, of (score, fold) pairs."""

    def fit_all(shared: _Shared, pairs):
        sets = jnp.ones((1, shared.held_out.shape[1]))
        chances = _fit_chances(shared.samples, sets, num_classes, settings)
        scores = _candidate_scores(shared.samples, chances, settings)
        found = _search(shared, scores, sets, pairs, settings.resamplings, settings)
        own = jax.tree.map(lambda leaf: jnp.repeat(leaf, len(pairs), axis=0), chances)
        return own, found

    def fit_folds(shared: _Shared, pairs):
        sets = (~shared.held_out).astype(jnp.float32)
        chances = _fit_chances(shared.samples, sets, num_classes, settings)
        scores = _candidate_scores(shared.samples, chances, settings)
        found = _search(shared, scores, sets, pairs, -(-settings.resamplings // 4), settings)
        return _held_out_correct(shared, scores, found, pairs, settings)

    return over_devices(fit_all, devices), over_devices(fit_folds, devices)


def _pairs(*lengths: int) -> list[Int[np.ndarray, " fits"]]:
    """Every combination of places, the last one fastest."""
    return [axis.ravel() for axis in np.indices(lengths)]


def _fit_chances(samples, sets, num_classes, settings):
    """Chances [sets, exits, …]: of each exit's answer, and of the last exit's from its features."""
    exits, count, width = samples.features.shape
    chunk = chunk_size(4.0 * count * 4 * width, settings.memory_limit_gb)

    def fit(places):
        some, k, target_exit = places
        return fit_logistic(
            samples.features[k], samples.answers[k], samples.correct[target_exit], sets[some],
            num_classes, settings.ridge, settings.class_ridge,
        )  # fmt: skip

    some, k, which = _pairs(len(sets), exits, 2)
    targets = np.where(which == 0, k, exits - 1)
    places = tuple(jnp.asarray(each) for each in (some, k, targets))
    found = jax.lax.map(lambda place: fit(place), places, batch_size=min(chunk, len(some)))
    shaped = jax.tree.map(lambda leaf: leaf.reshape(len(sets), exits, 2, -1), found)
    now, last = (jax.tree.map(lambda leaf, at=at: leaf[:, :, at], shaped) for at in (0, 1))
    return Chances(now, last)


def _log_odds(samples: Samples, weights: LogisticWeights):
    """[sets, exits, samples]."""
    linear = jnp.einsum("knd,skd->skn", samples.features, weights.linear, precision="highest")
    by_class = jax.vmap(jax.vmap(lambda table, answers: table[answers]), (0, None))(
        weights.by_class, samples.answers
    )
    return linear + by_class


def _candidate_scores(samples, chances, settings):
    """[scores, sets, exits, samples]."""
    now, last = (_log_odds(samples, weights) for weights in chances)
    plain = [
        jnp.broadcast_to(samples.measures[..., MEASURES.index(name)], now.shape)
        for name in settings.score_measures
    ]
    return jnp.stack([*plain, *(gain_score(now, last, share) for share in settings.gain_shares)])


def _search(shared: _Shared, scores, sets, pairs, resamplings: int, settings):
    """Exit distributions [pairs, budgets, exits], means over resampled fits."""
    correct = shared.samples.correct
    exits, count = correct.shape
    chunk = chunk_size(4.0 * FLOATS_A_SEARCH * exits * count, settings.memory_limit_gb)

    def fit(places):
        (which, some), restart = places
        weight = jax.random.exponential(jax.random.fold_in(shared.key, restart), (count,))
        # One draw alone would only add noise to what all samples say.
        weight = weight if resamplings > 1 else jnp.ones(count)
        return fit_distributions(
            scores[which, some], correct, sets[some] * weight, shared.levels, shared.prices,
            shared.budgets, settings.sweeps,
        )  # fmt: skip

    repeated = jnp.repeat(pairs, resamplings, axis=0)
    places = (tuple(repeated.T), jnp.tile(jnp.arange(resamplings), len(pairs)))
    found = jax.lax.map(fit, places, batch_size=min(chunk, len(repeated)))
    return found.reshape(len(pairs), resamplings, *found.shape[1:]).mean(1)


def _held_out_correct(shared: _Shared, scores, distributions, pairs, settings):
    """[pairs, budgets, samples]: the fold's samples by what was fitted without them, others 0.

    Thresholds are set on the fold's own scores, which needs no label, so that its cost is
    within the budget, whatever the luck of the draw.
    """
    correct = shared.samples.correct
    exits, count = correct.shape
    chunk = chunk_size(4.0 * FLOATS_A_SEARCH * exits * count, settings.memory_limit_gb)

    def judge(places):
        (which, fold), distribution = places
        out = shared.held_out[fold]
        quota = ceil_quota(distribution, out.sum())
        score = scores[which, fold]
        exit_index = first_exit(score, thresholds_from_quota(score, quota, out))
        return jnp.where(out, jnp.take_along_axis(correct, exit_index[None], axis=0)[0], 0.0)

    budgets = distributions.shape[1]
    repeated = jnp.repeat(pairs, budgets, axis=0)
    places = (tuple(repeated.T), distributions.reshape(-1, exits))
    right = jax.lax.map(judge, places, batch_size=min(chunk, len(repeated)))
    return right.reshape(len(pairs), budgets, count)
