"""A batch over several devices, each of which skips and compacts for itself."""

from collections.abc import Callable

from eenet_jax.execution.decision import Answers
from eenet_jax.execution.sides import SideBySide
from eenet_jax.scheduler.parallel import Devices, over_devices
from eenet_jax.types import PyTree

__all__ = ["Devices", "on_devices"]


def on_devices(
    run: Callable[[PyTree, PyTree], Answers], devices: Devices
) -> Callable[[PyTree, PyTree], Answers]:
    """`run` jitted, for one device (`SideBySide`), or under `jax.shard_map` for parts of a batch.

    Args:
      run: A function (variables, batch) → `Answers`, each sample's own.
      devices: Of this process; one or none asks for no sharding. With more, answers come as
        NumPy arrays, and batches that don't divide are filled up meanwhile.
    """
    return SideBySide(run) if len(devices) < 2 else over_devices(run, devices)
