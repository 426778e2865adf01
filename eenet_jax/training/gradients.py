"""The loss of a training batch and its gradients: in one pass, or in micro-batches."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int

from eenet_jax.config import TrainingConfig
from eenet_jax.networks import MultiExitNetwork, Part, whole_batch
from eenet_jax.training import losses
from eenet_jax.training.correctness import correctness
from eenet_jax.training.sharding import AXES, Layout
from eenet_jax.training.state import TrainState
from eenet_jax.training.weight_shards import as_shards, gathered, values_of, whole_added_up
from eenet_jax.types import Array, PyTree


class Outcome(NamedTuple):
    """Of one batch: the loss's gradients, and what else came of it.

    Attributes:
      gradients: Like the state's `params`.
      statistics: The updated `batch_stats`.
      loss: Mean over the batch, a scalar.
      accuracy: [exits].
    """

    gradients: PyTree
    statistics: PyTree
    loss: jax.Array
    accuracy: jax.Array


class _Start(NamedTuple):
    """What a step needs of a training state."""

    params: PyTree
    statistics: PyTree
    step: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointLoss:
    """The joint loss of all exits, differentiated as a run's settings say.

    Attributes:
      network: To train.
      settings: Of the training.
      layout: Of the devices.
      distil_from: The step at which self-distillation begins.
    """

    network: MultiExitNetwork
    settings: TrainingConfig
    layout: Layout
    distil_from: float

    def __call__(
        self, state: TrainState, x: PyTree, labels: Int[Array, "batch *dense"], key: jax.Array
    ) -> Outcome:
        """Every loss is a mean over the whole batch, in however many parts it runs.

        Args:
          state: Where training stands.
          x: The network's input [batch, …].
          labels: [batch] or [batch, height, width], negative where there is none.
          key: PRNG key of dropout.
        """
        start = _Start(state.params, state.batch_stats, state.step)
        if self.layout.devices == 1:
            return self._outcome(start, x, labels, key)
        whole: Any = self.layout.replicated.spec
        samples = self.layout.batch.spec
        specs = self.layout.specs(state.params)

        def own_part(start: _Start, x: PyTree, labels: Any, key: jax.Array) -> Outcome:
            start = start._replace(params=as_shards(start.params, specs))
            with whole_batch.cut_over(AXES):
                outcome = self._outcome(start, x, labels, key)
            return outcome._replace(gradients=values_of(outcome.gradients))

        return jax.shard_map(
            own_part,
            mesh=self.layout.mesh,
            in_specs=(_Start(specs, whole, whole), samples, samples, whole),
            out_specs=Outcome(specs, whole, whole, whole),
            check_vma=False,
        )(start, x, labels, key)

    def _outcome(self, start: _Start, x: PyTree, labels: Any, key: Any) -> Outcome:
        """Of the whole batch, wherever its samples are."""
        (count,) = whole_batch.added_up((labels >= 0).sum())
        outcome = self._accumulated(start, x, labels, key, count)
        (loss,) = whole_batch.added_up(outcome.loss)
        (accuracy,) = whole_batch.added_up(outcome.accuracy)
        return outcome._replace(loss=loss, accuracy=accuracy / whole_batch.devices())

    def _accumulated(self, start: _Start, x: PyTree, labels: Any, key: Any, count: Any) -> Outcome:
        parts = self.settings.micro_batches
        if parts == 1:
            return self._part(start, x, labels, key, count)

        def add(so_far: Outcome, each: Any) -> tuple[Outcome, None]:
            x, labels, part = each
            part_key = jax.random.fold_in(key, part)
            now = start._replace(statistics=so_far.statistics)
            found = self._part(now, x, labels, part_key, count)
            return Outcome(
                jax.tree.map(jnp.add, so_far.gradients, found.gradients),
                found.statistics,
                so_far.loss + found.loss,
                so_far.accuracy + found.accuracy / parts,
            ), None

        cut = jax.tree.map(self._micro_batches, (x, labels))
        zeros = jax.tree.map(jnp.zeros_like, start.params)
        nothing = (jnp.zeros_like(self._weights[0]), jnp.zeros(self.network.num_exits, jnp.float32))
        none = Outcome(zeros, start.statistics, *nothing)
        outcome = jax.lax.scan(add, none, (*cut, jnp.arange(parts)))[0]
        if self.layout.devices > 1:
            outcome = outcome._replace(gradients=whole_added_up(outcome.gradients))
        return outcome

    @property
    def _weights(self) -> Array:
        return losses.exit_weights(self.settings.loss_weights, self.network.num_exits)

    def _micro_batches(self, leaf: jax.Array) -> jax.Array:
        """[batch, …] → [parts, batch / parts, …].

        Every so many-th sample: of consecutive ones a part would be another one where a device has
        some of them.
        """
        return leaf.reshape(-1, self.settings.micro_batches, *leaf.shape[1:]).swapaxes(0, 1)

    def _part(self, start: _Start, x: PyTree, labels: Any, key: Any, count: Any) -> Outcome:
        """Of one micro-batch; loss and accuracy are those of the samples in hand."""

        def loss_of(params: PyTree):
            variables = {"params": params, "batch_stats": start.statistics}
            x_cast = _as_dtype(x, self.settings.compute_dtype)
            logits, updated = self.network.apply_train(variables, x_cast, key, self._around)
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            return self._loss(logits, labels, start.step, count), (logits, updated)

        (loss, (logits, updated)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            start.params
        )
        return Outcome(gradients, updated, loss, correctness(logits, labels).mean(1))

    def _loss(self, logits: Any, labels: Any, step: jax.Array, count: Any) -> Array:
        settings = self.settings
        loss = losses.joint_cross_entropy(
            logits, labels, self._weights, settings.label_smoothing, count
        )
        if settings.distillation_weight > 0:
            share = settings.distillation_weight * (step >= self.distil_from)
            loss += share * losses.self_distillation(
                logits, labels >= 0, settings.distillation_temperature, count
            )
        return loss

    def _around(self, part: Part) -> Part:
        """A stage or a head: its weights cast and gathered, and rematerialised where wanted."""

        def run(own: Any, carry: PyTree, key: jax.Array | None) -> Any:
            # Cast first: half as many bytes to gather.
            params = _as_dtype(own.get("params", {}), self.settings.compute_dtype)
            if self.layout.devices > 1:
                params = gathered(params, whole_later=self.settings.micro_batches > 1)
            return part({**own, "params": params} if params else own, carry, key)

        return jax.checkpoint(run) if self.settings.rematerialise else run


def _as_dtype(tree: PyTree, compute_dtype: str) -> PyTree:
    """Floating-point arrays in bfloat16; float32 leaves them as they are, and so in float64."""
    if compute_dtype == "float32":
        return tree

    def cast(leaf: jax.Array) -> jax.Array:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(compute_dtype) if floating else leaf

    return jax.tree.map(cast, tree)
