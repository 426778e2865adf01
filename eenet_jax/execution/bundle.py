"""A bundle, loaded: adaptive inference from exported functions, without any network's code.

Everything is verified before anything is deserialised; nothing is unpickled.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import load_file

from eenet_jax.errors import InputError
from eenet_jax.execution.bundle_inputs import Preparation, read_tokenizer, samples_in
from eenet_jax.execution.compacted import compacted
from eenet_jax.execution.manifest import (
    PREPROCESS_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    function_file,
    read_verified,
)
from eenet_jax.policies.policy import Policy
from eenet_jax.types import MEASURES, Array, PyTree

Functions = tuple[jax.export.Exported, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BundleNetwork:
    """A `StagedNetwork` of exported functions; its variables have flat names.

    Attributes:
      stages: One an exit, (weights, carry) → carry.
      heads: One an exit, (weights, carry) → logits.
      weights: Names of the tensors that each takes, by "stage_0", "head_0", ….
      num_classes: C.
      input_shape: Of one sample, without the batch axis; no other size is taken. Texts may have
        another length.
      inputs: "image" or "tokens".
      dense: Whether heads return logits of every pixel.
      max_length: Tokens of the longest text; None for images.
      vocab_size: One more than the greatest token id; None for images.
    """

    stages: Functions
    heads: Functions
    weights: Mapping[str, tuple[str, ...]]
    num_classes: int
    input_shape: tuple[int, ...]
    inputs: Literal["image", "tokens"]
    dense: bool
    max_length: int | None
    vocab_size: int | None

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.stages)

    def example(self, batch_size: int = 1) -> PyTree:
        """An input of zeros [batch, …], for tracing and warming up; tokens all count."""
        shape = (batch_size, *self.input_shape)
        if self.inputs == "tokens":
            ids = jnp.zeros(shape, jnp.int32)
            return {"input_ids": ids, "attention_mask": jnp.ones(shape, jnp.int32)}
        return jnp.zeros(shape, jnp.float32)

    def prepared(self, variables: PyTree) -> PyTree:
        """As they are: exported stages take these and no others."""
        return variables

    def stage(
        self, k: int, variables: PyTree, carry: PyTree, train: bool, key: jax.Array | None
    ) -> tuple[PyTree, Mapping[str, Any]]:
        """Run stage k (0-based); there are no statistics.

        Raises:
          InputError: `train` is asked for.
        """
        _check_evaluation(train)
        return self.stages[k].call(self._own(f"stage_{k}", variables), carry), {}

    def head(
        self, k: int, variables: PyTree, carry: PyTree, train: bool, key: jax.Array | None
    ) -> tuple[Float[jax.Array, "batch *dense classes"], Mapping[str, Any]]:
        """Run exit head k (0-based) on the carry after stage k; there are no statistics.

        Raises:
          InputError: `train` is asked for.
        """
        _check_evaluation(train)
        return self.heads[k].call(self._own(f"head_{k}", variables), carry), {}

    def apply(self, variables: PyTree, x: PyTree) -> Float[jax.Array, "exits batch *dense classes"]:
        """Logits of every exit.

        Args:
          variables: The bundle's.
          x: The input [batch, …].
        """
        logits, carry = [], x
        for k in range(self.num_exits):
            carry, _ = self.stage(k, variables, carry, False, None)
            logits.append(self.head(k, variables, carry, False, None)[0])
        return jnp.stack(logits)

    def _own(self, part: str, variables: Mapping[str, Array]) -> dict[str, Array]:
        return {name: variables[name] for name in self.weights[part]}


def _check_evaluation(train: bool) -> None:
    if train:
        raise InputError("a bundle is for inference: train the network that it was exported from")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BundlePolicy(Policy):
    """A fitted policy as exported functions; the bundle is its file.

    Attributes:
      decisions: One an exit, (probs, and for dense prediction measures) → (score, answer logits).
      fitted_as: The policy's name.
      dense: Whether the decisions take measures.
    """

    decisions: Functions
    fitted_as: str
    dense: bool

    def __post_init__(self):
        # Of the instance, for a class with a name would be one that policy files can name.
        object.__setattr__(self, "name", self.fitted_as)

    def score(
        self,
        k: int,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Float[Array, " samples"]:
        """The exported score of exit k; see `Policy.score`."""
        self.check_seen(k, probs)
        if self.dense and measures is None:
            raise InputError(f"policy '{self.fitted_as}' decides on images by measures: give them")
        return self._decision(k, probs, measures)[0]

    def answer_logits(
        self, k: int, probs: Float[Array, "seen samples classes"]
    ) -> Float[Array, "samples classes"]:
        """The exported answer at exit k; see `Policy.answer_logits`."""
        self.check_seen(k, probs)
        # Answers don't look at measures, which the function takes all the same.
        shape = (k + 1, probs.shape[1], len(MEASURES))
        return self._decision(k, probs, jnp.zeros(shape) if self.dense else None)[1]

    def _decision(self, k: int, probs, measures) -> tuple[jax.Array, jax.Array]:
        given = (probs, measures) if self.dense else (probs,)
        seen = (jnp.asarray(each[: k + 1], jnp.float32) for each in given)
        score, answer = self.decisions[k].call(*seen)
        return score, answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleAnswers:
    """What a bundle says of samples, in their order.

    Attributes:
      logits: Of the exit that each sample left at, or of all exits passed where the policy
        combines them; of every pixel for dense prediction.
      exit_index: 0-based.
      classes: The answers; of every pixel for dense prediction.
    """

    logits: Float[np.ndarray, "samples *dense classes"]
    exit_index: Int[np.ndarray, " samples"]
    classes: Int[np.ndarray, "samples *dense"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A network, its weights and a policy, ready to run.

    Attributes:
      manifest: What the bundle says of itself.
      network: Of exported functions.
      variables: Its weights by flat names, on the device.
      policy: Of exported functions.
      preparation: Of samples.
    """

    manifest: Manifest
    network: BundleNetwork
    variables: Mapping[str, jax.Array]
    policy: BundlePolicy
    preparation: Preparation

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order; empty where the bundle has none."""
        return self.manifest.class_names

    def prepare(self, raw: PyTree) -> PyTree:
        """Samples as the network takes them.

        Args:
          raw: uint8 images [samples, height, width, channels], which the bundle normalises, or
            floats that already are; or a list of texts, which are padded to the longest of
            them, or a dict of `input_ids` and `attention_mask` [samples, tokens].

        Raises:
          InputError: samples that the network doesn't take.
        """
        return self.preparation.converted(self.preparation.checked(raw))

    def run(self, raw: PyTree, *, batch_size: int = 256) -> BundleAnswers:
        """Adaptive inference.

        Args:
          raw: As `prepare` takes it.
          batch_size: Samples a batch; the last batch is filled up, so that one program does.

        Raises:
          InputError: samples that the network doesn't take, or a batch size below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: give 1 or more")
        # Texts are tokenised all at once, for one length is one program.
        samples = self.preparation.checked(raw)
        count = samples_in(samples)
        size = min(batch_size, count)
        parts = [self._batch(samples, first, size) for first in range(0, count, size)]
        logits, exit_index = (np.concatenate(part)[:count] for part in zip(*parts, strict=True))
        return BundleAnswers(logits=logits, exit_index=exit_index, classes=logits.argmax(-1))

    def _batch(self, samples: PyTree, first: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        taken = jax.tree.map(lambda leaf: _filled_up(leaf[first : first + size], size), samples)
        answers = self._strategy(self.variables, self.preparation.converted(taken))
        return np.asarray(answers.logits), np.asarray(answers.exit_index)

    @functools.cached_property
    def _strategy(self) -> Callable:
        return compacted(self.network, self.policy)


def _filled_up(rows: Array, size: int) -> Array:
    """Rows, and as many copies of the last as are missing to `size`."""
    missing = size - len(rows)
    return np.concatenate([rows, rows[-1:].repeat(missing, 0)]) if missing else rows


def load_bundle(path: str | Path) -> Bundle:
    """Read a bundle that `eenet export` wrote, once every file is known to be what was written.

    Args:
      path: The bundle's folder.

    Raises:
      InputError: there is no bundle, one of a later version, one for other platforms or another
        JAX, or a file is damaged, missing or not the bundle's.
    """
    folder = Path(path)
    manifest = read_verified(folder)
    weights = load_file(folder / WEIGHTS_FILE)
    return Bundle(
        manifest=manifest,
        network=_network(folder, manifest),
        variables={name: jnp.asarray(value) for name, value in weights.items()},
        policy=_policy(folder, manifest),
        preparation=_preparation(folder, manifest),
    )


def _network(folder: Path, manifest: Manifest) -> BundleNetwork:
    return BundleNetwork(
        stages=_functions(folder, manifest, "stage"),
        heads=_functions(folder, manifest, "head"),
        weights=manifest.weights,
        num_classes=manifest.num_classes,
        input_shape=manifest.input_shape,
        inputs=manifest.inputs,
        dense=manifest.dense,
        max_length=manifest.max_length,
        vocab_size=manifest.vocab_size,
    )


def _policy(folder: Path, manifest: Manifest) -> BundlePolicy:
    combined = manifest.answer_weights
    return BundlePolicy(
        decisions=_functions(folder, manifest, "policy"),
        fitted_as=manifest.policy,
        dense=manifest.dense,
        budget=manifest.budget,
        thresholds=np.asarray(manifest.thresholds, np.float32),
        costs=manifest.costs,
        unit=manifest.unit,
        answer_weights=None if combined is None else np.asarray(combined, np.float32),
    )


def _preparation(folder: Path, manifest: Manifest) -> Preparation:
    if manifest.preprocessing is None:
        return Preparation(manifest=manifest)
    if manifest.inputs == "tokens":
        longest = manifest.preprocessing["max_length"]
        tokenizer = read_tokenizer(folder / TOKENIZER_FILE, longest)
        return Preparation(manifest=manifest, tokenizer=tokenizer)
    preprocess = _function(folder / PREPROCESS_FILE, manifest)
    return Preparation(manifest=manifest, preprocess=preprocess)


def _functions(folder: Path, manifest: Manifest, part: str) -> Functions:
    paths = (folder / function_file(part, k) for k in range(manifest.num_exits))
    return tuple(_function(path, manifest) for path in paths)


def _function(path: Path, manifest: Manifest) -> jax.export.Exported:
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        # What was written is here, as its digest says: it is the versions that don't agree.
        raise InputError(
            f"jax {jax.__version__} can't read '{path}', which jax {manifest.jax} wrote ({error}):"
            " export it again, or use that jax"
        ) from None
