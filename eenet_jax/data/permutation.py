"""Permutations that are the same on every machine and in every version of NumPy."""

import numpy as np
from jaxtyping import Int64

from eenet_jax.errors import InputError


def permutation(size: int, *words: int) -> Int64[np.ndarray, " size"]:
    """A pseudorandom permutation of 0..size-1.

    NumPy promises the raw stream of a bit generator for ever, but not `Generator.permutation`;
    so samples are ordered by 64 raw bits each.

    Args:
      size: Number of samples.
      words: One or two seeds, each from 0 to 2**64 - 1.

    Raises:
      InputError: a seed out of range.
    """
    if not all(0 <= word < 2**64 for word in words):
        raise InputError(f"seed {words[0]} is out of range: give one from 0 to {2**64 - 1}")
    key = np.zeros(2, np.uint64)
    key[: len(words)] = words
    raw = np.random.Philox(key=key).random_raw(size)
    return np.argsort(raw, kind="stable").astype(np.int64)
