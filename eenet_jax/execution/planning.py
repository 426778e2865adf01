"""The latencies of a device that one hasn't got, from a few of its figures.

The model. Of w FLOPs in flight a device does peak · w / (w + half_work) a second, so that a stage
of m FLOPs a sample takes (m · b + half_work) / peak seconds on a batch of b. Each call of a
compiled program costs a launch besides, and each answer that the host waits for a read; where a
device starts every layer by itself, as a GPU does, so does each convolution or matrix product.
What follows from such a table for each strategy is `prediction.py`'s to say.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from eenet_jax.errors import InputError
from eenet_jax.execution.latency import StageLatency

LEAST_GROWTH = 1e-9  # Of seconds from no samples to the most; less is rounding.

SUSTAINED = 0.4
"""Share of the data sheet's peak that the presets sustain. An assumption: large transformers are
reported at 0.4 to 0.6 of it; layers narrower than a matrix unit reach less."""
LAUNCH_SECONDS = 65e-6
"""Of a call from Python in the presets: what this project measured for a call of a Linen module
through `jax.jit`, on a CPU. An accelerator's driver adds some microseconds to it."""
READ_SECONDS = 20e-6
"""Of a small result in the presets. An assumption: synchronising and crossing PCIe takes tens of
microseconds."""
GPU_LAYER_SECONDS = 31e-6
"""Of a convolution or matrix product in the presets of a GPU, with the small operations around it.
Measured on an H100, `resnet56_3` in float32 as JAX 0.11 multiplies it there (TF32): its pass takes
3.55 ms on 64 images and 4.09 ms on 128, a launch and a read included, which leaves 2.9 ms for its
94 layers on any number of images."""
STAGE_WEIGHTS = 2 * (4 * 384**2 + 2 * 384 * 1536)
"""Weights that a stage of the presets reads from memory: two layers of MiniLM (width 384)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """What the model knows of a device.

    Attributes:
      name: Its name.
      launch_seconds: Of each call of a compiled program, its dispatch included.
      read_seconds: Of the host reading a small result back.
      peak_flops: FLOP/s sustained by much work at once.
      half_work: FLOPs in flight at which half of the peak is reached.
      source: Where the figures come from.
      predicted: Whether they come from public figures and assumptions, not from a measurement.
      work_factors: Of each stage of the network that was measured, its work over its FLOPs, as
        stages differ in seconds per FLOP; empty where FLOPs alone count.
      layer_seconds: Of each convolution or matrix product beside its work.
    """

    name: str
    launch_seconds: float
    read_seconds: float
    peak_flops: float
    half_work: float
    source: str
    predicted: bool
    work_factors: tuple[float, ...] = ()
    layer_seconds: float = 0.0

    def __post_init__(self):
        for name in ("launch_seconds", "read_seconds", "half_work", "layer_seconds"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"{name} is {value}: give a finite number, 0 or more")
        if not 0 < self.peak_flops < math.inf:
            raise InputError(f"peak_flops is {self.peak_flops}: give FLOP/s, a positive number")

    def table(
        self, stage_flops: Sequence[float], sizes: Sequence[int], stage_layers: Sequence[int] = ()
    ) -> StageLatency:
        """What measuring a network's stages would give, by the model.

        Args:
          stage_flops: Of a sample, for each stage with its head.
          sizes: Batch sizes.
          stage_layers: Convolutions and matrix products of each stage with its head, see
            `costs.count_layers`; needed where they cost something by themselves.

        Raises:
          InputError: FLOPs or sizes are not positive, or of another number of stages; layers are
            missing.
        """
        stages = len(self.work_factors) or len(stage_flops)
        flops = _checked_flops(stage_flops, stages)
        if min(sizes, default=0) < 1:
            raise InputError(f"sizes {list(sizes)} must be one or more, all at least 1")
        work = flops * np.asarray(self.work_factors or 1.0)
        rising = tuple(sorted(set(sizes)))
        if self.layer_seconds and len(stage_layers) != len(flops):
            raise InputError(
                f"stage_layers {list(stage_layers)} are not one count for each of {len(flops)}"
                f" stages: '{self.name}' needs them, count_layers gives them"
            )
        parts = (np.outer(work, rising) + self.half_work) / self.peak_flops
        if self.layer_seconds:
            parts += self.layer_seconds * np.asarray(stage_layers)[:, None]
        call = self.launch_seconds + self.read_seconds
        return StageLatency(
            device=self.name,
            sizes=rising,
            seconds=call + parts,
            full_seconds=call + parts.sum(0),
            call_seconds=call,
            pieces=(rising[-1],) * len(flops),
        )


def _preset(
    name: str, peak: float, weight_bytes: int, bandwidth: float, source: str, layer: float = 0.0
) -> Device:
    """A device from its data sheet.

    Half of the peak is reached, by assumption, with the work that takes as long as reading a
    stage's weights from memory: below it, what limits a stage is its weights, not its samples.
    """
    sustained = SUSTAINED * peak
    return Device(
        name=name,
        launch_seconds=LAUNCH_SECONDS,
        read_seconds=READ_SECONDS,
        peak_flops=sustained,
        half_work=sustained * STAGE_WEIGHTS * weight_bytes / bandwidth,
        source=f"{source}; launch, read, share of the peak and half work are assumed",
        predicted=True,
        layer_seconds=layer,
    )


TPU_V5E = _preset(
    "TPU v5e, one chip, bfloat16", 197e12, 2, 819e9,
    "Google Cloud documentation, TPU v5e: 197 TFLOP/s bfloat16, 819 GB/s a chip",
)  # fmt: skip
H100 = _preset(
    "H100 SXM, bfloat16", 989e12, 2, 3.35e12,
    "NVIDIA H100 data sheet, SXM: 989 TFLOP/s bfloat16 without sparsity, 3.35 TB/s",
    GPU_LAYER_SECONDS,
)  # fmt: skip
H100_TF32 = _preset(
    "H100 SXM, float32 as TF32", 494.5e12, 4, 3.35e12,
    "NVIDIA H100 data sheet, SXM: 494 TFLOP/s TF32 without sparsity, 3.35 TB/s",
    GPU_LAYER_SECONDS,
)  # fmt: skip


def fit_device(
    latency: StageLatency, stage_flops: Sequence[float], *, read_seconds: float = 0.0
) -> Device:
    """The device that a measured table fits best: least squares of relative errors.

    Stage k takes launch + read + (work_k · size + half_work) / peak, the full pass one launch and
    read and the stages' work, which is linear in what is sought once divided by the peak. Seconds
    alone tell launching and reading apart from work, but not from each other.

    Args:
      latency: Of at least two sizes.
      stage_flops: Of a sample, for each stage with its head; they fix the peak's unit, while the
        proportions of the stages are those measured.
      read_seconds: Of one read, where it is known; launching is what is left.

    Raises:
      InputError: the table has a single size, or values that are no seconds, or seconds that
        don't grow with the size.
    """
    flops = _checked_flops(stage_flops, len(latency.seconds))
    measured = np.vstack([latency.seconds, latency.full_seconds[None]])
    _check_table(latency)
    terms = _table_terms(latency.sizes, len(flops))
    seconds = measured.ravel()
    (fixed, ramp, *slopes), _ = nnls(terms / seconds[:, None], np.ones_like(seconds))
    if sum(slopes) * latency.sizes[-1] <= LEAST_GROWTH * seconds.max():
        raise InputError(
            f"the seconds of {latency.device} do not grow with the batch"
            f" ({latency.sizes[0]} to {latency.sizes[-1]} samples): measure larger sizes"
        )
    peak = float(flops.sum() / sum(slopes))
    return Device(
        name=latency.device,
        launch_seconds=max(0.0, float(fixed) - read_seconds),
        read_seconds=read_seconds,
        peak_flops=peak,
        half_work=float(ramp) * peak,
        source=f"fitted to stages measured at {', '.join(map(str, latency.sizes))} samples",
        predicted=False,
        work_factors=tuple((np.asarray(slopes) * peak / flops).tolist()),
    )


def _table_terms(sizes: Sequence[int], exits: int) -> Float[np.ndarray, "cells terms"]:
    """Of each cell of the table, the full pass last: calls, stages, and samples of each stage."""
    stages = np.vstack([np.eye(exits), np.ones(exits)])
    one_size = [np.column_stack([np.ones(exits + 1), stages.sum(1), stages * b]) for b in sizes]
    return np.stack(one_size, axis=1).reshape(-1, exits + 2)


def _check_table(latency: StageLatency) -> None:
    if len(latency.sizes) < 2:
        raise InputError(
            f"stages were measured at {len(latency.sizes)} size: at least 2 tell work from launches"
        )


def _checked_flops(stage_flops: Sequence[float], stages: int) -> Float[np.ndarray, " exits"]:
    flops = np.asarray(stage_flops, np.float64)
    if flops.shape != (stages,) or not (np.isfinite(flops) & (flops > 0)).all():
        raise InputError(
            f"stage_flops {flops.tolist()} must be {stages} positive numbers, one for each stage"
        )
    return flops
