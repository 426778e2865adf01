"""Settings of an experiment: frozen dataclasses, validated as they are made."""

import dataclasses
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from eenet_jax.errors import InputError


def _require(holds: bool, name: str, value: Any, remedy: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value!r}: {remedy}")


GREATEST_SEED = 2**32 - 1


def check_seed(name: str, seed: int) -> None:
    """Raise InputError unless every generator takes the seed."""
    holds = isinstance(seed, int) and 0 <= seed <= GREATEST_SEED
    _require(holds, name, seed, f"give a whole number from 0 to {GREATEST_SEED}")


def _check_types(settings: Any, section: str) -> None:
    """Raise InputError where a plain number, word or switch is of another type."""
    plain: dict[Any, tuple[tuple[type, ...], str]] = {
        int: ((int,), "int"),
        float: ((int, float), "float"),
        str: ((str,), "str"),
        bool: ((bool,), "bool"),
    }
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        kind = int if field.type == int | None else field.type
        if kind not in plain or (value is None and kind is not field.type):
            continue
        accepted, word = plain[kind]
        # A bool passes for an int in Python, and is a slip here.
        slip = isinstance(value, bool) and kind is not bool
        holds = isinstance(value, accepted) and not slip
        _require(holds, f"{section}{field.name}", value, f"give one of type {word}")


