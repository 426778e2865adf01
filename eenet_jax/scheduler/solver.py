"""The solver: scores and exit distributions for all budgets and folds at once.

A score says what a sample gains by going on: the calibrated chance that the exit is wrong
against the chance that the full network is. Chances are logistic regressions; exit
distributions are searched directly (`distribution`). Each candidate score is judged on folds it
was not fitted on.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from eenet_jax.errors import InputError
from eenet_jax.scheduler.distribution import cost_levels, fit_distributions, price_grid
from eenet_jax.scheduler.logistic import LogisticWeights, fit_logistic
from eenet_jax.scheduler.parallel import (
    Devices,
    chunk_size,
    filled_up,
    jitted_over,
    over_devices,
    useful_devices,
)
from eenet_jax.scheduler.settings import (
    check_number,
    check_whole,
    check_words,
    is_number,
    several,
)
from eenet_jax.scheduler.thresholds import ceil_quota, leave_by_quota
from eenet_jax.types import MEASURES, Array

MOST_FOLDS = 100
FLOATS_A_SEARCH = 24
"""Arrays of [exits, samples] that one search keeps, measured generously."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """How scores and exit distributions are fitted.

    Attributes:
      folds: Parts the samples are cut into; candidates are judged on the part left out.
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
    prices: int = 32
    sweeps: int = 2
    ridge: float = 3.0
    class_ridge: float = 1.0
    gain_shares: tuple[float, ...] = (0.0, 0.8, 1.0)
    score_measures: tuple[str, ...] = ("max", "margin")
    memory_limit_gb: float = 1.0

    def __post_init__(self):
        check_whole(self, 1, "sweeps")
        check_whole(self, 2, "folds", most=MOST_FOLDS)
        check_whole(self, 3, "prices")
        check_number(self, "ridge", "class_ridge", "memory_limit_gb")
        for name in ("gain_shares", "score_measures"):
            object.__setattr__(self, name, several(getattr(self, name)))
        for share in self.gain_shares:
            if not (is_number(share) and 0 <= share <= 1):
                raise InputError(f"gain_shares has {share!r}: give numbers from 0 to 1")
        if len({f"{share:g}" for share in self.gain_shares}) < len(self.gain_shares):
            raise InputError(f"gain_shares is {self.gain_shares}: give each share once")
        check_words("score_measures", self.score_measures, MEASURES)
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
    devices: Devices | None = None,
) -> Solved:
    """Fit every candidate score and its exit distributions to all samples and to all but a fold.

    Args:
      samples: Features, answers, measures and correctness.
      num_classes: C.
      costs: Cost of each exit.
      budgets: Average costs per sample.
      held_out: Which samples each fold leaves out.
      settings: How to fit.
      devices: That share the fits; `useful_devices` by default.
    """
    low, high = costs[0], costs[-1]
    shared = _Shared(
        samples=jax.tree.map(jnp.asarray, samples),
        levels=jnp.asarray(cost_levels(costs), jnp.float32),
        prices=jnp.asarray(price_grid(costs, settings.prices)),
        budgets=jnp.asarray((np.asarray(budgets) - low) / (high - low), jnp.float32),
        held_out=jnp.asarray(held_out),
    )
    scores, folds = len(settings.score_measures) + len(settings.gain_shares), len(held_out)
    fits = np.stack(_pairs(scores, 1 + folds), axis=1)
    found = _program(settings, num_classes, devices or useful_devices())(shared, fits)
    distributions, exits = (
        each.reshape(scores, 1 + folds, len(budgets), -1)
        for each in (found.distributions, found.held_out_exits)
    )
    # A sample is in one fold; elsewhere its exit is 0.
    exits = exits.sum(1, dtype=exits.dtype)
    return Solved(
        chances=jax.tree.map(lambda leaf: leaf[0], found.chances),
        distributions=distributions[:, 0],
        held_out_correct=np.asarray(samples.correct)[exits, np.arange(exits.shape[-1])],
    )


class _Shared(NamedTuple):
    samples: Samples
    levels: Float[Array, " exits"]
    prices: Float[Array, " prices"]
    budgets: Float[Array, " budgets"]
    held_out: Bool[Array, "folds samples"]


class _Found(NamedTuple):
    chances: Chances
    distributions: Float[Array, "fits budgets exits"]
    held_out_exits: UInt8[Array, "fits budgets samples"]


