"""What a training step must send between devices, by arithmetic and not from its program."""

import dataclasses

import jax
from jax.sharding import PartitionSpec

from eenet_jax.scale.collectives import sent_bytes
from eenet_jax.scale.programs import RunPrograms
from eenet_jax.training.weight_shards import padded

_STATISTIC_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """Bytes of whole arrays on one device, as `Collective.bytes` is.

    Attributes:
      reduced: Gradients of the weights that are whole.
      reduced_parts: Gradients of the parts of those that are cut, where several devices have the
        same part.
      scattered: Gradients of the weights that are cut, with what each stage's and head's are padded
        by.
      gathered: Weights that are cut, once; twice where stages are rematerialised. For TPUs kernels
        in bfloat16: a TPU rounds both sides of a product to it, and its compiler does so before
        they are sent.
      statistics: BatchNorm's mean and mean square of every channel, and two sums of its backward
        pass.
      devices: In all.
      fsdp: Over how many of them weights are cut.
    """

    reduced: int
    reduced_parts: int
    scattered: int
    gathered: int
    statistics: int
    devices: int
    fsdp: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends; the loss and the accuracies are a few more."""
        return (
            sent_bytes("all-reduce", self.reduced + self.statistics, self.devices)
            + sent_bytes("all-reduce", self.reduced_parts, self.devices // self.fsdp)
            + sent_bytes("reduce-scatter", self.scattered, self.fsdp)
            + sent_bytes("all-gather", self.gathered, self.fsdp)
        )


def expected_bytes(programs: RunPrograms) -> Expected:
    """Of the training step.

    Args:
      programs: Of a run on a layout.
    """
    state, layout, training = programs.state(), programs.layout, programs.config.training
    width = 2 if training.compute_dtype == "bfloat16" else 4
    rounded = layout.mesh.devices.flat[0].platform == "tpu"
    parts = training.micro_batches
    whole = gathered = scattered = 0
    for part in state.params.values():
        cut = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            if layout.weights(leaf).spec == PartitionSpec():
                # Those of micro-batches are accumulated as the weights are, and sent once.
                whole += (width if parts == 1 else leaf.dtype.itemsize) * leaf.size
                continue
            cut += leaf.size
            gathered += (2 if rounded and path[-1].key == "kernel" else width) * leaf.size
        scattered += width * layout.fsdp * padded(cut // layout.fsdp)
    channels = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    passes = 2 if training.rematerialise else 1
    return Expected(
        reduced=whole,
        reduced_parts=parts * scattered // layout.fsdp,
        scattered=parts * scattered,
        gathered=parts * passes * gathered,
        statistics=parts * (passes + 1) * _STATISTIC_BYTES * channels,
        devices=layout.devices,
        fsdp=layout.fsdp,
    )
