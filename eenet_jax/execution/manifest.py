"""A bundle's manifest: what the bundle holds, and the digests that its files are checked by.

Nothing here needs a network's code: whoever runs a bundle reads this, and not `networks`.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.export
from jaxtyping import Float

from eenet_jax.artifacts import read_json, sha256_of, write_json
from eenet_jax.errors import InputError
from eenet_jax.types import Array

FORMAT = "eenet_jax.bundle"
VERSION = 1

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
PREPROCESS_FILE = "preprocess.stablehlo"
TOKENIZER_FILE = "tokenizer.json"

REMEDY = "copy it again, or export it again"


def function_file(part: str, k: int) -> str:
    """Where an exported function of exit k lies.

    Args:
      part: "stage", "head" or "policy".
      k: 0-based.
    """
    return f"{part}_{k}.stablehlo"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
      family: Of the network; for information, as `settings` are.
      settings: The network builder's arguments.
      num_exits: K.
      num_classes: C.
      class_names: In label order; empty where nobody gave them.
      inputs: What the network takes, "image" or "tokens".
      input_shape: Of one sample, without the batch axis; of tokens, (length,) of the example.
      max_length: Tokens of the longest text that the network takes; None for images.
      vocab_size: Greater than every token id; None for images.
      dense: Whether exits answer every pixel.
      preprocessing: How a sample becomes the network's input, in words and numbers; None where
        the bundle takes nothing but finished inputs.
      policy: The policy's name.
      budget: Average cost per sample that it was fitted for, in `unit`.
      unit: Of costs and budget.
      costs: Of each exit.
      thresholds: Of each exit; "inf" and "-inf" in the file.
      answer_weights: Where samples are answered by all exits passed, see `Policy`; None where
        the exit answers by itself.
      platforms: What the functions were exported for, in JAX's words.
      jax: Version that exported them.
      calling_convention_version: Of the exported functions.
      weights: Which tensors each stage and head takes, by "stage_0", "head_0", ….
    """

    family: str
    settings: Mapping[str, Any]
    num_exits: int
    num_classes: int
    class_names: tuple[str, ...]
    inputs: Literal["image", "tokens"]
    input_shape: tuple[int, ...]
    max_length: int | None
    vocab_size: int | None
    dense: bool
    preprocessing: Mapping[str, Any] | None
    policy: str
    budget: float
    unit: str
    costs: tuple[float, ...]
    thresholds: tuple[float, ...]
    answer_weights: tuple[tuple[float, ...], ...] | None
    platforms: tuple[str, ...]
    jax: str
    calling_convention_version: int
    weights: Mapping[str, tuple[str, ...]]

    def save(self, folder: Path) -> None:
        """Write `manifest.json`, with the digest of every other file of the folder and its own."""
        document: dict[str, Any] = {"format": FORMAT, "version": VERSION, **vars(self)}
        document["thresholds"] = [_to_json(value) for value in self.thresholds]
        document["files"] = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
        # As JSON gives them back, so that both sides digest the same.
        document = json.loads(json.dumps(document, allow_nan=False))
        write_json(folder / MANIFEST_FILE, document | {"sha256": _digest(document)})


def numbers(values: Float[Array, " exits"] | Sequence[float | str]) -> tuple[float, ...]:
    """As Python's numbers; "inf" and "-inf" are some too."""
    return tuple(float(value) for value in values)


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle, of any version and in any condition."""
    try:
        document = read_json(folder / MANIFEST_FILE)
    except InputError:
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def read_verified(folder: Path) -> Manifest:
    """A bundle's manifest, once every file is known to be what was exported.

    Nothing but JSON is parsed, and no function is deserialised.

    Args:
      folder: The bundle.

    Raises:
      InputError: there is no bundle, one of a later version, one for other platforms or another
        JAX, or a file is damaged, missing or not the bundle's.
    """
    path = folder / MANIFEST_FILE
    document = read_json(path, "bundle's manifest")
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"'{folder}' is no bundle: give a folder that `eenet export` wrote")
    _check_version(path, document.get("version"))
    digest = document.pop("sha256", None)
    if digest != _digest(document):
        raise InputError(f"'{path}' is damaged (its SHA-256 is not the one noted in it): {REMEDY}")
    manifest, digests = _parsed(path, document)
    _check_platform(folder, manifest)
    _check_files(folder, digests)
    return manifest


def _check_version(path: Path, version: Any) -> None:
    if not isinstance(version, int) or version < 1:
        raise InputError(f"'{path}' has the version {version!r}, which is none: {REMEDY}")
    if version > VERSION:
        raise InputError(
            f"'{path}' is of version {version}, and this eenet_jax reads up to {VERSION}: update it"
        )


def _parsed(path: Path, document: Mapping[str, Any]) -> tuple[Manifest, dict[str, str]]:
    """The manifest, and the digests of the files."""
    try:
        values = {field.name: document[field.name] for field in dataclasses.fields(Manifest)}
        for name in ("class_names", "input_shape", "costs", "platforms"):
            values[name] = tuple(values[name])
        values["thresholds"] = numbers(values["thresholds"])
        values["weights"] = {part: tuple(names) for part, names in values["weights"].items()}
        if values["answer_weights"] is not None:
            values["answer_weights"] = tuple(map(numbers, values["answer_weights"]))
        return Manifest(**values), dict(document["files"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"'{path}' is no bundle's manifest ({error!r}): {REMEDY}") from None


def _check_platform(folder: Path, manifest: Manifest) -> None:
    here = jax.export.default_export_platform()
    if here not in manifest.platforms:
        raise InputError(
            f"'{folder}' was exported for {', '.join(manifest.platforms)} and not for {here}:"
            f" export it again with {here} among its platforms"
        )
    version = manifest.calling_convention_version
    least = jax.export.minimum_supported_calling_convention_version
    most = jax.export.maximum_supported_calling_convention_version
    if not least <= version <= most:
        raise InputError(
            f"'{folder}' was exported by jax {manifest.jax} with calling convention {version}, and"
            f" jax {jax.__version__} runs {least} to {most}: export it again, or use that jax"
        )


def _check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Every file listed is there and is what was exported, and nothing else is there."""
    there = {path.name for path in folder.iterdir()} - {MANIFEST_FILE}
    for name in sorted(digests.keys() - there):
        raise InputError(f"'{folder / name}' is missing from the bundle: {REMEDY}")
    for name in sorted(there - digests.keys()):
        raise InputError(f"'{folder / name}' is none of the bundle's files: remove it")
    for name, digest in digests.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise InputError(
                f"'{folder / name}' is damaged (its SHA-256 is not the manifest's): {REMEDY}"
            )
