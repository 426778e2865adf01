"""Learning-rate schedules and optimizers."""

import dataclasses

import optax

from eenet_jax.config import ExperimentConfig, TrainingConfig
from eenet_jax.errors import InputError


def scaled(config: ExperimentConfig) -> TrainingConfig:
    """The training's settings with the learning rate that belongs to the size of its batches.

    Source: Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.1: proportional to it.
    """
    training = config.training
    if not training.reference_batch_size:
        return training
    factor = config.data.batch_size / training.reference_batch_size
    return dataclasses.replace(training, learning_rate=factor * training.learning_rate)


def learning_rate(config: TrainingConfig, steps_per_epoch: int) -> optax.Schedule:
    """Step → learning rate: a linear warm-up, then one of the schedules.

    Raises:
      InputError: the warm-up is the whole training.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    if warmup >= total:
        raise InputError(
            f"training.warmup_epochs {config.warmup_epochs} is all of the {total} steps: give less"
        )
    if config.schedule in ("linear", "poly"):
        power = 1.0 if config.schedule == "linear" else 0.9
        decay = optax.polynomial_schedule(config.learning_rate, 0.0, power, total - warmup)
        return _warmed_up(decay, config.learning_rate, warmup)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0 if warmup else config.learning_rate, config.learning_rate, warmup, max(total, 1)
        )
    # join_schedules hands each part its own step count, so the borders shift by the warm-up.
    borders = {epoch * steps_per_epoch - warmup: 0.1 for epoch in config.decay_epochs}
    steps = optax.piecewise_constant_schedule(config.learning_rate, borders)
    return _warmed_up(steps, config.learning_rate, warmup)


def _warmed_up(schedule: optax.Schedule, peak: float, warmup: int) -> optax.Schedule:
    if not warmup:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def optimizer(config: TrainingConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """SGD with L2 added to the gradient (as PyTorch's `weight_decay` does), or AdamW."""
    rate = learning_rate(config, steps_per_epoch)
    moving = _unclipped(config, rate)
    if not config.clip_norm:
        return moving
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), moving)


def _unclipped(config: TrainingConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    if config.optimizer == "adamw":
        return optax.adamw(rate, weight_decay=config.weight_decay)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, momentum=config.momentum, nesterov=config.nesterov),
    )
