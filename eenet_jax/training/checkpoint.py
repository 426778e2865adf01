"""Checkpoints: state, data iterator and metadata together, verified as they are read."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from eenet_jax.errors import InputError
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.training.state import TrainState

# Orbax tells of every file it opens; a user wants to hear of what goes wrong.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints of one run, the newest few kept.

    Each holds the training state, the position in the data, and JSON metadata with digests of
    all of it, so that damage is noticed when it is read, and never trained on. Orbax writes
    aside and renames, so that a run killed while it saves leaves the previous one whole.

    Args:
      folder: Where they lie, one subfolder a step.
      keep: How many of the newest stay.
      warn: Told, in one line, of each damaged checkpoint that was passed over.
      read_only: Change nothing in the folder, for a training may be writing there just now.
    """

    def __init__(
        self, folder: Path, keep: int, warn: Callable[[str], None], read_only: bool = False
    ):
        self._warn = warn
        self._folder = folder.resolve()
        self._read_only = read_only
        self._orbax = ocp.training.Checkpointer(
            str(self._folder),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),  # pyright: ignore
            cleanup_tmp_directories=not read_only,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._orbax.close()

    def save(self, state: TrainState, iterator: Any, metadata: Mapping[str, Any]) -> None:
        """Write a checkpoint named by the state's step; nothing where there is one already.

        Args:
          state: To be continued from.
          iterator: A grain iterator, at the first batch not yet trained on.
          metadata: JSON values.
        """
        step = int(state.step)
        if step in self.steps():
            return
        metadata = {
            **metadata,
            "step": step,
            "digest": digest(state),
            "position": _position(iterator),
        }
        parts = {
            "state": state,
            "data": iterator,
            "metadata": {**metadata, "seal": _seal(metadata)},
        }
        self._orbax.save_checkpointables(step, parts, force=True)

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, ascending."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def restore(
        self, abstract: TrainState, network: MultiExitNetwork, iterator: Any = None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest undamaged checkpoint; damaged newer ones are removed unless `read_only`.

        Args:
          abstract: Shapes and dtypes of the state.
          network: That the weights must belong to.
          iterator: Set to the saved position where given.

        Returns:
          State and metadata; None where there is no checkpoint.

        Raises:
          InputError: every checkpoint is damaged, or the network is another one.
        """
        steps = self.steps()
        placed = jax.tree.map(_on_first_device, abstract)
        for step in reversed(steps):
            found = self._load(step, placed, network, iterator)
            if found is not None:
                self._remove([damaged for damaged in steps if damaged > step])
                return found
        if steps:
            raise InputError(
                f"every checkpoint in '{self._folder}' is damaged: train again in another folder"
            )
        return None

    def _load(self, step: int, abstract: TrainState, network: MultiExitNetwork, iterator: Any):
        try:
            wanted = {"metadata": None}
            metadata = self._orbax.load_checkpointables(step, wanted)["metadata"]
            # Checkpoints written before there were seals have none.
            if metadata["step"] != step or metadata.get("seal") not in (None, _seal(metadata)):
                raise ValueError("its metadata do not match their digest")
            _check_network(metadata, network)
            wanted = {"state": abstract} | ({} if iterator is None else {"data": iterator})
            state = self._orbax.load_checkpointables(step, wanted)["state"]
            if digest(state) != metadata["digest"]:
                raise ValueError("its weights do not match their digest")
            if iterator is not None and metadata.get("position") not in (
                None,
                _position(iterator),
            ):
                raise ValueError("its position in the data is another one than was saved")
            return state, metadata
        except InputError:
            raise
        except Exception as error:
            # Whatever a damaged file makes Orbax or its codecs raise: fall back, and say so.
            reason = " ".join(str(error).split())[:200]
            self._warn(f"checkpoint {step} in '{self._folder}' is damaged, passed over ({reason})")
            return None

    def _remove(self, steps: list[int]) -> None:
        """Make room for the steps to be saved again: a damaged one would pass for the newest."""
        if self._read_only or not steps:
            return
        for step in steps:
            shutil.rmtree(self._folder / str(step), ignore_errors=True)
        self._orbax.reload()


def _position(iterator: Any) -> str:
    """A grain iterator's state as text."""
    return json.dumps(iterator.get_state(), sort_keys=True, default=str)


def _seal(metadata: Mapping[str, Any]) -> str:
    """SHA-256 over what decides whether and how a checkpoint is used."""
    sealed = {name: metadata.get(name) for name in ("step", "digest", "position", "network")}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def _on_first_device(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Said outright, for a checkpoint may be read on other devices than it was written on."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def digest(state: TrainState) -> str:
    """SHA-256 over every array of the state, in order."""
    total = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(state):
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def describe(network: MultiExitNetwork) -> dict[str, Any]:
    """What a checkpoint says of its network."""
    return {"family": network.family, "settings": dict(network.settings)}


def _check_network(metadata: Mapping[str, Any], network: MultiExitNetwork) -> None:
    if metadata["network"] != describe(network):
        raise InputError(
            f"the checkpoint is of network {metadata['network']}, not of {describe(network)}:"
            " build that one, or name another run"
        )
