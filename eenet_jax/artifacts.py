"""Writing artifacts so that a reader never sees half of one: write aside, then rename."""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eenet_jax.errors import InputError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it vanishes.

    Args:
      path: The file to write. Missing parent folders are made.
    """
    path = Path(path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
        )
        os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with _writing(path):
            # mkstemp makes private files; an artifact gets the permissions of any new file.
            aside.chmod(0o666 & ~_umask())
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Like `replacing`, for a whole folder; an existing folder at `path` is replaced.

    On failure the parents that were made for it vanish too.
    """
    path = Path(path)
    new_parents = [parent for parent in path.parents if not parent.exists()]
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = aside.with_name(f"{aside.name}.old")
    try:
        yield aside
        with _writing(path):
            aside.chmod(0o777 & ~_umask())
            # Two renames, so that no moment shows a folder that is half deleted.
            if path.exists():
                path.replace(old)
            aside.replace(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(OSError):  # Not empty: somebody else's by now, or ours and done.
            for parent in new_parents:
                parent.rmdir()


def check_folder(path: str | Path) -> None:
    """Raise InputError unless files can be made in the folder; for use before long work.

    A folder that is not there yet isn't after this either.
    """
    path = Path(path)
    missing = [each for each in (path, *path.parents) if not each.exists()]
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
        for each in missing:
            each.rmdir()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What goes wrong with the disk is the user's to mend, so it is told as one line."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"can't write '{path}' ({error.strerror or error}): give another place or make room"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one step."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` in one step."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, what: str = "JSON file", remedy: str = "make it again") -> Any:
    """Read JSON.

    Args:
      path: The file.
      what: It is, for messages.
      remedy: Where it is damaged.

    Raises:
      InputError: the file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no {what} at '{path}': check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' is not a readable {what} ({error}): {remedy}") from None


def read_npz(path: str | Path, what: str, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an archive; nothing in it is unpickled.

    Args:
      path: The file.
      what: It is, for messages.
      remedy: Where it is no archive.

    Raises:
      InputError: the file is missing or is no archive.
    """
    path = Path(path)
    try:
        # Opened here: numpy leaves open what turns out to be no archive.
        with path.open("rb") as source:
            archive = np.load(source, allow_pickle=False)
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"no {what} at '{path}': check the path") from None
    except (
        OSError, ValueError, AttributeError, EOFError, NotImplementedError, RuntimeError,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise InputError(f"'{path}' is not a readable .npz archive ({error}): {remedy}") from None


def sha256_of(path: str | Path) -> str:
    """A file's SHA-256 in hexadecimal digits."""
    with Path(path).open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def write_csv(path: str | Path, lines: Iterable[Sequence[Any]]) -> None:
    """Write lines of cells as CSV in one step.

    Args:
      path: The file.
      lines: The header first.
    """
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows(lines)
    write_text(path, sink.getvalue())
