"""Where the numbers of a training go: a JSON-lines file and TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from eenet_jax.artifacts import write_text
from eenet_jax.errors import InputError


class MetricsLog:
    """`metrics.jsonl` and `tensorboard/` in a run's folder.

    Args:
      folder: Of the run.
      step: That the run continues from; later lines, of a run that was cut off, are dropped.
      writes: Whether this process writes at all: of several, one does.
    """

    def __init__(self, folder: Path, step: int, writes: bool = True):
        self._board = None
        if not writes:
            return
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one record, with `step`, `split`, `accuracy` (per exit) and scalars."""
        if self._board is None:
            return
        with self._path.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(line) + "\n")
        step, split = line["step"], line["split"]
        for name, value in line.items():
            if name == "accuracy":
                for k, share in enumerate(value, start=1):
                    self._board.add_scalar(f"{split}/accuracy_exit_{k}", share, step)
            elif name not in ("step", "split"):
                self._board.add_scalar(f"{split}/{name}", value, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; none where there is no file.

    A last line that a kill has cut off is left out.

    Raises:
      InputError: an earlier line is damaged.
    """
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(
                    f"'{path}' line {number} is not JSON ({error}): delete that line"
                ) from None
    return found


class Window:
    """Metrics of the steps since the last record, kept on the device until they are asked for."""

    def __init__(self):
        self._steps: list[Mapping[str, jax.Array]] = []

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Note one step's metrics, without waiting for them."""
        self._steps.append(metrics)

    def __len__(self) -> int:
        return len(self._steps)

    def take(self, step: int) -> tuple[float, list[float]]:
        """Mean loss and per-exit accuracy since the last call.

        Args:
          step: Of the newest metrics, for the error.

        Raises:
          InputError: a loss is NaN or infinite.
        """
        steps, self._steps = jax.device_get(self._steps), []
        losses = np.asarray([float(each["loss"]) for each in steps])
        if not np.isfinite(losses).all():
            first = step - len(steps) + 1 + int(np.argmin(np.isfinite(losses)))
            raise InputError(
                f"the loss is {losses[~np.isfinite(losses)][0]} at step {first}: lower"
                " training.learning_rate, in another --out; the checkpoints so far are kept"
            )
        return float(losses.mean()), _mean([each["accuracy"] for each in steps])


def _mean(rows: Sequence[np.ndarray]) -> list[float]:
    return [float(value) for value in np.mean(rows, axis=0)]
