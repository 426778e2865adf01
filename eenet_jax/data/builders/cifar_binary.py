"""The publishers' binary archives of CIFAR-10 and CIFAR-100: find, check, decode.

A record is one byte a label (CIFAR-100: coarse, then fine) and 3,072 bytes of pixels: the
red, the green and the blue plane, each 32 x 32, row by row.
"""

import dataclasses
import hashlib
import http.client
import io
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from eenet_jax.data.labelled_images import LabelledImages
from eenet_jax.errors import InputError

DOWNLOAD_TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 20
_SIDE, _PLANES = 32, 3
_PIXEL_BYTES = _SIDE * _SIDE * _PLANES


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryLayout:
    """What a publisher's archive holds.

    Attributes:
      archive: File name of the archive.
      folder: The folder in the archive.
      url: Where the publisher offers it.
      md5: The archive's checksum as published; None accepts any (archives made by tests).
      files: Split name → ((file name, number of records), ...).
      label_classes: Number of classes of each label byte; the last one is the label used.
    """

    archive: str
    folder: str
    url: str
    md5: str | None
    files: Mapping[str, tuple[tuple[str, int], ...]]
    label_classes: tuple[int, ...]

    @property
    def record_bytes(self) -> int:
        """Bytes of one record, labels and pixels."""
        return len(self.label_classes) + _PIXEL_BYTES

    def file_names(self) -> tuple[str, ...]:
        """Every record file, in order."""
        return tuple(name for files in self.files.values() for name, _ in files)


CIFAR10 = BinaryLayout(
    archive="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    files={
        "train": tuple((f"data_batch_{i}.bin", 10_000) for i in range(1, 6)),
        "test": (("test_batch.bin", 10_000),),
    },
    label_classes=(10,),
)
CIFAR100 = BinaryLayout(
    archive="cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    files={"train": (("train.bin", 50_000),), "test": (("test.bin", 10_000),)},
    label_classes=(20, 100),
)


def read_binary(layout: BinaryLayout, source: str | Path | None) -> dict[str, LabelledImages]:
    """Read and check every split.

    Args:
      layout: What to expect.
      source: A folder that holds the archive or its unpacked folder, that folder itself, or
        the archive; None downloads the archive from its publisher.

    Returns:
      Split name → its images and labels.

    Raises:
      InputError: nothing there, a wrong checksum, a truncated file, a label out of range, or
        the publisher can't be reached.
    """
    contents = _downloaded(layout) if source is None else _from_path(layout, Path(source))
    return {split: _decode_split(layout, files, contents) for split, files in layout.files.items()}


def _from_path(layout: BinaryLayout, source: Path) -> dict[str, bytes]:
    if source.is_file():
        with source.open("rb") as archive:
            return _from_archive(layout, archive, str(source))
    for folder in (source / layout.folder, source):
        if any((folder / name).is_file() for name in layout.file_names()):
            return {name: _read_file(folder / name) for name in layout.file_names()}
    archive_path = source / layout.archive
    if archive_path.is_file():
        return _from_path(layout, archive_path)
    raise InputError(
        f"'{source}' holds neither {layout.archive} nor {layout.folder}/: give the folder that"
        " does, or leave it out to download the archive"
    )


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"can't read '{path}' ({reason}): unpack the archive again") from None


def _from_archive(
    layout: BinaryLayout, archive: io.BufferedIOBase, origin: str
) -> dict[str, bytes]:
    _check_md5(layout, archive, origin)
    # Members are read, never extracted, so that no path in an archive reaches the disk.
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            return {name: _read_member(layout, tar, name, origin) for name in layout.file_names()}
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"'{origin}' is not a readable archive ({error}): download {layout.url} again"
        ) from None


def _read_member(layout: BinaryLayout, tar: tarfile.TarFile, name: str, origin: str) -> bytes:
    try:
        member = tar.extractfile(f"{layout.folder}/{name}")
    except KeyError:
        member = None
    if member is None:
        raise InputError(f"'{origin}' lacks {layout.folder}/{name}: download {layout.url} again")
    return member.read()


def _check_md5(layout: BinaryLayout, archive: io.BufferedIOBase, origin: str) -> None:
    found = hashlib.file_digest(archive, "md5").hexdigest()
    archive.seek(0)
    if layout.md5 not in (None, found):
        raise InputError(
            f"'{origin}' has md5 {found}, the publisher's is {layout.md5}: download {layout.url}"
            " again, or unpack it and give the folder"
        )


def _downloaded(layout: BinaryLayout) -> dict[str, bytes]:
    # An anonymous file: nothing is left behind however the process ends.
    with tempfile.TemporaryFile() as archive:
        try:
            with urllib.request.urlopen(layout.url, timeout=DOWNLOAD_TIMEOUT_S) as response:
                while chunk := response.read(_CHUNK_BYTES):
                    archive.write(chunk)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(
                f"can't download {layout.url} ({error}): fetch it elsewhere and pass"
                " --from FOLDER with the archive in it"
            ) from None
        archive.seek(0)
        return _from_archive(layout, archive, layout.url)


def _decode_split(
    layout: BinaryLayout, files: tuple[tuple[str, int], ...], contents: Mapping[str, bytes]
) -> LabelledImages:
    parts = [_decode_file(layout, name, count, contents[name]) for name, count in files]
    return LabelledImages(
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )


def _decode_file(layout: BinaryLayout, name: str, count: int, content: bytes) -> LabelledImages:
    expected = count * layout.record_bytes
    if len(content) != expected:
        raise InputError(
            f"{layout.folder}/{name} has {len(content):,} bytes, {count:,} records make"
            f" {expected:,}: the file is truncated or of another set, unpack the archive again"
        )
    records = np.frombuffer(content, np.uint8).reshape(count, layout.record_bytes)
    label_bytes, pixels = np.split(records, [len(layout.label_classes)], axis=1)
    _check_labels(layout, name, label_bytes)
    planes = pixels.reshape(count, _PLANES, _SIDE, _SIDE)
    return LabelledImages(
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=label_bytes[:, -1].astype(np.int32),
    )


def _check_labels(
    layout: BinaryLayout, name: str, label_bytes: UInt8[np.ndarray, "samples labels"]
) -> None:
    wrong = label_bytes >= np.asarray(layout.label_classes)[None]
    if wrong.any():
        record, position = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"{layout.folder}/{name}: record {record} has label {label_bytes[record, position]},"
            f" labels run from 0 to {layout.label_classes[position] - 1}: the file is damaged or"
            " of another set, unpack the archive again"
        )
