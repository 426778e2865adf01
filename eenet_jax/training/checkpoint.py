"""Checkpoints: state, place in the data and metadata together, verified as they are read."""

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from eenet_jax.artifacts import sha256_of, write_json
from eenet_jax.errors import InputError
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.training.processes import is_first, of_first, synchronise
from eenet_jax.training.run import saved_steps
from eenet_jax.training.state import TrainState

FILE_DIGESTS = "sha256.json"

# Orbax tells of every file it opens; what goes wrong is told here, in one line.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one run, the newest few kept.

    Each holds the training state, the place in the data, JSON metadata, and a list of its files'
    digests, so that damage is noticed before anything is read, and never trained on. They are
    written in the background, by all processes together into one folder that all can see; Orbax
    writes aside and renames, so that a run killed while it saves leaves the previous one whole.

    Args:
      folder: Where they lie, one subfolder a step.
      keep: How many of the newest stay.
      warn: Told, in one line, of each damaged checkpoint that was passed over.
    """

    def __init__(self, folder: Path, keep: int, warn: Callable[[str], None]):
        self._folder = folder.resolve()
        self._keep = keep
        self._warn = warn
        self._damaged: list[int] = []
        self._orbax: ocp.training.Checkpointer | None = None
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._background.shutdown()
            if self._orbax is not None:
                self._orbax.close()

    def _writer(self) -> ocp.training.Checkpointer:
        """Opened by the first save: who only reads leaves alone what a training is writing."""
        if self._orbax is None:
            # A damaged one would pass for the newest, and keep its step from being saved again.
            if is_first():
                for step in self._damaged:
                    _set_aside(self._folder / str(step))
            synchronise("damaged checkpoints set aside")
            self._orbax = ocp.training.Checkpointer(
                str(self._folder),
                preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),  # pyright: ignore
                cleanup_tmp_directories=True,
            )
        return self._orbax

    def save(
        self, state: TrainState, position: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> None:
        """Begin to write a checkpoint named by the state's step, unless there is one.

        Returns as soon as the state is copied: it may be donated then. Where another checkpoint is
        still being written, that one is waited for.

        Args:
          state: To be continued from.
          position: A grain iterator's state, at the first batch not yet trained on.
          metadata: JSON values.
        """
        self.wait()
        step, writer = int(state.step), self._writer()
        if of_first(step in self.steps()):
            return
        parts = {
            "state": _stored(state),
            "metadata": {**metadata, "step": step, "position": dict(position)},
        }
        copied = writer.save_checkpointables_async(step, parts, force=True)
        self._writing = self._background.submit(self._finish, copied, self._folder / str(step))

    def wait(self) -> None:
        """Wait for the checkpoint that is being written, if there is one."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _finish(self, copied: Any, folder: Path) -> None:
        copied.result()
        if is_first():
            write_json(folder / FILE_DIGESTS, file_digests(folder))

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, ascending."""
        return saved_steps(self._folder)

    def saved_network(self) -> dict[str, Any] | None:
        """What the newest readable checkpoint says of its network; None where there is none."""
        for step in reversed(self.steps()):
            try:
                stored = ocp.load_checkpointables(str(self._folder / str(step)), {"metadata": None})
                return stored["metadata"]["network"]
            except Exception as error:  # Damaged, which `restore` will tell of.
                del error
        return None

    def restore(
        self, abstract: TrainState, network: MultiExitNetwork, iterator: Any = None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest undamaged checkpoint; the first save then renames the damaged newer ones.

        With several processes the first one looks through the files, and all read what it chose.

        Args:
          abstract: Shapes and dtypes of the state, and where it is to lie, on whatever devices
            it was written from; on the first device where that isn't said.
          network: That the weights must belong to.
          iterator: Set to the saved position where given.

        Returns:
          State and metadata; None where there is no checkpoint.

        Raises:
          InputError: every checkpoint is damaged, one can't be read, or the network is another one.
        """
        placed = jax.tree.map(_placed, abstract)
        steps = left = self.steps() if is_first() else []
        while (step := of_first(self._newest_whole(left))) >= 0:
            found = self._load(step, placed, network, iterator)
            if found is not None:
                self._damaged = [damaged for damaged in steps if damaged > step]
                return found
            left = [older for older in left if older < step]
        if steps:
            raise InputError(
                f"every checkpoint in '{self._folder}' is damaged: train again in another folder"
            )
        return None

    def _newest_whole(self, steps: list[int]) -> int:
        """Of these, by its files; -1 where there is none."""
        for step in reversed(steps):
            with self._unless_damaged(step):
                _check_files(self._folder / str(step))
                return step
        return -1

    def _load(self, step: int, abstract: TrainState, network: MultiExitNetwork, iterator: Any):
        """State and metadata; None where they turn out to be damaged all the same."""
        with self._unless_damaged(step):
            folder = str(self._folder / str(step))
            metadata = ocp.load_checkpointables(folder, {"metadata": None})["metadata"]
            _check_network(metadata, network)
            found = ocp.load_checkpointables(folder, {"state": _stored(abstract)})["state"]
            state = TrainState(**{"average": {}, **found})
            if iterator is not None:
                # Earlier versions kept it elsewhere; a step takes one batch.
                iterator.set_state(metadata.get("position", {"next_index": metadata["step"]}))
            return state, metadata
        if jax.process_count() > 1:
            # Another process may have read it, and would go on from it.
            raise InputError(f"'{self._folder / str(step)}' is damaged: move it away")
        return None

    @contextlib.contextmanager
    def _unless_damaged(self, step: int) -> Iterator[None]:
        """Whatever a damaged file makes Orbax or its codecs raise is told, and passed over."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            self._pass_over(step, error)
        except OSError as error:
            # Which says nothing about what is in it.
            raise InputError(
                f"'{self._folder / str(step)}' can't be read ({error}): try again; nothing has"
                " been changed"
            ) from None
        except (InputError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            self._pass_over(step, error)

    def _pass_over(self, step: int, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200]
        self._warn(f"checkpoint {step} in '{self._folder}' is damaged, passed over ({reason})")


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def _stored(state: TrainState) -> dict[str, Any]:
    """A state as it lies in a checkpoint: an average that isn't kept has no place in it."""
    parts = {each.name: getattr(state, each.name) for each in dataclasses.fields(state)}
    return {name: part for name, part in parts.items() if name != "average" or part}


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a checkpoint's folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != FILE_DIGESTS
    }


def _check_files(folder: Path) -> None:
    """Raise ValueError unless every file is as it was written."""
    described = folder / FILE_DIGESTS
    # A run killed between Orbax's rename and the list leaves none; Orbax's own checks remain.
    if not described.exists():
        return
    expected, found = json.loads(described.read_text()), file_digests(folder)
    changed = sorted(name for name, value in expected.items() if found.get(name) != value)
    if changed:
        raise ValueError(f"{changed[0]} is {'changed' if changed[0] in found else 'missing'}")


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Said outright, for a checkpoint may be read on other devices than it was written on."""
    place = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def describe(network: MultiExitNetwork) -> dict[str, Any]:
    """What a checkpoint says of its network."""
    return {"family": network.family, "settings": dict(network.settings)}


def _check_network(metadata: Mapping[str, Any], network: MultiExitNetwork) -> None:
    if metadata["network"] != describe(network):
        raise InputError(
            f"the checkpoint is of network {metadata['network']}, not of {describe(network)}:"
            " build that one, or name another run"
        )
