"""What every policy is: exit scores, a threshold an exit, and a file to keep them in."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from eenet_jax.artifacts import read_json, replacing, write_json
from eenet_jax.errors import InputError
from eenet_jax.scheduler.combination import combined_logits
from eenet_jax.scheduler.features import PROBABILITY_FLOOR
from eenet_jax.scheduler.simulation import first_exit
from eenet_jax.types import Array, ExitPredictions

FORMAT = "eenet_jax.policy.1"
LARGEST_ARRAY_IN_JSON = 4096

_CLASSES: dict[str, type["Policy"]] = {}

NUMBERS_A_CALL = 2**25
"""Probabilities looked at in one call, so that memory does not follow the samples."""


def sample_blocks(probs: Float[Array, "exits samples classes"]) -> list[slice]:
    """Slices of the samples, each few enough for one call; one where there are no samples."""
    exits, samples, classes = probs.shape
    step = max(1, NUMBERS_A_CALL // (exits * classes))
    return [slice(first, first + step) for first in range(0, max(1, samples), step)]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Policy(abc.ABC):
    """Who leaves where: a sample leaves at the first exit whose score reaches its threshold.

    Attributes:
      name: The policy's name, one per class.
      budget: Average cost per sample that it was fitted for, in `unit`.
      thresholds: One an exit; +∞ lets nobody leave, -∞ everybody. The last exit takes
        whoever is left, whatever its threshold.
      costs: Cost of each exit.
      unit: Unit of the costs and the budget.
      info: What the fit found, JSON-serialisable: validation accuracy, cost, exit rates.
      answer_weights: Where samples are answered by all exits passed: row k has the weights of
        the log-probabilities of exits 0..k. None where the exit answers by itself.
    """

    name: ClassVar[str]

    budget: float
    thresholds: Float[np.ndarray, " exits"]
    costs: tuple[float, ...]
    unit: str = "cost"
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    answer_weights: Float[np.ndarray, "exits exits"] | None = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # Classes that others build on have no name of their own, and no file.
        if "name" in vars(cls):
            _CLASSES[cls.name] = cls

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.thresholds)

    @abc.abstractmethod
    def score(
        self,
        k: int,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Float[Array, " samples"]:
        """Score of exit k; may be traced, inside a jitted executor for one.

        Args:
          k: Exit index, 0-based.
          probs: Softmax outputs of exits 0..k, that is `probs[:k+1]`.
          measures: Dense prediction only: image means of the measures at exits 0..k.

        Returns:
          The same as row k of `scores`.
        """

    def scores(
        self,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Float[np.ndarray, "exits samples"]:
        """Scores of all exits; row k depends on `probs[:k+1]` alone.

        Args:
          probs: Softmax outputs of all exits.
          measures: Dense prediction only: image means of the measures.

        Raises:
          InputError: the number of exits is not the policy's.
        """
        if len(probs.shape) != 3:
            raise InputError(f"probs has shape {probs.shape}: give [exits, samples, classes]")
        if probs.shape[0] != self.num_exits:
            raise InputError(
                f"probs has {probs.shape[0]} exits, the policy '{self.name}' has"
                f" {self.num_exits}: use the network that it was fitted to"
            )
        if isinstance(probs, np.ndarray) and np.isnan(probs).any():
            raise InputError(f"probs has {int(np.isnan(probs).sum())} NaN: give softmax outputs")
        parts = [
            self._scores_at_once(probs[:, block], None if measures is None else measures[:, block])
            for block in sample_blocks(probs)
        ]
        return np.concatenate(parts, axis=1)

    def check_seen(self, k: int, probs: Float[Array, "seen samples classes"]) -> None:
        """Raise InputError unless k is an exit's, and the exits up to it are there."""
        if not 0 <= k < self.num_exits:
            raise InputError(f"k is {k}: give an exit from 0 to {self.num_exits - 1}")
        if probs.shape[0] <= k:
            raise InputError(
                f"probs has {probs.shape[0]} exits: the score of exit {k} (0-based) asks for"
                f" those up to it, {k + 1}"
            )

    def _scores_at_once(self, probs, measures):
        rows = [
            self.score(k, probs[: k + 1], None if measures is None else measures[: k + 1])
            for k in range(self.num_exits)
        ]
        return np.stack([np.asarray(row) for row in rows])

    def decide(
        self,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Int[np.ndarray, " samples"]:
        """The exit of each sample, 0-based.

        Args:
          probs: Softmax outputs of all exits.
          measures: Dense prediction only: image means of the measures.
        """
        return np.asarray(first_exit(self.scores(probs, measures), self.thresholds))

    def answer_logits(
        self, k: int, probs: Float[Array, "seen samples classes"]
    ) -> Float[Array, "samples classes"]:
        """What a sample that leaves at exit k is answered, as logits; may be traced.

        Without `answer_weights` these are the exit's own log-probabilities.

        Args:
          k: Exit index, 0-based.
          probs: Softmax outputs of exits 0..k.
        """
        if self.answer_weights is None:
            return jnp.log(jnp.maximum(probs[k], PROBABILITY_FLOOR))
        return combined_logits(self.answer_weights[k, : k + 1], probs[: k + 1])

    def correctness(self, predictions: ExitPredictions) -> Float[np.ndarray, "exits samples"]:
        """How right this policy's answer is at every exit.

        Args:
          predictions: Of the network that it was fitted to.
        """
        if self.answer_weights is None:
            return predictions.correctness()
        answers = [
            np.asarray(self.answer_logits(k, predictions.probs[: k + 1])).argmax(-1)
            for k in range(self.num_exits)
        ]
        return (np.stack(answers) == predictions.labels[None]).astype(np.float32)

    def correct_at(
        self, predictions: ExitPredictions, exits: Int[np.ndarray, " samples"]
    ) -> Float[np.ndarray, " samples"]:
        """How right this policy's answer is for each sample at its exit.

        Args:
          predictions: Of the network that it was fitted to.
          exits: 0-based exit of each sample.
        """
        return self.correctness(predictions)[exits, np.arange(len(exits))]

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON; arrays too large for it go into a safetensors file beside it.

        Args:
          path: The JSON file to write.
        """
        path = Path(path)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arrays = {
            name: value
            for name, value in fields.items()
            if isinstance(value, np.ndarray) and value.size > LARGEST_ARRAY_IN_JSON
        }
        document: dict[str, Any] = {"format": FORMAT, "policy": self.name}
        document |= {name: _to_json(v) for name, v in fields.items() if name not in arrays}
        if arrays:
            beside = path.with_name(path.name.removesuffix(".json") + ".safetensors")
            with replacing(beside) as aside:
                save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, aside)
            document["arrays"] = {"file": beside.name, "names": sorted(arrays)}
        write_json(path, document)


def load_policy(path: str | Path) -> Policy:
    """Read a policy that `Policy.save` wrote.

    Args:
      path: The JSON file.

    Raises:
      InputError: the file is missing, damaged, or no policy.
    """
    document = read_json(path, "policy")
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"'{path}' is no policy file: give one that `eenet fit` wrote")
    cls = _CLASSES.get(str(document.get("policy")))
    if cls is None:
        raise InputError(
            f"'{path}' holds the unknown policy '{document.get('policy')}': known are"
            f" {', '.join(sorted(_CLASSES))}"
        )
    try:
        return _from_document(cls, document, Path(path))
    except (InputError, KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        reason = str(error) if isinstance(error, InputError) else repr(error)
        raise InputError(
            f"'{path}' is a damaged policy file, or one of an earlier version ({reason}): fit it"
            " again"
        ) from None


def _from_document(cls: type[Policy], document: dict, path: Path) -> Policy:
    beside = document.get("arrays")
    arrays = load_file(path.with_name(Path(beside["file"]).name)) if beside else {}
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in arrays:
            values[field.name] = arrays[field.name]
        elif field.name == "answer_weights" and document.get(field.name) is None:
            values[field.name] = None
        elif field.type in (int, float, str):
            values[field.name] = field.type(document[field.name])
        elif field.name == "costs":
            values["costs"] = tuple(float(cost) for cost in document["costs"])
        elif field.name == "info":
            values["info"] = dict(document["info"])
        else:
            values[field.name] = _array_from_json(document[field.name])
    policy = cls(**values)
    _check(policy)
    return policy


def _check(policy: Policy) -> None:
    thresholds, exits = policy.thresholds, len(policy.costs)
    if exits < 2 or thresholds.shape != (exits,):
        raise InputError(f"{exits} costs and thresholds of shape {thresholds.shape}")
    if np.isnan(thresholds).any() or not math.isfinite(policy.budget):
        raise InputError("a threshold or the budget is not a number")
    combined = policy.answer_weights
    if combined is not None and combined.shape != (exits, exits):
        raise InputError(f"answer_weights of shape {combined.shape} for {exits} exits")
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        if not isinstance(value, np.ndarray) or field.name == "thresholds":
            continue
        if value.ndim != 2 or len(value) != exits or not np.isfinite(value).all():
            raise InputError(
                f"{field.name} of shape {value.shape} for {exits} exits, or not finite"
            )


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | tuple | list):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _to_json(item) for name, item in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else str(float(value))
    return value


def _array_from_json(value: Any) -> np.ndarray:
    """Numbers and the strings "inf" and "-inf", nested as the array is."""
    if not isinstance(value, list):
        raise InputError("a list of numbers is missing")
    return np.asarray(value).astype(np.float32)
