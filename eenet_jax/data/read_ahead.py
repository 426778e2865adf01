"""Batches made ahead of their use, by processes of their own."""

import contextlib
import signal
from collections.abc import Callable
from typing import Any

import grain
from absl import flags

from eenet_jax.data.split import Batch
from eenet_jax.errors import InputError

# Batches that a worker has ready besides the one it makes.
_READY = 1


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
        if self._running is None:
            self._running = self._start()
        try:
            batch = next(self._running)
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

    def _start(self) -> grain.DatasetIterator[Batch]:
        # Grain asks absl for flags of its own, which nobody has parsed outside of absl's `app`.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        batches = grain.MapDataset.range(self._next, self._stop).map(self._make)
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
        # Nothing is left to close where the interpreter is on its way out.
        with contextlib.suppress(Exception):
            self.close()


def _killed(workers: int) -> InputError:
    return InputError(
        f"one of {workers} reading processes was killed, as happens where memory or /dev/shm"
        " runs out: set fewer data.workers or a smaller data.batch_size"
    )


def _prepare_worker(index: int, count: int) -> None:
    """Ctrl-C is the main process's to answer; and no device is a worker's to take."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import jax  # Which grain has imported by now.

    jax.config.update("jax_platforms", "cpu")
