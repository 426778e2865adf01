"""Texts: kept as the publisher wrote them, tokenised as they are opened, bucketed by length."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64

from eenet_jax.artifacts import read_json, write_json
from eenet_jax.config import DataConfig
from eenet_jax.data.builders.text_files import TextFiles, read_text_files
from eenet_jax.data.split import Batch, DatasetSpec, Format, Rows, Split, own_rows
from eenet_jax.errors import InputError

BUCKET_BOUNDS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""The greatest length, in tokens, of each bucket but the last, which has no bound."""

TOKENIZER_FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextSplit(Split):
    """Token ids of a split, in memory.

    Attributes:
      tokens: Of all texts, one after the other, special ones included, int32.
      starts: Where each text begins, and where the last one ends, int64.
      labels: int32 [samples].
      vocab_size: One more than the tokenizer's greatest id.
      pad_id: The id that fills up a batch; masked, so that it never counts.
    """

    tokens: Int32[np.ndarray, " tokens"]
    starts: Int64[np.ndarray, " borders"]
    labels: Int32[np.ndarray, " samples"]
    vocab_size: int
    pad_id: int

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " samples"]:
        """Tokens of each text."""
        return np.diff(self.starts)

    @functools.cached_property
    def _widths(self) -> Int64[np.ndarray, " buckets"]:
        """The longest text of each bucket: what its batches are padded to."""
        widths = np.zeros(len(BUCKET_BOUNDS) + 1, np.int64)
        np.maximum.at(widths, _buckets(self.lengths), self.lengths)
        return widths

    def gather(self, indices: Int[np.ndarray, " batch"], rows: Rows | None = None) -> Batch:
        """See `Split.gather`; padded to the longest text in the bucket of the longest here."""
        # The whole batch's width, for every process's rows are a part of one array.
        width = int(self._widths[_buckets(self.lengths[indices]).max()])
        indices = own_rows(indices, rows)
        places = np.arange(width)[None]
        mask = places < self.lengths[indices][:, None]
        within = np.where(mask, self.starts[indices][:, None] + places, 0)
        return {
            "input_ids": np.where(mask, self.tokens[within], self.pad_id).astype(np.int32),
            "attention_mask": mask.astype(np.int32),
            "label": self.labels[indices],
            "id": self.ids[indices],
        }

    def gather_training(
        self,
        indices: Int[np.ndarray, " batch"],
        draw: np.random.Generator,
        rows: Rows | None = None,
    ) -> Batch:
        """See `Split.gather_training`; texts are not augmented."""
        del draw
        return self.gather(indices, rows)

    def take(self, chosen: Int64[np.ndarray, " kept"], split: str) -> "TextSplit":
        """See `Split.take`."""
        texts = [self.tokens[self.starts[i] : self.starts[i + 1]] for i in chosen]
        tokens, starts = _joined(texts)
        return dataclasses.replace(
            self,
            split=split,
            tokens=tokens,
            starts=starts,
            labels=self.labels[chosen],
            ids=self.ids[chosen],
            buckets=_buckets(np.diff(starts)),
        )


def _buckets(lengths: Int64[np.ndarray, " samples"]) -> Int64[np.ndarray, " samples"]:
    return np.searchsorted(np.asarray(BUCKET_BOUNDS), lengths).astype(np.int64)


def _joined(texts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return np.concatenate(texts).astype(np.int32), starts


@dataclasses.dataclass(frozen=True)
class Texts(Format):
    """Labelled texts, kept as one JSON file a split.

    Attributes:
      layout: Of the publisher's files.
    """

    layout: TextFiles

    def write(self, spec: DatasetSpec, source: str | Path | None, folder: Path) -> None:
        """See `Format.write`: all of it is read and checked before anything is written."""
        for part, found in read_text_files(self.layout, source).items():
            write_json(folder / f"{part}.json", {"texts": found.texts, "labels": found.labels})

    def read(self, spec: DatasetSpec, folder: Path, part: str, settings: DataConfig) -> TextSplit:
        """See `Format.read`; texts are cut at `settings.max_length` tokens."""
        path = tokenizer_path(settings.tokenizer)
        stored = folder / f"{part}.json"
        stamps = (stored.stat().st_mtime_ns, path.stat().st_mtime_ns)
        tokens, starts, labels, vocab_size, pad_id = _tokenised(
            stored.resolve(), path.resolve(), settings.max_length, stamps
        )
        return TextSplit(
            spec=spec,
            split=part,
            ids=np.arange(len(labels)),
            buckets=_buckets(np.diff(starts)),
            tokens=tokens,
            starts=starts,
            labels=labels,
            vocab_size=vocab_size,
            pad_id=pad_id,
        )


def tokenizer_path(tokenizer: str) -> Path:
    """The tokenizer's file, from its own path or that of the folder that holds it.

    Raises:
      InputError: there is none.
    """
    if not tokenizer:
        raise InputError(
            f"data.tokenizer is empty: give the encoder's {TOKENIZER_FILE}, or the folder with it"
        )
    path = Path(tokenizer)
    path = path / TOKENIZER_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"no tokenizer at '{path}': give data.tokenizer the encoder's {TOKENIZER_FILE},"
            " or the folder with it"
        )
    return path


def load_tokenizer(path: Path, max_length: int) -> Any:
    """A Hugging Face tokenizer that cuts at `max_length` tokens and doesn't pad.

    Raises:
      InputError: the file is none.
    """
    # Imported here because images have no need of it.
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises plain Exception.
        raise InputError(f"'{path}' is no tokenizer ({error}): copy it again") from None
    tokenizer.enable_truncation(max_length)
    tokenizer.no_padding()
    return tokenizer


@functools.lru_cache(maxsize=4)
def _tokenised(path: Path, tokenizer_file: Path, max_length: int, stamps: tuple[int, ...]):
    """Tokens, starts, labels, vocabulary size and padding id; time stamps tell files made anew."""
    del stamps
    tokenizer = load_tokenizer(tokenizer_file, max_length)
    stored = read_json(path, "texts")
    encoded = tokenizer.encode_batch_fast(stored["texts"])
    tokens, starts = _joined([each.ids for each in encoded])
    if np.diff(starts).min() == 0:
        raise InputError(
            f"'{tokenizer_file}' adds no special tokens, so that an empty text has none at all:"
            " give the encoder's own tokenizer"
        )
    pad_id = tokenizer.token_to_id("[PAD]")
    return (
        tokens,
        starts,
        np.asarray(stored["labels"], np.int32),
        # Ids may have gaps: what counts is the greatest.
        max(tokenizer.get_vocab().values()) + 1,
        0 if pad_id is None else pad_id,
    )
