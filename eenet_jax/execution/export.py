"""A network and a fitted policy → a bundle: a folder that runs without the network's code.

Every stage, exit head and decision is exported by itself, as StableHLO with a batch of any size,
so that whoever runs them may still gather the survivors between two exits.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors.numpy import save_file

from eenet_jax.artifacts import replacing, replacing_folder
from eenet_jax.data import augment
from eenet_jax.data.text import load_tokenizer
from eenet_jax.errors import InputError
from eenet_jax.execution.manifest import (
    PREPROCESS_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    function_file,
    is_bundle,
    numbers,
)
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.policies.policy import Policy
from eenet_jax.types import MEASURES, PyTree

PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN_PLATFORMS = (*PLATFORMS, "rocm")

Weights = Mapping[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """How uint8 images become the network's input: (pixel / 255 - mean) / std.

    Attributes:
      mean: Per channel, in units in which the greatest pixel value is 1.
      std: Deviation, likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPreprocessing:
    """How texts become token ids.

    Attributes:
      tokenizer: A Hugging Face `tokenizer.json`.
      max_length: Tokens that a text is cut at.
    """

    tokenizer: Path
    max_length: int


def export_bundle(
    network: MultiExitNetwork,
    variables: PyTree,
    policy: Policy,
    *,
    out: str | Path,
    class_names: Sequence[str] = (),
    preprocessing: ImagePreprocessing | TextPreprocessing | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Write a network, its weights and a policy as a bundle; docs/bundles.md has what is in it.

    Args:
      network: The network.
      variables: Its weights.
      policy: Fitted for its exits.
      out: The bundle's folder. A bundle that is there is replaced.
      class_names: In label order; none where they have no names.
      preprocessing: What is done to samples before the network; None where whoever runs the
        bundle does it.
      platforms: To export for, in JAX's words.

    Raises:
      InputError: the parts don't belong together, an unknown platform, or something else than
        a bundle lies at `out`.
    """
    _check_parts(network, policy, class_names, preprocessing)
    _check_platforms(platforms)
    check_replaceable(Path(out))
    weights = _named(variables)
    taken = _weights_taken(network, weights)
    exporting = _Exporting(network, policy, {n: _shape_of(a) for n, a in weights.items()}, taken)
    with replacing_folder(out) as folder, _without_machine_paths():
        version = exporting.write(folder, tuple(platforms))
        with replacing(folder / WEIGHTS_FILE) as aside:
            save_file({n: np.array(a, order="C") for n, a in weights.items()}, aside)
        described = _write_preprocessing(folder, network, preprocessing, tuple(platforms))
        _manifest(network, policy, class_names, described, platforms, version, taken).save(folder)


def check_replaceable(out: Path) -> None:
    """Raise InputError where writing a bundle there would remove something else than one."""
    if not out.exists() or is_bundle(out):
        return
    if not out.is_dir() or any(out.iterdir()):
        raise InputError(f"'{out}' is there and is no bundle: give another place")


def _check_parts(network, policy, class_names, preprocessing) -> None:
    if policy.num_exits != network.num_exits:
        raise InputError(
            f"policy '{policy.name}' is for {policy.num_exits} exits, the network has"
            f" {network.num_exits}: fit it on this network's predictions"
        )
    if class_names and len(class_names) != network.num_classes:
        raise InputError(
            f"{len(class_names)} class_names for {network.num_classes} classes: give one a class"
        )
    if isinstance(preprocessing, ImagePreprocessing):
        channels = network.input_shape[-1]
        if network.inputs != "image" or {len(preprocessing.mean), len(preprocessing.std)} != {
            channels
        }:
            raise InputError(
                f"preprocessing has {len(preprocessing.mean)} means and {len(preprocessing.std)}"
                f" deviations, the network takes {network.inputs} {network.input_shape}: give one"
                " of each a channel"
            )
    if isinstance(preprocessing, TextPreprocessing):
        _check_text(network, preprocessing)


def _check_text(network: MultiExitNetwork, preprocessing: TextPreprocessing) -> None:
    if network.inputs != "tokens":
        raise InputError(f"preprocessing is of texts, the network takes {network.inputs}")
    positions, vocab_size = network.settings["max_positions"], network.settings["vocab_size"]
    if not 1 <= preprocessing.max_length <= positions:
        raise InputError(
            f"max_length is {preprocessing.max_length}: give one from 1 to max_positions"
            f" {positions}"
        )
    tokenizer = load_tokenizer(preprocessing.tokenizer, preprocessing.max_length)
    greatest = max(tokenizer.get_vocab().values())
    if greatest >= vocab_size:
        raise InputError(
            f"the tokenizer's greatest id is {greatest:,}, the network's vocab_size {vocab_size:,}:"
            " give the tokenizer that belongs to the encoder"
        )


def _check_platforms(platforms: Sequence[str]) -> None:
    for platform in platforms:
        if platform not in KNOWN_PLATFORMS:
            raise InputError(
                f"platform '{platform}' is unknown: choose of {', '.join(KNOWN_PLATFORMS)}"
            )
    if not platforms or len(set(platforms)) < len(platforms):
        raise InputError(f"platforms {list(platforms)}: give each once, at least one")


def _named(variables: PyTree) -> dict[str, Array]:
    """The variables by flat names, e.g. `params/stage_0/conv1/conv/kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _nested(weights: Weights) -> PyTree:
    """The variables again, as far as they are there."""
    variables: dict[str, Any] = {}
    for name, leaf in weights.items():
        *folders, last = name.split("/")
        inner = variables
        for each in folders:
            inner = inner.setdefault(each, {})
        inner[last] = leaf
    return variables


def _weights_taken(network: MultiExitNetwork, weights: Weights) -> dict[str, tuple[str, ...]]:
    """The names of the tensors that each stage and head takes."""
    parts = [f"{kind}_{k}" for k in range(network.num_exits) for kind in ("stage", "head")]
    return {part: tuple(n for n in sorted(weights) if n.split("/")[1] == part) for part in parts}


def _shape_of(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


@dataclasses.dataclass(frozen=True)
class _Exporting:
    """A network and a policy, about to be exported part by part.

    Attributes:
      network: The network.
      policy: The policy.
      shapes: Of all weights, by their flat names.
      taken: Names of those that each stage and head takes.
    """

    network: MultiExitNetwork
    policy: Policy
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    taken: Mapping[str, tuple[str, ...]]

    def write(self, folder: Path, platforms: tuple[str, ...]) -> int:
        """Write every stage, head and decision; returns their calling convention's version."""
        carry, versions = _symbolic_input(self.network), set()
        for k in range(self.network.num_exits):
            stage, head = self._stage(k), self._head(k)
            after = jax.eval_shape(stage, self._weights(f"stage_{k}"), carry)
            for part, function, arguments in (
                ("stage", stage, (self._weights(f"stage_{k}"), carry)),
                ("head", head, (self._weights(f"head_{k}"), after)),
                ("policy", self._decision(k), self._seen(k)),
            ):
                path = folder / function_file(part, k)
                versions.add(_write_function(path, function, arguments, platforms))
            carry = after
        return max(versions)

    def _weights(self, part: str) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: self.shapes[name] for name in self.taken[part]}

    def _stage(self, k: int) -> Callable:
        def stage(weights: Weights, carry: PyTree) -> PyTree:
            return self.network.stage(k, _nested(weights), carry, False, None)[0]

        return stage

    def _head(self, k: int) -> Callable:
        def head(weights: Weights, carry: PyTree) -> Array:
            return self.network.head(k, _nested(weights), carry, False, None)[0]

        return head

    def _decision(self, k: int) -> Callable:
        def decision(probs: Array, measures: Array | None = None) -> tuple[Array, Array]:
            score = self.policy.score(k, probs, measures)
            return jnp.asarray(score), jnp.asarray(self.policy.answer_logits(k, probs))

        return decision

    def _seen(self, k: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What exit k's decision looks at."""
        (batch,) = jax.export.symbolic_shape("batch")
        widths = [self.network.num_classes, *([len(MEASURES)] if self.network.dense else [])]
        return tuple(jax.ShapeDtypeStruct((k + 1, batch, w), jnp.float32) for w in widths)


def _symbolic_input(network: MultiExitNetwork) -> PyTree:
    """The network's input for a batch of any size, texts being of any length that it takes."""
    if network.inputs == "image":
        (batch,) = jax.export.symbolic_shape("batch")
        return jax.ShapeDtypeStruct((batch, *network.input_shape), jnp.float32)
    longest = network.settings["max_positions"]
    shape = jax.export.symbolic_shape("batch, length", constraints=[f"length <= {longest}"])
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ("input_ids", "attention_mask")
    }


def _write_function(
    path: Path, function: Callable, arguments: tuple[PyTree, ...], platforms: tuple[str, ...]
) -> int:
    exported = jax.export.export(jax.jit(function), platforms=platforms)(*arguments)
    path.write_bytes(exported.serialize())
    return exported.calling_convention_version


@contextlib.contextmanager
def _without_machine_paths() -> Iterator[None]:
    """Source files are noted in exported functions; where they lay here is nobody's business."""
    name = "jax_hlo_source_file_canonicalization_regex"
    before = jax.config.values[name]
    jax.config.update(name, r"^.*[/\\]")
    try:
        yield
    finally:
        jax.config.update(name, before)


def _write_preprocessing(
    folder: Path, network: MultiExitNetwork, preprocessing, platforms: tuple[str, ...]
) -> dict[str, Any] | None:
    """Write what prepares samples; returns what the manifest says of it."""
    if isinstance(preprocessing, TextPreprocessing):
        shutil.copyfile(preprocessing.tokenizer, folder / TOKENIZER_FILE)
        pad_id = load_tokenizer(folder / TOKENIZER_FILE, 1).token_to_id("[PAD]")
        return {
            "description": f"a text is tokenised by {TOKENIZER_FILE} and cut at max_length tokens;"
            " shorter texts of a batch are filled up with pad_id, where attention_mask is 0",
            "max_length": preprocessing.max_length,
            "pad_id": 0 if pad_id is None else pad_id,
        }
    if preprocessing is None:
        return None
    mean, std = preprocessing.mean, preprocessing.std
    shape = (jax.export.symbolic_shape("batch")[0], *network.input_shape)

    def preprocess(images: Array) -> Array:
        return jnp.asarray(augment.normalize(images, mean, std))

    uint8 = jax.ShapeDtypeStruct(shape, jnp.uint8)
    _write_function(folder / PREPROCESS_FILE, preprocess, (uint8,), platforms)
    return {
        "description": "uint8 images of this size, height and width in pixels:"
        " (pixel / 255 - mean) / std, per channel; resizing and cropping come before",
        "mean": list(mean),
        "std": list(std),
        "size": list(network.input_shape[:2]),
    }


def _manifest(network, policy, class_names, described, platforms, version, taken) -> Manifest:
    tokens, combined = network.inputs == "tokens", policy.answer_weights
    return Manifest(
        family=network.family,
        settings=network.settings,
        num_exits=network.num_exits,
        num_classes=network.num_classes,
        class_names=tuple(class_names),
        inputs=network.inputs,
        input_shape=network.input_shape,
        max_length=network.settings["max_positions"] if tokens else None,
        vocab_size=network.settings["vocab_size"] if tokens else None,
        dense=network.dense,
        preprocessing=described,
        policy=policy.name,
        budget=float(policy.budget),
        unit=policy.unit,
        costs=numbers(policy.costs),
        thresholds=numbers(policy.thresholds),
        answer_weights=None if combined is None else tuple(map(numbers, combined)),
        platforms=tuple(platforms),
        jax=jax.__version__,
        calling_convention_version=version,
        weights=taken,
    )
