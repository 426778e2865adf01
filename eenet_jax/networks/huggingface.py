"""A pretrained encoder from a local Hugging Face folder → a multi-exit classifier."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from eenet_jax.artifacts import read_json
from eenet_jax.errors import InputError
from eenet_jax.networks.contract import MultiExitNetwork, Variables
from eenet_jax.networks.convert import (
    check_tensors,
    published_names,
    published_tensors,
    replace_tensors,
    unused_names,
)
from eenet_jax.networks.zoo import build

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# Settings of the network that the folder doesn't decide.
FINE_TUNING_SETTINGS = ("exit_after", "num_classes", "pooling", "dropout", "sequence_length")

# Hugging Face's word for each size → the builder's.
SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_positions",
}

# What the network computes; a folder that leaves one out means the same.
FIXED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}

PREFIX = "bert."
POOLER = "bert.pooler.dense."
PARTS = ("embeddings.", "encoder.", "pooler.")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """What a Hugging Face folder holds of a BERT encoder.

    Attributes:
      folder: Where it lies.
      settings: Of the network's builder: the sizes, and the dropout it was trained with.
      tensors: Of the embeddings, the layers and, if there is one, the pooler, by name.
      skipped: Names of tensors that are no part of the encoder, or never enter the logits.
    """

    folder: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    skipped: tuple[str, ...]


def from_huggingface(
    folder: str | Path,
    *,
    exit_after: Sequence[int] | None = None,
    num_classes: int = 2,
    **settings: Any,
) -> tuple[MultiExitNetwork, Callable[[jax.Array], Variables]]:
    """A multi-exit classifier that starts from a local Hugging Face folder's BERT encoder.

    Every exit's pooler starts as the encoder's own, where it has one; the rest of the exit heads
    is fresh.

    Args:
      folder: With `config.json` and `model.safetensors`.
      exit_after: Layers after which an early exit sits; by default at the quarters of the
        layers, or at the thirds where quarters are not whole.
      num_classes: C.
      **settings: Others of `FINE_TUNING_SETTINGS`.

    Returns:
      The network, and a function: PRNG key → variables, with fresh heads from the key.

    Raises:
      InputError: a file is missing or damaged, the folder holds another architecture, tensors
        are missing, left over or misshapen, or a setting is the folder's to decide.
    """
    for setting in settings:
        if setting not in FINE_TUNING_SETTINGS:
            raise InputError(
                f"the encoder's folder decides all but {', '.join(FINE_TUNING_SETTINGS)}:"
                f" drop {setting}"
            )
    encoder = read_encoder(folder)
    exits = _evenly(encoder.settings["layers"]) if exit_after is None else exit_after
    chosen = {"exit_after": exits, "num_classes": num_classes, **settings}
    network = build("bert", **{**encoder.settings, **chosen})
    tensors = _checked_tensors(encoder, network)
    return network, lambda key: replace_tensors(network, network.init(key), tensors)


def _evenly(layers: int) -> tuple[int, ...]:
    parts = 4 if layers % 4 == 0 else min(3, layers)
    return tuple(layers * part // parts for part in range(1, parts))


def read_encoder(folder: str | Path) -> Encoder:
    """Read a local Hugging Face folder.

    Args:
      folder: With `config.json` and `model.safetensors`.

    Returns:
      The encoder; whether its tensors are those of its sizes is not checked yet.

    Raises:
      InputError: a file is missing or damaged, or the folder holds another architecture.
    """
    folder = Path(folder)
    settings = _read_settings(folder / CONFIG_FILE)
    stored = _read_tensors(folder / WEIGHTS_FILE)
    names = _encoder_names(stored)
    return Encoder(
        folder=folder,
        settings=settings,
        tensors={name: stored[original] for original, name in names.items()},
        skipped=tuple(sorted(stored.keys() - names.keys())),
    )


def _read_settings(path: Path) -> dict[str, Any]:
    config = read_json(path, "encoder's config")
    if not isinstance(config, dict):
        raise InputError(f"'{path}' is no encoder's config: give a Hugging Face folder")
    for name, value in {"model_type": None, **config}.items():
        if name in FIXED and value != FIXED[name]:
            raise InputError(
                f"{name} in '{path}' is {value!r}: give the folder of a BERT with {FIXED[name]!r}"
            )
    for name in SIZES:
        if type(config.get(name)) is not int:
            raise InputError(
                f"{name} in '{path}' is {config.get(name)!r}: give the folder of a BERT, whose"
                " sizes are whole numbers"
            )
    sizes = {setting: config[name] for name, setting in SIZES.items()}
    return {**sizes, "dropout": config.get("hidden_dropout_prob", 0.1)}


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"no weights at '{path}': give a folder with {WEIGHTS_FILE}") from None
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        fault = " ".join(str(error).split())
        raise InputError(f"'{path}' cannot be read ({fault}): fetch it again") from None


def _encoder_names(stored: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Names of the encoder's tensors, as stored → with the prefix, in today's words."""
    names = published_names(stored)
    if not any(name.startswith(PREFIX) for name in names.values()):
        names = {original: PREFIX + name for original, name in names.items()}
    unused = set(unused_names("bert", names.values()))
    parts = tuple(PREFIX + part for part in PARTS)
    return {
        original: name
        for original, name in names.items()
        if name.startswith(parts) and name not in unused
    }


def _checked_tensors(encoder: Encoder, network: MultiExitNetwork) -> dict[str, np.ndarray]:
    """The encoder's tensors under the network's names, its pooler at every exit."""
    width = network.settings["width"]
    pooler = {f"{POOLER}weight": (width, width), f"{POOLER}bias": (width,)}
    expected = {
        name: shape
        for name, shape in published_tensors(network).items()
        if name.startswith((f"{PREFIX}embeddings.", f"{PREFIX}encoder."))
    }
    if any(name in encoder.tensors for name in pooler):
        expected |= pooler
    check_tensors(encoder.tensors, expected, f"the BERT of '{encoder.folder / CONFIG_FILE}'")
    tensors = {n: value for n, value in encoder.tensors.items() if n not in pooler}
    for name in pooler.keys() & encoder.tensors.keys():
        for k in range(network.num_exits):
            exit_name = f"bert.poolers.{k}.dense.{name.removeprefix(POOLER)}"
            tensors[exit_name] = encoder.tensors[name]
    return tensors
