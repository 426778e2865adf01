"""Small images, in memory: the embedded digits, and sets kept as TFDS ArrayRecord files."""

import contextlib
import dataclasses
import functools
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt8

from eenet_jax.artifacts import read_json
from eenet_jax.config import DataConfig
from eenet_jax.data.builders import cifar_binary
from eenet_jax.data.builders.cifar_binary import BinaryLayout
from eenet_jax.data.digits import read_digits
from eenet_jax.data.labelled_images import LabelledImages
from eenet_jax.data.split import Batch, DatasetSpec, Format, Rows, Split, own_rows
from eenet_jax.data.statistics import channel_statistics


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSplit(Split):
    """A split, in memory.

    Attributes:
      images: uint8 [samples, height, width, channels].
      labels: int32 [samples].
    """

    images: UInt8[np.ndarray, "samples height width channels"]
    labels: Int32[np.ndarray, " samples"]

    def gather(self, indices: Int[np.ndarray, " batch"], rows: Rows | None = None) -> Batch:
        """See `Split.gather`."""
        indices = own_rows(indices, rows)
        return {
            "image": self.images[indices],
            "label": self.labels[indices],
            "id": self.ids[indices],
        }

    def gather_training(
        self,
        indices: Int[np.ndarray, " batch"],
        draw: np.random.Generator,
        rows: Rows | None = None,
    ) -> Batch:
        """See `Split.gather_training`; augmentation is left to the device."""
        del draw
        return self.gather(indices, rows)

    def take(self, chosen: Int64[np.ndarray, " kept"], split: str) -> "ImageSplit":
        """See `Split.take`."""
        return dataclasses.replace(
            self,
            split=split,
            images=self.images[chosen],
            labels=self.labels[chosen],
            ids=self.ids[chosen],
        )


def _as_split(
    spec: DatasetSpec, part: str, stored: LabelledImages, ids: Int64[np.ndarray, " samples"]
) -> ImageSplit:
    return ImageSplit(spec=spec, split=part, images=stored.images, labels=stored.labels, ids=ids)


@dataclasses.dataclass(frozen=True)
class EmbeddedDigits(Format):
    """scikit-learn's digits, which need no preparation."""

    def write(self, spec: DatasetSpec, source: str | Path | None, folder: Path) -> None:
        """Nothing to write."""

    def read(self, spec: DatasetSpec, folder: Path, part: str, settings: DataConfig) -> ImageSplit:
        """See `Format.read`."""
        return _as_split(spec, part, *read_digits()[part])


@dataclasses.dataclass(frozen=True)
class BinaryImages(Format):
    """CIFAR's binary archives, kept as TFDS ArrayRecord files.

    Attributes:
      layout: What the archive holds.
    """

    layout: BinaryLayout

    def write(self, spec: DatasetSpec, source: str | Path | None, folder: Path) -> None:
        """See `Format.write`: all of it is read and checked before anything is written."""
        records = cifar_binary.read_binary(self.layout, source)
        mean, std = channel_statistics(records["train"].images)
        _write_prepared(spec, records, {"mean": mean, "std": std}, folder)

    def read(self, spec: DatasetSpec, folder: Path, part: str, settings: DataConfig) -> ImageSplit:
        """See `Format.read`; mean and deviation are those recorded when it was prepared."""
        del settings
        stamp = (folder / "dataset_info.json").stat().st_mtime_ns
        metadata = read_json(folder / "metadata.json", "data set's metadata")
        mean, std = tuple(metadata["mean"]), tuple(metadata["std"])
        stored, ids = _read_prepared(folder.resolve(), part, stamp)
        return _as_split(dataclasses.replace(spec, mean=mean, std=std), part, stored, ids)


def _write_prepared(
    spec: DatasetSpec,
    records: Mapping[str, LabelledImages],
    metadata: Mapping[str, Any],
    folder: Path,
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
