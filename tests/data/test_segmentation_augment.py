"""Scale, crop and flip of images and their labels, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eenet_jax.data import segmentation_augment
from eenet_jax.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (3, 7, 9, 3), dtype=np.uint8)
LABELS = RNG.integers(-1, 4, (3, 7, 9)).astype(np.int32)
AUGMENT = jax.jit(segmentation_augment.augment, static_argnums=(3, 4))
AT = jax.jit(segmentation_augment.scale_crop_flip, static_argnums=3)


def at(scale, row, column, flip, crop=(), count=1):
    """The crop of the first images at one draw for all."""
    drawn = (
        jnp.full(count, scale, jnp.float32),
        jnp.tile(jnp.asarray([[row, column]], jnp.float32), (count, 1)),
        jnp.full(count, flip),
    )
    images, labels = AT(drawn, IMAGES[:count], LABELS[:count], crop)
    return np.asarray(images), np.asarray(labels)


def expected_pixel(image, labels, y, x):
    """One pixel at (y, x) in the image's own pixels, 0 being the first one's centre."""
    height, width, _ = image.shape
    if not (-0.5 <= y < height - 0.5 and -0.5 <= x < width - 0.5):
        return np.zeros(3), -1
    nearest = labels[int(np.floor(y + 0.5)), int(np.floor(x + 0.5))]
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = y - top, x - left
    upper = image[top, left] * (1 - along) + image[top, right] * along
    lower = image[bottom, left] * (1 - along) + image[bottom, right] * along
    return upper * (1 - down) + lower * down, nearest


def test_scale_one_and_the_own_size_change_nothing():
    images, labels = at(1.0, 0.3, 0.7, False, count=3)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_a_flip_mirrors_image_and_labels():
    images, labels = at(1.0, 0.0, 0.0, True, count=3)
    np.testing.assert_array_equal(images, IMAGES[:, :, ::-1])
    np.testing.assert_array_equal(labels, LABELS[:, :, ::-1])


def test_a_crop_lies_where_it_was_drawn():
    images, labels = at(1.0, 0.5, 1.0, False, crop=(3, 5))
    np.testing.assert_array_equal(images[0], IMAGES[0, 2:5, 4:9])
    np.testing.assert_array_equal(labels[0], LABELS[0, 2:5, 4:9])


def test_what_lies_outside_is_black_and_has_no_label():
    images, labels = at(1.0, 0.0, 1.0, False, crop=(9, 12))
    # Placed at 0, the crop begins with the image; at 1, it ends with it.
    np.testing.assert_array_equal(images[0], np.pad(IMAGES[0], ((0, 2), (3, 0), (0, 0))))
    padded = np.pad(LABELS[0], ((0, 2), (3, 0)), constant_values=-1)
    np.testing.assert_array_equal(labels[0], padded)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("scale", "crop"), [(2.0, (5, 6)), (0.5, (5, 6)), (1.37, (8, 14))])
def test_pixels_are_linear_and_labels_nearest(scale, crop, flip):
    row, column = 0.25, 0.625
    images, labels = at(scale, row, column, flip, crop)
    for i in range(crop[0]):
        for j in range(crop[1]):
            y = (row * (scale * 7 - crop[0]) + i + 0.5) / scale - 0.5
            x = column * (scale * 9 - crop[1]) + (crop[1] - 1 - j if flip else j) + 0.5
            pixel, label = expected_pixel(IMAGES[0], LABELS[0], y, x / scale - 0.5)
            np.testing.assert_allclose(images[0, i, j], pixel, atol=0.51)
            assert labels[0, i, j] == label


def test_draws_cover_their_range_evenly():
    scales, places, flips = segmentation_augment.draws(jax.random.key(0), 4_000)
    assert (scales.min(), scales.max()) == (
        pytest.approx(0.5, abs=0.01),
        pytest.approx(2, abs=0.01),
    )
    assert float(scales.mean()) == pytest.approx(1.25, abs=5 * 1.5 / np.sqrt(12 * 4_000))
    np.testing.assert_allclose(places.mean(0), 0.5, atol=5 / np.sqrt(12 * 4_000))
    assert float(flips.mean()) == pytest.approx(0.5, abs=2.5 / np.sqrt(4_000))
    assert abs(np.corrcoef(np.stack([scales, *places.T]))[np.triu_indices(3, 1)]).max() < 0.08


def test_the_key_alone_decides_and_images_differ():
    same = np.repeat(IMAGES[:1], 3, 0)
    labels = np.repeat(LABELS[:1], 3, 0)
    one, again, other = (
        np.asarray(AUGMENT(jax.random.key(seed), same, labels, "scale_crop_flip", (4, 4))[0])
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one[0] != one[1]).any()


def test_none_changes_nothing_and_takes_no_crop():
    key = jax.random.key(0)
    images, labels = segmentation_augment.augment(key, IMAGES, LABELS, "none", ())
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    with pytest.raises(InputError, match=r"crop_shape .*leave one of them out"):
        segmentation_augment.augment(key, IMAGES, LABELS, "none", (4, 4))
    with pytest.raises(InputError, match="unknown augmentation 'pad_crop_flip'"):
        segmentation_augment.augment(key, IMAGES, LABELS, "pad_crop_flip", ())