AUGMENTATIONS = ("none", "shift", "pad_crop_flip", "resized_crop_flip", "scale_crop_flip")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on.

    Attributes:
      dataset: A name in the registry (`eenet data list`).
      val_size: Training samples held out for the scheduler, never augmented; None for the data
        set's default, or for its own validation split where the publisher has one.
      batch_size: Samples in a training step.
      eval_batch_size: Samples in an evaluation step.
      augmentation: Of training samples: "none", "shift" (one pixel), "pad_crop_flip" (CIFAR's),
        "resized_crop_flip" (ImageNet's) or "scale_crop_flip" (of images with labelled pixels);
        None for the data set's own.
      split_seed: Chooses which training samples are held out.
      tokenizer: Text: the encoder's tokenizer.json, or the folder that holds it.
      max_length: Text: tokens at most, special ones included; what is longer is cut.
      crop_shape: (height, width) of crops. Labelled pixels: in training, whole images where empty;
        photographs: always, the data set's own where empty.
      workers: Processes that read ahead, for sets that are decoded as they are read.
    """

    dataset: str
    val_size: int | None = None
    batch_size: int = 128
    eval_batch_size: int = 256
    augmentation: (
        Literal["none", "shift", "pad_crop_flip", "resized_crop_flip", "scale_crop_flip"] | None
    ) = None
    split_seed: int = 0
    tokenizer: str = ""
    max_length: int = 128
    crop_shape: tuple[int, ...] = ()
    workers: int = 0

    def __post_init__(self):
        _check_types(self, "data.")
        check_seed("data.split_seed", self.split_seed)
        least = {"batch_size": 1, "eval_batch_size": 1, "max_length": 3, "workers": 0}
        if self.val_size is not None:
            least["val_size"] = 1
        for name, bound in least.items():
            value = getattr(self, name)
            _require(value >= bound, f"data.{name}", value, f"give {bound} or more")
        _require(
            self.augmentation is None or self.augmentation in AUGMENTATIONS,
            "data.augmentation",
            self.augmentation,
            f"choose one of {', '.join(AUGMENTATIONS)}",
        )
        _require(
            isinstance(self.crop_shape, tuple | list)
            and len(self.crop_shape) in (0, 2)
            and all(type(side) is int and side >= 1 for side in self.crop_shape),
            "data.crop_shape",
            self.crop_shape,
            "give height and width in pixels, or nothing",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which network.

    Attributes:
      name: As `eenet_jax.networks.build` takes it.
      overrides: Settings of its builder.
      pretrained: Where training starts from: a local Hugging Face folder (text), or nothing.
    """

    name: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pretrained: str = ""

    def __post_init__(self):
        _check_types(self, "network.")
        # JSON has no tuples: lists and tuples are the same setting.
        object.__setattr__(self, "overrides", _tuples(self.overrides))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train. The defaults are the published CIFAR recipe.

    Attributes:
      epochs: Passes over the training split.
      optimizer: "sgd" (momentum, L2 added to the gradient) or "adamw".
      learning_rate: The peak.
      schedule: "step" (divided by 10 at each of `decay_epochs`), or to zero along a "cosine",
        a line ("linear") or a line to the power 0.9 ("poly").
      decay_epochs: For "step".
      warmup_epochs: Linear warm-up from zero, before either schedule.
      momentum: Of SGD.
      nesterov: Whether SGD's momentum is Nesterov's.
      weight_decay: L2 coefficient for SGD, decoupled for AdamW.
      clip_norm: Greatest norm of the whole gradient; 0 for no clipping.
      reference_batch_size: Where it isn't 0, `learning_rate` is meant for batches of so many
        samples, and grows and shrinks with `data.batch_size` (Goyal et al. 2017, section 2.1).
      loss_weights: Exit k's weight: "linear" (∝ k) or "uniform"; they sum to 1.
      label_smoothing: ε: so much of each target is spread evenly over all classes (Szegedy et al.
        2016, section 7).
      distillation_weight: α of late self-distillation from the last exit; 0 for none. The
        published 0.01 is divided by the number of classes, so 0.001 for CIFAR-10.
      distillation_start: Share of the training after which distillation begins.
      distillation_temperature: T.
      checkpoint_every: Steps between checkpoints; one is also written after every epoch.
      keep_checkpoints: The newest that are kept.
      select: Which weights count in the end: the "last", or those of the epoch with the "best"
        validation accuracy at the last exit.
      ema_decay: Of the moving average of weights and statistics that is evaluated and kept in
        place of the newest; 0 for none.
      micro_batches: Parts of a batch that run one after the other, their gradients added up, where
        memory is short. BatchNorm normalises each part by itself.
      rematerialise: Whether the backward pass runs every stage again instead of keeping what is
        inside it: less memory, a third more arithmetic.
      compute_dtype: Of activations and of the weights' copies that make them. Weights,
        statistics and losses are float32 always.
    """

    epochs: int = 150
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    schedule: Literal["step", "cosine", "linear", "poly"] = "step"
    decay_epochs: tuple[int, ...] = (50, 100)
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    clip_norm: float = 0.0
    reference_batch_size: int = 0
    loss_weights: Literal["linear", "uniform"] = "linear"
    label_smoothing: float = 0.0
    distillation_weight: float = 0.001
    distillation_start: float = 0.75
    distillation_temperature: float = 3.0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    select: Literal["last", "best"] = "last"
    ema_decay: float = 0.0
    micro_batches: int = 1
    rematerialise: bool = False
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        _check_types(self, "training.")
        for name in ("epochs", "checkpoint_every", "keep_checkpoints", "micro_batches"):
            _require(
                getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "give 1 or more"
            )
        for name in ("learning_rate", "distillation_temperature"):
            _require(
                getattr(self, name) > 0, f"training.{name}", getattr(self, name), "give more than 0"
            )
        for name in (
            "weight_decay",
            "clip_norm",
            "distillation_weight",
            "warmup_epochs",
            "reference_batch_size",
        ):
            _require(
                getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "give 0 or more"
            )
        for name in ("label_smoothing", "ema_decay"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"training.{name}", value, "give 0 or more, and less than 1")
        for name, value in (
            ("momentum", self.momentum),
            ("distillation_start", self.distillation_start),
        ):
            _require(0 <= value <= 1, f"training.{name}", value, "give a number from 0 to 1")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            _require(math.isfinite(value), f"training.{name}", value, "give a finite number")
        self._check_schedule()
        self._check_choices()

    def _check_schedule(self) -> None:
        _require(
            self.warmup_epochs < self.epochs,
            "training.warmup_epochs",
            self.warmup_epochs,
            f"give fewer than training.epochs, {self.epochs}",
        )
        if self.schedule == "step":
            borders = self.decay_epochs
            _require(
                all(isinstance(epoch, int) and epoch > self.warmup_epochs for epoch in borders)
                and list(borders) == sorted(set(borders)),
                "training.decay_epochs",
                borders,
                "give whole epochs after the warm-up, each once, in order",
            )

    def _check_choices(self) -> None:
        choices = {
            "optimizer": ("sgd", "adamw"),
            "schedule": ("step", "cosine", "linear", "poly"),
            "loss_weights": ("linear", "uniform"),
            "select": ("last", "best"),
            "compute_dtype": ("float32", "bfloat16"),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            _require(value in known, f"training.{name}", value, f"choose one of {', '.join(known)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One training run.

    Attributes:
      name: Of the run, and of its folder unless another is given.
      data: What to train on.
      network: Which network.
      training: How.
      budgets: Shares of the full network's cost at which the demonstration compares policies.
      seed: Of the weights, the data order and the augmentation.
    """

    name: str
    data: DataConfig
    network: NetworkConfig
    training: TrainingConfig = TrainingConfig()
    budgets: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    seed: int = 0

    def __post_init__(self):
        _check_types(self, "")
        check_seed("seed", self.seed)
        _require(
            all(0 < share <= 1 for share in self.budgets),
            "budgets",
            self.budgets,
            "give shares of the full cost, above 0 and at most 1",
        )

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values; two configs are equal if and only if these are."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def from_json(value: Mapping[str, Any]) -> ExperimentConfig:
    """The inverse of `ExperimentConfig.to_json`.

    Raises:
      InputError: a setting is unknown or missing.
    """
    parts = {"data": DataConfig, "network": NetworkConfig, "training": TrainingConfig}
    try:
        made = {name: kind(**_tuples(value[name])) for name, kind in parts.items()}
        return ExperimentConfig(**{**_tuples(value), **made})
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"this is no experiment's config ({error}): make the run again") from None


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


def load_config(path: str | Path) -> ExperimentConfig:
    """The result of `get_config()` in a Python file.

    Raises:
      InputError: the file is missing, fails, or defines no `get_config`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no config file at '{path}': check the path")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"config '{path}' fails ({type(error).__name__}: {error})") from None
    if not isinstance(config, ExperimentConfig):
        raise InputError(
            f"config '{path}' returns {type(config).__name__}: return ExperimentConfig"
        )
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings in which two JSON configs differ, as `section.name: old → new`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} → {after}")
    return found


CONFIG_FOLDERS = (
    Path("experiments/configs"),
    Path(__file__).resolve().parent.parent / "experiments" / "configs",
)


def find_config(name: str) -> ExperimentConfig:
    """A config by its file's path, or by its name in `experiments/configs/`.

    Raises:
      InputError: there is no such config, or it fails.
    """
    if name.endswith(".py"):
        return load_config(name)
    for folder in CONFIG_FOLDERS:
        if (folder / f"{name}.py").is_file():
            return load_config(folder / f"{name}.py")
    known = sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*.py")})
    there = f"one of {', '.join(known)}" if known else "run in a checkout, which has the presets"
    raise InputError(f"no config '{name}': give a .py file, or {there}")
