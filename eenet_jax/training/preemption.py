"""SIGTERM, with which clouds and schedulers announce that they take a machine back."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: try again, and it goes on."""


class Preempted(SystemExit):
    """Training was asked to stop, has saved, and can be continued.

    Uncaught, it ends the process with status 75.
    """

    def __init__(self):
        super().__init__(EXIT_STATUS)


class Preemption:
    """Whether somebody wants this training to stop.

    While it is open, SIGTERM is noted instead of ending the process, from the main thread. With
    several processes, JAX's preemption service notes it; all stop after the same step, whichever
    of them got the signal, and whenever.
    """

    def __init__(self):
        self._noted = threading.Event()
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._noted.set()

    def stops_after(self, step: int) -> bool:
        """Whether to save after that step and stop; to be asked after every step, by every process.

        Args:
          step: The same in all processes.
        """
        if jax.process_count() == 1:
            return self._noted.is_set()
        return multihost_utils.reached_preemption_sync_point(step)
