"""What is given to a bundle → what its network takes, checked before anything runs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from eenet_jax.errors import InputError
from eenet_jax.execution.manifest import Manifest
from eenet_jax.execution.samples import (
    TOKENS,
    checked_floats,
    checked_shape,
    checked_tokens,
)
from eenet_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """How samples become inputs of one bundle's network.

    Attributes:
      manifest: Of the bundle.
      preprocess: uint8 images → the network's input; None where the bundle has no such function.
      tokenizer: Cuts at the bundle's length; None where the bundle has none.
    """

    manifest: Manifest
    preprocess: jax.export.Exported | None = None
    tokenizer: Any = None

    def checked(self, raw: PyTree) -> PyTree:
        """Samples that may be cut into batches: an array of images, or token ids with their mask.

        Args:
          raw: As `Bundle.prepare` takes it, or what this has returned.

        Raises:
          InputError: samples that the network doesn't take.
        """
        if self.manifest.inputs == "tokens":
            if not isinstance(raw, Mapping):
                raw = self._texts(raw)
            return checked_tokens(raw, self.manifest.max_length, self.manifest.vocab_size)
        return self._images(raw)

    def converted(self, checked: PyTree) -> PyTree:
        """The network's input, from what `checked` returned or a part of it."""
        if self.manifest.inputs == "image" and checked.dtype == np.uint8:
            assert self.preprocess is not None
            return self.preprocess.call(checked)
        return checked

    def _images(self, raw: Any) -> Array:
        images = checked_shape(raw, self.manifest.input_shape)
        if images.dtype != np.uint8:
            return checked_floats(images)
        if self.preprocess is None:
            raise InputError(
                "images are uint8, and the bundle has no preprocessing: give floats that are"
                " normalised as the network's were"
            )
        return images

    def _texts(self, raw: Any) -> dict[str, np.ndarray]:
        texts = [] if isinstance(raw, str | bytes) else list(raw)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(
                "the bundle takes a list of texts, at least one, or a dict of"
                f" {' and '.join(TOKENS)}: not {type(raw).__name__}"
            )
        if self.tokenizer is None or self.manifest.preprocessing is None:
            raise InputError(f"the bundle has no tokenizer: give {' and '.join(TOKENS)}")
        encoded = [each.ids for each in self.tokenizer.encode_batch(texts)]
        for place, ids in enumerate(encoded):
            if not ids:
                raise InputError(f"text {place} ({texts[place]!r}) has no tokens: leave it out")
        lengths = np.asarray([len(ids) for ids in encoded])
        mask = np.arange(lengths.max())[None] < lengths[:, None]
        tokens = np.full(mask.shape, self.manifest.preprocessing["pad_id"], np.int32)
        tokens[mask] = np.concatenate(encoded)
        return {"input_ids": tokens, "attention_mask": mask.astype(np.int32)}


def read_tokenizer(path: Path, max_length: int) -> Any:
    """The bundle's tokenizer; its file's digest has been checked.

    Args:
      path: Of `tokenizer.json`.
      max_length: Tokens that a text is cut at.
    """
    # Imported here because images have no need of it.
    from eenet_jax.data.text import load_tokenizer

    return load_tokenizer(path, max_length)


def samples_in(checked: PyTree) -> int:
    """How many samples there are in what `Preparation.checked` returned."""
    return jax.tree.leaves(checked)[0].shape[0]
