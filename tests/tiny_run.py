"""A training run of seconds: a network of a few hundred weights on part of the digits."""

import dataclasses

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig

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
            batch_size=79,
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
