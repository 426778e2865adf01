"""The registry of data sets: what they are, how they are prepared, how a split is opened."""

import contextlib
import dataclasses
import functools
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt8

from eenet_jax.artifacts import read_json, replacing_folder
from eenet_jax.data import class_names
from eenet_jax.data.builders import cifar_binary
from eenet_jax.data.builders.cifar_binary import BinaryLayout
from eenet_jax.data.digits import read_digits
from eenet_jax.data.labelled_images import LabelledImages
from eenet_jax.data.permutation import permutation
from eenet_jax.data.statistics import channel_statistics
from eenet_jax.errors import InputError

SPLITS = ("train", "val", "test")
_VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What is fixed about a data set.

    Attributes:
      name: As in `names()`.
      class_names: In label order.
      image_shape: (height, width, channels).
      mean: Per channel, over the publisher's whole training split (validation included), in
        units in which the greatest pixel value is 1.
      std: Deviation, likewise.
      augmentation: The name that `augment.augment` takes.
      val_size: How many training images are held out for validation by default.
      layout: The publisher's archive; None for an embedded set.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    val_size: int
    layout: BinaryLayout | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)


_SPECS = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="digits",
            class_names=class_names.DIGITS,
            image_shape=(8, 8, 1),
            mean=(0.305023,),
            std=(0.375934,),
            augmentation="shift",
            val_size=300,
        ),
        DatasetSpec(
            name="cifar10",
            class_names=class_names.CIFAR10,
            image_shape=(32, 32, 3),
            mean=(0.4914, 0.482158, 0.446531),
            std=(0.247032, 0.243485, 0.261588),
            augmentation="pad_crop_flip",
            val_size=5_000,
            layout=cifar_binary.CIFAR10,
        ),
        DatasetSpec(
            name="cifar100",
            class_names=class_names.CIFAR100,
            image_shape=(32, 32, 3),
            mean=(0.507075, 0.486549, 0.440892),
            std=(0.267334, 0.256438, 0.27615),
            augmentation="pad_crop_flip",
            val_size=5_000,
            layout=cifar_binary.CIFAR100,
        ),
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSplit:
    """A split, in memory.

    Attributes:
      spec: The data set, with the mean and deviation recorded when it was prepared.
      split: "train", "val" or "test".
      images: uint8 [samples, height, width, channels].
      labels: int32 [samples].
      ids: Index in the publisher's split (digits: in scikit-learn's set), int64 [samples].
    """

    spec: DatasetSpec
    split: str
    images: UInt8[np.ndarray, "samples height width channels"]
    labels: Int32[np.ndarray, " samples"]
    ids: Int64[np.ndarray, " samples"]

    def __len__(self) -> int:
        return len(self.ids)

    def gather(self, indices: Int[np.ndarray, " batch"]) -> dict[str, np.ndarray]:
        """The samples at `indices` (0..len-1, not ids), in one read.

        Returns:
          `image` uint8 [batch, height, width, channels], `label` int32 [batch],
          `id` int64 [batch].
        """
        return {
            "image": self.images[indices],
            "label": self.labels[indices],
            "id": self.ids[indices],
        }


def names() -> tuple[str, ...]:
    """The data sets there are."""
    return tuple(_SPECS)


def get(name: str) -> DatasetSpec:
    """The data set called `name`.

    Raises:
      InputError: there is none.
    """
    if name not in _SPECS:
        raise InputError(f"unknown data set '{name}': choose from {', '.join(names())}")
    return _SPECS[name]


def prepare(
    name: str,
    *,
    data_dir: str | Path,
    source: str | Path | None = None,
    layout: BinaryLayout | None = None,
) -> Path | None:
    """Make a set ready to be opened, in one step: all of it is there afterwards, or nothing is.

    Args:
      name: The data set.
      data_dir: The folder that holds the prepared sets.
      source: A folder with the publisher's archive or what is unpacked from it, or the
        archive; None downloads it.
      layout: What the archive holds, where it isn't the publisher's own (a subset, say).

    Returns:
      The folder written; None for an embedded set, which needs no preparation.

    Raises:
      InputError: an unknown set; a missing, truncated or wrong archive; no network; a folder
        that can't be written.
    """
    spec = get(name)
    layout = layout or spec.layout
    if layout is None:
        return None
    # All of it is read and checked before anything is written.
    records = cifar_binary.read_binary(layout, source)
    mean, std = channel_statistics(records["train"].images)
    folder = _folder(name, data_dir)
    try:
        with replacing_folder(folder) as aside:
            _write_prepared(spec, records, {"mean": mean, "std": std}, aside)
    except OSError as error:
        raise InputError(
            f"can't write '{folder}' ({error}): give another --data-dir or make room"
        ) from None
    return folder


