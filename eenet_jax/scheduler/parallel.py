"""Many independent fits: over all local devices, in chunks that memory allows."""

from collections.abc import Callable
from typing import Any

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


def in_chunks(function: Callable[[PyTree], PyTree], fits: PyTree, size: int) -> PyTree:
    """A function of many fits, of so many at once; inside a jitted one.

    Args:
      function: The leaves of its argument and of its result have a leading axis of fits.
      fits: All of them.
      size: How many at once; the last chunk is filled up by fits from the front.
    """
    count = len(jax.tree.leaves(fits)[0])
    size = min(size, count)
    chunks = -(-count // size)
    places = np.arange(chunks * size) % count
    parts = jax.tree.map(lambda leaf: leaf[places].reshape(chunks, size, *leaf.shape[1:]), fits)
    found = jax.lax.map(function, parts)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)


Devices = tuple[Any, ...]
"""JAX's devices."""

Fits = Callable[[PyTree, PyTree], PyTree]
"""Of what all fits share, and of fits."""


def useful_devices() -> Devices:
    """The local devices; of a processor one alone, which uses all of its cores already.

    Several devices made of one processor would wait for each other's threads.
    """
    devices = tuple(jax.local_devices())
    return devices[:1] if devices[0].platform == "cpu" else devices


def filled_up(count: int, devices: Devices) -> int:
    """The least number of fits, at least so many, that the devices share evenly."""
    return -(-count // len(devices)) * len(devices)


def jitted_over(function: Fits, devices: Devices) -> Callable[[PyTree, PyTree], PyTree]:
    """`over_devices` for a number of fits that the devices share evenly, its results on them."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("fits",))
    one, many = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("fits")
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=(one, many), out_specs=many, check_vma=False)
    )


def over_devices(function: Fits, devices: Devices) -> Fits:
    """A function of many fits, jitted, each device taking its share of them.

    Devices never wait for one another: each sees all that is shared, works on its own fits, and
    keeps its results until they are fetched.

    Args:
      function: Of (shared, fits), pure; the leaves of `fits` and of its result have a leading
        axis of fits.
      devices: Of this process.

    Returns:
      The same, of NumPy results, for all fits.
    """
    sharded = jitted_over(function, devices)

    def run(shared: PyTree, fits: PyTree) -> PyTree:
        count = len(jax.tree.leaves(fits)[0])
        # Filled up by fits from the front, whose second results are thrown away.
        places = np.arange(filled_up(count, devices)) % count
        filled = jax.tree.map(lambda leaf: leaf[places], fits)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], sharded(shared, filled))

    return run
