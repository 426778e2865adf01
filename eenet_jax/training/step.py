"""The jitted steps: train all exits jointly; evaluate them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from eenet_jax.config import ExperimentConfig
from eenet_jax.data import inputs
from eenet_jax.data.split import DatasetSpec
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.training import losses
from eenet_jax.training.correctness import correctness
from eenet_jax.training.gradients import JointLoss
from eenet_jax.training.sharding import AXES, Layout
from eenet_jax.training.state import TrainState
from eenet_jax.types import PyTree

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
    layout: Layout,
) -> TrainStep:
    """A jitted function (state, batch) → (state, metrics) that donates the state.

    Args:
      network: To train.
      optimizer: From `training.optimizer`.
      config: Of the run.
      spec: Of the data set; batches are augmented and normalised here.
      total_steps: Of the whole run; decides when distillation begins.
      layout: Of the devices; the state lies as `layout.state` says, the batch as `layout.batch`.
    """
    settings = config.training
    joint_loss = JointLoss(
        network=network,
        settings=settings,
        layout=layout,
        distil_from=settings.distillation_start * total_steps,
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Augment, run all exits, and move every weight once."""
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        augment_key, network_key = jax.random.split(key)
        x, labels = inputs.training_inputs(augment_key, batch, spec, config.data)
        outcome = joint_loss(state, x, labels, network_key)
        updates, opt_state = optimizer.update(outcome.gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        newest = {"params": params, "batch_stats": outcome.statistics}
        new = TrainState(
            step=state.step + 1,
            **newest,
            opt_state=opt_state,
            average=_averaged(state, newest, settings.ema_decay),
        )
        kept = jax.lax.with_sharding_constraint(new, layout.state(new))
        return kept, {"loss": outcome.loss, "accuracy": outcome.accuracy}

    return jax.jit(step, donate_argnums=0)


def _averaged(state: TrainState, newest: PyTree, decay: float) -> PyTree:
    if not state.average:
        return state.average
    # The first steps are not to be remembered for as long as later ones are.
    taken = state.step + 1
    share = 1 - jnp.minimum(decay, (1 + taken) / (10 + taken))
    return jax.tree.map(
        lambda old, new: (old + share * (new - old)).astype(old.dtype), state.average, newest
    )


def make_eval_step(
    network: MultiExitNetwork, config: ExperimentConfig, spec: DatasetSpec, layout: Layout
) -> EvalStep:
    """A jitted function (variables, padded batch) → sums over its real samples.

    The sums are `loss` (weighted as in training), `correct` [exits] and `count`, the same on
    every device and process.
    """
    weights = losses.exit_weights(config.training.loss_weights, network.num_exits)

    def step(variables: Any, batch: Batch) -> Metrics:
        """Sums over the samples that the mask lets count."""
        logits = network.apply(variables, inputs.evaluation_inputs(batch, spec))
        mask, labels = batch["mask"], batch["label"]
        each = losses.mean_per_sample(*losses.cross_entropies(logits, labels))
        correct = correctness(logits, labels)
        sums = {
            "loss": jnp.dot(weights, jnp.where(mask[None], each, 0).sum(1)),
            "correct": jnp.where(mask[None], correct, 0).sum(1),
            "count": mask.sum(),
        }
        return jax.lax.psum(sums, AXES)

    return on_own_samples(step, layout, PartitionSpec())


def on_own_samples(
    function: Callable[[Any, Batch], Any], layout: Layout, result: PartitionSpec
) -> Callable[[Any, Batch], Any]:
    """A jitted function of variables and a batch that every device calls on its own samples.

    Args:
      function: To be called, with whole variables and a part of the batch. A large part goes
        through the network in pieces where that is faster, which over a whole batch cut over
        devices would move samples from one to another.
      layout: Of the devices.
      result: How the parts of the result belong together; it comes back whole on every device.
    """
    apart = jax.shard_map(
        function,
        mesh=layout.mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXES)),
        out_specs=result,
        check_vma=False,
    )
    return jax.jit(apart, out_shardings=layout.replicated)
