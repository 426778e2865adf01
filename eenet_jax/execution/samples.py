"""What a network can take, checked before anything runs: images and token ids of a batch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eenet_jax.errors import InputError
from eenet_jax.types import Array, PyTree

TOKENS = ("input_ids", "attention_mask")


def checked_shape(images: Any, shape: tuple[int, ...]) -> Array:
    """Images [samples, *shape] of any numbers, at least one.

    Raises:
      InputError: they are none.
    """
    if isinstance(images, Mapping | str | bytes) or images is None:
        raise InputError(f"images are wanted, not {type(images).__name__}: give an array")
    images = images if isinstance(images, jax.Array) else _array(images, "images")
    if images.ndim != len(shape) + 1 or images.shape[1:] != shape:
        raise InputError(
            f"images have shape {tuple(images.shape)}: the network takes"
            f" [samples, {', '.join(map(str, shape))}]"
        )
    check_some(images.shape[0])
    return images


def checked_floats(images: Array) -> Array:
    """Images as float32.

    Raises:
      InputError: they are no floats, or not finite.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images are {images.dtype}: give uint8 to what normalises them, or floats that are"
            " already normalised"
        )
    images = images.astype(np.float32)
    if not np.isfinite(np.asarray(images)).all():
        raise InputError("images hold values that are NaN or infinite: give finite ones")
    return images


def checked_tokens(
    raw: Any, max_length: int | None, vocab_size: int | None
) -> dict[str, np.ndarray]:
    """Token ids and their mask [samples, tokens], int32.

    Args:
      raw: A dict of both.
      max_length: Tokens of the longest text; None for any.
      vocab_size: One more than the greatest id; None where it is not known.

    Raises:
      InputError: the network can't take them.
    """
    if not isinstance(raw, Mapping) or set(raw) != set(TOKENS):
        given = sorted(map(str, raw)) if isinstance(raw, Mapping) else type(raw).__name__
        raise InputError(f"tokens are wanted, not {given}: give {' and '.join(TOKENS)}")
    arrays = {name: _array(raw[name], name) for name in TOKENS}
    ids, mask = (arrays[name] for name in TOKENS)
    if ids.ndim != 2 or mask.shape != ids.shape or ids.shape[1] < 1:
        raise InputError(
            f"input_ids have shape {ids.shape}, attention_mask {mask.shape}: both are"
            " [samples, tokens]"
        )
    check_some(len(ids))
    if max_length is not None and ids.shape[1] > max_length:
        raise InputError(
            f"texts of {ids.shape[1]} tokens: the network takes up to {max_length}; cut them"
        )
    if ids.dtype.kind not in "iu" or mask.dtype.kind not in "iub":
        raise InputError(
            f"input_ids are {ids.dtype}, attention_mask {mask.dtype}: give whole numbers"
        )
    _check_vocabulary(ids[mask != 0], vocab_size)
    return {name: value.astype(np.int32) for name, value in arrays.items()}


def _check_vocabulary(seen: np.ndarray, vocab_size: int | None) -> None:
    end = 2**31 if vocab_size is None else vocab_size
    wrong = seen[(seen < 0) | (seen >= end)]
    if wrong.size:
        raise InputError(f"input_ids hold {wrong[0]}: the vocabulary runs from 0 to {end} - 1")


def check_some(samples: int) -> None:
    """Raise InputError where there are none."""
    if samples < 1:
        raise InputError("no samples are given: give at least one")


def samples_of(x: PyTree) -> list[PyTree]:
    """The samples of a batch one by one, as a stream takes them."""
    x = jax.tree.map(np.asarray, x)
    count = len(jax.tree.leaves(x)[0])
    return [jax.tree.map(lambda leaf, n=n: leaf[n], x) for n in range(count)]


def _array(values: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise InputError(f"{what} are of several shapes: give numbers of one shape") from None
