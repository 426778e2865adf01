"""Which samples of a stream can share a batch: those of one shape."""

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from eenet_jax.errors import InputError
from eenet_jax.execution.buckets import bucket_sizes
from eenet_jax.execution.samples import TOKENS, checked_floats, checked_shape, checked_tokens
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import PyTree


class Lanes:
    """Checks samples, and puts those of one shape into one lane.

    Args:
      network: That takes them.
      lengths: Of tokens, that texts are padded to; by default powers of two from 8 up to the
        longest that the network takes, and that.

    Raises:
      InputError: a length is not positive, or longer than the network takes.
    """

    def __init__(self, network: StagedNetwork, lengths: Sequence[int] | None = None):
        self._network, self._lengths = network, ()
        longest = network.max_length
        if longest is not None:
            self._lengths = tuple(sorted(lengths)) if lengths is not None else bucket_sizes(longest)
            if not self._lengths or self._lengths[0] < 1 or self._lengths[-1] > longest:
                raise InputError(
                    f"lengths {self._lengths} must be one or more, from 1 to {longest}"
                )

    @property
    def count(self) -> int:
        """How many lanes there may be."""
        return max(1, len(self._lengths))

    def place(self, x: PyTree) -> tuple[Hashable, PyTree]:
        """The lane of a sample, and the sample as the lane takes it.

        Args:
          x: A normalised image [height, width, channels], or a dict of `input_ids` [tokens] and
            optionally `attention_mask` [tokens].

        Raises:
          InputError: the network can't take it.
        """
        if not self._lengths:
            shape = tuple(self._network.input_shape)
            # The common case, for a stream's own work counts.
            plain = isinstance(x, np.ndarray) and x.dtype == np.float32 and x.shape == shape
            if plain and np.isfinite(x).all():
                return shape, x
            image = checked_floats(checked_shape(_alone(x), shape))
            return shape, np.asarray(image)[0]
        if _are_plain(x, self._lengths, self._network.vocab_size):
            return len(x["input_ids"]), x
        tokens = checked_tokens(_batch_of_one(x), self._lengths[-1], self._network.vocab_size)
        length = next(size for size in self._lengths if size >= tokens["input_ids"].shape[1])
        return length, {name: _filled_up(ids[0], length) for name, ids in tokens.items()}


def _are_plain(x: Any, lengths: Sequence[int], vocab_size: int | None) -> bool:
    """Whether these are tokens as a lane takes them: for texts the common case."""
    if type(x) is not dict or vocab_size is None or x.keys() != set(TOKENS):
        return False
    for ids in x.values():
        if type(ids) is not np.ndarray or ids.dtype != np.int32 or ids.ndim != 1:
            return False
    ids = x["input_ids"]
    same = ids.shape == x["attention_mask"].shape and ids.size in lengths
    # Negative ones are large ones without their sign.
    return same and ids.view(np.uint32).max() < vocab_size


def _batch_of_one(x: Any) -> Any:
    """Tokens without a mask all count."""
    if not isinstance(x, Mapping):
        return x
    alone = {name: _alone(value) for name, value in x.items()}
    if "input_ids" in alone and "attention_mask" not in alone:
        with contextlib.suppress(ValueError):  # What is no array is found so soon.
            alone["attention_mask"] = np.ones(np.shape(alone["input_ids"]), np.int32)
    return alone


def _filled_up(ids: np.ndarray, length: int) -> np.ndarray:
    filled = np.zeros(length, ids.dtype)
    filled[: len(ids)] = ids
    return filled


def _alone(x: Any) -> Any:
    """A batch of one; what is no array stays what it is, to be found so."""
    return x[None] if isinstance(x, np.ndarray | jax.Array) else [x]
