"""Learning-rate schedules and optimizers."""

import optax

from eenet_jax.config import TrainingConfig


def learning_rate(config: TrainingConfig, steps_per_epoch: int) -> optax.Schedule:
    """Step → learning rate: a linear warm-up, then steps down by 10 or a cosine to zero."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0 if warmup else config.learning_rate, config.learning_rate, warmup, max(total, 1)
        )
    # join_schedules hands each part its own step count, so the borders shift by the warm-up.
    borders = {epoch * steps_per_epoch - warmup: 0.1 for epoch in config.decay_epochs}
    steps = optax.piecewise_constant_schedule(config.learning_rate, borders)
    ramp = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([ramp, steps], [warmup]) if warmup else steps


def optimizer(config: TrainingConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """SGD with L2 added to the gradient (as PyTorch's `weight_decay` does), or AdamW."""
    rate = learning_rate(config, steps_per_epoch)
    if config.optimizer == "adamw":
        return optax.adamw(rate, weight_decay=config.weight_decay)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, momentum=config.momentum, nesterov=config.nesterov),
    )
