"""The programs of a run, lowered for devices that need not be there."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from eenet_jax.config import ExperimentConfig
from eenet_jax.data import datasets
from eenet_jax.data.split import DatasetSpec
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.predictions import make_predict_step
from eenet_jax.training.network import build_network
from eenet_jax.training.optimizer import optimizer, scaled
from eenet_jax.training.sharding import Layout
from eenet_jax.training.state import TrainState, create_state
from eenet_jax.training.step import make_train_step
from eenet_jax.types import PyTree

EPOCH_STEPS = 1000
"""Of the schedule: any number compiles to the same program."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPrograms:
    """The network of a run and its steps, on some layout.

    Attributes:
      config: Of the run; its batch sizes count.
      layout: Of the devices.
    """

    config: ExperimentConfig
    layout: Layout

    @functools.cached_property
    def network(self) -> MultiExitNetwork:
        """Of the run."""
        return build_network(self.config, self.spec)

    @property
    def spec(self) -> DatasetSpec:
        """Of the data set, which need not be prepared."""
        return datasets.get_configured(self.config.data)

    def train_step(self) -> jax.stages.Lowered:
        """One step of training; InputError where its batch doesn't divide."""
        training = scaled(self.config)
        self.layout.check_batch(self.config.data.batch_size, training.micro_batches)
        made, total = optimizer(training, EPOCH_STEPS), training.epochs * EPOCH_STEPS
        step = make_train_step(self.network, made, self.config, self.spec, total, self.layout)
        return _lower(step, self.state(), self._batch(self.config.data.batch_size))

    def predict_step(self) -> jax.stages.Lowered:
        """Softmax outputs of every exit for one batch of evaluation."""
        step = make_predict_step(self.network, self.spec, self.layout)
        state = self.state()
        whole = jax.tree.map(lambda leaf: _placed(leaf, self.layout.replicated), state.variables)
        size = self.layout.padded(self.config.data.eval_batch_size)
        batch = self._batch(size)
        batch["mask"] = jax.ShapeDtypeStruct((size,), jnp.bool_, sharding=self.layout.batch)
        return _lower(step, whole, batch)

    def state(self) -> TrainState:
        """The training state's shapes, and where they lie."""
        training = scaled(self.config)
        made, averages = optimizer(training, EPOCH_STEPS), training.ema_decay > 0
        key = jax.random.key(0)
        shapes = jax.eval_shape(lambda: create_state(self.network.init, made, key, averages))
        return self.layout.abstract(shapes)

    @property
    def state_bytes(self) -> int:
        """Of a device: its part of the training state."""
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(self.state())
        )

    def _batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What `pipeline` gives of the data set: the longest texts, whole images."""
        spec, data = self.spec, self.config.data
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {"label": ((), jnp.int32)}
        if spec.kind == "text":
            names = ("input_ids", "attention_mask")
            shapes |= dict.fromkeys(names, ((data.max_length,), jnp.int32))
        else:
            shapes["image"] = (tuple(spec.image_shape), jnp.uint8)
        if spec.kind == "segmentation":
            shapes["label"] = (tuple(spec.image_shape[:2]), jnp.int32)
        return {
            name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=self.layout.batch)
            for name, (shape, dtype) in shapes.items()
        }


def _placed(leaf: jax.ShapeDtypeStruct, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _lower(step: Callable, *arguments: PyTree) -> jax.stages.Lowered:
    return step.lower(*arguments)  # pyright: ignore: a jitted function has it.
