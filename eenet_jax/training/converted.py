"""Weights of another framework → a run's folder, as if it had been trained here."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig
from eenet_jax.data import datasets
from eenet_jax.data.text import tokenizer_path
from eenet_jax.errors import InputError, warn
from eenet_jax.networks.convert import from_torch, skipped_tensors
from eenet_jax.networks.weight_files import read_weights
from eenet_jax.networks.zoo import PRESETS
from eenet_jax.training.checkpoint import Checkpoints, describe
from eenet_jax.training.network import build_network
from eenet_jax.training.optimizer import optimizer
from eenet_jax.training.run import RunFolder
from eenet_jax.training.state import create_state

# The data set that the paper trained a family on; a preset of another one is named itself.
DATASETS = {
    "resnet": "cifar10",
    "densenet": "cifar100",
    "msdnet": "imagenet2012",
    "msdnet12_5": "cifar100",
    "bert": "ag_news",
    "hrnet": "cityscapes",
    "hrnet_4_cpu": "camvid",
}


def convert_weights(
    path: str | Path,
    network: str,
    *,
    out: str | Path,
    dataset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    tokenizer: str = "",
    data_dir: str = "data",
) -> list[str]:
    """Write a run's folder with published weights, for `predict`, `costs` and `run`.

    Args:
      path: The weights: PyTorch's format, `.safetensors` or `.npz`.
      network: A name that `networks.build` takes.
      out: The folder to write; one that holds a run already is refused.
      dataset: What the network classifies; what the paper trained its family on by default.
      overrides: Settings of the network's builder.
      tokenizer: For texts: the encoder's tokenizer.json, or the folder with it.
      data_dir: Where prepared data sets lie.

    Returns:
      Names of the tensors that were skipped, for they never enter the logits.

    Raises:
      InputError: the file holds no weights, or not this network's; no data set is known.
    """
    family, _ = PRESETS.get(network, (network, {}))
    dataset = dataset or DATASETS.get(network) or DATASETS.get(family)
    if dataset is None:
        raise InputError(
            f"network '{network}' has no data set of its own: give --dataset, one of"
            f" {', '.join(datasets.names())}"
        )
    folder = RunFolder(Path(out))
    if folder.path.exists() and any(folder.path.iterdir()):
        raise InputError(f"'{out}' is not empty: give another --out")
    spec = datasets.get(dataset)
    config = ExperimentConfig(
        name=folder.path.resolve().name,
        data=DataConfig(dataset=dataset, tokenizer=tokenizer),
        network=NetworkConfig(name=network, overrides=dict(overrides or {})),
    )
    made = build_network(config, spec)
    if spec.kind == "text" and not tokenizer:
        warn(
            f"without --tokenizer there is no `eenet predict` on {dataset}: give the encoder's"
            " tokenizer.json, or its folder"
        )
    if tokenizer:
        tokenizer_path(tokenizer)  # Raises where there is none, before anything is written.
    if spec.kind == "text":
        longest = min(config.data.max_length, made.settings["max_positions"])
        data = dataclasses.replace(config.data, max_length=longest)
        config = dataclasses.replace(config, data=data)
    weights = read_weights(path)
    variables = from_torch(made, weights)
    _write(folder, config, made, variables, data_dir, str(path))
    return skipped_tensors(made, weights)


def _write(folder: RunFolder, config, made, variables, data_dir: str, source: str) -> None:
    folder.claim(config, str(Path(data_dir).resolve()))
    folder.keep_tokenizer(config.data)
    state = create_state(lambda _: variables, optimizer(config.training, 1), jax.random.key(0))
    nothing_drawn = {"next_index": 0}
    with Checkpoints(folder.checkpoints, 1, warn) as checkpoints:
        checkpoints.save(state, nothing_drawn, {"network": describe(made), "seconds": 0.0})
    folder.finish({"converted_from": source, "train_seconds": 0.0, "steps": 0})
