"""ILSVRC-2012, from the plain tree of its JPEGs or as TFDS has prepared it."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from eenet_jax.config import DataConfig
from eenet_jax.data import image_tree
from eenet_jax.data.imagenet_classes import WNIDS
from eenet_jax.data.photographs import Encoded, PhotographSplit, Store, photograph_split
from eenet_jax.data.split import DatasetSpec, Format, warn_of_counts
from eenet_jax.errors import InputError

# Our split → what the publisher calls it. The publisher's own test split has no labels.
_IN_TREE = {"train": "train", "test": "val"}
_IN_TFDS = {"train": "train", "test": "validation"}
_PUBLISHED = {"train": 1_281_167, "val": 50_000}


@dataclasses.dataclass(frozen=True)
class ImageNet(Format):
    """Photographs left as they are: an index of the publisher's tree, or TFDS's own records."""

    def write(self, spec: DatasetSpec, source: str | Path | None, folder: Path) -> None:
        """See `Format.write`: an index is all that is written; the tree stays where it is."""
        if source is None:
            raise InputError(
                f"{spec.name} can't be downloaded without an account: get it from image-net.org and"
                " give --from the folder that holds train/WNID/*.JPEG and val/WNID/*.JPEG"
            )
        root = Path(os.path.abspath(source))
        parts = tuple(_IN_TREE.values())
        found = image_tree.write_index(root, parts, spec.class_names, folder)
        warn_of_counts(spec.name, found, _PUBLISHED)

    def read(
        self, spec: DatasetSpec, folder: Path, part: str, settings: DataConfig
    ) -> PhotographSplit:
        """See `Format.read`; the folder is one that `write` has filled, or TFDS's."""
        if (folder / image_tree.DESCRIPTION).exists():
            store = image_tree.read_index(folder, _IN_TREE[part], spec.class_names)
            return photograph_split(spec, part, store, len(store), settings)
        store = RecordStore(folder=str(folder), part=_IN_TFDS[part])
        return photograph_split(spec, part, store, _check_records(spec, store), settings)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RecordStore(Store):
    """One split of the TFDS data set `imagenet2012`, opened once in every process.

    Attributes:
      folder: Of the data set's version, `…/imagenet2012/5.1.0`.
      part: As TFDS calls it.
    """

    folder: str
    part: str

    def read(self, ids: Int64[np.ndarray, " batch"]) -> Iterator[Encoded]:
        """See `Store.read`."""
        _, records = _open_records(self.folder, self.part)
        try:
            rows = records.__getitems__(ids.tolist())
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"can't read {self.part} in '{self.folder}' ({error}): prepare it again with TFDS"
            ) from None
        for row in rows:
            name = f"{self.folder}: {self.part}: {os.fsdecode(row['file_name'])}"
            yield Encoded(name, row["image"], int(row["label"]))


@functools.lru_cache(maxsize=4)
def _open_records(folder: str, part: str) -> tuple[Any, Any]:
    """TFDS's description of the data set, and the records with their images still encoded."""
    # Imported here because the plain tree has no need of it.
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    encoded = {"image": tfds.decode.SkipDecoding()}
    try:
        builder = tfds.builder_from_directory(folder)
        if part not in builder.info.splits:
            raise InputError(f"'{folder}' has no split '{part}': prepare it with TFDS again")
        # TFDS's decorator hides the method's parameters from type checkers.
        records = builder.as_data_source(part, decoders=encoded)  # pyright: ignore[reportCallIssue]
    except json_format.Error as error:
        raise ValueError(str(error)) from None
    except NotImplementedError:
        raise InputError(
            f"'{folder}' is not in ArrayRecord files, and others only TensorFlow reads: prepare"
            " or convert it (tensorflow_datasets.scripts.convert_format) with array_record"
        ) from None
    return builder.info, records


def _check_records(spec: DatasetSpec, store: RecordStore) -> int:
    """How many there are, once their labels are known to be ours."""
    info, records = _open_records(store.folder, store.part)
    if tuple(info.features["label"].names) != WNIDS:
        raise InputError(f"'{store.folder}' has other classes than {spec.name}: prepare that one")
    return len(records)
