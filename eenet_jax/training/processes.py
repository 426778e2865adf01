"""Several processes that train together, one a host: joining, speaking with one voice, leaving."""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from eenet_jax.artifacts import write_text
from eenet_jax.errors import InputError, told_in_one_line
from eenet_jax.training.watch import Watch

SHUTDOWN_SECONDS = 20
"""How long a process that ends waits for the others, after all have met."""

AGREE_SECONDS = 300
"""How long a process waits for the first one's settings."""

JOIN_SECONDS = 300
"""How long a process waits for the others to begin."""

SEEN_SECONDS = 60
"""How long a name takes at most to be known: of a host by its address, of a file to other hosts."""

_SETTINGS = "eenet_jax/settings"
_COMPARED = itertools.count()
_ADDRESS = re.compile(r"[^\s:]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")


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

    Where another process dies or fails, this one ends with status `watch.EXIT_STATUS` and a line
    that names it. What is raised in here ends the process: 2 for an InputError, 1 otherwise.

    Raises:
      InputError: nothing tells of the others, or they don't answer.
    """
    given = (coordinator, num_processes, process_id)
    if not distributed and given == (None, None, None):
        yield
        return
    _join(*given)
    preempted = None
    with Watch() as watch:
        try:
            yield
        except SystemExit as stop:
            # All stop after the same step.
            preempted = stop
        except BaseException as error:
            _fail(watch, error)
        # Writing the end may take the first one longer than JAX lets the others wait.
        watch.meet()
    jax.distributed.shutdown()
    if preempted is not None:
        raise preempted


def _fail(watch: Watch, error: BaseException) -> NoReturn:
    """End this process with its error's own status, and all others with a line that tells of it.

    At once: an orderly end waits for the others, who wait for this one in the middle of a step.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        # Talking to a process that has died fails before it is known which one it was.
        watch.wait_for_verdict()
    watch.fail(str(error) or type(error).__name__)
    status = 1
    try:
        with told_in_one_line("eenet"):
            raise error
    except SystemExit as told:
        status = int(told.code or 1)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise InputError(
            f"{missing[0]} is missing: give coordinator, num_processes and process_id, or none of"
            " them on a cluster that tells them"
        )
    if num_processes is not None and num_processes < 1:
        raise InputError(f"num_processes is {num_processes}: give 1 or more")
    if coordinator is not None and not _ADDRESS.fullmatch(coordinator):
        raise InputError(
            f"coordinator is '{coordinator}': give HOST:PORT, such as 10.0.0.2:1234, of process 0"
        )
    if coordinator is not None and not 0 < int(coordinator.rpartition(":")[2]) < 2**16:
        raise InputError(f"coordinator is '{coordinator}': give a port from 1 to {2**16 - 1}")
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise InputError(
            f"process_id is {process_id}: give a number from 0 to {num_processes - 1}, for"
            f" num_processes is {num_processes}"
        )
    if coordinator is not None:
        print(
            f"process {process_id} of {num_processes}: waiting for the others, who meet at"
            f" {coordinator}, for {JOIN_SECONDS} s at most",
            file=sys.stderr,
            flush=True,
        )
        _check_address(coordinator)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=JOIN_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"joining the other processes fails ({reason}): give coordinator (HOST:PORT),"
            " num_processes and process_id"
        ) from None


def _check_address(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + SEEN_SECONDS
    while True:
        try:
            socket.getaddrinfo(host.strip("[]"), int(port))
            return
        except (OSError, UnicodeError) as error:
            # A cluster may start a process before it knows the first one's name.
            if isinstance(error, UnicodeError) or time.monotonic() > until:
                raise InputError(
                    f"coordinator is '{coordinator}', and '{host}' has no address here"
                    f" ({error}): give the name or the address of process 0's host"
                ) from None
        time.sleep(1)


def check_shared(folder: Path) -> None:
    """Make sure that all processes see what the first one writes to a folder.

    Args:
      folder: Made where it is not there.

    Raises:
      InputError: one doesn't, or the first one can't write there. It is raised in all of them,
        if none is ended before by another's.
    """
    if jax.process_count() == 1:
        return
    token = folder / f".seen-{of_first(time.time_ns() % 2**31)}"
    if is_first():
        write_text(token, "")
    try:
        synchronise("the run's folder is there")
        until = time.monotonic() + SEEN_SECONDS
        while not (seen := token.exists()) and time.monotonic() < until:
            time.sleep(1)
        blind = np.flatnonzero(~np.ravel(multihost_utils.process_allgather(np.asarray(seen))))
    finally:
        if is_first():
            token.unlink(missing_ok=True)
    if len(blind):
        raise InputError(
            f"'{folder}' in process {', '.join(map(str, blind))} is not the folder of process 0:"
            " give --out in a file system that all share, and see that every host has it mounted"
        )


def check_same(settings: Mapping[str, Any]) -> None:
    """Compare this process's settings with the first one's.

    Args:
      settings: JSON values by name, nested.

    Raises:
      InputError: one differs: the processes would wait for each other in different programs.
    """
    if jax.process_count() == 1:
        return
    client: Any = distributed.global_state.client
    place = f"{_SETTINGS}/{next(_COMPARED)}"
    if is_first():
        client.key_value_set(place, json.dumps(settings))
        return
    first = dict(_flat(json.loads(client.blocking_key_value_get(place, 1000 * AGREE_SECONDS))))
    for name, value in _flat(json.loads(json.dumps(settings))):
        if first.get(name) != value:
            raise InputError(
                f"{name} is {value} in process {jax.process_index()} and {first.get(name)} in"
                " process 0: start all with the same settings"
            )


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def is_first() -> bool:
    """Whether this is the process that prints, and that writes what all would write alike."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Print a line, once however many processes there are."""
    if is_first():
        print(line, flush=True)


def of_first(number: int) -> int:
    """What the first process found, for all: others may see a shared folder a moment later.

    Args:
      number: Of the first process; those of others don't count.
    """
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def synchronise(reason: str) -> None:
    """Wait till all processes have come here.

    Args:
      reason: The same in all of them, for errors.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)
