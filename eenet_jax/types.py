"""The words every other file speaks: axis names, `ExitPredictions`, `CostTable`.

One axis vocabulary for shapes everywhere: `exits` (K, counted from the shallowest),
`samples` (N), `classes` (C), `batch`, `height`, `width`, `channels`, `budgets`.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from eenet_jax.artifacts import read_json, read_npz, replacing, write_json
from eenet_jax.errors import InputError

Array = jax.Array | np.ndarray
PyTree = Any

MEASURES = ("max", "entropy", "margin", "vote", "patience")
"""The confidence measures, in the order of the last axis of `ExitPredictions.measures`."""

ROW_SUM_TOLERANCE = 1e-3
HALF_ROW_SUM_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExitPredictions:
    """What every exit says of every sample, from any framework.

    Attributes:
      probs: Softmax outputs, float32 [exits, samples, classes]. Half precision is
        converted and renormalised.
      labels: True classes, int32 [samples]; -1 throughout for dense prediction.
      ids: Optional sample identifiers [samples].
      meta: Free-form metadata, JSON-serialisable.
      correct: Dense prediction only: the share of labelled pixels that are right,
        float32 [exits, samples].
      measures: Dense prediction only: per-image means of the confidence measures in
        the order of `MEASURES`, float32 [exits, samples, 5].
      confusion: Dense prediction only: int64 [exits, samples, classes, classes],
        true by predicted.

    Raises:
      InputError: shapes disagree, values are not probabilities, labels are out of range.
    """

    probs: Float[np.ndarray, "exits samples classes"]
    labels: Int[np.ndarray, " samples"]
    ids: np.ndarray | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    correct: Float[np.ndarray, "exits samples"] | None = None
    measures: Float[np.ndarray, "exits samples 5"] | None = None
    confusion: Int[np.ndarray, "exits samples classes classes"] | None = None

    def __init__(
        self,
        *,
        probs: Any,
        labels: Any,
        ids: Any = None,
        meta: Mapping[str, Any] | None = None,
        correct: Any = None,
        measures: Any = None,
        confusion: Any = None,
    ):
        values = {
            "probs": _checked_probs(np.asarray(probs)),
            "labels": np.asarray(labels),
            "ids": None if ids is None else np.asarray(ids),
            "meta": dict(meta or {}),
            "correct": None if correct is None else np.asarray(correct, np.float32),
            "measures": None if measures is None else np.asarray(measures, np.float32),
            "confusion": None if confusion is None else np.asarray(confusion, np.int64),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "labels", _checked_labels(self))
        _check_optional_shapes(self)

    @property
    def num_exits(self) -> int:
        """K."""
        return self.probs.shape[0]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.probs.shape[1]

    @property
    def num_classes(self) -> int:
        """C."""
        return self.probs.shape[2]

    def correctness(self) -> Float[np.ndarray, "exits samples"]:
        """How right each exit is on each sample: 0 or 1, a share of pixels for dense prediction."""
        return self._correctness

    @functools.cached_property
    def _correctness(self) -> np.ndarray:
        # Asked for once a policy and budget; at ImageNet's size the argmax takes a second.
        if self.correct is not None:
            return self.correct
        return (self.probs.argmax(-1) == self.labels[None]).astype(np.float32)

    def take(self, places: Int[np.ndarray, " places"]) -> "ExitPredictions":
        """The samples at these places, in this order."""
        per_sample = {
            name: None if value is None else value[:, places]
            for name in ("correct", "measures", "confusion")
            for value in (getattr(self, name),)
        }
        return ExitPredictions(
            probs=self.probs[:, places],
            labels=self.labels[places],
            ids=None if self.ids is None else self.ids[places],
            meta=self.meta,
            **per_sample,
        )

    def save(self, path: str | Path) -> None:
        """Write the `.npz` artifact in one step."""
        members = {
            name: getattr(self, name)
            for name in ("probs", "labels", "ids", "correct", "measures", "confusion")
            if getattr(self, name) is not None
        }
        with replacing(path) as aside, aside.open("wb") as sink:
            np.savez(sink, meta=np.asarray(json.dumps(self.meta)), **members)

    @classmethod
    def load(cls, path: str | Path) -> "ExitPredictions":
        """Read an `.npz` artifact.

        Raises:
          InputError: the file is missing, unreadable, lacks `probs` or `labels`, or
            holds values that are not predictions.
        """
        members: dict[str, Any] = {
            **read_npz(path, "predictions file", "write it with numpy.savez")
        }
        for key in ("probs", "labels"):
            if key not in members:
                raise InputError(
                    f"'{path}' has no array '{key}' (it has {sorted(members) or 'nothing'}):"
                    " save probs [exits, samples, classes] and labels [samples]"
                )
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            if "meta" in members:
                members["meta"] = _parsed_meta(str(members["meta"]))
            return cls(**{k: v for k, v in members.items() if k in known})
        except (ValueError, TypeError) as error:
            raise InputError(f"'{path}': {error}") from None


def _parsed_meta(text: str) -> dict[str, Any]:
    meta = json.loads(text)
    if not isinstance(meta, dict):
        raise InputError(f"meta is {text[:40]!r}: it must be a JSON object")
    return meta


def _checked_probs(probs: np.ndarray) -> np.ndarray:
    if probs.ndim != 3:
        raise InputError(f"probs has shape {probs.shape}: it must be [exits, samples, classes]")
    exits, samples, classes = probs.shape
    for count, word in ((exits, "exit"), (classes, "class")):
        if count < 2:
            raise InputError(
                f"probs has {count} {word} (shape {probs.shape}): at least 2 are needed"
            )
    if samples < 1:
        raise InputError(f"probs has no samples (shape {probs.shape}): at least 1 is needed")
    if probs.dtype == np.dtype("V2"):
        # numpy.save forgets the name of bfloat16, and keeps its bits.
        probs = probs.view(ml_dtypes.bfloat16)
    elif probs.dtype.kind != "f" and probs.dtype != ml_dtypes.bfloat16:
        raise InputError(
            f"probs has dtype {probs.dtype}: it must hold floating-point probabilities"
        )
    half = probs.dtype.itemsize == 2
    probs = probs.astype(np.float32)
    if not np.isfinite(probs).all():
        places = np.argwhere(~np.isfinite(probs))
        raise InputError(
            f"probs has {len(places)} values that are NaN or infinite, the first at"
            f" {places[0].tolist()}: give softmax outputs"
        )
    if probs.min() < 0:
        raise InputError(
            f"probs has negative values (least {probs.min():g}): pass softmax outputs, not logits"
        )
    return _with_unit_rows(probs, half)


def _with_unit_rows(probs: np.ndarray, half: bool) -> np.ndarray:
    sums = probs.sum(-1, dtype=np.float64)
    worst = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
    tolerance = HALF_ROW_SUM_TOLERANCE if half else ROW_SUM_TOLERANCE
    if abs(sums[worst] - 1) > tolerance:
        exit_index, sample = (int(i) for i in worst)
        raise InputError(
            f"probs[{exit_index}, {sample}] sums to {sums[worst]:.6g}, not to 1 within"
            f" {tolerance:g}: pass softmax outputs"
        )
    return (probs / sums[..., None]).astype(np.float32) if half else probs


def _checked_labels(predictions: ExitPredictions) -> np.ndarray:
    labels = predictions.labels
    samples, classes = predictions.num_samples, predictions.num_classes
    if labels.shape == predictions.probs.shape[:1] != (samples,):
        raise InputError(
            f"labels has shape {labels.shape}, probs {predictions.probs.shape}, which looks"
            " transposed: its axes must be [exits, samples, classes]"
        )
    if labels.shape != (samples,):
        raise InputError(f"labels has shape {labels.shape}: probs asks for ({samples},)")
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels has dtype {labels.dtype}: it must hold integer class indices")
    if predictions.correct is not None and (labels == -1).all():
        return labels.astype(np.int32)
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise InputError(f"labels holds {wrong}: classes run from 0 to {classes - 1}")
    return labels.astype(np.int32)


def _check_optional_shapes(predictions: ExitPredictions) -> None:
    exits, samples, classes = predictions.probs.shape
    expected = {
        "ids": (samples,),
        "correct": (exits, samples),
        "measures": (exits, samples, len(MEASURES)),
        "confusion": (exits, samples, classes, classes),
    }
    for name, shape in expected.items():
        value = getattr(predictions, name)
        if value is None:
            continue
        if value.shape != shape:
            raise InputError(f"{name} has shape {value.shape}: probs asks for {shape}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(f"{name} has values that are NaN or infinite")
        if name == "confusion" and value.min() < 0:
            raise InputError(f"confusion has {value.min()}: it counts pixels")
        if name == "correct" and not 0 <= value.min() <= value.max() <= 1:
            raise InputError("correct has values outside 0..1: it holds shares of labelled pixels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostTable:
    """The cost of leaving at each exit: everything that has run by then.

    Attributes:
      unit: "MMACs", "ms", or any word.
      costs: Strictly increasing, positive, one per exit.
      extra: Further JSON fields, kept as they are (e.g. `compiler_mflops`).
    """

    costs: tuple[float, ...]
    unit: str = "cost"
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        costs = self.costs
        if len(costs) < 2:
            raise InputError(
                f"costs {list(costs)} has {len(costs)} entries: one per exit, at least 2"
            )
        if not all(math.isfinite(cost) and cost > 0 for cost in costs):
            raise InputError(f"costs {list(costs)} must be positive and finite")
        if not all(a < b for a, b in itertools.pairwise(costs)):
            raise InputError(f"costs {list(costs)} must increase strictly from exit to exit")

    def check_exits(self, num_exits: int) -> None:
        """Raise InputError unless there is one cost per exit."""
        if len(self.costs) != num_exits:
            raise InputError(
                f"{len(self.costs)} costs for {num_exits} exits: give one cost per exit"
            )

    def check_budget(self, budget: float) -> None:
        """Raise InputError unless the budget lies between the first and the last cost."""
        low, high = self.costs[0], self.costs[-1]
        if not low <= budget <= high:
            raise InputError(
                f"budget {budget} is out of range: give one from {low} to {high} {self.unit}"
            )

    def save(self, path: str | Path) -> None:
        """Write the JSON artifact in one step."""
        write_json(path, {"unit": self.unit, "costs": list(self.costs), **self.extra})

    @classmethod
    def load(cls, path: str | Path) -> "CostTable":
        """Read the JSON artifact; InputError where it is not one."""
        value = read_json(path, "cost table")
        if not isinstance(value, dict) or not isinstance(value.get("costs"), list):
            raise InputError(f"'{path}' has no list 'costs': see `eenet costs --help`")
        extra = {k: v for k, v in value.items() if k not in ("unit", "costs")}
        try:
            costs = tuple(float(cost) for cost in value["costs"])
            return cls(costs=costs, unit=str(value.get("unit", "cost")), extra=extra)
        except (InputError, TypeError, ValueError) as error:
            raise InputError(f"'{path}': {error}") from None

    @classmethod
    def parse(cls, value: "str | Path | CostTable | Sequence[float]") -> "CostTable":
        """A table from itself, a sequence of numbers, `"1,2,4,8"`, or a path to a JSON file."""
        if isinstance(value, CostTable):
            return value
        if not isinstance(value, str | Path):
            return cls(costs=tuple(float(cost) for cost in value))
        try:
            return cls(costs=tuple(float(part) for part in str(value).split(",")))
        except InputError:
            raise
        except ValueError as error:
            if isinstance(value, str) and "," in value and not Path(value).exists():
                raise InputError(f"costs '{value}': {error}: give numbers, e.g. 1,2,4") from None
            return cls.load(value)
