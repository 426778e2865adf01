"""What is said of an image's pixels, in one row an image: by hand, pixel by pixel."""

import jax
import numpy as np
import pytest

from eenet_jax.dense import confusion, summarise

EXITS, IMAGES, HEIGHT, WIDTH, CLASSES = 2, 3, 4, 5, 3


@pytest.fixture(scope="module")
def made():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(EXITS, IMAGES, HEIGHT, WIDTH, CLASSES)).astype(np.float32)
    labels = draw.integers(-1, CLASSES, (IMAGES, HEIGHT, WIDTH)).astype(np.int32)
    return logits, labels, jax.device_get(jax.jit(summarise)(logits, labels))


def test_confusion_counts_labelled_pixels_alone(made):
    logits, labels, found = made
    said = logits.argmax(-1)
    for k in range(EXITS):
        for n in range(IMAGES):
            expected = np.zeros((CLASSES, CLASSES), int)
            for true, predicted in zip(labels[n].ravel(), said[k, n].ravel(), strict=True):
                if true >= 0:
                    expected[true, predicted] += 1
            np.testing.assert_array_equal(found["confusion"][k, n], expected)


def test_correct_is_the_share_of_labelled_pixels_that_are_right(made):
    logits, labels, found = made
    right = (logits.argmax(-1) == labels[None]) & (labels >= 0)[None]
    expected = right.sum((2, 3)) / (labels >= 0).sum((1, 2))[None]
    np.testing.assert_allclose(found["correct"], expected, rtol=1e-6)


def test_probs_and_entropy_are_means_over_all_pixels(made):
    logits, _, found = made
    pixels = np.asarray(jax.nn.softmax(logits), np.float64)
    np.testing.assert_allclose(found["probs"], pixels.mean((2, 3)), rtol=1e-5)
    entropy = 1 + (pixels * np.log(pixels)).sum(-1) / np.log(CLASSES)
    np.testing.assert_allclose(found["measures"][..., 1], entropy.mean((2, 3)), rtol=1e-4)


def test_an_image_without_labels_counts_nothing():
    said = np.zeros((1, 1, 4), np.int32)
    counts = confusion(said, np.full((1, 4), -1, np.int32), CLASSES)
    assert np.asarray(counts).sum() == 0
