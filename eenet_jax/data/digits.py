"""scikit-learn's embedded handwritten digits, in a split of our own: it comes without one."""

import functools

import numpy as np
from jaxtyping import Int64

from eenet_jax.data.labelled_images import LabelledImages
from eenet_jax.data.permutation import permutation

TEST_SIZE = 360
_SPLIT_SEED = 1797
_GREATEST_GREY = 16


@functools.lru_cache(maxsize=1)
def read_digits() -> dict[str, tuple[LabelledImages, Int64[np.ndarray, " samples"]]]:
    """The 1,797 images, greys 0..16 scaled to 0..255, as 1,437 for training and 360 for test.

    Returns:
      Split name → (images uint8 [samples, 8, 8, 1] with labels, index in scikit-learn's set).
    """
    # Imported here because scikit-learn takes seconds to import.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / _GREATEST_GREY)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    is_test = _stratified(labels, TEST_SIZE)
    return {
        split: (LabelledImages(images=images[ids], labels=labels[ids]), ids)
        for split, ids in (("train", np.flatnonzero(~is_test)), ("test", np.flatnonzero(is_test)))
    }


def _stratified(labels: np.ndarray, size: int) -> np.ndarray:
    # Sorted by class and shuffled within it, every (N / size)-th sample is chosen: each class
    # gives its share to within one.
    shuffled = permutation(len(labels), _SPLIT_SEED)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    quota = np.arange(len(labels) + 1) * size // len(labels)
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[np.diff(quota) == 1]] = True
    return chosen
