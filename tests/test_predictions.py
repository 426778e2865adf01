"""Predictions of a run: every sample once, not augmented, as `network.apply` says by hand."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import tiny_config, write_run

from eenet_jax.data import datasets
from eenet_jax.errors import InputError
from eenet_jax.predictions import load_network, predict
from eenet_jax.training.run import RunFolder
from eenet_jax.types import ExitPredictions

VAL_SIZE = 1200


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictions") / "run"
    network, variables = write_run(folder)
    return folder, network, variables, predict(folder)


def test_the_newest_checkpoint_comes_back_as_it_was(run):
    folder, network, variables, _ = run
    loaded, restored, metadata = load_network(folder)
    assert loaded.settings == network.settings
    assert metadata["step"] == 4
    jax.tree.map(np.testing.assert_array_equal, restored, variables)


@pytest.mark.parametrize(("split", "size"), [("val", VAL_SIZE), ("test", 360)])
def test_probabilities_are_the_softmax_of_the_logits_of_images_as_they_are(run, split, size):
    folder, network, variables, paths = run
    found = ExitPredictions.load(folder / "predictions" / f"{split}.npz")
    assert folder / "predictions" / f"{split}.npz" in paths
    stored = datasets.open_split("digits", split, val_size=VAL_SIZE)
    spec = stored.spec
    # By hand: the pixels as stored, normalised, unaugmented, in one batch.
    images = (stored.images.astype(np.float32) / 255 - spec.mean[0]) / spec.std[0]
    logits = np.asarray(jax.jit(network.apply)(variables, images), np.float64)
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    expected = exponents / exponents.sum(-1, keepdims=True)
    assert found.probs.shape == (2, size, 10)
    np.testing.assert_allclose(found.probs, expected, atol=2e-5)
    accuracy = (logits.argmax(-1) == stored.labels[None]).mean(1)
    np.testing.assert_allclose(found.correctness().mean(1), accuracy, atol=2 / size)
    np.testing.assert_array_equal(found.labels, stored.labels)
    np.testing.assert_array_equal(found.ids, stored.ids)
    assert len(set(found.ids.tolist())) == size


def test_no_sample_is_in_both_splits_nor_among_those_trained_on(run):
    folder = run[0]
    ids = [
        set(ExitPredictions.load(folder / "predictions" / f"{split}.npz").ids.tolist())
        for split in ("val", "test")
    ]
    ids.append(set(datasets.open_split("digits", "train", val_size=VAL_SIZE).ids.tolist()))
    assert sum(len(each) for each in ids) == len(set.union(*ids)) == 1797


def test_the_metadata_say_where_they_come_from(run):
    meta = ExitPredictions.load(run[0] / "predictions" / "test.npz").meta
    assert (meta["dataset"], meta["split"], meta["step"], meta["run"]) == (
        "digits", "test", 4, "tiny",
    )  # fmt: skip
    assert (meta["val_size"], meta["split_seed"]) == (VAL_SIZE, 0)
    assert Path(meta["data_dir"]).name == "data"
    assert meta["class_names"] == list(datasets.get("digits").class_names)


def test_what_cannot_be_predicted_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(InputError, match="holds no run: make one with `eenet train`"):
        predict(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    RunFolder(tmp_path / "begun").claim(tiny_config(), "data")
    with pytest.raises(InputError, match="no checkpoint yet"):
        predict(tmp_path / "begun")
    with pytest.raises(InputError, match="unknown split 'dev': choose from train, val, test"):
        predict(run[0], splits=("test", "dev"))
    (tmp_path / "begun" / "config.json").write_text(json.dumps({"name": "no config"}))
    with pytest.raises(InputError, match="no experiment's config"):
        predict(tmp_path / "begun")
    (tmp_path / "begun" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        predict(tmp_path / "begun")
    assert not (tmp_path / "begun" / "predictions").exists()
