"""The training loop."""

import contextlib
import time
from pathlib import Path
from typing import Any, NoReturn

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
from eenet_jax.training.memory import keep_memory
from eenet_jax.training.metrics import MetricsLog, Window
from eenet_jax.training.network import build_network, check_fits, initial_weights
from eenet_jax.training.optimizer import learning_rate, optimizer, scaled
from eenet_jax.training.preemption import Preempted, Preemption
from eenet_jax.training.processes import check_same, check_shared, is_first, say, synchronise
from eenet_jax.training.run import RunFolder
from eenet_jax.training.sharding import Layout, counted, make_layout
from eenet_jax.training.state import TrainState, create_state

LOG_EVERY = 50


def train(
    config: ExperimentConfig, out: str | Path, data_dir: str | Path = "data", *, fsdp: int = 1
) -> TrainState:
    """Train on all devices, or continue the run in `out` from its last checkpoint.

    Where there are several processes, each calls this, inside of `processes.joined`.

    Args:
      config: Of the run.
      out: The run's folder, which all processes see.
      data_dir: Where prepared data sets lie.
      fsdp: Over how many devices every set of weights is cut; 1 keeps them whole on each. A run
        can be continued with another one, and on another number of devices and processes.

    Returns:
      The final state.

    Raises:
      InputError: the data set is not prepared, the folder holds another run, the batch doesn't
        divide by the devices, processes were given different settings or folders, or the loss
        became NaN (the last good checkpoint is kept).
      Preempted: SIGTERM came; the state is saved.
    """
    keep_memory()
    check_same({**config.to_json(), "fsdp": fsdp})
    layout = make_layout(fsdp)
    layout.check_batch(config.data.batch_size, config.training.micro_batches)
    folder = RunFolder(Path(out))
    data = folder.own_tokenizer(config.data)
    splits = {name: datasets.open_config_split(data, name, data_dir) for name in ("train", "val")}
    network = build_network(config, splits["train"].spec)
    check_fits(network, splits["train"], config)
    # A run that goes on has its weights, wherever the encoder is by now.
    start = network.init if folder.has_begun() else initial_weights(config, network)
    batch_size = config.data.batch_size
    batches = pipeline.train_batches(
        splits["train"], batch_size=batch_size, seed=config.seed, rows=layout.rows(batch_size)
    )
    epoch_steps = pipeline.steps_per_epoch(splits["train"], batch_size)
    trainer = _Trainer(config, network, splits, folder, epoch_steps, start, layout)
    check_shared(folder.path)
    # Claimed last: a setting that turns out wrong above leaves the folder as it was.
    if is_first():
        folder.claim(config, str(Path(data_dir).resolve()))
        folder.keep_tokenizer(config.data)
    synchronise("the run's folder is claimed")
    keep, told = config.training.keep_checkpoints, warn if is_first() else _silent
    with (
        Checkpoints(folder.checkpoints, keep, told) as checkpoints,
        Checkpoints(folder.best, 1, told) as best,
        Preemption() as preemption,
    ):
        return trainer.run(batches, checkpoints, best, preemption)


def evaluate(
    step: steps.EvalStep, variables: Any, split: Any, batch_size: int, layout: Layout
) -> dict[str, Any]:
    """Mean loss and per-exit accuracy over every sample of a split.

    Args:
      step: From `make_eval_step`, for the same layout.
      variables: Of the network.
      split: All of it is evaluated.
      batch_size: Samples a step; rounded up to what all devices share evenly.
      layout: Of the devices.
    """
    size = layout.padded(batch_size)
    batches = pipeline.eval_batches(split, batch_size=size, rows=layout.rows(size))
    sums = jax.device_get([step(variables, layout.placed(batch, size)) for batch in batches])
    count = sum(int(each["count"]) for each in sums)
    correct = np.sum([each["correct"] for each in sums], axis=0)
    return {
        "loss": float(sum(float(each["loss"]) for each in sums) / count),
        "accuracy": [float(value) for value in correct / count],
    }


def _silent(line: str) -> None:
    """What all processes find out is told once."""