def lower_solve(
    samples: Samples,
    num_classes: int,
    num_budgets: int,
    settings: SolverSettings,
    devices: Devices,
) -> jax.stages.Lowered:
    """The program of `solve`, for devices that need not be there.

    Args:
      samples: Shapes and dtypes.
      num_classes: C.
      num_budgets: How many budgets.
      settings: How to fit.
      devices: That share the fits.
    """
    exits, count = samples.correct.shape

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    shared = _Shared(
        samples=samples,
        levels=array(exits),
        prices=array(settings.prices),
        budgets=array(num_budgets),
        held_out=array(settings.folds, count, dtype=jnp.bool_),
    )
    scores = len(settings.score_measures) + len(settings.gain_shares)
    fits = filled_up(scores * (1 + settings.folds), devices)
    run = jitted_over(_fit_pairs(settings, num_classes), devices)
    return run.lower(shared, array(fits, 2, dtype=jnp.int32))  # pyright: ignore


@functools.cache
def _program(settings: SolverSettings, num_classes: int, devices: Devices):
    return over_devices(_fit_pairs(settings, num_classes), devices)


def _fit_pairs(settings: SolverSettings, num_classes: int):
    """Of (score, set) pairs: set 0 is all samples, set f all but those of fold f."""

    def fit(shared: _Shared, pairs):
        out = jnp.concatenate([jnp.zeros((1, shared.held_out.shape[1]), bool), shared.held_out])
        sets = (~out).astype(jnp.float32)
        chances = _fit_chances(shared.samples, sets, num_classes, settings)
        scores = _candidate_scores(shared.samples, chances, settings)
        found = _search(shared, scores, sets, pairs, settings)
        exits = _held_out_exits(scores, out, found, pairs, settings)
        own = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], len(pairs), axis=0), chances)
        return _Found(own, found, exits)

    return fit


def _pairs(*lengths: int) -> list[Int[np.ndarray, " fits"]]:
    """Every combination of places, the last one fastest."""
    return [axis.ravel() for axis in np.indices(lengths)]


def _fit_chances(samples, sets, num_classes, settings):
    """Chances [sets, exits, …]: of each exit's answer, and of the last exit's from its features."""
    exits, count, width = samples.features.shape
    # Two at least: a fit alone is compiled otherwise, to other last bits.
    chunk = max(2, chunk_size(4.0 * count * 4 * width, settings.memory_limit_gb))

    def fit(places):
        some, k, target_exit = places
        return fit_logistic(
            samples.features[k], samples.answers[k], samples.correct[target_exit], sets[some],
            num_classes, settings.ridge, settings.class_ridge,
        )  # fmt: skip

    some, k, which = _pairs(len(sets), exits, 2)
    targets = np.where(which == 0, k, exits - 1)
    places = tuple(jnp.asarray(each) for each in (some, k, targets))
    found = jax.lax.map(fit, places, batch_size=min(chunk, len(some)))
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


def _search(shared: _Shared, scores, sets, pairs, settings):
    """Exit distributions [pairs, budgets, exits]."""
    correct = shared.samples.correct
    exits, count = correct.shape
    chunk = chunk_size(4.0 * FLOATS_A_SEARCH * exits * count, settings.memory_limit_gb)

    def fit(pair):
        which, some = pair
        return fit_distributions(
            scores[which, some], correct, sets[some], shared.levels, shared.prices,
            shared.budgets, settings.sweeps,
        )  # fmt: skip

    return jax.lax.map(fit, jnp.asarray(pairs), batch_size=min(chunk, len(pairs)))


def _held_out_exits(scores, out, distributions, pairs, settings):
    """[pairs, budgets, samples]: where what was fitted without a fold sends its samples; else 0.

    Thresholds are set on the fold's own scores, which needs no label, so that its cost is
    within the budget, whatever the luck of the draw.
    """
    exits, count = scores.shape[2:]
    chunk = chunk_size(4.0 * FLOATS_A_SEARCH * exits * count, settings.memory_limit_gb)

    def judge(fit):
        (which, some), distribution = fit
        score, judged = scores[which, some], out[some]

        def at_budget(quota):
            _, left = leave_by_quota(score, quota, judged)
            return jnp.argmax(left, axis=0).astype(jnp.uint8)

        quotas = ceil_quota(distribution, judged.sum())
        return jax.lax.map(at_budget, quotas, batch_size=min(chunk, len(quotas)))

    return jax.lax.map(judge, (jnp.asarray(pairs), distributions))
