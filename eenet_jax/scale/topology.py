"""The devices of a TPU slice that is not there."""

import importlib.util
import itertools
import os
from typing import Any

from jax.experimental import topologies

from eenet_jax.errors import InputError
from eenet_jax.scale.chips import chip_of

_NO_MACHINE = {
    # Else the compiler asks the network for the TPU that this machine is part of, and complains.
    "TPU_SKIP_MDS_QUERY": "1",
    # No TPU is used, so several processes may compile beside one another.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "none",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def topology_devices(topology: str) -> list[Any]:
    """Devices to compile for, as JAX describes them; nothing can run on them.

    Args:
      topology: A chip and a slice, such as "v5e:4x4".

    Raises:
      InputError: the TPU compiler is not installed, or knows no such slice.
    """
    chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"the TPU compiler, which topology '{topology}' takes, is not installed: pip install"
            " libtpu (137 MB; no TPU is needed)"
        )
    for name, value in _NO_MACHINE.items():
        os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except Exception as error:  # Whatever the plug-in raises of a slice that it doesn't know.
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"topology '{topology}' is none that the TPU compiler knows ({reason}): give one"
            " such as v5e:2x2, v5e:4x4 or v5e:16x16"
        ) from None


def host_of(topology: str) -> str:
    """The part of a slice that one host has, as a topology: four chips, or all of a smaller one.

    Args:
      topology: A chip and a slice, such as "v5e:4x4".
    """
    chip_of(topology)
    chip, _, shape = topology.partition(":")
    sides = map(int, shape.split("x"))
    own = itertools.chain((2, 2), itertools.repeat(1))
    return f"{chip}:" + "x".join(str(min(pair)) for pair in zip(sides, own, strict=False))
