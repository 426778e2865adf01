"""How training is divided over devices: one mesh, two axes, and where every array lies on it.

Batches are cut over all devices. Weights and what the optimizer keeps of them are whole on every
device, or cut over the `fsdp` axis and gathered stage by stage while they are used.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int64

from eenet_jax.data.inputs import ON_DEVICE
from eenet_jax.errors import InputError
from eenet_jax.training.state import TrainState
from eenet_jax.types import PyTree

AXES = ("data", "fsdp")
LEAST_CUT = 2**10
"""Elements of the smallest array that is cut: to gather less takes as long as to start to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A mesh of devices, and where arrays lie on it.

    Attributes:
      mesh: Axes `data` and `fsdp`.
    """

    mesh: Mesh

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.mesh.size

    @property
    def fsdp(self) -> int:
        """Over how many devices every set of weights is cut."""
        return self.mesh.shape["fsdp"]

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """The first axis cut over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXES))

    def weights(self, leaf: Any) -> NamedSharding:
        """Where an array of weights, or of the optimizer's, lies.

        Args:
          leaf: An array, or its shape and dtype.
        """
        return NamedSharding(self.mesh, self._cut(tuple(leaf.shape)))

    def _cut(self, shape: tuple[int, ...]) -> PartitionSpec:
        """The longest axis that divides is cut; small arrays stay whole."""
        divisible = [side if side % self.fsdp == 0 else 0 for side in shape]
        if self.fsdp == 1 or math.prod(shape) < LEAST_CUT or not any(divisible):
            return PartitionSpec()
        # The last of equals: of a kernel, its output channels.
        axis = max(range(len(shape)), key=lambda i: (divisible[i], i))
        return PartitionSpec(*(None,) * axis, "fsdp")

    def state(self, abstract: TrainState) -> TrainState:
        """Where everything of a training state lies: statistics are whole, whatever their size.

        Args:
          abstract: The state, or its shapes and dtypes.

        Returns:
          A sharding for every array.
        """

        def cut(tree: PyTree) -> PyTree:
            return jax.tree.map(self.weights, tree)

        def whole(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda _: self.replicated, tree)

        average = {
            name: cut(tree) if name == "params" else whole(tree)
            for name, tree in abstract.average.items()
        }
        return TrainState(
            step=self.replicated,
            params=cut(abstract.params),
            batch_stats=whole(abstract.batch_stats),
            opt_state=cut(abstract.opt_state),
            average=average,
        )

    def abstract(self, shapes: TrainState) -> TrainState:
        """Shapes and dtypes with the places where they are to lie."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            self.state(shapes),
        )

    def distributed(self, state: TrainState) -> TrainState:
        """A state that every process has made alike, each device keeping its part."""

        def distribute(leaf: jax.Array, place: NamedSharding) -> jax.Array:
            values = np.asarray(leaf)
            return jax.make_array_from_callback(values.shape, place, lambda index: values[index])

        return jax.tree.map(distribute, state, self.state(state))

    def specs(self, weights: PyTree) -> PyTree:
        """How weights are cut: a spec for every array."""
        return jax.tree.map(lambda leaf: self.weights(leaf).spec, weights)

    def check_batch(self, batch_size: int, micro_batches: int = 1) -> None:
        """Raise InputError unless every device gets as many samples of every micro-batch."""
        parts = self.devices * micro_batches
        if batch_size % parts == 0:
            return
        least = max(1, batch_size // parts) * parts
        shares = counted(self.devices) + (
            f" and training.micro_batches {micro_batches}" if micro_batches > 1 else ""
        )
        raise InputError(
            f"data.batch_size is {batch_size}, which doesn't divide by {shares}: give {least}, or"
            f" another multiple of {parts}"
        )

    def padded(self, batch_size: int) -> int:
        """The least batch of at least that size that all devices share evenly."""
        return -(-batch_size // self.devices) * self.devices

    def rows(self, batch_size: int) -> Int64[np.ndarray, " rows"]:
        """Which samples of a batch this process's devices hold, ascending."""
        held = self.batch.addressable_devices_indices_map((batch_size,)).values()
        every = np.arange(batch_size, dtype=np.int64)
        return np.unique(np.concatenate([every[index] for index in held if index is not None]))

    def placed(self, batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
        """A batch on the devices.

        Args:
          batch: This process's rows of it, in order.
          batch_size: Of the batch, all processes together.
        """
        there = {
            name: jax.make_array_from_process_local_data(
                self.batch, array, (batch_size, *array.shape[1:])
            )
            for name, array in batch.items()
            if name in ON_DEVICE
        }
        # On a CPU a step that has to wait for its batch runs in another thread, see `keep_memory`.
        return jax.block_until_ready(there) if jax.default_backend() == "cpu" else there


def counted(devices: int) -> str:
    """So many devices, in words."""
    return "1 device" if devices == 1 else f"{devices} devices"


def make_layout(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Layout:
    """A layout of all devices of all processes.

    Args:
      fsdp: Over how many devices every set of weights is cut; a divisor of their number. 1 keeps
        the weights whole on every device.
      devices: To use instead.

    Raises:
      InputError: `fsdp` divides no number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if fsdp < 1 or len(devices) % fsdp:
        divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise InputError(
            f"fsdp is {fsdp}, of {counted(len(devices))}: give one of"
            f" {', '.join(map(str, divisors))}"
        )
    # The axes may share one of a slice's own, else only some divisors would do.
    grid = mesh_utils.create_device_mesh(
        (len(devices) // fsdp, fsdp), devices, allow_split_physical_axes=True
    )
    return Layout(mesh=Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2))
