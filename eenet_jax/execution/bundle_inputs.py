"""What is given to a bundle → what its network takes, checked before anything runs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from eenet_jax.errors import InputError
from eenet_jax.execution.manifest import Manifest
from eenet_jax.types import Array, PyTree

TOKENS = ("input_ids", "attention_mask")


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
            return self._tokens(raw) if isinstance(raw, Mapping) else self._texts(raw)
        return self._images(raw)

    def converted(self, checked: PyTree) -> PyTree:
        """The network's input, from what `checked` returned or a part of it."""
        if self.manifest.inputs == "image" and checked.dtype == np.uint8:
            assert self.preprocess is not None
            return self.preprocess.call(checked)
        return checked

    def _images(self, raw: Any) -> Array:
        if isinstance(raw, Mapping | str | bytes):
            raise InputError(f"the bundle takes images, not {type(raw).__name__}: give an array")
        images = raw if isinstance(raw, jax.Array) else np.asarray(raw)
        shape = self.manifest.input_shape
        if images.ndim != len(shape) + 1 or images.shape[1:] != shape:
            raise InputError(
                f"images have shape {tuple(images.shape)}: the bundle takes"
                f" [samples, {', '.join(map(str, shape))}]"
            )
        _check_some(images.shape[0])
        if images.dtype != np.uint8:
            return _checked_floats(images)
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

    def _tokens(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if set(raw) != set(TOKENS):
            raise InputError(f"tokens have {sorted(raw)}: give {' and '.join(TOKENS)}")
        arrays = {name: np.asarray(raw[name]) for name in TOKENS}
        ids, mask = (arrays[name] for name in TOKENS)
        if ids.ndim != 2 or mask.shape != ids.shape or ids.shape[1] < 1:
            raise InputError(
                f"input_ids have shape {ids.shape}, attention_mask {mask.shape}: both are"
                " [samples, tokens]"
            )
        _check_some(len(ids))
        self._check_tokens(ids, mask)
        return {name: value.astype(np.int32) for name, value in arrays.items()}

    def _check_tokens(self, ids: np.ndarray, mask: np.ndarray) -> None:
        longest, vocab_size = self.manifest.max_length, self.manifest.vocab_size
        if longest is not None and ids.shape[1] > longest:
            raise InputError(
                f"texts of {ids.shape[1]} tokens: the bundle takes up to {longest}; cut them"
            )
        if ids.dtype.kind not in "iu" or mask.dtype.kind not in "iub":
            raise InputError(
                f"input_ids are {ids.dtype}, attention_mask {mask.dtype}: give whole numbers"
            )
        seen = ids[mask != 0]
        wrong = seen[(seen < 0) | (seen >= vocab_size)]
        if wrong.size:
            raise InputError(
                f"input_ids hold {wrong[0]}: the vocabulary runs from 0 to {vocab_size} - 1"
            )


def _checked_floats(images: Array) -> Array:
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images are {images.dtype}: give uint8, or floats that are already normalised"
        )
    images = images.astype(np.float32)
    if not np.isfinite(np.asarray(images)).all():
        raise InputError("images hold values that are NaN or infinite: give finite ones")
    return images


def _check_some(samples: int) -> None:
    if samples < 1:
        raise InputError("no samples are given: give at least one")


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
