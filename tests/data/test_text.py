"""Texts: the publishers' files, tokens, buckets, batches."""

import json
from pathlib import Path

import numpy as np
import pytest
from text_sets import VOCABULARY, write_ag_news, write_sst2, write_tokenizer

from eenet_jax.config import DataConfig
from eenet_jax.data import datasets, pipeline
from eenet_jax.errors import InputError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder with SST-2, its sentences, and the folder of a tokenizer."""
    root = tmp_path_factory.mktemp("texts")
    written = write_sst2(root / "SST-2")
    datasets.prepare("sst2", data_dir=root / "data", source=root)
    return root / "data", written, str(write_tokenizer(root / "encoder"))


def opened(prepared, split, **settings):
    data_dir, _, tokenizer = prepared
    config = DataConfig(dataset="sst2", tokenizer=tokenizer, **settings)
    return datasets.open_config_split(config, split, data_dir)


def ids_of(text: str) -> list[int]:
    return [VOCABULARY["[CLS]"], *(VOCABULARY[word] for word in text.split()), VOCABULARY["[SEP]"]]


@pytest.mark.parametrize(("split", "file"), [("train", "train"), ("val", "dev"), ("test", "test")])
def test_splits_are_the_publishers_with_their_tokens(prepared, split, file):
    found, expected = opened(prepared, split), prepared[1][file]
    assert len(found) == len(expected)
    for n, (text, label) in enumerate(expected):
        batch = found.gather(np.asarray([n]))
        kept = batch["attention_mask"][0].astype(bool)
        assert batch["input_ids"][0][kept].tolist() == ids_of(text)
        assert not batch["input_ids"][0][~kept].any()
        assert batch["label"].tolist() == [label]


def test_training_sentences_can_be_held_out_instead(prepared):
    parts = [opened(prepared, split, val_size=20) for split in ("train", "val")]
    assert [len(part) for part in parts] == [70, 20]
    ids = np.concatenate([part.ids for part in parts])
    np.testing.assert_array_equal(np.sort(ids), np.arange(90))
    for part in parts:
        batch = part.gather(np.arange(len(part)))
        texts = [ids_of(prepared[1]["train"][i][0]) for i in part.ids]
        np.testing.assert_array_equal(batch["attention_mask"].sum(1), [len(t) for t in texts])


def test_batches_are_never_padded_past_the_longest_of_their_bucket(prepared):
    train = opened(prepared, "train")
    bounds = [0, 8, 16, 24, 32, 48]
    batches = pipeline.train_batches(train, batch_size=9, seed=0)
    widths = set()
    for _ in range(10):
        batch = next(batches)
        lengths = batch["attention_mask"].sum(1)
        upper = next(bound for bound in bounds if bound >= lengths.max())
        lower = bounds[bounds.index(upper) - 1]
        alike = train.lengths[(train.lengths > lower) & (train.lengths <= upper)]
        assert batch["input_ids"].shape[1] == alike.max()
        widths.add(batch["input_ids"].shape[1])
    assert len(widths) == 5


def test_an_epoch_has_every_text_once_and_batches_come_in_a_new_order(prepared):
    train = opened(prepared, "train")
    batches = pipeline.train_batches(train, batch_size=9, seed=0)
    epochs = [[next(batches) for _ in range(10)] for _ in range(2)]
    for epoch in epochs:
        ids = np.concatenate([batch["id"] for batch in epoch])
        np.testing.assert_array_equal(np.sort(ids), np.arange(90))
        widths = [batch["input_ids"].shape[1] for batch in epoch]
        assert widths != sorted(widths)
    assert [b["id"].tolist() for b in epochs[0]] != [b["id"].tolist() for b in epochs[1]]
    resumed = pipeline.train_batches(train, batch_size=9, seed=0)
    for _ in range(4):
        next(resumed)
    state = resumed.get_state()
    other = pipeline.train_batches(train, batch_size=9, seed=0)
    other.set_state(state)
    np.testing.assert_array_equal(next(other)["id"], epochs[0][4]["id"])


def test_buckets_waste_less_than_one_width_for_all(prepared):
    train = opened(prepared, "train")
    batches = pipeline.train_batches(train, batch_size=9, seed=0)
    filled = [next(batches)["attention_mask"] for _ in range(10)]
    tokens = sum(mask.sum() for mask in filled)
    assert tokens / sum(mask.size for mask in filled) > 0.75
    assert tokens / (90 * train.lengths.max()) < 0.6


def test_evaluation_sees_every_text_once_and_says_where_it_stands(prepared):
    val = opened(prepared, "val")
    seen = []
    for batch in pipeline.eval_batches(val, batch_size=8):
        np.testing.assert_array_equal(val.ids[batch["position"]], batch["id"])
        seen += batch["position"][batch["mask"]].tolist()
    assert sorted(seen) == list(range(30))


def test_a_long_text_is_cut_and_an_empty_one_is_its_special_tokens(tmp_path):
    rows = [("1", "a b", "c"), ("2", "", " ".join("d" * 10_000)), ("3", "", ""), ("4", "e", "")]
    write_ag_news(tmp_path / "ag_news_csv", rows)
    datasets.prepare("ag_news", data_dir=tmp_path, source=tmp_path / "ag_news_csv")
    tokenizer = str(write_tokenizer(tmp_path / "encoder"))
    config = DataConfig(dataset="ag_news", tokenizer=tokenizer, max_length=64)
    test = datasets.open_config_split(config, "test", tmp_path)
    assert test.lengths.tolist() == [5, 64, 2, 3]
    batch = test.gather(np.arange(4))
    assert batch["label"].tolist() == [0, 1, 2, 3]
    assert batch["input_ids"][0, :5].tolist() == ids_of("a b c")
    assert batch["input_ids"][1].tolist() == [2] + 62 * [VOCABULARY["d"]] + [3]
    assert batch["input_ids"][2, :2].tolist() == ids_of("")


def test_a_header_is_no_sentence(tmp_path):
    write_sst2(tmp_path / "SST-2", sizes=(5, 4, 3), header=True)
    datasets.prepare("sst2", data_dir=tmp_path, source=tmp_path)
    tokenizer = str(write_tokenizer(tmp_path / "encoder"))
    config = DataConfig(dataset="sst2", tokenizer=tokenizer)
    found = [len(datasets.open_config_split(config, s, tmp_path)) for s in datasets.SPLITS]
    assert found == [5, 4, 3]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "dev.tsv").unlink(), r"does not hold train.tsv, dev.tsv"),
        (lambda folder: (folder / "dev.tsv").write_text(""), r"dev.tsv' has no rows"),
        (lambda folder: (folder / "dev.tsv").write_text("a b\t2\n"), r"line 1 has label '2'"),
        (lambda folder: (folder / "dev.tsv").write_text("a b\n"), r"line 1 has label 'a b'"),
        (lambda folder: (folder / "dev.tsv").write_bytes(b"\xff\t1\n"), r"can't read"),
    ],
)
def test_damaged_files_are_refused_and_nothing_is_written(tmp_path, spoil, message):
    write_sst2(tmp_path / "SST-2")
    spoil(tmp_path / "SST-2")
    with pytest.raises(InputError, match=message):
        datasets.prepare("sst2", data_dir=tmp_path / "data", source=tmp_path)
    assert not (tmp_path / "data").exists()


def test_without_a_source_the_remedy_is_named(tmp_path):
    with pytest.raises(InputError, match=r"pass --from FOLDER with train.tsv, dev.tsv, test.tsv"):
        datasets.prepare("sst2", data_dir=tmp_path)


def test_a_tokenizer_must_be_there_and_be_one(prepared, tmp_path):
    data_dir = prepared[0]

    def open_with(tokenizer):
        config = DataConfig(dataset="sst2", tokenizer=str(tokenizer))
        return datasets.open_config_split(config, "test", data_dir)

    with pytest.raises(InputError, match=r"data.tokenizer is empty"):
        open_with("")
    with pytest.raises(InputError, match=r"no tokenizer at"):
        open_with(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"is no tokenizer"):
        open_with(tmp_path)


def test_a_tokenizer_that_leaves_an_empty_text_without_tokens_is_refused(tmp_path):
    write_ag_news(tmp_path / "ag_news_csv", [("1", "a", ""), ("2", "", "")])
    datasets.prepare("ag_news", data_dir=tmp_path, source=tmp_path)
    bare = str(write_tokenizer(tmp_path / "bare", special=False))
    with pytest.raises(InputError, match=r"adds no special tokens"):
        datasets.open_config_split(DataConfig(dataset="ag_news", tokenizer=bare), "test", tmp_path)


def test_what_counts_of_a_vocabulary_is_its_greatest_id(prepared, tmp_path):
    data_dir, _, tokenizer = prepared
    stored = json.loads((Path(tokenizer) / "tokenizer.json").read_text())
    stored["model"]["vocab"]["h"] = 500
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    config = DataConfig(dataset="sst2", tokenizer=str(tmp_path))
    assert datasets.open_config_split(config, "test", data_dir).vocab_size == 501


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"augmentation": "shift"}, r"'shift', which sst2 can't have: choose one of none"),
        ({"crop_shape": (8, 8)}, r"crop_shape is \(8, 8\), but sst2 is never cropped"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(prepared, setting, message):
    with pytest.raises(InputError, match=message):
        opened(prepared, "train", **setting)
