"""A run's folder: which config it belongs to, and whether it is finished."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eenet_jax import config as configs
from eenet_jax.artifacts import read_json, replacing, write_json
from eenet_jax.config import DataConfig, ExperimentConfig
from eenet_jax.data import datasets, text
from eenet_jax.environment import environment
from eenet_jax.errors import InputError


def _meaning(config: ExperimentConfig) -> dict[str, Any]:
    """The settings as JSON, those left to the data set filled in."""
    return dataclasses.replace(config, data=datasets.resolved(config.data)).to_json()


def saved_steps(checkpoints: Path) -> list[int]:
    """The steps that a folder has finished checkpoints of, ascending.

    Args:
      checkpoints: Whose subfolders are named by their steps.
    """
    if not checkpoints.is_dir():
        return []
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of one training run: `config.json`, `checkpoints/`, `metrics.jsonl`, `run.json`.

    Attributes:
      path: The folder.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Where the checkpoint of the best epoch lies, for runs that select by validation."""
        return self.path / "best"

    def claim(self, config: ExperimentConfig, data_dir: str) -> None:
        """Make the folder this config's own, or check that it is.

        Raises:
          InputError: it holds a run of another config; nothing is changed.
        """
        described = self.path / "config.json"
        if not described.exists():
            write_json(described, {**config.to_json(), "data_dir": data_dir})
            return
        # Through the dataclasses, so that a setting added since then counts as its default.
        found = configs.differences(_meaning(self.config()[0]), _meaning(config))
        if found:
            raise InputError(
                f"'{self.path}' holds a run of another config ({'; '.join(found)}): give another"
                " --out, or the same settings to continue it"
            )

    def config(self) -> tuple[ExperimentConfig, str]:
        """The config and the data folder that the run was started with.

        Raises:
          InputError: the folder holds no run.
        """
        if not (self.path / "config.json").exists():
            raise InputError(f"'{self.path}' holds no run: make one with `eenet train`")
        value = read_json(self.path / "config.json", "config")
        if not isinstance(value, dict):
            raise InputError(f"'{self.path}/config.json' is no config: train in another folder")
        data_dir = value.pop("data_dir", "data")
        return configs.from_json(value), data_dir

    def has_begun(self) -> bool:
        """Whether there is a checkpoint to go on from; one that was not finished is none."""
        return bool(saved_steps(self.checkpoints))

    def keep_tokenizer(self, data: DataConfig) -> None:
        """Copy the tokenizer of a run on texts, so that the folder can be used by itself.

        One that is there already stays: a run's tokens never change.
        """
        kept = self.path / text.TOKENIZER_FILE
        if data.tokenizer and not kept.exists():
            source = text.tokenizer_path(data.tokenizer)
            with replacing(kept) as aside:
                shutil.copyfile(source, aside)

    def own_tokenizer(self, data: DataConfig) -> DataConfig:
        """The settings with the folder's own tokenizer, where it has one."""
        kept = self.path / text.TOKENIZER_FILE
        return dataclasses.replace(data, tokenizer=str(kept)) if kept.exists() else data

    def summary(self) -> dict[str, Any]:
        """`run.json`, written when training ended; empty before."""
        path = self.path / "run.json"
        return read_json(path, "run summary") if path.exists() else {}

    def finish(self, numbers: Mapping[str, Any]) -> None:
        """Write `run.json`: what was run, where, and the numbers."""
        write_json(self.path / "run.json", {**environment(), **numbers})
