"""The registry, the digits split, held-out validation."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from eenet_jax.config import DataConfig
from eenet_jax.data import datasets
from eenet_jax.data.permutation import permutation
from eenet_jax.data.statistics import channel_statistics
from eenet_jax.errors import InputError


def test_the_registry_knows_its_sets():
    assert datasets.names()[:3] == ("digits", "cifar10", "cifar100")
    assert datasets.get("digits").num_classes == 10
    assert datasets.get("cifar100").num_classes == 100
    assert datasets.get("cifar10").image_shape == (32, 32, 3)
    assert datasets.get("cifar100").class_names[0] == "apple"
    assert datasets.get("cifar100").class_names[99] == "worm"
    assert list(datasets.get("cifar100").class_names) == sorted(
        datasets.get("cifar100").class_names
    )


def test_an_unknown_set_or_split_is_named_with_the_known_ones():
    with pytest.raises(InputError, match=r"'cifar'.*digits, cifar10, cifar100, "):
        datasets.get("cifar")
    with pytest.raises(InputError, match=r"'dev'.*train, val, test"):
        datasets.open_split("digits", "dev")


def test_digits_splits_share_out_every_image_once():
    parts = {split: datasets.open_split("digits", split) for split in datasets.SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 1_137,
        "val": 300,
        "test": 360,
    }
    ids = np.concatenate([part.ids for part in parts.values()])
    np.testing.assert_array_equal(np.sort(ids), np.arange(1_797))
    assert datasets.prepare("digits", data_dir="unused") is None


def test_digits_are_scikit_learns_with_sixteen_greys_on_a_byte():
    test = datasets.open_split("digits", "test")
    pixels, labels = load_digits(return_X_y=True)
    grey = test.images.reshape(360, 64).astype(float) * 16 / 255
    np.testing.assert_array_equal(np.rint(grey), pixels[test.ids])
    np.testing.assert_array_equal(test.labels, labels[test.ids])
    assert test.images.max() == 255


def test_digits_test_split_holds_each_class_by_its_share():
    test = datasets.open_split("digits", "test")
    shares = np.bincount(load_digits().target) * 360 / 1_797
    assert np.abs(np.bincount(test.labels) - shares).max() <= 1


def test_digits_statistics_are_those_of_its_training_images():
    parts = [datasets.open_split("digits", split).images for split in ("train", "val")]
    pixels = np.concatenate(parts).astype(np.float64) / 255
    spec = datasets.get("digits")
    np.testing.assert_allclose(spec.mean, [pixels.mean()], atol=5e-7)
    np.testing.assert_allclose(spec.std, [pixels.std()], atol=5e-7)


def test_channel_statistics_equal_numpys():
    images = np.random.default_rng(0).integers(0, 200, (11, 4, 5, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), atol=1e-6)


def test_the_seed_and_the_size_choose_what_is_held_out():
    first = datasets.open_split("digits", "val", val_size=100, seed=1)
    again = datasets.open_split("digits", "val", val_size=100, seed=1)
    other = datasets.open_split("digits", "val", val_size=100, seed=2)
    rest = datasets.open_split("digits", "train", val_size=100, seed=1)
    np.testing.assert_array_equal(first.ids, again.ids)
    assert len(first) == 100
    assert len(rest) == 1_337
    assert not set(first.ids) & set(rest.ids)
    assert set(first.ids) != set(other.ids)
    assert len(datasets.open_split("digits", "train", val_size=0)) == 1_437


@pytest.mark.parametrize(("split", "val_size"), [("val", 0), ("train", -1), ("train", 1_437)])
def test_a_validation_size_that_leaves_nothing_is_refused(split, val_size):
    with pytest.raises(InputError, match=f"val_size {val_size} of 1,437"):
        datasets.open_split("digits", split, val_size=val_size)


def test_gather_takes_positions_not_ids():
    test = datasets.open_split("digits", "test")
    batch = test.gather(np.array([5, 0, 5]))
    np.testing.assert_array_equal(batch["id"], test.ids[[5, 0, 5]])
    np.testing.assert_array_equal(batch["image"], test.images[[5, 0, 5]])
    np.testing.assert_array_equal(batch["label"], test.labels[[5, 0, 5]])
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "image": "uint8",
        "label": "int32",
        "id": "int64",
    }


def test_permutations_are_fixed_for_ever():
    # Held-out splits and the order of batches hang on these numbers.
    assert permutation(8, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert permutation(8, 3, 1).tolist() == [7, 3, 5, 6, 4, 0, 2, 1]
    assert sorted(permutation(1_000, 7).tolist()) == list(range(1_000))
    with pytest.raises(InputError, match="seed -1"):
        permutation(8, -1)


@pytest.mark.parametrize("name", ["resized_crop_flip", "scale_crop_flip"])
def test_an_augmentation_that_a_set_cannot_have_is_refused(name):
    config = DataConfig(dataset="digits", augmentation=name)
    with pytest.raises(InputError, match=f"'{name}', which digits can't have: choose one of none"):
        datasets.open_config_split(config, "train", "data")
    with pytest.raises(InputError, match=r"crop_shape is \(4, 4\), but digits is never cropped"):
        datasets.open_config_split(DataConfig(dataset="digits", crop_shape=(4, 4)), "test", "data")
