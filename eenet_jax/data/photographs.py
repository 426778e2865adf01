"""Photographs that are decoded, cropped and resized as they are read."""

import abc
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from eenet_jax.config import DataConfig
from eenet_jax.data.jpeg import Scratch
from eenet_jax.data.resized_crop import draw_crops, evaluation_view, training_view
from eenet_jax.data.split import Batch, DatasetSpec, Rows, Split, own_rows
from eenet_jax.errors import InputError


class Encoded(NamedTuple):
    """One image as it is stored.

    Attributes:
      name: For error messages.
      content: A whole file's bytes.
      label: 0..C-1.
    """

    name: str
    content: bytes
    label: int


class Store(abc.ABC):
    """Where a publisher's split is read from; small enough to be sent to every worker."""

    @abc.abstractmethod
    def read(self, ids: Int64[np.ndarray, " batch"]) -> Iterator[Encoded]:
        """The images at those positions of the publisher's split, one after the other.

        Raises:
          InputError: one is gone.
        """


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PhotographSplit(Split):
    """A split of encoded photographs.

    Attributes:
      store: Of the publisher's split; `ids` count in it.
      random_crops: Whether training samples are random resized crops, or as in evaluation.
    """

    store: Store
    random_crops: bool

    def gather(self, indices: Int[np.ndarray, " batch"], rows: Rows | None = None) -> Batch:
        """See `Split.gather`: centre crops.

        Raises:
          InputError: an image is gone or damaged.
        """
        batch, scratch = self._blank(own_rows(indices, rows)), Scratch()
        for place, image in enumerate(self.store.read(batch["id"])):
            batch["label"][place] = image.label
            with _Named(image.name):
                view = evaluation_view(image.content, self._shape, scratch)
            batch["image"][place] = view
        return batch

    def gather_training(
        self,
        indices: Int[np.ndarray, " batch"],
        draw: np.random.Generator,
        rows: Rows | None = None,
    ) -> Batch:
        """See `Split.gather_training`: random resized crops, flipped half the time.

        Raises:
          InputError: an image is gone or damaged.
        """
        if not self.random_crops:
            return self.gather(indices, rows)
        batch, scratch = self._blank(own_rows(indices, rows)), Scratch()
        # Drawn for the whole batch, so that a sample's crop is the same whoever reads it.
        drawn = draw_crops(draw, len(indices))
        attempts, flips = own_rows(drawn.attempts, rows), own_rows(drawn.flips, rows)
        for place, image in enumerate(self.store.read(batch["id"])):
            batch["label"][place] = image.label
            flip, out = bool(flips[place]), batch["image"][place]
            with _Named(image.name):
                training_view(image.content, attempts[place], flip, out, scratch)
        return batch

    def take(self, chosen: Int64[np.ndarray, " kept"], split: str) -> "PhotographSplit":
        """See `Split.take`."""
        return dataclasses.replace(self, split=split, ids=self.ids[chosen])

    @property
    def _shape(self) -> tuple[int, int]:
        height, width, _ = self.spec.image_shape
        return height, width

    def _blank(self, indices: Int[np.ndarray, " batch"]) -> Batch:
        return {
            "image": np.empty((len(indices), *self.spec.image_shape), np.uint8),
            "label": np.empty(len(indices), np.int32),
            "id": self.ids[indices],
        }


def photograph_split(
    spec: DatasetSpec, part: str, store: Store, size: int, settings: DataConfig
) -> PhotographSplit:
    """All of a store, as a split that is read as the settings say."""
    augmentation = settings.augmentation or spec.augmentation
    return PhotographSplit(
        spec=spec,
        split=part,
        ids=np.arange(size),
        workers=settings.workers,
        store=store,
        random_crops=augmentation == "resized_crop_flip",
    )


class _Named:
    """Damage is told with the image's name."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ValueError) and not isinstance(error, InputError):
            raise InputError(
                f"'{self._name}' is damaged ({error}): put an undamaged copy in its place, or"
                " delete it and prepare the set again"
            ) from None
