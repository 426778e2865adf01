"""The fit of EENet's scheduler: every budget and restart in one jitted program.

Fits run in chunks that memory allows, and are divided among the local devices.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int, Key

from eenet_jax.errors import InputError
from eenet_jax.scheduler.losses import budget_loss, score_loss
from eenet_jax.scheduler.network import (
    SchedulerParams,
    exit_log_assignment,
    exit_scores,
    trainable_weights,
)
from eenet_jax.scheduler.parallel import (
    Devices,
    chunk_size,
    in_chunks,
    over_devices,
    useful_devices,
)
from eenet_jax.scheduler.settings import check_number, check_whole, check_words, several
from eenet_jax.scheduler.thresholds import leave_by_quota
from eenet_jax.types import MEASURES, Array

SAMPLES_JUDGED_AT_ONCE = 8192
EXIT_DISTRIBUTIONS = ("stick_breaking", "softmax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """How the scheduler's losses are minimised.

    Attributes:
      exit_distribution: "stick_breaking" or "softmax".
      epochs: Passes over the samples, L_q and L_r together.
      phase_epochs: Epochs of one loss before the other's turn.
      batch_size: Samples a step.
      lr: Adam's learning rate.
      l2: L2 added to the gradient.
      alpha_kl: Weight of the KL term.
      alpha_budget: Weight of the budget term.
      beta: Sharpness of the KL's target.
      hidden_ratio: h's hidden units over its inputs, ρ.
      patience_epochs: Stop a fit after so many epochs without a better value.
      measures: The confidence measures that g may weigh.
      memory_limit_gb: Memory that the fits of a device may take at once, in 10^9 bytes.
    """

    exit_distribution: str = "stick_breaking"
    epochs: int = 1000
    phase_epochs: int = 10
    batch_size: int = 512
    lr: float = 3e-5
    l2: float = 1e-2
    alpha_kl: float = 1e-3
    alpha_budget: float = 1e-2
    beta: float = 1.0
    hidden_ratio: float = 0.5
    patience_epochs: int = 100
    measures: tuple[str, ...] = ("max", "entropy", "vote")
    memory_limit_gb: float = 1.0

    def __post_init__(self):
        if self.exit_distribution not in EXIT_DISTRIBUTIONS:
            raise InputError(
                f"exit_distribution '{self.exit_distribution}' is unknown: give one of"
                f" {', '.join(EXIT_DISTRIBUTIONS)}"
            )
        check_whole(self, 1, "epochs", "phase_epochs", "batch_size", "patience_epochs")
        check_number(self, "lr", "beta", "hidden_ratio", "memory_limit_gb")
        check_number(self, "l2", "alpha_kl", "alpha_budget", zero=True)
        object.__setattr__(self, "measures", several(self.measures))
        check_words("measures", self.measures, MEASURES)


class Samples(NamedTuple):
    """What a fit sees of the samples."""

    probs: Float[Array, "exits samples classes"]
    measures: Float[Array, "exits samples 5"]
    correct: Float[Array, "exits samples"]


class Fitted(NamedTuple):
    """The best of each fit, by value.

    Attributes:
      params: g and h.
      distribution: Mean exit assignment p̄ over the samples fitted on.
      value: Accuracy with the budget met, or minus the cost where it is not.
    """

    params: SchedulerParams
    distribution: Float[Array, "runs exits"]
    value: Float[Array, " runs"]


class _State(NamedTuple):
    params: SchedulerParams
    score_moments: optax.OptState
    assignment_moments: optax.OptState
    best: Fitted
    stale_rounds: Int[Array, " runs"]
    round_index: Int[Array, ""]


def solve(
    samples: Samples,
    costs: tuple[float, ...],
    budgets: Float[np.ndarray, " runs"],
    start: SchedulerParams,
    settings: SolverSettings,
    key: Key[Array, ""],
    devices: Devices | None = None,
) -> Fitted:
    """Fit g and h for many budgets and starting points at once.

    Args:
      samples: Predictions, measures and correctness.
      costs: Cost of each exit.
      budgets: Budget of each run.
      start: Starting parameters, each leaf with a leading axis of runs.
      settings: The optimisation.
      key: Draws the permutation of every epoch.
      devices: That share the fits; `useful_devices` by default.

    Returns:
      Parameters and exit distribution of each run, the best it met, start included.
    """
    samples = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), samples)
    shared = (samples, jnp.asarray(costs, jnp.float32), key)
    fits = (np.asarray(budgets, np.float32), start)
    return _program(settings, devices or useful_devices())(shared, fits)


@functools.cache
def _program(settings: SolverSettings, devices: Devices):
    def fit(shared, fits):
        samples, costs, key = shared
        chunk = chunk_size(_bytes_a_fit(samples, fits[1], settings), settings.memory_limit_gb)
        return in_chunks(
            lambda part: _solve(samples, costs, part[0], part[1], key, settings), fits, chunk
        )

    return over_devices(fit, devices)


def _bytes_a_fit(samples, start, settings) -> float:
    """Parameters with their moments, gradients and best; inputs and hidden units of a batch."""
    numbers = sum(leaf.size / leaf.shape[0] for leaf in jax.tree.leaves(start))
    exits, count, _ = samples.probs.shape
    batch = min(settings.batch_size, count)
    units = start.assignment.hidden.shape[-1]
    return 4.0 * (8 * numbers + exits * batch * (start.scores.shape[-1] + 4 * units))


def _solve(samples, costs, budgets, start, key, settings):
    adam = optax.adam(settings.lr)
    judge_all = functools.partial(_judge_all, samples, costs, budgets, settings=settings)
    value, distribution = judge_all(start)
    state = _State(
        params=start,
        score_moments=jax.vmap(adam.init)(start.scores),
        assignment_moments=jax.vmap(adam.init)(start.assignment),
        best=Fitted(start, distribution, value),
        stale_rounds=jnp.zeros(budgets.shape, jnp.int32),
        round_index=jnp.int32(0),
    )
    rounds = -(-settings.epochs // (2 * settings.phase_epochs))
    patience_rounds = -(-settings.patience_epochs // (2 * settings.phase_epochs))

    def goes_on(state):
        return (state.round_index < rounds) & (state.stale_rounds < patience_rounds).any()

    def one_round(state):
        round_key = jax.random.fold_in(key, state.round_index)
        data = (samples, costs, budgets)
        moved = _two_phases(state, data, round_key, adam, settings)
        value, distribution = judge_all(moved.params)
        better = (value > state.best.value) & (state.stale_rounds < patience_rounds)
        found = Fitted(moved.params, distribution, value)
        return moved._replace(
            best=jax.tree.map(functools.partial(_keep_better, better), found, state.best),
            stale_rounds=jnp.where(better, 0, state.stale_rounds + 1),
            round_index=state.round_index + 1,
        )

    return jax.lax.while_loop(goes_on, one_round, state).best


def _keep_better(better, new, old):
    return jnp.where(better.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)


def _two_phases(state, data, key, adam, settings):
    """`phase_epochs` epochs of L_q on g, then as many of L_r on h."""
    keys = jax.random.split(key, (2, settings.phase_epochs))

    def epochs(phase, carry, keys):
        step = functools.partial(_step, data, phase, adam, settings)
        epoch = functools.partial(_epoch, step, data[0].correct.shape[1], settings.batch_size)
        return jax.lax.scan(epoch, carry, keys)[0]

    params, score_moments = epochs("scores", (state.params, state.score_moments), keys[0])
    params, assignment_moments = epochs("assignment", (params, state.assignment_moments), keys[1])
    return state._replace(
        params=params, score_moments=score_moments, assignment_moments=assignment_moments
    )


def _epoch(step, num_samples, batch_size, carry, key):
    """One pass in a fresh order; the last batch is filled up with samples that don't count."""
    batch_size = min(batch_size, num_samples)
    steps = -(-num_samples // batch_size)
    order = jax.random.permutation(key, num_samples)
    filled = jnp.pad(order, (0, steps * batch_size - num_samples), constant_values=-1)
    return jax.lax.scan(step, carry, filled.reshape(steps, batch_size))[0], None


def _step(data, phase, adam, settings, carry, batch):
    samples, costs, budgets = data
    chosen = jax.tree.map(lambda value: value[:, batch], samples)
    update = functools.partial(_update, phase, adam, settings, chosen, batch >= 0, costs)
    return jax.vmap(update)(budgets, *carry), None


def _update(phase, adam, settings, samples, present, costs, budget, params, moments):
    """One Adam step on one half of the parameters, L2 added to its gradient."""

    def loss(part):
        whole = params._replace(**{phase: part})
        scores, log_assignment = _apply(whole, samples, settings)
        if phase == "scores":
            return score_loss(scores, samples.correct, log_assignment, present)
        return budget_loss(
            scores, log_assignment, costs, budget, present,
            alpha_kl=settings.alpha_kl, alpha_budget=settings.alpha_budget, beta=settings.beta,
        )  # fmt: skip

    part = getattr(params, phase)
    gradient = jax.tree.map(
        lambda slope, value: slope + settings.l2 * value, jax.grad(loss)(part), part
    )
    if phase == "scores":
        gradient = gradient * _trainable(samples, settings)
    updates, moments = adam.update(gradient, moments)
    return params._replace(**{phase: optax.apply_updates(part, updates)}), moments


def _trainable(samples, settings):
    exits, _, classes = samples.probs.shape
    return trainable_weights(exits, classes, settings.measures)


def _apply(params, samples, settings):
    scores = exit_scores(params.scores, samples.probs, samples.measures)
    log_assignment = exit_log_assignment(
        params.assignment, samples.probs, samples.measures, scores,
        settings.exit_distribution, settings.hidden_ratio,
    )  # fmt: skip
    return scores, log_assignment


def _apply_in_blocks(params, samples, settings):
    """`_apply` to few samples at once, so that h's hidden units of all need no memory."""
    count = samples.correct.shape[1]
    block = min(count, SAMPLES_JUDGED_AT_ONCE)
    blocks = -(-count // block)

    def cut(values):
        padding = [(0, 0), (0, blocks * block - count), *[(0, 0)] * (values.ndim - 2)]
        parts = jnp.pad(values, padding).reshape(len(values), blocks, block, *values.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    def joined(parts):
        return jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], -1)[:, :count]

    found = jax.lax.map(lambda some: _apply(params, some, settings), jax.tree.map(cut, samples))
    return jax.tree.map(joined, found)


def _judge_all(samples, costs, budgets, params, *, settings):
    judge = functools.partial(_judge, samples, costs, settings)
    return jax.lax.map(lambda run: judge(*run), (budgets, params))


def _judge(samples, costs, settings, budget, params):
    """Accuracy at the thresholds of the mean assignment, if what is *realised* meets the budget."""
    scores, log_assignment = _apply_in_blocks(params, samples, settings)
    count = scores.shape[1]
    distribution = jnp.exp(log_assignment).mean(1)
    quota = jnp.floor(distribution[:-1] * count * (1 + 1e-6)).astype(jnp.int32)
    _, left = leave_by_quota(scores, quota, jnp.ones(count, bool))
    accuracy = jnp.where(left, samples.correct, 0.0).sum() / count
    cost = (left.sum(1) / count) @ costs
    return jnp.where(cost <= budget, accuracy, -cost), distribution