def _folder(name: str, data_dir: str | Path) -> Path:
    return Path(data_dir) / name / _VERSION


def _write_prepared(
    spec: DatasetSpec, records: dict[str, LabelledImages], metadata: dict[str, Any], folder: Path
) -> None:
    # Imported here because digits has no need of it.
    import tensorflow_datasets as tfds

    from eenet_jax.data.builders.cifar import BUILDERS

    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        builder = BUILDERS[spec.name](
            records=records, class_names=spec.class_names, metadata=metadata, data_dir=work
        )
        # The builder announces itself on stdout, which is for the command's own results.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        for path in builder.data_path.iterdir():
            Path(path).replace(folder / path.name)


def open_split(
    name: str,
    split: str,
    *,
    data_dir: str | Path = "data",
    val_size: int | None = None,
    seed: int = 0,
) -> ImageSplit:
    """Open one split; `train` and `val` share out the publisher's training split.

    Args:
      name: The data set.
      split: "train", "val" or "test".
      data_dir: The folder that holds the prepared sets.
      val_size: How many training images are held out; None for the set's default.
      seed: Chooses which are held out.

    Raises:
      InputError: an unknown set or split, one that isn't prepared, a `val_size` that leaves
        nothing.
    """
    spec = get(name)
    if split not in SPLITS:
        raise InputError(f"unknown split '{split}': choose from {', '.join(SPLITS)}")
    source = "test" if split == "test" else "train"
    spec, stored, ids = _read(spec, source, data_dir)
    if split != "test":
        size = spec.val_size if val_size is None else val_size
        chosen = _held_out(len(ids), size, seed, split)
        stored = LabelledImages(images=stored.images[chosen], labels=stored.labels[chosen])
        ids = ids[chosen]
    return ImageSplit(spec=spec, split=split, images=stored.images, labels=stored.labels, ids=ids)


def _held_out(size: int, val_size: int, seed: int, split: str) -> np.ndarray:
    least = 1 if split == "val" else 0
    if not least <= val_size < size:
        raise InputError(
            f"val_size {val_size} of {size:,} training images: give one from {least} to {size - 1}"
        )
    shuffled = permutation(size, seed)
    return np.sort(shuffled[:val_size] if split == "val" else shuffled[val_size:])


def _read(
    spec: DatasetSpec, source: str, data_dir: str | Path
) -> tuple[DatasetSpec, LabelledImages, np.ndarray]:
    if spec.layout is None:
        return spec, *read_digits()[source]
    folder = _folder(spec.name, data_dir)
    command = f"run eenet data prepare {spec.name} --data-dir {data_dir}"
    info = folder / "dataset_info.json"
    if not info.is_file():
        raise InputError(f"'{spec.name}' is not prepared in '{data_dir}': {command}")
    try:
        mean, std = _read_statistics(folder)
        stored, ids = _read_prepared(folder.resolve(), source, info.stat().st_mtime_ns)
    except _DAMAGE as error:
        raise InputError(f"'{folder}' is damaged ({error}): {command}") from None
    return dataclasses.replace(spec, mean=mean, std=std), stored, ids


# What a missing or damaged file of a prepared set raises, ArrayRecord's RuntimeError included.
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError)


def _read_statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    metadata = read_json(folder / "metadata.json", "data set's metadata")
    return tuple(metadata["mean"]), tuple(metadata["std"])


# Training and validation share one read; the time stamp tells a set prepared anew.
@functools.lru_cache(maxsize=2)
def _read_prepared(
    folder: Path, source: str, stamp_ns: int
) -> tuple[LabelledImages, Int64[np.ndarray, " samples"]]:
    del stamp_ns
    # Imported here because digits has no need of it.
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    try:
        builder = tfds.builder_from_directory(folder)
        # TFDS's decorator hides the method's parameters from type checkers.
        examples = builder.as_data_source(source)  # pyright: ignore[reportCallIssue]
    except json_format.Error as error:
        raise ValueError(str(error)) from None
    rows = examples.__getitems__(list(range(len(examples))))
    stored = LabelledImages(
        images=np.stack([row["image"] for row in rows]),
        labels=np.asarray([row["label"] for row in rows], np.int32),
    )
    return stored, np.asarray([row["id"] for row in rows], np.int64)
