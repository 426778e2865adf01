"""Augmentation and normalisation against plain NumPy."""

import jax
import numpy as np
import pytest

from eenet_jax.data import augment
from eenet_jax.errors import InputError

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 8, 8, 3), dtype=np.uint8)


def cropped(image, pad, row, column, flipped):
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * pad, width + 2 * pad, image.shape[2]), np.uint8)
    padded[pad : pad + height, pad : pad + width] = image
    crop = padded[row : row + height, column : column + width]
    return crop[:, ::-1] if flipped else crop


def test_pad_crop_flip_equals_numpy_at_the_same_draws():
    key = jax.random.key(4)
    offsets, flips = (np.asarray(draw) for draw in augment.pad_crop_flip_draws(key, len(IMAGES)))
    expected = [
        cropped(image, 4, row, column, flip)
        for image, (row, column), flip in zip(IMAGES, offsets, flips, strict=True)
    ]
    result = jax.jit(augment.augment, static_argnums=2)(key, IMAGES, "pad_crop_flip")
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.stack(expected))


def test_shift_equals_numpy_at_the_same_draws():
    key = jax.random.key(9)
    offsets = np.asarray(augment.shift_draws(key, len(IMAGES)))
    expected = [
        cropped(image, 1, row, column, False)
        for image, (row, column) in zip(IMAGES, offsets, strict=True)
    ]
    result = jax.jit(augment.augment, static_argnums=2)(key, IMAGES, "shift")
    np.testing.assert_array_equal(result, np.stack(expected))


def test_draws_cover_their_range_evenly_and_differ_from_image_to_image():
    offsets, flips = augment.pad_crop_flip_draws(jax.random.key(0), 9_000)
    for axis in range(2):
        counts = np.bincount(np.asarray(offsets)[:, axis], minlength=9)
        # Five standard deviations of a binomial count with mean 1,000.
        assert np.abs(counts - 1_000).max() < 5 * np.sqrt(9_000 * 1 / 9 * 8 / 9)
    assert abs(float(np.asarray(flips).mean()) - 0.5) < 5 * 0.5 / np.sqrt(9_000)
    assert abs(np.corrcoef(np.asarray(offsets).T)[0, 1]) < 0.06
    shifts = np.asarray(augment.shift_draws(jax.random.key(0), 900))
    assert set(map(tuple, shifts.tolist())) == {(i, j) for i in range(3) for j in range(3)}


def test_the_key_alone_decides():
    one, same, other = (
        np.asarray(augment.augment(jax.random.key(seed), IMAGES, "pad_crop_flip"))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_none_leaves_the_images_alone():
    np.testing.assert_array_equal(augment.augment(jax.random.key(0), IMAGES, "none"), IMAGES)


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(InputError, match=r"'cutout': choose from pad_crop_flip, shift, none"):
        augment.augment(jax.random.key(0), IMAGES, "cutout")


def test_normalize_equals_numpy():
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (IMAGES.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    result = augment.normalize(IMAGES, mean, std)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)
