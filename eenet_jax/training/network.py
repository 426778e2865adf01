"""The network of a run: built for its data set, checked against it, and where it starts from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from eenet_jax import networks
from eenet_jax.config import ExperimentConfig
from eenet_jax.data.split import DatasetSpec, Split
from eenet_jax.data.text import TextSplit
from eenet_jax.errors import InputError, warn
from eenet_jax.networks import MultiExitNetwork, Variables


def build_network(config: ExperimentConfig, spec: DatasetSpec) -> MultiExitNetwork:
    """The config's network, for the data set's classes and image size.

    Raises:
      InputError: its overrides are not for this data set.
    """
    settings: dict[str, Any] = {"num_classes": spec.num_classes}
    if spec.kind != "text":
        settings["input_shape"] = spec.image_shape
    network = networks.build(config.network.name, **{**settings, **config.network.overrides})
    wanted = "tokens" if spec.kind == "text" else "image"
    if network.inputs != wanted:
        raise InputError(
            f"network '{config.network.name}' takes {network.inputs}, but {spec.name} has"
            f" {spec.describe()}: choose another network or data set"
        )
    sides_differ = spec.kind != "text" and network.input_shape != tuple(spec.image_shape)
    if network.num_classes != spec.num_classes or sides_differ:
        raise InputError(
            f"network '{config.network.name}' takes {network.input_shape} and gives"
            f" {network.num_classes} classes, but {spec.name} has {spec.image_shape or 'texts'} and"
            f" {spec.num_classes}: drop those overrides"
        )
    return network


def check_fits(network: MultiExitNetwork, split: Split, config: ExperimentConfig) -> None:
    """Raise InputError where a split's tokens are none of the network's."""
    if not isinstance(split, TextSplit):
        return
    vocab_size, positions = network.settings["vocab_size"], network.settings["max_positions"]
    if split.vocab_size > vocab_size:
        raise InputError(
            f"the tokenizer has {split.vocab_size:,} tokens, the network's vocab_size is"
            f" {vocab_size:,}: give the tokenizer that belongs to the encoder"
        )
    if config.network.pretrained and split.vocab_size < vocab_size:
        # Some vocabularies are padded to a round size; another encoder's is smaller by much more.
        warn(
            f"the tokenizer has {split.vocab_size:,} tokens, the pretrained encoder {vocab_size:,}:"
            " is it the encoder's own?"
        )
    max_length = config.data.max_length
    if max_length > positions:
        raise InputError(
            f"data.max_length is {max_length}, the network's max_positions is {positions}:"
            f" give {positions} or fewer"
        )


def initial_weights(
    config: ExperimentConfig, network: MultiExitNetwork
) -> Callable[[jax.Array], Variables]:
    """PRNG key → the weights that training starts from: fresh, or a pretrained encoder's.

    Raises:
      InputError: the pretrained encoder is another network's.
    """
    if not config.network.pretrained:
        return network.init
    if network.inputs != "tokens":
        raise InputError(
            f"network.pretrained is '{config.network.pretrained}', but network"
            f" '{config.network.name}' takes no text: convert published weights with"
            " `eenet convert`"
        )
    chosen = dict(network.settings)
    if not Path(config.network.pretrained).is_dir():
        raise InputError(
            f"no encoder at '{config.network.pretrained}': give network.pretrained a local Hugging"
            " Face folder, or '' to start from random weights"
        )
    made, start = networks.from_huggingface(
        config.network.pretrained, **{name: chosen[name] for name in networks.FINE_TUNING_SETTINGS}
    )
    differing = [name for name in chosen if made.settings[name] != chosen[name]]
    if differing:
        found = ", ".join(f"{name} {made.settings[name]}" for name in differing)
        raise InputError(
            f"the encoder in '{config.network.pretrained}' has {found}: give the network the same"
            " by `--build`, or in the config's overrides"
        )
    return start
