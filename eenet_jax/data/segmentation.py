"""Images whose every pixel has a label: CamVid in memory maps, Cityscapes read where it lies."""

import abc
import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt8

from eenet_jax.artifacts import read_json, write_json
from eenet_jax.config import DataConfig
from eenet_jax.data.builders import segmentation_tree
from eenet_jax.data.builders.segmentation_tree import IGNORED, Tree, TreeLayout
from eenet_jax.data.split import Batch, DatasetSpec, Format, Rows, Split, own_rows, warn_of_counts
from eenet_jax.data.statistics import channel_statistics
from eenet_jax.errors import InputError

INDEX = "index.json"
_STORED_IGNORED = 255

Pixels = UInt8[np.ndarray, "batch height width 3"]
Labels = Int32[np.ndarray, "batch height width"]


class Store(abc.ABC):
    """Where a publisher's split is read from."""

    @abc.abstractmethod
    def at(self, ids: Int64[np.ndarray, " batch"]) -> tuple[Pixels, Labels]:
        """Images uint8 [batch, height, width, 3] and labels int32 [batch, height, width]."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationSplit(Split):
    """A split of images with labelled pixels.

    Attributes:
      store: Of the publisher's split; `ids` count in it.
    """

    store: Store

    def gather(self, indices: Int[np.ndarray, " batch"], rows: Rows | None = None) -> Batch:
        """See `Split.gather`."""
        ids = self.ids[own_rows(indices, rows)]
        images, labels = self.store.at(ids)
        return {"image": images, "label": labels, "id": ids}

    def gather_training(
        self,
        indices: Int[np.ndarray, " batch"],
        draw: np.random.Generator,
        rows: Rows | None = None,
    ) -> Batch:
        """See `Split.gather_training`; augmentation is left to the device."""
        del draw
        return self.gather(indices, rows)

    def take(self, chosen: Int64[np.ndarray, " kept"], split: str) -> "SegmentationSplit":
        """See `Split.take`."""
        return dataclasses.replace(self, split=split, ids=self.ids[chosen])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StoredArrays(Store):
    """Decoded images, in memory maps.

    Attributes:
      images: uint8 [samples, height, width, 3].
      labels: uint8 [samples, height, width], 255 for none.
    """

    images: UInt8[np.ndarray, "samples height width 3"]
    labels: UInt8[np.ndarray, "samples height width"]

    def at(self, ids: Int64[np.ndarray, " batch"]) -> tuple[Pixels, Labels]:
        """See `Store.at`."""
        labels = self.labels[ids].astype(np.int32)
        return np.asarray(self.images[ids]), np.where(labels == _STORED_IGNORED, IGNORED, labels)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PublishersFiles(Store):
    """The publisher's PNGs, decoded as they are read.

    Attributes:
      tree: The files.
      part: Which split of them.
    """

    tree: Tree
    part: str

    def at(self, ids: Int64[np.ndarray, " batch"]) -> tuple[Pixels, Labels]:
        """See `Store.at`.

        Raises:
          InputError: a file is gone, or no longer what it was.
        """
        names = self.tree.names[self.part]
        pairs = [segmentation_tree.read_pair(self.tree, self.part, names[i]) for i in ids]
        images, labels = zip(*pairs, strict=True)
        return np.stack(images), np.stack(labels)


@dataclasses.dataclass(frozen=True)
class DecodedTree(Format):
    """A small set: every file is decoded and checked once, and kept as arrays.

    Attributes:
      layout: Of the publisher's tree.
      published: Split → how many images the publisher's has.
    """

    layout: TreeLayout
    published: Mapping[str, int]

    def write(self, spec: DatasetSpec, source: str | Path | None, folder: Path) -> None:
        """See `Format.write`."""
        tree = segmentation_tree.find_tree(self.layout, source)
        shape = _first_size(tree)
        pixels = {part: _write_arrays(spec, tree, part, shape, folder) for part in tree.names}
        mean, std = channel_statistics(np.load(_images(folder, "train"), mmap_mode="r"))
        _write_index(spec, tree, shape, pixels, folder, {"mean": mean, "std": std})
        found = {part: len(names) for part, names in tree.names.items()}
        warn_of_counts(tree.layout.name, found, self.published)

    def read(
        self, spec: DatasetSpec, folder: Path, part: str, settings: DataConfig
    ) -> SegmentationSplit:
        """See `Format.read`; size, mean and deviation are those recorded at preparation."""
        del settings
        index = read_json(folder / INDEX, "data set's index")
        images = np.load(_images(folder, part), mmap_mode="r")
        labels = np.load(_labels(folder, part), mmap_mode="r")
        if len(images) != len(labels) or len(images) != len(index["files"][part]):
            raise ValueError(f"{part} has {len(images)} images and {len(labels)} label maps")
        statistics = {name: tuple(index[name]) for name in ("mean", "std", "image_shape")}
        return SegmentationSplit(
            spec=dataclasses.replace(spec, **statistics),
            split=part,
            ids=np.arange(len(images)),
            store=StoredArrays(images=images, labels=labels),
        )


@dataclasses.dataclass(frozen=True)
class TreeInPlace(Format):
    """A large set: every file is checked once, and decoded from where it lies at each reading.

    Attributes:
      layout: Of the publisher's tree.
      published: Split → how many images the publisher's has.
    """

    layout: TreeLayout
    published: Mapping[str, int]

    def write(self, spec: DatasetSpec, source: str | Path | None, folder: Path) -> None:
        """See `Format.write`: an index is all that is written.

        Every label map is decoded; images are checked by size and by the checksums of their
        parts, which takes a fraction of the time of decoding them.
        """
        tree = segmentation_tree.find_tree(self.layout, source)
        shape = _first_size(tree)
        pixels = {part: _check_files(spec, tree, part, shape) for part in tree.names}
        _write_index(spec, tree, shape, pixels, folder, {})
        found = {part: len(names) for part, names in tree.names.items()}
        warn_of_counts(tree.layout.name, found, self.published)

    def read(
        self, spec: DatasetSpec, folder: Path, part: str, settings: DataConfig
    ) -> SegmentationSplit:
        """See `Format.read`."""
        index = read_json(folder / INDEX, "data set's index")
        names = {each: tuple(files) for each, files in index["files"].items()}
        tree = Tree(layout=self.layout, root=Path(index["root"]), names=names)
        if not tree.root.is_dir():
            raise InputError(
                f"{spec.name} is no longer in '{tree.root}': run eenet data prepare {spec.name}"
                " --from where it is now"
            )
        return SegmentationSplit(
            spec=dataclasses.replace(spec, image_shape=tuple(index["image_shape"])),
            split=part,
            ids=np.arange(len(names[part])),
            workers=settings.workers,
            store=PublishersFiles(tree=tree, part=part),
        )


def _images(folder: Path, part: str) -> Path:
    return folder / f"{part}_images.npy"


def _labels(folder: Path, part: str) -> Path:
    return folder / f"{part}_labels.npy"


def _first_size(tree: Tree) -> tuple[int, int]:
    part, names = next(iter(tree.names.items()))
    return segmentation_tree.image_size(tree.image_path(part, names[0]))


def _write_arrays(
    spec: DatasetSpec, tree: Tree, part: str, shape: tuple[int, int], folder: Path
) -> Int64[np.ndarray, " classes"]:
    size = (len(tree.names[part]), *shape)
    images, labels = np.empty((*size, 3), np.uint8), np.empty(size, np.uint8)
    pixels = np.zeros(spec.num_classes, np.int64)
    for i, name in enumerate(tree.names[part]):
        _verify_pair(tree, part, name)
        image, label = segmentation_tree.read_pair(tree, part, name)
        pixels += _checked_pixels(spec, tree, part, name, label, shape)
        images[i], labels[i] = image, np.where(label == IGNORED, _STORED_IGNORED, label)
    np.save(_images(folder, part), images)
    np.save(_labels(folder, part), labels)
    return pixels


def _verify_pair(tree: Tree, part: str, name: str) -> None:
    for path in (tree.image_path(part, name), tree.label_path(part, name)):
        segmentation_tree.verify(path)


def _checked_pixels(
    spec: DatasetSpec,
    tree: Tree,
    part: str,
    name: str,
    labels: Int32[np.ndarray, "height width"],
    shape: tuple[int, int],
) -> Int64[np.ndarray, " classes"]:
    """Pixels of each class, once the size is that of all and something is labelled."""
    path = tree.label_path(part, name)
    if labels.shape != shape:
        raise InputError(
            f"'{path}' has {labels.shape[0]} x {labels.shape[1]} pixels, the first image"
            f" {shape[0]} x {shape[1]}: all must have one size"
        )
    pixels = segmentation_tree.count_classes(labels, spec.num_classes)
    if not pixels.any():
        raise InputError(f"'{path}' labels no pixel: leave it and its image out")
    return pixels


def _check_files(
    spec: DatasetSpec, tree: Tree, part: str, shape: tuple[int, int]
) -> Int64[np.ndarray, " classes"]:
    def check(name: str) -> Int64[np.ndarray, " classes"]:
        _verify_pair(tree, part, name)
        labels = segmentation_tree.read_labels(tree.layout, tree.label_path(part, name))
        size = segmentation_tree.image_size(tree.image_path(part, name))
        segmentation_tree.check_sizes(tree, part, name, size, labels.shape)
        return _checked_pixels(spec, tree, part, name, labels, shape)

    # Threads, because checksums and decoding leave the interpreter free.
    with ThreadPoolExecutor() as pool:
        return np.sum(list(pool.map(check, tree.names[part])), axis=0)


def _write_index(
    spec: DatasetSpec,
    tree: Tree,
    shape: tuple[int, int],
    pixels: Mapping[str, Int64[np.ndarray, " classes"]],
    folder: Path,
    statistics: Mapping[str, Any],
) -> None:
    by_class = {
        part: dict(zip(spec.class_names, counts.tolist(), strict=True))
        for part, counts in pixels.items()
    }
    index = {
        "root": str(tree.root),
        "image_shape": [*shape, 3],
        **statistics,
        "pixels": by_class,
        "files": tree.names,
    }
    write_json(folder / INDEX, index)
