"""A run's checkpoint and a split → `ExitPredictions`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from eenet_jax import networks
from eenet_jax.config import ExperimentConfig
from eenet_jax.data import datasets, inputs, pipeline
from eenet_jax.data.split import DatasetSpec, Split
from eenet_jax.dense import summarise
from eenet_jax.errors import InputError, warn
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.training.checkpoint import Checkpoints
from eenet_jax.training.network import build_network, check_fits
from eenet_jax.training.optimizer import optimizer
from eenet_jax.training.run import RunFolder
from eenet_jax.training.sharding import AXES, Layout, make_layout
from eenet_jax.training.state import create_state
from eenet_jax.training.step import on_own_samples
from eenet_jax.types import ExitPredictions, PyTree

MANY_STEPS = 1_000_000


def open_run_split(run: str | Path, split: str, data_dir: str | None = None) -> Split:
    """A split of the data set that a run was trained on, held out and read as it was then.

    Args:
      run: The run's folder.
      split: "train", "val" or "test".
      data_dir: Where prepared data sets lie; the training's own by default.
    """
    folder = RunFolder(Path(run))
    config, trained_on = folder.config()
    data = folder.own_tokenizer(config.data)
    return datasets.open_config_split(data, split, data_dir or trained_on)


def load_network(run: str | Path) -> tuple[MultiExitNetwork, PyTree, dict[str, Any]]:
    """The network of a run, with the weights of its newest undamaged checkpoint.

    Args:
      run: The run's folder.

    Returns:
      Network, variables, and the checkpoint's metadata.

    Raises:
      InputError: there is no run, no checkpoint, none undamaged, or one of another network.
    """
    folder = RunFolder(Path(run))
    config, _ = folder.config()
    key = jax.random.key(config.seed)
    best = config.training.select == "best"
    with Checkpoints(folder.best if best else folder.checkpoints, 1, warn) as checkpoints:
        network = _built(checkpoints, config)
        # The optimizer's shapes are part of the state, whatever its schedule, which must only be
        # long enough for any warm-up.
        made = optimizer(config.training, MANY_STEPS)
        averages = config.training.ema_decay > 0
        abstract = jax.eval_shape(lambda: create_state(network.init, made, key, averages))
        newest = max(checkpoints.steps(), default=0)
        restored = checkpoints.restore(abstract, network)
    if restored is None:
        first = " (it selects the best epoch, and none has ended)" if best else ""
        raise InputError(f"'{run}' has no checkpoint yet{first}: finish `eenet train` first")
    state, metadata = restored
    if metadata["step"] != newest:
        warn(
            f"these are the weights of step {metadata['step']}, not {newest}: what was made from"
            " those, such as predictions and policies, is to be made again"
        )
    if not folder.summary():
        print(f"note: '{run}' is not finished; these are its weights after step {metadata['step']}")
    return network, state.variables, metadata


def _built(checkpoints: Checkpoints, config: ExperimentConfig) -> MultiExitNetwork:
    """The run's network; its checkpoints know the size of the images, which may be unusual."""
    network = build_network(config, datasets.get_configured(config.data))
    saved = checkpoints.saved_network() or {}
    shape = saved.get("settings", {}).get("input_shape")
    if shape is None:
        return network
    return networks.build(network.family, **{**network.settings, "input_shape": shape})


def make_predict_step(
    network: MultiExitNetwork, spec: DatasetSpec, layout: Layout
) -> Callable[[PyTree, Mapping[str, Any]], dict[str, jax.Array]]:
    """A jitted function (variables, batch) → what `ExitPredictions` holds of the batch's samples.

    Args:
      network: The network.
      spec: Of the data set.
      layout: Of the devices, each of which answers for its own samples.
    """

    def outputs(variables, batch):
        logits = network.apply(variables, inputs.evaluation_inputs(batch, spec))
        if spec.kind == "segmentation":
            return summarise(logits, batch["label"])
        return {"probs": jax.nn.softmax(logits)}

    return on_own_samples(outputs, layout, PartitionSpec(None, AXES))


def predict_split(
    network: MultiExitNetwork, variables: PyTree, split: Split, batch_size: int
) -> ExitPredictions:
    """Softmax outputs of every exit for every sample of a split, never augmented.

    Args:
      network: The network.
      variables: Its weights.
      split: What to predict.
      batch_size: Samples a step.

    Returns:
      The predictions; `ids` are the samples' indices in the publisher's split. For labelled
      pixels, image by image: the mean of the pixels' softmax, the share of labelled pixels that
      are right, the means of the pixels' measures and the confusion matrix.

    Raises:
      InputError: nothing is labelled in an image.
    """
    dense = split.spec.kind == "segmentation"
    # Of several processes each predicts everything, on its own devices.
    layout = make_layout(devices=jax.local_devices())
    step = make_predict_step(network, split.spec, layout)
    variables = jax.device_put(variables, layout.replicated)
    size = layout.padded(batch_size)
    found, positions, labels, ids = [], [], [], []
    for batch in pipeline.eval_batches(split, batch_size=size):
        mask = batch["mask"]
        result = jax.device_get(step(variables, layout.placed(batch, size)))
        found.append({name: value[:, mask] for name, value in result.items()})
        positions.append(batch["position"][mask])
        ids.append(batch["id"][mask])
        labels.append(np.full(mask.sum(), -1, np.int32) if dense else batch["label"][mask])
    order = np.argsort(np.concatenate(positions))
    arrays: dict[str, Any] = {
        name: np.concatenate([each[name] for each in found], 1)[:, order] for name in found[0]
    }
    if dense:
        arrays["confusion"] = arrays["confusion"].astype(np.int64)
        _check_labelled(arrays["confusion"], np.concatenate(ids)[order])
    return ExitPredictions(
        **arrays, labels=np.concatenate(labels)[order], ids=np.concatenate(ids)[order]
    )


def _check_labelled(confusion: np.ndarray, ids: np.ndarray) -> None:
    empty = np.flatnonzero(confusion[0].sum((1, 2)) == 0)
    if len(empty):
        raise InputError(
            f"no pixel of image {ids[empty[0]]} is labelled, so that no exit is right or wrong"
            " on it: leave it out of the data set"
        )


def predict(
    run: str | Path, *, splits: tuple[str, ...] = ("val", "test"), data_dir: str | None = None
) -> list[Path]:
    """Write `RUN/predictions/SPLIT.npz` for each split.

    Args:
      run: The run's folder.
      splits: Of its data set.
      data_dir: Where prepared data sets lie; the training's own by default.

    Returns:
      The files written.
    """
    config, trained_on = RunFolder(Path(run)).config()
    opened = [open_run_split(run, split, data_dir) for split in splits]
    network, variables, metadata = load_network(run)
    paths = []
    for split in opened:
        check_fits(network, split, config)
        found = predict_split(network, variables, split, config.data.eval_batch_size)
        meta = {
            "dataset": config.data.dataset,
            "split": split.split,
            "data_dir": str(Path(data_dir or trained_on).resolve()),
            "val_size": config.data.val_size,
            "split_seed": config.data.split_seed,
            "class_names": list(split.spec.class_names),
            "step": metadata["step"],
            "run": config.name,
        }
        path = Path(run) / "predictions" / f"{split.split}.npz"
        dataclasses.replace(found, meta=meta).save(path)
        paths.append(path)
    return paths
