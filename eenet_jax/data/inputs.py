"""A batch on the device → what the network takes, and the labels: pure, jittable functions."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Int, Key

from eenet_jax.config import DataConfig
from eenet_jax.data import augment, segmentation_augment
from eenet_jax.data.split import DatasetSpec
from eenet_jax.types import Array, PyTree

TOKENS = ("input_ids", "attention_mask")
ON_DEVICE = ("image", "label", "mask", *TOKENS)
"""What of a batch the steps use; ids and positions stay with the process that reads it."""


def training_inputs(
    key: Key[Array, ""], batch: Mapping[str, Any], spec: DatasetSpec, config: DataConfig
) -> tuple[PyTree, Int[Array, "batch *dense"]]:
    """The network's input and the labels of a training batch, augmented on fresh draws.

    Args:
      key: A PRNG key, fresh for every step.
      batch: From `pipeline.train_batches`.
      spec: Of the data set.
      config: Says how to augment.

    Returns:
      Normalised images [batch, height, width, channels] or a dict of tokens [batch, tokens], and
      labels [batch] or [batch, height, width].
    """
    name = config.augmentation or spec.augmentation
    if spec.kind == "text":
        return evaluation_inputs(batch, spec), batch["label"]
    images, labels = batch["image"], batch["label"]
    if spec.kind == "segmentation":
        images, labels = segmentation_augment.augment(
            key, images, labels, name, tuple(config.crop_shape)
        )
    elif name != "resized_crop_flip":  # Which belongs to reading, and is done.
        images = augment.augment(key, images, name)
    return augment.normalize(images, spec.mean, spec.std), labels


def evaluation_inputs(batch: Mapping[str, Any], spec: DatasetSpec) -> PyTree:
    """The network's input of a batch, never augmented.

    Args:
      batch: From `pipeline.eval_batches`, or a part of it.
      spec: Of the data set.
    """
    if spec.kind == "text":
        return {name: batch[name] for name in TOKENS}
    return augment.normalize(batch["image"], spec.mean, spec.std)
