"""Several processes that train together, one a host: joining, speaking with one voice, leaving."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from eenet_jax.errors import InputError
from eenet_jax.training.watch import Watch

SHUTDOWN_SECONDS = 20
"""How long a process that ends waits for the others."""


@contextlib.contextmanager
def joined(
    distributed: bool,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Be one of several processes that train together; entered before anything asks for a device.

    Args:
      distributed: Whether there are others, which the cluster tells of: Cloud TPU, Slurm, Open MPI
        or Kubernetes. Not needed where the following are given.
      coordinator: HOST:PORT of process 0.
      num_processes: How many there are.
      process_id: This one's number, from 0.

    Where another process dies, this one ends with status `watch.EXIT_STATUS` and a line that names
    it.

    Raises:
      InputError: nothing tells of the others, or they don't answer.
    """
    given = (coordinator, num_processes, process_id)
    if not distributed and given == (None, None, None):
        yield
        return
    _join(*given)
    try:
        with Watch() as watch:
            try:
                yield
            except jax.errors.JaxRuntimeError:
                # Talking to a process that has died fails before it is known which one it was.
                watch.wait_for_verdict()
                raise
    except SystemExit:
        # All end like this together.
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise InputError(
            f"{missing[0]} is missing: give coordinator, num_processes and process_id, or none of"
            " them on a cluster that tells them"
        )
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise InputError(
            f"process_id is {process_id}: give a number from 0 to {num_processes - 1}, for"
            f" num_processes is {num_processes}"
        )
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, shutdown_timeout_seconds=SHUTDOWN_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"joining the other processes fails ({reason}): give coordinator (HOST:PORT),"
            " num_processes and process_id"
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
