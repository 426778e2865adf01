"""The publishers' text files: SST-2's tab-separated sentences and AG News' CSV."""

import csv
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from eenet_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFiles:
    """What a publisher's folder holds.

    Attributes:
      folder: Its name, for a source that holds it.
      files: Split name → file name.
      kind: "tsv" (sentence, tab, label from 0, perhaps below a header) or "csv" (label from 1,
        then fields that make up the text).
      num_classes: Labels there are.
    """

    folder: str
    files: Mapping[str, str]
    kind: str
    num_classes: int


SST2 = TextFiles(
    folder="SST-2",
    files={"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"},
    kind="tsv",
    num_classes=2,
)
AG_NEWS = TextFiles(
    folder="ag_news_csv",
    files={"train": "train.csv", "test": "test.csv"},
    kind="csv",
    num_classes=4,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """A publisher's split, in the publisher's order.

    Attributes:
      texts: As published; may be empty.
      labels: From 0.
    """

    texts: list[str]
    labels: list[int]


def read_text_files(layout: TextFiles, source: str | Path | None) -> dict[str, LabelledTexts]:
    """Read and check every split.

    Args:
      layout: What to expect.
      source: The folder with the files, or one that holds that folder.

    Returns:
      Split name → its texts and labels.

    Raises:
      InputError: a file is missing, empty or not UTF-8, or a row has no known label.
    """
    wanted = ", ".join(layout.files.values())
    if source is None:
        raise InputError(
            f"{layout.folder} can't be downloaded here: pass --from FOLDER with {wanted} in it"
        )
    for folder in (Path(source), Path(source) / layout.folder):
        if all((folder / name).is_file() for name in layout.files.values()):
            return {part: _read(layout, folder / name) for part, name in layout.files.items()}
    there = "does not hold" if Path(source).is_dir() else "is no folder with"
    raise InputError(f"'{source}' {there} {wanted}: give the folder that does, {layout.folder}/")


def _read(layout: TextFiles, path: Path) -> LabelledTexts:
    rows = _tsv_rows(path) if layout.kind == "tsv" else _csv_rows(path)
    try:
        found = [(text, _label(layout, path, line, label)) for line, text, label in rows]
    except (UnicodeDecodeError, OSError, csv.Error) as error:
        raise InputError(f"can't read '{path}' ({error}): unpack the archive again") from None
    if not found:
        raise InputError(f"'{path}' has no rows: unpack the archive again")
    first = 0 if layout.kind == "tsv" else 1
    return LabelledTexts(
        texts=[text for text, _ in found], labels=[label - first for _, label in found]
    )


def _tsv_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, sentence and label; quotes are part of the sentence."""
    with path.open(encoding="utf-8", newline="\n") as source:
        for line, row in enumerate(source, start=1):
            text, _, label = row.rstrip("\r\n").rpartition("\t")
            if not (line == 1 and (text, label) == ("sentence", "label")):
                yield line, text.strip(), label


def _csv_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, the fields after the first joined by spaces, and the first."""
    with path.open(encoding="utf-8", newline="") as source:
        rows = csv.reader(source)
        for label, *fields in filter(None, rows):
            yield rows.line_num, " ".join(filter(None, map(str.strip, fields))), label


def _label(layout: TextFiles, path: Path, line: int, label: str) -> int:
    first = 0 if layout.kind == "tsv" else 1
    last = first + layout.num_classes - 1
    if not (label.isascii() and label.isdigit() and first <= int(label) <= last):
        raise InputError(
            f"'{path}' line {line} has label {label[:20]!r}, labels run from {first} to {last}:"
            " it is not labelled, or is another set's file"
        )
    return int(label)
