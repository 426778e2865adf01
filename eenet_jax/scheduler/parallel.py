"""Many independent fits of one program: over all local devices, in chunks that memory allows."""

from collections.abc import Callable

import jax
import numpy as np

from eenet_jax.types import PyTree


def chunk_size(bytes_a_fit: float, memory_limit_gb: float) -> int:
    """How many fits run at once on a device, at least one.

    Args:
      bytes_a_fit: What a fit keeps in memory while it runs.
      memory_limit_gb: Memory that all of a device's fits may take, in 10^9 bytes.
    """
    return max(1, int(memory_limit_gb * 1e9 / max(bytes_a_fit, 1.0)))


def map_fits(
    function: Callable[[PyTree, PyTree], PyTree], shared: PyTree, fits: PyTree, chunk: int
) -> PyTree:
    """`function(shared, fit)` for every fit, stacked; to be called inside a jitted program.

    The fits are divided among the local devices; each takes its own in chunks, one chunk
    after the other. What a fit gives does not depend on how they are divided.

    Args:
      function: Pure.
      shared: What all fits see, copied to every device.
      fits: Each leaf with a leading axis of fits.
      chunk: Fits that run at once on a device.
    """
    devices = np.asarray(jax.local_devices())
    count = len(jax.tree.leaves(fits)[0])
    used = devices[: min(len(devices), count)]
    each = -(-count // len(used))
    # Filled up by fits from the front, whose second results are thrown away.
    places = np.arange(each * len(used)) % count
    filled = jax.tree.map(lambda leaf: leaf[places], fits)

    def on_one_device(shared, fits):
        return jax.lax.map(lambda fit: function(shared, fit), fits, batch_size=min(chunk, each))

    mesh = jax.sharding.Mesh(used, ("fits",))
    one, many = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("fits")
    everywhere = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(one, many), out_specs=many, check_vma=False
    )
    return jax.tree.map(lambda leaf: leaf[:count], everywhere(shared, filled))