class _Trainer:
    """What stays the same from step to step of one run."""

    def __init__(
        self, config, network, splits, folder: RunFolder, epoch_steps: int, start, layout: Layout
    ):
        self.config, self.network, self.splits, self.folder = config, network, splits, folder
        self.epoch_steps, self.start, self.layout = epoch_steps, start, layout
        self.total_steps = config.training.epochs * epoch_steps
        training = scaled(config)
        self.optimizer = optimizer(training, epoch_steps)
        self.rate = learning_rate(training, epoch_steps)
        spec = splits["train"].spec
        self.step = steps.make_train_step(
            network, self.optimizer, config, spec, self.total_steps, layout
        )
        self.eval_step = steps.make_eval_step(network, config, spec, layout)

    def create(self) -> TrainState:
        key, averages = jax.random.key(self.config.seed), self.config.training.ema_decay > 0
        return create_state(self.start, self.optimizer, key, averages)

    def restore(self, checkpoints: Checkpoints, batches: Any) -> tuple[TrainState, dict[str, Any]]:
        """Where training stands: at its newest checkpoint, or at its beginning."""
        shapes = self.layout.abstract(jax.eval_shape(self.create))
        restored = checkpoints.restore(shapes, self.network, batches)
        return restored or (self.layout.distributed(self.create()), {"step": 0, "seconds": 0.0})

    def run(
        self, batches: Any, checkpoints: Checkpoints, best: Checkpoints, preemption: Preemption
    ) -> TrainState:
        """Restore → step → log → evaluate → save, till the last step."""
        state, metadata = self.restore(checkpoints, batches)
        self.best_accuracy = metadata.get("best_accuracy", -1.0)
        if metadata["step"] >= self.total_steps and self.folder.summary():
            say(f"'{self.folder.path}' is finished: {self.total_steps} steps; nothing to do")
            return state
        self._announce(metadata["step"])
        started = time.monotonic() - metadata["seconds"]
        window = Window()
        log_of = MetricsLog(self.folder.path, metadata["step"], writes=is_first())
        with log_of as log, _progress() as progress:
            bar = progress.add_task("training", total=self.total_steps, completed=metadata["step"])
            for step in range(metadata["step"] + 1, self.total_steps + 1):
                state, metrics = self.step(state, self._placed(next(batches)))
                window.add(metrics)
                ends_epoch = step % self.epoch_steps == 0
                stops = preemption.stops_after(step) and step < self.total_steps
                saves = ends_epoch or stops or step % self.config.training.checkpoint_every == 0
                if saves or step % LOG_EVERY == 0:
                    seconds = time.monotonic() - started
                    self._log_training(log, window, step, seconds)
                if ends_epoch:
                    seconds = time.monotonic() - started
                    accuracy = self._log_validation(log, progress, state, step, seconds)
                    if self._is_best(accuracy):
                        self._save(best, checkpoints, state, batches, seconds)
                if saves:
                    self._save(checkpoints, best, state, batches, time.monotonic() - started)
                if stops:
                    self._stop(checkpoints, step)
                progress.update(bar, completed=step)
        checkpoints.wait()
        self._finish(state, time.monotonic() - started)
        return state

    def _placed(self, batch: Any) -> dict[str, jax.Array]:
        return self.layout.placed(batch, self.config.data.batch_size)

    def _announce(self, step: int) -> None:
        begins = f"continuing from step {step}" if step else "training"
        layout, processes = self.layout, jax.process_count()
        where = counted(layout.devices)
        where += f" of {processes} processes" if processes > 1 else ""
        where += f", weights cut over {layout.fsdp}" if layout.fsdp > 1 else ""
        say(
            f"{begins} on {where}: {self.total_steps} steps, {self.epoch_steps} an epoch, into"
            f" '{self.folder.path}' (progress in metrics.jsonl and tensorboard/)"
        )

    def _stop(self, checkpoints: Checkpoints, step: int) -> NoReturn:
        checkpoints.wait()
        # The signal may have ended who reads it.
        with contextlib.suppress(BrokenPipeError):
            say(
                f"stopped by SIGTERM and saved after step {step}: the same command goes on from"
                " there"
            )
        raise Preempted

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
        result = evaluate(self.eval_step, state.variables, self.splits["val"], size, self.layout)
        epoch = step // self.epoch_steps
        line = {"step": step, "epoch": epoch, "split": "val", **result}
        log.write({**line, "seconds": round(seconds, 3)})
        shares = "  ".join(f"{share:.4f}" for share in result["accuracy"])
        if not is_first():
            return result["accuracy"][-1]
        progress.console.print(
            f"epoch {epoch:>3}/{self.config.training.epochs}  loss {result['loss']:.4f}"
            f"  validation accuracy per exit  {shares}"
        )
        return result["accuracy"][-1]

    def _is_best(self, accuracy: float) -> bool:
        if self.config.training.select != "best" or accuracy <= self.best_accuracy:
            return False
        self.best_accuracy = accuracy
        return True

    def _save(
        self, where: Checkpoints, other: Checkpoints, state, batches: Any, seconds: float
    ) -> None:
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
        metadata["config"] = self.config.to_json()
        # All processes meet while they write: in two folders at once, some would wait in the one
        # for others that wait in the other.
        other.wait()
        where.save(state, batches.get_state(), metadata)

    def _finish(self, state: TrainState, seconds: float) -> None:
        if not is_first():
            return
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
    with Progress(
        *columns, console=console, disable=not (console.is_terminal and is_first())
    ) as progress:
        yield progress
