"""What a training step must send between devices, by arithmetic alone."""

import dataclasses

import jax
from jax.sharding import PartitionSpec

from eenet_jax.scale.programs import RunPrograms

_STATISTIC_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """Bytes on one device, counted as `Collective.bytes` is.

    Attributes:
      reduced: Gradients of the weights that are whole, and of the parts of those that are cut,
        where devices with the same part remain.
      scattered: Gradients of the weights that are cut.
      gathered: Weights that are cut, once; twice where stages are rematerialised.
      statistics: BatchNorm's mean and mean square of every channel. The sums of its backward pass
        are the gradients of its scale and bias, and counted there.
    """

    reduced: int
    scattered: int
    gathered: int
    statistics: int

    @property
    def total(self) -> int:
        """All of it; the loss and the accuracies are a few bytes more."""
        return self.reduced + self.scattered + self.gathered + self.statistics


def expected_bytes(programs: RunPrograms) -> Expected:
    """Of the training step.

    Args:
      programs: Of a run on a layout.
    """
    state, layout, training = programs.state(), programs.layout, programs.config.training
    width = 2 if training.compute_dtype == "bfloat16" else 4
    cut = whole = 0
    for leaf in jax.tree.leaves(state.params):
        if layout.weights(leaf).spec == PartitionSpec():
            whole += width * leaf.size
        else:
            cut += width * leaf.size
    parts = training.micro_batches
    others = layout.devices > layout.fsdp
    channels = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    passes = 2 if training.rematerialise else 1
    return Expected(
        reduced=parts * (whole + (cut // layout.fsdp if others else 0)),
        scattered=parts * cut,
        gathered=parts * passes * cut,
        statistics=parts * passes * _STATISTIC_BYTES * channels,
    )
