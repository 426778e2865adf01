"""A run's checkpoint and a split → `ExitPredictions`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from eenet_jax.config import ExperimentConfig
from eenet_jax.data import augment, datasets, pipeline
from eenet_jax.errors import InputError
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.training.checkpoint import Checkpoints
from eenet_jax.training.loop import build_network, warn
from eenet_jax.training.optimizer import optimizer
from eenet_jax.training.run import RunFolder
from eenet_jax.training.state import create_state
from eenet_jax.types import ExitPredictions, PyTree


def open_run_split(config: ExperimentConfig, split: str, data_dir: str) -> datasets.ImageSplit:
    """A split of the data set that a run was trained on, held out as it was then."""
    return datasets.open_split(
        config.data.dataset,
        split,
        data_dir=data_dir,
        val_size=config.data.val_size,
        seed=config.data.split_seed,
    )


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
    network = build_network(config, datasets.get(config.data.dataset))
    key = jax.random.key(config.seed)
    # The optimizer's shapes are part of the state, whatever its schedule.
    abstract = jax.eval_shape(lambda: create_state(network, optimizer(config.training, 1), key))
    with Checkpoints(folder.checkpoints, config.training.keep_checkpoints, warn) as checkpoints:
        restored = checkpoints.restore(abstract, network)
    if restored is None:
        raise InputError(f"'{run}' has no checkpoint yet: finish `eenet train` first")
    state, metadata = restored
    if not folder.summary():
        print(f"note: '{run}' is not finished; these are its weights after step {metadata['step']}")
    return network, state.variables, metadata


def predict_split(
    network: MultiExitNetwork, variables: PyTree, split: datasets.ImageSplit, batch_size: int
) -> ExitPredictions:
    """Softmax outputs of every exit for every sample of a split, never augmented.

    Args:
      network: The network.
      variables: Its weights.
      split: What to predict.
      batch_size: Samples a step.

    Returns:
      The predictions; `ids` are the samples' indices in the original split.
    """

    @jax.jit
    def step(variables, images):
        normalized = augment.normalize(images, split.spec.mean, split.spec.std)
        return jax.nn.softmax(network.apply(variables, normalized))

    probs, labels, ids = [], [], []
    for batch in pipeline.eval_batches(split, batch_size=batch_size):
        mask = batch["mask"]
        probs.append(np.asarray(step(variables, batch["image"]))[:, mask])
        labels.append(batch["label"][mask])
        ids.append(batch["id"][mask])
    return ExitPredictions(
        probs=np.concatenate(probs, axis=1), labels=np.concatenate(labels), ids=np.concatenate(ids)
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
    data_dir = trained_on if data_dir is None else data_dir
    opened = [open_run_split(config, split, data_dir) for split in splits]
    network, variables, metadata = load_network(run)
    paths = []
    for split in opened:
        found = predict_split(network, variables, split, config.data.eval_batch_size)
        meta = {
            "dataset": config.data.dataset,
            "split": split.split,
            "data_dir": str(Path(data_dir).resolve()),
            "val_size": config.data.val_size,
            "split_seed": config.data.split_seed,
            "class_names": list(split.spec.class_names),
            "step": metadata["step"],
            "run": config.name,
        }
        path = Path(run) / "predictions" / f"{split.split}.npz"
        ExitPredictions(probs=found.probs, labels=found.labels, ids=found.ids, meta=meta).save(path)
        paths.append(path)
    return paths
