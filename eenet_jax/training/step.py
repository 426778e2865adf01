"""The jitted steps: train all exits jointly; evaluate them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from eenet_jax.config import ExperimentConfig
from eenet_jax.data import inputs
from eenet_jax.data.split import DatasetSpec
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.training import losses
from eenet_jax.training.state import TrainState
from eenet_jax.types import Array

Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Batch], Metrics]


def make_train_step(
    network: MultiExitNetwork,
    optimizer: optax.GradientTransformation,
    config: ExperimentConfig,
    spec: DatasetSpec,
    total_steps: int,
) -> TrainStep:
    """A jitted function (state, batch) → (state, metrics) that donates the state.

    Args:
      network: To train.
      optimizer: From `training.optimizer`.
      config: Of the run.
      spec: Of the data set; batches are augmented and normalised here.
      total_steps: Of the whole run; decides when distillation begins.
    """
    weights = losses.exit_weights(config.training.loss_weights, network.num_exits)
    settings = config.training
    distil_from = settings.distillation_start * total_steps

    def loss_of(params, state, x, labels, key):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, statistics = network.apply_train(variables, x, key)
        loss = losses.joint_cross_entropy(logits, labels, weights)
        if settings.distillation_weight > 0:
            share = settings.distillation_weight * (state.step >= distil_from)
            loss += share * losses.self_distillation(
                logits, labels >= 0, settings.distillation_temperature
            )
        return loss, (logits, statistics)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Augment, run all exits, and move every weight once."""
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        augment_key, network_key = jax.random.split(key)
        x, labels = inputs.training_inputs(augment_key, batch, spec, config.data)
        (loss, (logits, statistics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state, x, labels, network_key
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=statistics,
            opt_state=opt_state,
        )
        return new, {"loss": loss, "accuracy": correctness(logits, labels).mean(1)}

    return jax.jit(step, donate_argnums=0)


def make_eval_step(
    network: MultiExitNetwork, config: ExperimentConfig, spec: DatasetSpec
) -> EvalStep:
    """A jitted function (variables, padded batch) → sums over its real samples.

    The sums are `loss` (weighted as in training), `correct` [exits] and `count`.
    """
    weights = losses.exit_weights(config.training.loss_weights, network.num_exits)

    @jax.jit
    def step(variables: Any, batch: Batch) -> Metrics:
        """Sums over the samples that the mask lets count."""
        logits = network.apply(variables, inputs.evaluation_inputs(batch, spec))
        mask, labels = batch["mask"], batch["label"]
        each = losses.mean_per_sample(*losses.cross_entropies(logits, labels))
        correct = correctness(logits, labels)
        return {
            "loss": jnp.dot(weights, jnp.where(mask[None], each, 0).sum(1)),
            "correct": jnp.where(mask[None], correct, 0).sum(1),
            "count": mask.sum(),
        }

    return step


def correctness(
    logits: Float[Array, "exits batch *dense classes"], labels: Int[Array, "batch *dense"]
) -> Float[Array, "exits batch"]:
    """How right each exit is on each sample: 0 or 1, or the share of its labelled pixels."""
    right = (logits.argmax(-1) == labels[None]).astype(jnp.float32)
    return losses.mean_per_sample(right, labels >= 0)
