"""The training loop."""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eenet_jax.config import ExperimentConfig
from eenet_jax.data import datasets, pipeline
from eenet_jax.errors import InputError, warn
from eenet_jax.training import step as steps
from eenet_jax.training.checkpoint import Checkpoints, describe
from eenet_jax.training.metrics import MetricsLog, Window
from eenet_jax.training.network import build_network, check_fits, initial_weights
from eenet_jax.training.optimizer import learning_rate, optimizer
from eenet_jax.training.run import RunFolder
from eenet_jax.training.state import TrainState, create_state

LOG_EVERY = 50


def train(config: ExperimentConfig, out: str | Path, data_dir: str | Path = "data") -> TrainState:
    """Train, or continue the run in `out` from its last checkpoint.

    Args:
      config: Of the run.
      out: The run's folder.
      data_dir: Where prepared data sets lie.

    Returns:
      The final state.

    Raises:
      InputError: the data set is not prepared, the folder holds another run, or the loss
        became NaN (the last good checkpoint is kept).
    """
    folder = RunFolder(Path(out))
    data = folder.own_tokenizer(config.data)
    splits = {name: datasets.open_config_split(data, name, data_dir) for name in ("train", "val")}
    network = build_network(config, splits["train"].spec)
    check_fits(network, splits["train"], config)
    # A run that goes on has its weights, wherever the encoder is by now.
    start = network.init if folder.has_begun() else initial_weights(config, network)
    batches = pipeline.train_batches(
        splits["train"], batch_size=config.data.batch_size, seed=config.seed
    )
    epoch_steps = pipeline.steps_per_epoch(splits["train"], config.data.batch_size)
    trainer = _Trainer(config, network, splits, folder, epoch_steps, start)
    # Claimed last: a setting that turns out wrong above leaves the folder as it was.
    folder.claim(config, str(Path(data_dir).resolve()))
    folder.keep_tokenizer(config.data)
    keep = config.training.keep_checkpoints
    with (
        Checkpoints(folder.checkpoints, keep, warn) as checkpoints,
        Checkpoints(folder.best, 1, warn) as best,
    ):
        return trainer.run(batches, checkpoints, best)


def evaluate(step: steps.EvalStep, variables: Any, split: Any, batch_size: int) -> dict[str, Any]:
    """Mean loss and per-exit accuracy over every sample of a split."""
    batches = pipeline.eval_batches(split, batch_size=batch_size)
    sums = jax.device_get([step(variables, batch) for batch in batches])
    count = sum(int(each["count"]) for each in sums)
    correct = np.sum([each["correct"] for each in sums], axis=0)
    return {
        "loss": float(sum(float(each["loss"]) for each in sums) / count),
        "accuracy": [float(value) for value in correct / count],
    }


