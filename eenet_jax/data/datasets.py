"""The registry of data sets: what they are, how they are prepared, how a split is opened."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eenet_jax.artifacts import replacing_folder
from eenet_jax.config import DataConfig
from eenet_jax.data import class_names
from eenet_jax.data.builders import cifar_binary, segmentation_tree, text_files
from eenet_jax.data.imagenet import ImageNet
from eenet_jax.data.imagenet_classes import WNIDS
from eenet_jax.data.images import BinaryImages, EmbeddedDigits
from eenet_jax.data.permutation import permutation
from eenet_jax.data.segmentation import DecodedTree, TreeInPlace
from eenet_jax.data.split import DatasetSpec, Format, Split
from eenet_jax.data.text import Texts
from eenet_jax.errors import InputError

SPLITS = ("train", "val", "test")
_VERSION = "1.0.0"

_REGISTRY: tuple[tuple[DatasetSpec, Format], ...] = (
    (
        DatasetSpec(
            name="digits",
            class_names=class_names.DIGITS,
            image_shape=(8, 8, 1),
            mean=(0.305023,),
            std=(0.375934,),
            augmentation="shift",
            val_size=300,
        ),
        EmbeddedDigits(),
    ),
    (
        DatasetSpec(
            name="cifar10",
            class_names=class_names.CIFAR10,
            image_shape=(32, 32, 3),
            mean=(0.4914, 0.482158, 0.446531),
            std=(0.247032, 0.243485, 0.261588),
            augmentation="pad_crop_flip",
            val_size=5_000,
        ),
        BinaryImages(cifar_binary.CIFAR10),
    ),
    (
        DatasetSpec(
            name="cifar100",
            class_names=class_names.CIFAR100,
            image_shape=(32, 32, 3),
            mean=(0.507075, 0.486549, 0.440892),
            std=(0.267334, 0.256438, 0.27615),
            augmentation="pad_crop_flip",
            val_size=5_000,
        ),
        BinaryImages(cifar_binary.CIFAR100),
    ),
    (
        DatasetSpec(name="sst2", class_names=class_names.SST2, kind="text"),
        Texts(text_files.SST2),
    ),
    (
        DatasetSpec(name="ag_news", class_names=class_names.AG_NEWS, kind="text", val_size=10_000),
        Texts(text_files.AG_NEWS),
    ),
    (
        DatasetSpec(
            name="camvid",
            class_names=class_names.CAMVID,
            kind="segmentation",
            image_shape=(360, 480, 3),
            mean=(0.411547, 0.425567, 0.431996),
            std=(0.30688, 0.310858, 0.306738),
            augmentation="scale_crop_flip",
        ),
        DecodedTree(segmentation_tree.CAMVID, {"train": 367, "val": 101, "test": 233}),
    ),
    (
        # Mean and deviation are ImageNet's, as in the published HRNet recipe.
        DatasetSpec(
            name="cityscapes",
            class_names=class_names.CITYSCAPES,
            kind="segmentation",
            image_shape=(1024, 2048, 3),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            augmentation="scale_crop_flip",
            val_size=500,
        ),
        TreeInPlace(segmentation_tree.CITYSCAPES, {"train": 2_975, "test": 500}),
    ),
    (
        # Mean and deviation as published with the networks that are trained on it.
        DatasetSpec(
            name="imagenet2012",
            class_names=WNIDS,
            image_shape=(224, 224, 3),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            augmentation="resized_crop_flip",
            val_size=50_000,
        ),
        ImageNet(),
    ),
)
# Sets that are read as TFDS prepares them too: the versions that will do.
_TFDS_VERSIONS: Mapping[str, tuple[str, ...]] = {"imagenet2012": ("5.1.0", "5.0.0")}
_SPECS: Mapping[str, DatasetSpec] = {spec.name: spec for spec, _ in _REGISTRY}
_FORMATS: Mapping[str, Format] = {spec.name: form for spec, form in _REGISTRY}


def names() -> tuple[str, ...]:
    """The data sets there are."""
    return tuple(_SPECS)


def get(name: str) -> DatasetSpec:
    """The data set called `name`.

    Raises:
      InputError: there is none.
    """
    if name not in _SPECS:
        raise InputError(f"unknown data set '{name}': choose from {', '.join(names())}")
    return _SPECS[name]


def get_configured(config: DataConfig) -> DatasetSpec:
    """The data set as a run's settings ask for it: where crops are resized, the crop's size counts.

    Raises:
      InputError: there is no such set, or settings mean nothing for it.
    """
    spec = get(config.dataset)
    spec.check(config)
    if not config.crop_shape or spec.augmentation != "resized_crop_flip":
        return spec
    height, width = config.crop_shape
    return dataclasses.replace(spec, image_shape=(height, width, spec.image_shape[-1]))


def resolved(config: DataConfig) -> DataConfig:
    """The settings with the data set's own in place of those that were left open."""
    spec = get(config.dataset)
    return dataclasses.replace(
        config,
        augmentation=config.augmentation or spec.augmentation,
        val_size=spec.val_size if config.val_size is None else config.val_size,
    )


