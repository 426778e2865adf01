"""`eenet run --bundle`: a bundle's answers to the samples of a file."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from eenet_jax.artifacts import read_npz, write_csv
from eenet_jax.errors import InputError
from eenet_jax.execution.bundle import Bundle, BundleAnswers, load_bundle
from eenet_jax.execution.bundle_inputs import samples_in
from eenet_jax.execution.samples import TOKENS
from eenet_jax.types import PyTree

HEADER = ("index", "class", "class_name", "probability", "exit_index")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """What a bundle came to on some samples.

    Attributes:
      samples: How many.
      exit_rates: Share that left at each exit.
      mean_cost: Of a sample, in `unit`.
      unit: Of the bundle's costs.
      budget: That its policy was fitted for, in `unit`.
      samples_per_second: Compilation and tokenising left out, the images' normalisation not.
      accuracy: Share of labelled samples, or pixels, that are answered right; None where
        nothing is labelled.
      out: Where the answers were written.
    """

    samples: int
    exit_rates: tuple[float, ...]
    mean_cost: float
    unit: str
    budget: float
    samples_per_second: float
    accuracy: float | None
    out: Path | None


def run_bundle(
    bundle: str | Path, inputs: str | Path, *, out: str | Path | None = None, batch_size: int = 256
) -> Answered:
    """Answer the samples of a file by adaptive inference.

    Args:
      bundle: Folder of the bundle.
      inputs: `.npz` with `images`, or with `input_ids` and `attention_mask`, and with `labels`
        where there are some; or `.txt`, a text a line.
      out: CSV to write, one row a sample.
      batch_size: Samples a batch.

    Returns:
      The summary.

    Raises:
      InputError: a bundle or samples that can't be used.
    """
    loaded = load_bundle(bundle)
    raw, labels = read_inputs(Path(inputs))
    samples = loaded.preparation.checked(raw)
    if labels is not None:
        _check_labels(loaded, labels, samples_in(samples))
    # Compiles what the timed pass runs.
    loaded.run(
        jax.tree.map(lambda leaf: leaf[: max(1, batch_size)], samples), batch_size=batch_size
    )
    begun = time.perf_counter()
    answers = loaded.run(samples, batch_size=batch_size)
    seconds = time.perf_counter() - begun
    if out is not None:
        write_csv(out, answer_rows(answers, loaded.class_names))
    return _summary(loaded, answers, labels, seconds, out)


def read_inputs(path: Path) -> tuple[PyTree, np.ndarray | None]:
    """Samples, as `Bundle.prepare` takes them, and their labels where there are some.

    Args:
      path: See `run_bundle`.

    Raises:
      InputError: the file is missing, damaged or holds no samples.
    """
    if path.suffix != ".txt":
        arrays = read_npz(path, "inputs", "write it again, or give a .txt")
        return _samples_of(path, arrays), arrays.get("labels")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no inputs at '{path}': check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' is no readable UTF-8 text ({error}): write it again") from None
    # Lines as an editor counts them, and no others that Unicode knows.
    return text.removesuffix("\n").split("\n") if text else [], None


def _samples_of(path: Path, arrays: dict[str, np.ndarray]) -> PyTree:
    if "images" in arrays:
        return arrays["images"]
    if set(TOKENS) <= arrays.keys():
        return {name: arrays[name] for name in TOKENS}
    raise InputError(
        f"'{path}' has {sorted(arrays) or 'nothing'}: give images, or {' and '.join(TOKENS)}"
    )


def _check_labels(bundle: Bundle, labels: np.ndarray, samples: int) -> None:
    network = bundle.network
    wanted = (samples, *network.input_shape[:2]) if network.dense else (samples,)
    if labels.shape != wanted or labels.dtype.kind not in "iu":
        raise InputError(
            f"labels are {labels.dtype} of shape {labels.shape}: give whole numbers {wanted}"
        )
    least = -1 if network.dense else 0
    if labels.min() < least or labels.max() >= network.num_classes:
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()}: the bundle's classes run from 0 to"
            f" {network.num_classes - 1}"
        )


def _summary(
    bundle: Bundle,
    answers: BundleAnswers,
    labels: np.ndarray | None,
    seconds: float,
    out: str | Path | None,
) -> Answered:
    samples, policy = len(answers.exit_index), bundle.policy
    counts = np.bincount(answers.exit_index, minlength=policy.num_exits)
    return Answered(
        samples=samples,
        exit_rates=tuple(float(count) / samples for count in counts),
        mean_cost=float(np.asarray(policy.costs)[answers.exit_index].mean()),
        unit=policy.unit,
        budget=policy.budget,
        samples_per_second=samples / seconds,
        accuracy=None if labels is None else _accuracy(answers.classes, labels),
        out=None if out is None else Path(out),
    )


def _accuracy(
    classes: Int[np.ndarray, "samples *dense"], labels: Int[np.ndarray, "samples *dense"]
) -> float | None:
    known = labels >= 0
    return float((classes == labels)[known].mean()) if known.any() else None


def answer_rows(answers: BundleAnswers, class_names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The lines of the answers' CSV, the header first.

    Of an image with an answer for every pixel, the commonest class is named, and the
    probability is its mean over the image.

    Args:
      answers: Of some samples.
      class_names: In label order; may be empty.
    """
    yield HEADER
    for index, (logits, exit_index) in enumerate(
        zip(answers.logits, answers.exit_index, strict=True)
    ):
        pixels = logits.reshape(-1, logits.shape[-1])
        said = int(np.bincount(pixels.argmax(-1), minlength=pixels.shape[-1]).argmax())
        name = class_names[said] if class_names else ""
        yield index, said, name, f"{_mean_softmax(pixels)[said]:.6g}", int(exit_index)


def _mean_softmax(logits: Float[np.ndarray, "pixels classes"]) -> Float[np.ndarray, " classes"]:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).mean(0)


def print_answered(answered: Answered) -> None:
    """Where samples left, what they cost, how fast it went and how right it was."""
    print(f"{answered.samples:,} samples, {answered.samples_per_second:,.0f} samples/s")
    shares = [f"{100 * rate:.1f} % at exit {k}" for k, rate in enumerate(answered.exit_rates, 1)]
    print(f"left {', '.join(shares)}")
    print(
        f"mean cost {answered.mean_cost:.6g} {answered.unit}, the policy's budget"
        f" {answered.budget:g}"
    )
    if answered.accuracy is not None:
        print(f"accuracy {answered.accuracy:.4f}")
    if answered.out is not None:
        print(f"wrote {answered.out}")
