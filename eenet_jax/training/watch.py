"""Processes that train together notice when one of them has died or failed, and end."""

import contextlib
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src import distributed

EXIT_STATUS = 69
"""EX_UNAVAILABLE of sysexits.h: something that is needed has gone."""

BEAT_SECONDS = 2.0
SILENT_SECONDS = 30.0
"""After so long without a sign of life a process counts as dead."""

_PLACE = "eenet_jax/alive"
_LEFT = "left"
_FAILED = "failed"
_END = "eenet_jax/end"
END_SECONDS = 24 * 3600
"""How long processes that are through wait for one that still writes; a dead one is noticed."""


class Watch:
    """A thread that shows the other processes that this one lives, and looks after them.

    Left to themselves, processes wait in a collective for ever for one that has died, or end with
    a message that doesn't say which. Only where process 0 dies is JAX always faster: the
    coordination service is that process's, and JAX aborts when it is gone, saying so of its
    "leader task". Signs of life are kept in that service, whose client JAX does not make public.
    """

    def __init__(self):
        self._client: Any = distributed.global_state.client
        self._own, self._count = jax.process_index(), jax.process_count()
        self._left, self._last = threading.Event(), _LEFT
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        # What each process last showed, and when that was new.
        self._shown: dict[int, tuple[str, float]] = {}

    def __enter__(self) -> "Watch":
        now = time.monotonic()
        self._shown = {number: ("", now) for number in range(self._count) if number != self._own}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(SILENT_SECONDS)

    def meet(self) -> None:
        """Wait till all processes have come here."""
        self._client.wait_at_barrier(_END, timeout_in_ms=1000 * END_SECONDS)

    def fail(self, reason: str) -> None:
        """Tell the others that this process ends, and why; they end too."""
        reason = " ".join(reason.split())[:300]
        self._last = f"{_FAILED} {socket.gethostname()} {reason}"
        self._left.set()
        self._thread.join(SILENT_SECONDS)
        if self._own == 0:
            # With this process goes what the others read it from.
            time.sleep(3 * BEAT_SECONDS)

    def wait_for_verdict(self) -> None:
        """Give the thread the time in which it notices a death; it ends the process then."""
        time.sleep(SILENT_SECONDS + 3 * BEAT_SECONDS)

    def _run(self) -> None:
        beat = 0
        while not self._left.wait(BEAT_SECONDS if beat else 0):
            beat += 1
            try:
                self._show(f"{beat} {socket.gethostname()}")
                found = dict(self._client.key_value_dir_get(_PLACE))
            except jax.errors.JaxRuntimeError as error:
                if not self._left.is_set():
                    _end(f"process 0, which the others meet at, has died ({_first_line(error)})")
                return
            self._look(found)
        # Who has left in order is missed by nobody.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._show(self._last)

    def _show(self, sign: str) -> None:
        self._client.key_value_set(f"{_PLACE}/{self._own}", sign, allow_overwrite=True)

    def _look(self, found: dict[str, str]) -> None:
        now = time.monotonic()
        for number, (sign, since) in self._shown.items():
            newest = found.get(f"{_PLACE}/{number}", sign)
            if newest.startswith(_FAILED):
                _, host, reason = newest.split(" ", 2)
                _end(f"process {number} of {self._count} ({host}) has failed ({reason})")
            if newest != sign or newest == _LEFT:
                self._shown[number] = (newest, now)
            elif now - since > SILENT_SECONDS:
                host = sign.partition(" ")[2] or "unknown host"
                _end(f"process {number} of {self._count} ({host}) has died")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:120]


def _end(what: str) -> NoReturn:
    """Out at once: the main thread may be waiting for the dead one, and could not be told."""
    print(
        f"eenet: {what}: start all processes again, and training goes on from its last"
        " checkpoint, or begins anew where it has none",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_STATUS)
