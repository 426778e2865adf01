"""Batches made ahead of their use, by processes of their own."""

import atexit
import concurrent.futures
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from eenet_jax.data.split import Batch
from eenet_jax.errors import InputError

# Batches that a worker has ready besides the one it makes.
_READY = 1
# Where Linux keeps shared memory as files, and from how many bytes on that is of use.
_SHARED_MEMORY = Path("/dev/shm")
_LARGE = 2**20
# What the main process answers, for its workers too.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ReadAhead(grain.DatasetIterator[Batch]):
    """Batches in order, each made by the next of several processes in turn.

    Its state is the number of the next batch, the same as without workers: a run can be resumed
    with another number of them. The processes start with the first batch that is asked for.
    """

    def __init__(self, make: Callable[[int], Batch], stop: int, workers: int):
        super().__init__()
        self._make, self._stop, self._workers = make, stop, workers
        self._next = 0
        self._running: grain.DatasetIterator[Batch] | None = None

    def __next__(self) -> Batch:
        try:
            batch = self._first() if self._running is None else next(self._running)
        except InputError as error:
            self.close()
            # A new one, without the notes that Grain adds to it.
            raise InputError(str(error)) from None
        except RuntimeError as error:
            self.close()
            if "terminated unexpectedly" not in str(error):
                raise
            raise _killed(self._workers) from None
        self._next += 1
        return batch

    def _first(self) -> Batch:
        running = self._start()
        # Grain's threads and processes begin with the first batch, and with the signals blocked
        # that are blocked where they come from: a worker has to outlive a SIGTERM that arrives
        # before it can say so itself. Python's resource tracker would unblock them as it begins.
        resource_tracker.ensure_running()
        answer: concurrent.futures.Future[Batch] = concurrent.futures.Future()
        threading.Thread(target=_answer, args=(answer, running), daemon=True).start()
        try:
            batch = answer.result()
        except Exception:
            running.close()
            raise
        except BaseException:
            # Ctrl-C; to close waits for what the processes are at.
            threading.Thread(target=_abandon, args=(running,), daemon=True).start()
            raise
        self._running = running
        return batch

    def _start(self) -> grain.DatasetIterator[Batch]:
        # Grain asks absl for flags of its own, which nobody has parsed outside of absl's `app`.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Else Python would send SIGTERM as it ends, which workers ignore, and wait for them.
        atexit.register(_close, weakref.ref(self))
        make = functools.partial(_make_shared, self._make)
        batches = grain.MapDataset.range(self._next, self._stop).map(make)
        in_line = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        options = grain.MultiprocessingOptions(
            num_workers=self._workers, per_worker_buffer_size=_READY
        )
        ahead = batches.to_iter_dataset(in_line).mp_prefetch(
            options, worker_init_fn=_prepare_worker
        )
        return iter(ahead)

    def get_state(self) -> dict[str, Any]:
        """The number of the next batch."""
        return {"next_index": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on with the batch of that number."""
        self.close()
        self._next = state["next_index"]

    def close(self) -> None:
        """End the processes; asking for a further batch starts them anew."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def __del__(self):
        # Where the interpreter is on its way out, modules and what they hold may be gone.
        try:  # noqa: SIM105
            self.close()
        except Exception:
            pass


def _close(ahead: "weakref.ref[ReadAhead]") -> None:
    running = ahead()
    if running is not None:
        running.close()


def _answer(answer: concurrent.futures.Future[Batch], batches: Iterator[Batch]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        answer.set_result(next(batches))
    except BaseException as error:
        answer.set_exception(error)


def _abandon(running: grain.DatasetIterator[Batch]) -> None:
    # Grain complains where it is still beginning, or ends at the same time by itself.
    with contextlib.suppress(Exception):
        running.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _make_shared(make: Callable[[int], Batch], number: int) -> Batch:
    """A batch whose large arrays lie where the main process can see them."""
    return {
        name: _shared(array) if array.nbytes >= _LARGE and _SHARED_MEMORY.is_dir() else array
        for name, array in make(number).items()
    }


def _shared(array: np.ndarray) -> np.ndarray:
    # Grain would copy it, and does where this isn't done. Writing to the file instead of to its
    # mapped memory spares the processor a page fault for every 4 kB: half the time of the copy.
    shared = SharedMemoryArray(array.shape, array.dtype)
    with open(_SHARED_MEMORY / shared.metadata.name, "r+b", buffering=0) as file:
        content = np.ascontiguousarray(array).data.cast("B")
        while content:
            content = content[file.write(content) :]
    return shared


def _killed(workers: int) -> InputError:
    return InputError(
        f"one of {workers} reading processes was killed, as happens where memory or /dev/shm"
        " runs out: set fewer data.workers or a smaller data.batch_size"
    )


def _prepare_worker(index: int, count: int) -> None:
    """Signals are the main process's to answer; and no device is a worker's to take.

    Clouds and schedulers send SIGTERM to all processes: a worker that ended would leave the main
    one without the batches that it stops and saves in order by.
    """
    del index, count
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import jax  # Which grain has imported by now.

    jax.config.update("jax_platforms", "cpu")
