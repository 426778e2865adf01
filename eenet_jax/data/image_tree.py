"""A tree of images, a folder a class: checked, listed in an index, and read where it lies."""

import dataclasses
import functools
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8, UInt16

from eenet_jax.artifacts import read_json, write_json
from eenet_jax.data import jpeg
from eenet_jax.data.photographs import Encoded, Store
from eenet_jax.errors import InputError

DESCRIPTION = "tree.json"
_INDEX = "{}.npz"
_IMAGES = (".jpeg", ".jpg", ".png")
_NAMED = 5  # How many of several offenders a message names.

Names = dict[str, list[bytes]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TreeStore(Store):
    """The images of one part of a tree, by class and then by name.

    Attributes:
      folder: Of the part.
      classes: Every class's folder, in label order.
      names: All file names, one after the other.
      ends: Where each of them ends, int64 [images].
      labels: uint16 [images].
    """

    folder: str
    classes: tuple[str, ...]
    names: UInt8[np.ndarray, " characters"]
    ends: Int64[np.ndarray, " images"]
    labels: UInt16[np.ndarray, " images"]

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, number: int) -> str:
        """Of one image."""
        start = self.ends[number - 1] if number else 0
        name = os.fsdecode(self.names[start : self.ends[number]].tobytes())
        return f"{self.folder}/{self.classes[self.labels[number]]}/{name}"

    def read(self, ids: Int64[np.ndarray, " batch"]) -> Iterator[Encoded]:
        """See `Store.read`."""
        for number in ids.tolist():
            path = self.path(number)
            yield Encoded(path, _content(path), int(self.labels[number]))


def _content(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise InputError(
            f"can't read '{path}' ({error.strerror}): put it back, or prepare the set again"
        ) from None


def write_index(
    root: Path, parts: Sequence[str], classes: Sequence[str], folder: Path
) -> dict[str, int]:
    """Check a tree's folders and file names, and write what is in it.

    Args:
      root: The folder that holds the parts.
      parts: Their folders.
      classes: Every class's folder, in label order; some may be absent, from all parts alike.
      folder: To write into.

    Returns:
      Part → images.

    Raises:
      InputError: a folder is missing, empty, unknown, or holds no images of its own.
    """
    listed = {part: _list_part(root / part, classes) for part in parts}
    _check_same_classes(root, listed)
    for part, names in listed.items():
        _check_first_images(root / part, names)
        _save(folder / _INDEX.format(part), names, classes)
    write_json(folder / DESCRIPTION, {"root": str(root), "classes": list(listed[parts[0]])})
    return {part: sum(map(len, names.values())) for part, names in listed.items()}


def read_index(folder: Path, part: str, classes: Sequence[str]) -> TreeStore:
    """What `write_index` has written of one part.

    Raises:
      InputError: the tree is no longer where it was.
      OSError, ValueError, KeyError, TypeError: the index is damaged.
    """
    root = read_json(folder / DESCRIPTION, "image tree's description")["root"]
    if not os.path.isdir(os.path.join(root, part)):
        raise InputError(
            f"the images are no longer in '{root}': run eenet data prepare with --from where they"
            " are now"
        )
    index = folder / _INDEX.format(part)
    arrays = _load(index, index.stat().st_mtime_ns)
    # Counted again, so that an index cut short is found now and not in the middle of training.
    ends = np.cumsum(arrays["lengths"], dtype=np.int64)
    if len(ends) != len(arrays["labels"]) or ends[-1] != len(arrays["names"]):
        raise ValueError(f"{index.name} contradicts itself")
    return TreeStore(
        folder=os.path.join(root, part),
        classes=tuple(classes),
        names=arrays["names"],
        ends=ends,
        labels=arrays["labels"],
    )


# Training and validation share one index; the time stamp tells a set prepared anew.
@functools.lru_cache(maxsize=2)
def _load(index: Path, stamp_ns: int) -> Mapping[str, np.ndarray]:
    del stamp_ns
    try:
        with index.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in ("names", "lengths", "labels")}
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{index.name}: {error}") from None


def _save(index: Path, names: Names, classes: Sequence[str]) -> None:
    every = [name for of_class in names.values() for name in of_class]
    labels = np.asarray([classes.index(each) for each in names], np.uint16)
    np.savez_compressed(
        index,
        names=np.frombuffer(b"".join(every), np.uint8),
        lengths=np.asarray(list(map(len, every)), np.uint8),
        labels=np.repeat(labels, list(map(len, names.values()))),
    )


def _list_part(folder: Path, classes: Sequence[str]) -> Names:
    """Class folder → names of its images, both sorted."""
    found, loose = _list_classes(folder)
    if loose:
        raise InputError(
            f"'{folder}' holds {loose:,} images outside of class folders: put each into the folder"
            f" of its class, such as '{folder}/{classes[0]}/'"
        )
    unknown = sorted(set(found) - set(classes))
    if unknown or not found:
        what = f"{_some(unknown)}, no classes of this set" if found else "no class folders"
        raise InputError(f"'{folder}' holds {what}: the folders are called {classes[0]} and so on")
    # A thread waits for the disk while others list; names are sorted, as disks give them anyhow.
    with ThreadPoolExecutor(16) as pool:
        listed = pool.map(_list_class, [folder / name for name in found])
        return dict(zip(found, listed, strict=True))


def _list_classes(folder: Path) -> tuple[list[str], int]:
    """Folders, sorted; and how many images lie beside them. Other files are nobody's concern."""
    folders, loose = [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and not entry.name.startswith("."):
                    folders.append(entry.name)
                else:
                    loose += _is_image(entry.name)
    except OSError as error:
        raise InputError(
            f"can't list '{folder}' ({error.strerror}): give the folder that holds"
            " train/WNID/*.JPEG and val/WNID/*.JPEG"
        ) from None
    return sorted(folders), loose


def _list_class(folder: Path) -> list[bytes]:
    names = []
    try:
        with os.scandir(folder) as entries:
            # `is_dir` asks the disk no further question, as the listing says what is a folder.
            for entry in entries:
                if entry.is_dir():
                    raise InputError(f"'{entry.path}' is a folder: images lie in '{folder}' itself")
                if _is_image(entry.name):
                    names.append(os.fsencode(entry.name))
    except OSError as error:
        raise InputError(
            f"can't list '{folder}' ({error.strerror}): mend its permissions"
        ) from None
    if not names:
        raise InputError(f"'{folder}' holds no images: unpack that class again, or remove it")
    return sorted(names)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_IMAGES) and not name.startswith(".")


def _check_same_classes(root: Path, listed: Mapping[str, Names]) -> None:
    first, *others = listed
    for part in others:
        differing = sorted(listed[first].keys() ^ listed[part].keys())
        if differing:
            has = first if differing[0] in listed[first] else part
            raise InputError(
                f"{first}/ and {part}/ in '{root}' hold different classes, {differing[0]} only"
                f" {has}/ ({len(differing):,} differ): unpack what is missing, or remove the rest"
            )


def _check_first_images(folder: Path, names: Names) -> None:
    """Decoding everything would take an hour; a header a class shows what is no image at all."""
    for name, of_class in names.items():
        path = f"{folder}/{name}/{os.fsdecode(of_class[0])}"
        try:
            jpeg.read_header(_content(path))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"'{path}' is damaged ({error}): unpack it again") from None


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED:,} others" if len(names) > _NAMED else "")
