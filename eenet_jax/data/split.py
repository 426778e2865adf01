"""What a data set is, and what every split of one can do."""

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Int64

from eenet_jax.config import DataConfig
from eenet_jax.errors import InputError, warn

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What is fixed about a data set.

    Attributes:
      name: As in `datasets.names()`.
      class_names: In label order.
      kind: What a sample is: an image, a text, or an image whose every pixel has a label.
      image_shape: (height, width, channels) as the network sees it; empty for text.
      mean: Per channel, in units in which the greatest pixel value is 1; empty for text. Over
        the publisher's whole training split (validation included), or what is published with
        the networks that are trained on the set.
      std: Deviation, likewise.
      augmentation: Of training samples by default, a name that `DataConfig` takes.
      val_size: How many training samples are held out for validation by default; None where
        the publisher has a validation split of its own.
    """

    name: str
    class_names: tuple[str, ...]
    kind: Literal["image", "text", "segmentation"] = "image"
    image_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augmentation: str = "none"
    val_size: int | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Those that its training samples can have."""
        if self.kind == "text":
            return ("none",)
        if self.kind == "segmentation":
            return ("none", "scale_crop_flip")
        if self.augmentation == "resized_crop_flip":
            return ("none", "resized_crop_flip")
        return ("none", "shift", "pad_crop_flip")

    def check(self, config: DataConfig) -> None:
        """Raise InputError where settings mean nothing for this set, and would be ignored."""
        chosen = config.augmentation or self.augmentation
        if chosen not in self.augmentations:
            raise InputError(
                f"data.augmentation is '{chosen}', which {self.name} can't have: choose one of"
                f" {', '.join(self.augmentations)}"
            )
        crops = {"scale_crop_flip", "resized_crop_flip"} & set(self.augmentations)
        if config.crop_shape and not crops:
            raise InputError(
                f"data.crop_shape is {tuple(config.crop_shape)}, but {self.name} is never cropped"
                " to a size: leave it out"
            )
        if config.crop_shape and self.kind == "segmentation" and chosen == "none":
            raise InputError(
                f"data.crop_shape is {tuple(config.crop_shape)} with augmentation 'none': leave one"
                " of them out"
            )

    def describe(self) -> str:
        """One line for a list of data sets."""
        samples = {"image": "images", "text": "texts", "segmentation": "labelled images"}[self.kind]
        shape = f" {self.image_shape}" if self.image_shape else ""
        return f"{self.num_classes} classes, {samples}{shape}"


Rows = Int64[np.ndarray, " rows"]


def own_rows(values: np.ndarray, rows: Rows | None) -> np.ndarray:
    """Those of a batch's values, along the first axis, that are wanted."""
    return values if rows is None else values[rows]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split(abc.ABC):
    """Samples that can be gathered by their position.

    Attributes:
      spec: The data set.
      split: "train", "val" or "test".
      ids: Index of each sample in the publisher's split, int64 [samples].
      buckets: Which samples may share a batch without waste, int64 [samples], in order of
        increasing size; None where all samples are alike.
      workers: Processes that read ahead; 0 where reading costs next to nothing.
    """

    spec: DatasetSpec
    split: str
    ids: Int64[np.ndarray, " samples"]
    buckets: Int64[np.ndarray, " samples"] | None = None
    workers: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @abc.abstractmethod
    def gather(self, indices: Int[np.ndarray, " batch"], rows: Rows | None = None) -> Batch:
        """The samples at `indices` (0..len-1, not ids), as they are evaluated.

        Args:
          indices: Of a batch.
          rows: Which of them are wanted, as they would be in the whole batch; None for all.

        Returns:
          `label` int32 [batch], or [batch, height, width] with -1 where there is none; `id`
          int64 [batch]; and `image` uint8 [batch, height, width, channels], or `input_ids` and
          `attention_mask` int32 [batch, tokens].
        """

    @abc.abstractmethod
    def gather_training(
        self,
        indices: Int[np.ndarray, " batch"],
        draw: np.random.Generator,
        rows: Rows | None = None,
    ) -> Batch:
        """As `gather`, with that part of the augmentation that belongs to reading a sample."""

    @abc.abstractmethod
    def take(self, chosen: Int64[np.ndarray, " kept"], split: str) -> "Split":
        """The samples at those positions, as a split of that name."""


class Format(abc.ABC):
    """How a data set is read from its publisher's files, kept prepared, and opened."""

    @abc.abstractmethod
    def write(self, spec: DatasetSpec, source: str | Path | None, folder: Path) -> None:
        """Check the publisher's files and write the prepared set into an empty folder.

        Args:
          spec: The data set.
          source: The publisher's files; None downloads them where that can be done.
          folder: To write into.

        Raises:
          InputError: files are missing, damaged or of another set; nothing usable is written.
        """

    @abc.abstractmethod
    def read(self, spec: DatasetSpec, folder: Path, part: str, settings: DataConfig) -> Split:
        """All of one of the publisher's splits.

        Args:
          spec: The data set.
          folder: That `write` has filled.
          part: "train", "test", or "val" where the publisher has one.
          settings: How samples are read (tokenizer, lengths, sizes, workers).

        Raises:
          InputError: a setting doesn't fit the set.
          OSError, RuntimeError, ValueError, KeyError, TypeError: the folder is damaged.
        """


def warn_of_counts(name: str, found: Mapping[str, int], published: Mapping[str, int]) -> None:
    """Say where there are more or fewer samples than the publisher's.

    A part of a set is of use, but its results are not to be taken for the set's.
    """
    for part, count in found.items():
        if count != published[part]:
            warn(
                f"{part} of {name} has {count:,} images here, {published[part]:,} at its"
                " publisher's"
            )
