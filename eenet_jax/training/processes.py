"""Several processes that train together, one a host: joining, speaking with one voice, leaving."""

import jax
from jax.experimental import multihost_utils

from eenet_jax.errors import InputError

HEARTBEAT_SECONDS = 20
"""After so long without a sign of life a process counts as dead."""


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Make this process one of several that train together; before anything asks for a device.

    Args:
      coordinator: HOST:PORT of process 0; None where the cluster tells (Cloud TPU, Slurm, Open
        MPI, Kubernetes), and the other two with it.
      processes: How many there are.
      process: This one's number, from 0.

    Raises:
      InputError: nothing tells of the others, or they don't answer.
    """
    given = (coordinator, processes, process)
    if coordinator and None in given:
        raise InputError(
            f"coordinator '{coordinator}' is given without the number of processes or this one's:"
            " give all three, or none on a cluster that tells them"
        )
    if coordinator and not (processes or 0) > (-1 if process is None else process) >= 0:
        raise InputError(f"process is {process}, of {processes}: they count from 0")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"joining the other processes fails ({reason}): give coordinator HOST:PORT, the number"
            " of processes and this one's"
        ) from None


def is_first() -> bool:
    """Whether this is the process that prints, and that writes what all would write alike."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Print a line, once however many processes there are."""
    if is_first():
        print(line, flush=True)


def synchronise(reason: str) -> None:
    """Wait till all processes have come here.

    Args:
      reason: The same in all of them, for errors.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)
