"""A batch over several devices, each of which skips and compacts for itself."""

from collections.abc import Callable

import jax

from eenet_jax.execution.decision import Answers
from eenet_jax.scheduler.parallel import Devices, over_devices
from eenet_jax.types import PyTree

__all__ = ["Devices", "on_devices"]


def on_devices(
    run: Callable[[PyTree, PyTree], Answers], devices: Devices
) -> Callable[[PyTree, PyTree], Answers]:
    """`run` jitted, for one device, or under `jax.shard_map` for its part of the batch.

    Args:
      run: A function (variables, batch) → `Answers`.
      devices: Of this process; one or none asks for no sharding. With more, answers come as
        NumPy arrays, and batches that don't divide are filled up meanwhile.
    """
    return jax.jit(run) if len(devices) < 2 else over_devices(run, devices)