def prepare(
    name: str,
    *,
    data_dir: str | Path,
    source: str | Path | None = None,
    form: Format | None = None,
) -> Path | None:
    """Make a set ready to be opened, in one step: all of it is there afterwards, or nothing is.

    Args:
      name: The data set.
      data_dir: The folder that holds the prepared sets.
      source: The publisher's archive or files, or a folder that holds them; None downloads
        what can be downloaded.
      form: How the set is stored, where it isn't the publisher's own way (a subset, say).

    Returns:
      The folder written; None for an embedded set, which needs no preparation.

    Raises:
      InputError: an unknown set; a missing, truncated or wrong archive; no network; a folder
        that can't be written.
    """
    spec, form = get(name), form or _FORMATS[name]
    if isinstance(form, EmbeddedDigits):
        return None
    folder = _folder(name, data_dir)
    try:
        with replacing_folder(folder) as aside:
            form.write(spec, source, aside)
    except OSError as error:
        raise InputError(
            f"can't write '{folder}' ({error}): give another --data-dir or make room"
        ) from None
    return folder


def _folder(name: str, data_dir: str | Path) -> Path:
    return Path(data_dir) / name / _VERSION


def _prepared(name: str, data_dir: str | Path) -> Path:
    """Where a set lies prepared, by us or by TFDS; our own folder where it doesn't."""
    ours = _folder(name, data_dir)
    theirs = [ours.with_name(version) for version in _TFDS_VERSIONS.get(name, ())]
    return next((folder for folder in (ours, *theirs) if folder.is_dir()), ours)


def open_split(
    name: str,
    split: str,
    *,
    data_dir: str | Path = "data",
    val_size: int | None = None,
    seed: int = 0,
    settings: DataConfig | None = None,
) -> Split:
    """Open one split.

    Where the publisher has no validation split of its own, `train` and `val` share out the
    training split.

    Args:
      name: The data set.
      split: "train", "val" or "test".
      data_dir: The folder that holds the prepared sets.
      val_size: How many training samples are held out; None for the set's default, or for its
        own validation split.
      seed: Chooses which are held out.
      settings: How samples are read: tokenizer, lengths, workers; defaults where None.

    Raises:
      InputError: an unknown set or split, one that isn't prepared, a `val_size` that leaves
        nothing, or settings that don't fit the set.
    """
    settings = settings or DataConfig(dataset=name)
    spec = get_configured(dataclasses.replace(settings, dataset=name))
    if split not in SPLITS:
        raise InputError(f"unknown split '{split}': choose from {', '.join(SPLITS)}")
    size = spec.val_size if val_size is None else val_size
    if split == "test" or size is None:
        return _read(spec, split, data_dir, settings)
    whole = _read(spec, "train", data_dir, settings)
    return whole.take(_held_out(len(whole), size, seed, split), split)


def open_config_split(config: DataConfig, split: str, data_dir: str | Path) -> Split:
    """A split as a run's settings ask for it."""
    return open_split(
        config.dataset,
        split,
        data_dir=data_dir,
        val_size=config.val_size,
        seed=config.split_seed,
        settings=config,
    )


def _held_out(size: int, val_size: int, seed: int, split: str) -> np.ndarray:
    least = 1 if split == "val" else 0
    if not least <= val_size < size:
        raise InputError(
            f"val_size {val_size} of {size:,} training samples: give one from {least} to {size - 1}"
        )
    shuffled = permutation(size, seed)
    return np.sort(shuffled[:val_size] if split == "val" else shuffled[val_size:])


# What a missing or damaged file of a prepared set raises, ArrayRecord's RuntimeError included.
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError)


def _read(spec: DatasetSpec, part: str, data_dir: str | Path, settings: DataConfig) -> Split:
    form, folder = _FORMATS[spec.name], _prepared(spec.name, data_dir)
    command = f"run eenet data prepare {spec.name} --data-dir {data_dir}"
    if not isinstance(form, EmbeddedDigits) and not folder.is_dir():
        raise InputError(f"'{spec.name}' is not prepared in '{data_dir}': {command}")
    try:
        return form.read(spec, folder, part, settings)
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"'{folder}' is damaged ({error}): {command}") from None
