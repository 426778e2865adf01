"""A tokenizer of a few words, and small text sets in their publishers' layouts."""

import csv
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = tuple("abcdefgh")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}


def write_tokenizer(folder: Path, special: bool = True) -> Path:
    """`tokenizer.json`: one id a word, [CLS] before and [SEP] behind where `special`."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        ends = [(name, VOCABULARY[name]) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=ends
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def sentences(count: int, seed: int, longest: int = 40) -> list[tuple[str, int]]:
    """Random sentences; the label is whether `a` comes first."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, longest + 1, count)
    texts = [" ".join(draw.choice(WORDS[:4], length)) for length in lengths]
    return [(text, int(text.startswith("a"))) for text in texts]


def write_sst2(folder: Path, sizes=(90, 30, 20), header: bool = False) -> dict[str, list]:
    """`SST-2/` with so many training, dev and test sentences."""
    folder.mkdir(parents=True)
    written = {}
    for seed, (name, size) in enumerate(zip(("train", "dev", "test"), sizes, strict=True)):
        written[name] = sentences(size, seed)
        rows = [f"{text}\t{label}" for text, label in written[name]]
        rows = (["sentence\tlabel"] if header else []) + rows
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return written


def write_ag_news(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    """`ag_news_csv/` with the same rows in both files."""
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        with (folder / f"{name}.csv").open("w", newline="") as sink:
            csv.writer(sink, quoting=csv.QUOTE_ALL).writerows(rows)
