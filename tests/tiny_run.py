"""A training run of seconds: a network of a few hundred weights on part of the digits."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig
from eenet_jax.data import datasets
from eenet_jax.training.checkpoint import Checkpoints, describe
from eenet_jax.training.network import build_network
from eenet_jax.training.optimizer import optimizer
from eenet_jax.training.run import RunFolder
from eenet_jax.training.state import create_state

STEPS_PER_EPOCH = 3
SOURCE = '''"""A network of a few hundred weights."""

from tiny_run import tiny_config


def get_config():
    """The settings of this run."""
    return tiny_config()
'''


def tiny_config(**training) -> ExperimentConfig:
    """Two exits, three epochs of three steps, a checkpoint every other step."""
    settings = {"epochs": 3, "checkpoint_every": 2, "decay_epochs": (2,)} | training
    return ExperimentConfig(
        name="tiny",
        data=DataConfig(
            dataset="digits",
            val_size=1200,
            batch_size=78,
            eval_batch_size=700,
            augmentation="shift",
        ),
        network=NetworkConfig(
            name="cnn", overrides={"widths": (2, 2), "depths": (1, 1), "strides": (2, 1)}
        ),
        training=TrainingConfig(**settings),
    )


def other_network(config: ExperimentConfig) -> ExperimentConfig:
    """The same run with a wider network."""
    wider = NetworkConfig(name="cnn", overrides={**config.network.overrides, "widths": [3, 3]})
    return dataclasses.replace(config, network=wider)


def write_run(folder, step=4):
    """A run's folder with one checkpoint of random weights, nothing compiled.

    Returns:
      The network and its variables.
    """
    config = tiny_config()
    RunFolder(folder).claim(config, "data")
    split = datasets.open_split("digits", "train", val_size=config.data.val_size)
    network = build_network(config, split.spec)
    made = optimizer(config.training, STEPS_PER_EPOCH)
    shapes = jax.eval_shape(lambda: create_state(network.init, made, jax.random.key(0)))
    random = np.random.default_rng(0)
    # Magnitudes will do for weights, and a running variance must be one.
    state = jax.tree.map(
        lambda leaf: jnp.asarray(np.abs(random.normal(size=leaf.shape)), leaf.dtype), shapes
    )
    state = dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))
    with Checkpoints(RunFolder(folder).checkpoints, 2, print) as checkpoints:
        checkpoints.save(
            state, {"next_index": step}, {"network": describe(network), "seconds": 1.0}
        )
    return network, state.variables


def digest(state) -> str:
    """SHA-256 over every array of a state, in order."""
    total = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(state):
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