class _Trainer:
    """What stays the same from step to step of one run."""

    def __init__(self, config, network, splits, folder: RunFolder, epoch_steps: int, start):
        self.config, self.network, self.splits, self.folder = config, network, splits, folder
        self.epoch_steps, self.start = epoch_steps, start
        self.total_steps = config.training.epochs * epoch_steps
        self.optimizer = optimizer(config.training, epoch_steps)
        self.rate = learning_rate(config.training, epoch_steps)
        spec = splits["train"].spec
        self.step = steps.make_train_step(network, self.optimizer, config, spec, self.total_steps)
        self.eval_step = steps.make_eval_step(network, config, spec)

    def create(self) -> TrainState:
        return create_state(self.start, self.optimizer, jax.random.key(self.config.seed))

    def run(self, batches: Any, checkpoints: Checkpoints, best: Checkpoints) -> TrainState:
        """Restore → step → log → evaluate → save, till the last step."""
        restored = checkpoints.restore(jax.eval_shape(self.create), self.network, batches)
        state, metadata = restored or (self.create(), {"step": 0, "seconds": 0.0})
        self.best_accuracy = metadata.get("best_accuracy", -1.0)
        if metadata["step"] >= self.total_steps and self.folder.summary():
            print(f"'{self.folder.path}' is finished: {self.total_steps} steps; nothing to do")
            return state
        self._announce(metadata["step"])
        started = time.monotonic() - metadata["seconds"]
        window = Window()
        with MetricsLog(self.folder.path, metadata["step"]) as log, _progress() as progress:
            bar = progress.add_task("training", total=self.total_steps, completed=metadata["step"])
            for step in range(metadata["step"] + 1, self.total_steps + 1):
                state, metrics = self.step(state, next(batches))
                window.add(metrics)
                ends_epoch = step % self.epoch_steps == 0
                saves = ends_epoch or step % self.config.training.checkpoint_every == 0
                if saves or step % LOG_EVERY == 0:
                    seconds = time.monotonic() - started
                    self._log_training(log, window, step, seconds)
                if ends_epoch:
                    seconds = time.monotonic() - started
                    accuracy = self._log_validation(log, progress, state, step, seconds)
                    self._save_best(best, accuracy, state, batches, seconds)
                if saves:
                    self._save(checkpoints, state, batches, time.monotonic() - started)
                progress.update(bar, completed=step)
        self._finish(state, time.monotonic() - started)
        return state

    def _announce(self, step: int) -> None:
        begins = f"continuing from step {step}" if step else "training"
        print(
            f"{begins}: {self.total_steps} steps, {self.epoch_steps} an epoch, into"
            f" '{self.folder.path}' (progress in metrics.jsonl and tensorboard/)",
            flush=True,
        )

    def _log_training(self, log: MetricsLog, window: Window, step: int, seconds: float) -> None:
        loss, accuracy = window.take(step)
        log.write(
            {
                "step": step,
                "epoch": step / self.epoch_steps,
                "split": "train",
                "loss": loss,
                "accuracy": accuracy,
                "lr": float(jnp.asarray(self.rate(step - 1))),
                "seconds": round(seconds, 3),
            }
        )

    def _log_validation(self, log, progress: Progress, state, step: int, seconds: float) -> float:
        """Returns the accuracy at the last exit."""
        size = self.config.data.eval_batch_size
        result = evaluate(self.eval_step, state.variables, self.splits["val"], size)
        epoch = step // self.epoch_steps
        line = {"step": step, "epoch": epoch, "split": "val", **result}
        log.write({**line, "seconds": round(seconds, 3)})
        shares = "  ".join(f"{share:.4f}" for share in result["accuracy"])
        progress.console.print(
            f"epoch {epoch:>3}/{self.config.training.epochs}  loss {result['loss']:.4f}"
            f"  validation accuracy per exit  {shares}"
        )
        return result["accuracy"][-1]

    def _save_best(self, best: Checkpoints, accuracy: float, state, batches, seconds) -> None:
        if self.config.training.select == "best" and accuracy > self.best_accuracy:
            self.best_accuracy = accuracy
            self._save(best, state, batches, seconds)

    def _save(self, checkpoints: Checkpoints, state, batches: Any, seconds: float) -> None:
        if not _all_finite((state.params, state.batch_stats)):
            raise InputError(
                f"the weights are NaN or infinite at step {int(state.step)}: lower"
                " training.learning_rate, in another --out; the checkpoints so far are kept"
            )
        metadata = {
            "network": describe(self.network),
            "seconds": seconds,
            "best_accuracy": self.best_accuracy,
        }
        checkpoints.save(state, batches, {**metadata, "config": self.config.to_json()})

    def _finish(self, state: TrainState, seconds: float) -> None:
        samples = self.total_steps * self.config.data.batch_size
        self.folder.finish(
            {
                "train_seconds": round(seconds, 1),
                "steps": self.total_steps,
                "samples_per_second": round(samples / seconds, 1),
            }
        )


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))


@contextlib.contextmanager
def _progress():
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress
