"""Which samples of a stream can share a batch, and which the network can't take at all."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from eenet_jax.errors import InputError
from eenet_jax.types import PyTree, StagedNetwork

TOKENS = ("attention_mask", "input_ids")
SHORTEST = 8


class Lanes:
    """Checks samples, and puts those of one shape into one lane.

    Args:
      network: That takes them.
      lengths: Of tokens, that texts are padded to; by default powers of two from 8 up to the
        network's own length, and that.

    Raises:
      InputError: a length is not positive.
    """

    def __init__(self, network: StagedNetwork, lengths: Sequence[int] | None = None):
        self._tokens = network.inputs == "tokens"
        self._shape = tuple(network.input_shape)
        longest = self._shape[0]
        if lengths is None:
            powers = [1 << i for i in range(longest.bit_length())]
            lengths = [size for size in powers if SHORTEST <= size < longest] + [longest]
        if min(lengths, default=0) < 1:
            raise InputError(f"lengths {list(lengths)} must be one or more, all at least 1")
        self._lengths = sorted(lengths)

    def place(self, x: PyTree) -> tuple[Hashable, PyTree]:
        """The lane of a sample, and the sample as the lane takes it.

        Args:
          x: An image [height, width, channels] of numbers, or a dict of `input_ids` [tokens]
            and optionally `attention_mask` [tokens].

        Raises:
          InputError: the network can't take it.
        """
        return self._text(x) if self._tokens else self._image(x)

    def _image(self, x: Any) -> tuple[Hashable, np.ndarray]:
        image = _numbers(x, "the image")
        if image.shape != self._shape:
            raise InputError(f"the image has shape {image.shape}: this network takes {self._shape}")
        image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise InputError("the image has numbers that are not finite: give finite ones")
        return self._shape, image

    def _text(self, x: Any) -> tuple[Hashable, Mapping[str, np.ndarray]]:
        if not isinstance(x, Mapping) or "input_ids" not in x:
            raise InputError("the text is no dict with `input_ids`: tokenise it first")
        unknown = sorted(set(map(str, x)) - set(TOKENS))
        if unknown:
            raise InputError(f"the text has {', '.join(unknown)}: give {' and '.join(TOKENS)}")
        ids = _whole_numbers(x["input_ids"], "input_ids")
        mask = _whole_numbers(x.get("attention_mask", np.ones_like(ids)), "attention_mask")
        longest = self._lengths[-1]
        if ids.ndim != 1 or not 1 <= len(ids) <= longest or mask.shape != ids.shape:
            raise InputError(
                f"the text has input_ids {ids.shape} and attention_mask {mask.shape}: give both"
                f" the same length, from 1 to {longest}"
            )
        if ids.min() < 0 or not np.isin(mask, (0, 1)).all() or not mask.any():
            raise InputError("the text has a negative id, or a mask that is not 0 and 1, or only 0")
        length = next(size for size in self._lengths if size >= len(ids))
        fill = (0, length - len(ids))
        return length, {"attention_mask": np.pad(mask, fill), "input_ids": np.pad(ids, fill)}


def _numbers(x: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(x)
    except ValueError:
        raise InputError(f"{what} is no array: give numbers of one shape") from None
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise InputError(f"{what} is of {array.dtype}: give numbers")
    return array


def _whole_numbers(x: Any, what: str) -> np.ndarray:
    array = _numbers(x, what)
    if array.dtype.kind not in "biu":
        raise InputError(f"{what} is of {array.dtype}: give whole numbers")
    return array.astype(np.int32)
