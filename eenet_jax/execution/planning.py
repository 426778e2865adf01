"""How long each strategy of execution takes on a device, predicted from a few of its figures.

The model. Of w FLOPs in flight a device does peak · w / (w + half_work) a second, so that a stage
of m FLOPs a sample takes (m · b + half_work) / peak seconds on a batch of b. Each call of a
compiled program costs a launch besides, and each answer that the host waits for a read. Samples
are independent, each reaching stage k with the probability r_k that the exit rates give, so that
of a batch Binomial(b, r_k) reach it; times are means over that distribution.

What the model leaves out: gathering survivors, what the device may lose in a conditional, and
launches that overlap with the device's work. `validate` shows what that amounts to where
there are measurements.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls
from scipy.special import gammaln, xlog1py, xlogy

from eenet_jax.errors import InputError
from eenet_jax.execution.device_compacted import bucket_sizes
from eenet_jax.execution.latency import StageLatency

STRATEGIES = ("full", "masked", "compacted", "device_compacted", "streaming")
ONE_PROGRAM = ("full", "masked", "device_compacted")
SMALLEST_SIZE = 8
RATE_SUM_TOLERANCE = 1e-6
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
    """

    name: str
    launch_seconds: float
    read_seconds: float
    peak_flops: float
    half_work: float
    source: str
    predicted: bool
    work_factors: tuple[float, ...] = ()

    def __post_init__(self):
        for name in ("launch_seconds", "read_seconds", "half_work"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"{name} is {value}: give a finite number, 0 or more")
        if not 0 < self.peak_flops < math.inf:
            raise InputError(f"peak_flops is {self.peak_flops}: give FLOP/s, a positive number")


def _preset(name: str, peak: float, weight_bytes: int, bandwidth: float, source: str) -> Device:
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
    )


TPU_V5E = _preset(
    "TPU v5e, one chip, bfloat16", 197e12, 2, 819e9,
    "Google Cloud documentation, TPU v5e: 197 TFLOP/s bfloat16, 819 GB/s a chip",
)  # fmt: skip
H100 = _preset(
    "H100 SXM, bfloat16", 989e12, 2, 3.35e12,
    "NVIDIA H100 data sheet, SXM: 989 TFLOP/s bfloat16 without sparsity, 3.35 TB/s",
)  # fmt: skip
H100_FLOAT32 = _preset(
    "H100 SXM, float32", 67e12, 4, 3.35e12,
    "NVIDIA H100 data sheet, SXM: 67 TFLOP/s float32, 3.35 TB/s",
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
    _check_table(latency, measured)
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


def _check_table(latency: StageLatency, measured: Float[np.ndarray, "rows sizes"]) -> None:
    if len(latency.sizes) < 2:
        raise InputError(
            f"stages were measured at {len(latency.sizes)} size: at least 2 tell work from launches"
        )
    if not (np.isfinite(measured) & (measured > 0)).all():
        raise InputError(f"the table of {latency.device} has seconds that are not positive")


def predict(
    device: Device,
    stage_flops: Sequence[float],
    exit_rates: Sequence[float],
    batch_size: int,
    strategy: str,
    sizes: Sequence[int] | None = None,
) -> float:
    """Seconds per sample.

    - "full": every stage on the whole batch, in one program.
    - "masked": the same, a stage being skipped where everybody has left, which happens with the
      probability (1 - r_k)^batch.
    - "compacted": a stage on its survivors, rounded up to one of `sizes`; a launch and a read
      each.
    - "device_compacted": the same in one program, with the sizes of `bucket_sizes`.
    - "streaming": every stage on full batches of survivors of many batches; a launch and a read
      each.

    Args:
      device: Where.
      stage_flops: Of a sample, for each stage with its head.
      exit_rates: Share of samples that leaves at each exit.
      batch_size: Samples.
      strategy: One of `STRATEGIES`.
      sizes: That a compacted stage may run at; None for powers of two from 8, and the batch.

    Raises:
      InputError: an argument is out of range, or they don't fit together.
    """
    work, reach = _checked(device, stage_flops, exit_rates, batch_size)
    calls, rows = _expected_runs(strategy, reach, batch_size, sizes)
    launches = 1.0 if strategy in ONE_PROGRAM else calls.sum()
    seconds = launches * (device.launch_seconds + device.read_seconds)
    return float(seconds + _run_seconds(device, work, calls, rows).sum()) / batch_size


def _run_seconds(device: Device, work, calls, rows) -> Float[np.ndarray, " exits"]:
    return (work * rows + device.half_work * calls) / device.peak_flops


def _expected_runs(
    strategy: str, reach: Float[np.ndarray, " exits"], batch: int, sizes: Sequence[int] | None
) -> tuple[Float[np.ndarray, " exits"], Float[np.ndarray, " exits"]]:
    """How often each stage runs in a batch, and on how many rows together, in expectation."""
    if strategy == "full":
        calls = np.ones_like(reach)
    elif strategy == "streaming":
        calls = reach
    elif strategy == "masked":
        calls = 1 - (1 - reach) ** batch
    elif strategy == "compacted":
        return _rounded_up(reach, batch, _powers_of_two(batch) if sizes is None else sizes)
    elif strategy == "device_compacted":
        return _rounded_up(reach, batch, bucket_sizes(batch))
    else:
        raise InputError(f"strategy '{strategy}' is unknown: choose {', '.join(STRATEGIES)}")
    return calls, calls * batch


def _rounded_up(reach: Float[np.ndarray, " exits"], batch: int, sizes: Sequence[int]):
    """Runs of each stage on its survivors: none for nobody, else one at the next size."""
    rising = np.unique(np.asarray(sizes))
    if not len(rising) or rising[0] < 1 or rising[-1] < batch:
        raise InputError(f"sizes {list(sizes)} must be positive and hold the batch of {batch}")
    counts = np.arange(1, batch + 1)
    shares = survivor_shares(reach, batch)[:, 1:]
    return shares.sum(1), shares @ rising[np.searchsorted(rising, counts)]


def _powers_of_two(batch: int) -> list[int]:
    powers = (1 << power for power in range(batch.bit_length()))
    return [*(size for size in powers if size >= SMALLEST_SIZE), batch]


def survivor_shares(
    reach: Float[np.ndarray, " exits"], batch_size: int
) -> Float[np.ndarray, "exits counts"]:
    """The probabilities that 0, 1, …, `batch_size` samples reach each stage.

    Args:
      reach: The probability that a sample does.
      batch_size: Samples.
    """
    n, r = np.arange(batch_size + 1), reach[:, None]
    # Through logarithms, for a binomial coefficient of 1,030 samples is no double any more.
    log_ways = gammaln(batch_size + 1) - gammaln(n + 1) - gammaln(batch_size - n + 1)
    return np.exp(log_ways[None] + xlogy(n[None], r) + xlog1py(batch_size - n[None], -r))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One strategy at one batch size.

    Attributes:
      strategy: One of `STRATEGIES`.
      batch_size: Samples.
      seconds_per_sample: Predicted.
      realised_over_ideal: (T_full - T) / (T_full - T_ideal), T_ideal being T_full times the sum
        over stages of the stage's part of the summed stage times and the share of samples that
        reaches it; None where nothing can be saved.
    """

    strategy: str
    batch_size: int
    seconds_per_sample: float
    realised_over_ideal: float | None


def predictions(
    device: Device,
    stage_flops: Sequence[float],
    exit_rates: Sequence[float],
    batch_sizes: Sequence[int],
    strategies: Sequence[str] = STRATEGIES,
    sizes: Sequence[int] | None = None,
) -> list[Prediction]:
    """A row for each batch size and strategy; arguments as for `predict`."""
    rows = []
    for batch in batch_sizes:
        full = predict(device, stage_flops, exit_rates, batch, "full")
        saved = full * (1 - _ideal_share(device, stage_flops, exit_rates, batch))
        for strategy in strategies:
            seconds = predict(device, stage_flops, exit_rates, batch, strategy, sizes)
            rows.append(
                Prediction(
                    strategy=strategy,
                    batch_size=batch,
                    seconds_per_sample=seconds,
                    realised_over_ideal=(full - seconds) / saved if saved > 1e-9 * full else None,
                )
            )
    return rows


def best(rows: Sequence[Prediction]) -> Prediction:
    """The row with the fewest seconds per sample; of equal ones the first."""
    if not rows:
        raise InputError("there is nothing to choose from: give batch_sizes and strategies")
    return min(rows, key=lambda row: row.seconds_per_sample)


def _ideal_share(device: Device, stage_flops, exit_rates, batch: int) -> float:
    work, reach = _checked(device, stage_flops, exit_rates, batch)
    overhead = device.launch_seconds + device.read_seconds
    alone = overhead + _run_seconds(device, work, np.ones_like(reach), batch)
    return float(alone @ reach / alone.sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one strategy.

    Attributes:
      strategy: One of `STRATEGIES`.
      batch_size: Samples.
      exit_rates: Share of samples that left at each exit.
      seconds_per_sample: Measured.
    """

    strategy: str
    batch_size: int
    exit_rates: tuple[float, ...]
    seconds_per_sample: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """A prediction beside what was measured.

    Attributes:
      strategy: One of `STRATEGIES`.
      batch_size: Samples.
      measured: Seconds per sample.
      predicted: Seconds per sample.
      relative_error: predicted / measured - 1.
    """

    strategy: str
    batch_size: int
    measured: float
    predicted: float
    relative_error: float


def validate(
    latency: StageLatency, stage_flops: Sequence[float], measured: Sequence[Measured]
) -> list[Validation]:
    """Fit a device to the stages' latencies alone, and predict strategies that were measured.

    Args:
      latency: Of the device that the strategies were measured on.
      stage_flops: Of a sample, for each stage with its head.
      measured: In any order, which is kept.
    """
    device = fit_device(latency, stage_flops)
    return [_validation(device, stage_flops, row) for row in measured]


def _validation(device: Device, stage_flops: Sequence[float], row: Measured) -> Validation:
    if not row.seconds_per_sample > 0:
        raise InputError(
            f"{row.strategy} at {row.batch_size} took {row.seconds_per_sample} s: measure again"
        )
    seconds = predict(device, stage_flops, row.exit_rates, row.batch_size, row.strategy)
    return Validation(
        strategy=row.strategy,
        batch_size=row.batch_size,
        measured=row.seconds_per_sample,
        predicted=seconds,
        relative_error=seconds / row.seconds_per_sample - 1,
    )


def tabulate(rows: Sequence[Prediction] | Sequence[Validation]) -> list[str]:
    """Lines of a markdown table: a header, its rule, and a line for each row."""
    if not rows:
        return []
    names = [field.name for field in dataclasses.fields(rows[0])]
    cells = [[_cell(getattr(row, name)) for name in names] for row in rows]
    header = [name.replace("_", " ") for name in names]
    rule = [":--", *["--:"] * (len(names) - 1)]
    return ["| " + " | ".join(line) + " |" for line in (header, rule, *cells)]


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    # Rounded first: what should be 0 need not show its rounding errors.
    return f"{round(value, 12):.3g}" if isinstance(value, float) else str(value)


def _checked(device: Device, stage_flops, exit_rates, batch_size: int):
    """Effective work of each stage, and the probability that a sample reaches it."""
    rates = np.asarray(exit_rates, np.float64)
    flops = _checked_flops(stage_flops, len(rates))
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    if not (rates >= 0).all() or abs(rates.sum() - 1) > RATE_SUM_TOLERANCE:
        raise InputError(f"exit_rates {rates.tolist()} must be shares that sum to 1")
    if device.work_factors and len(device.work_factors) != len(flops):
        raise InputError(
            f"'{device.name}' was fitted to {len(device.work_factors)} stages, not to {len(flops)}:"
            " fit it to this network"
        )
    reach = np.clip(np.cumsum(rates[::-1])[::-1], 0, 1)
    reach[0] = 1.0
    return flops * np.asarray(device.work_factors or 1.0), reach


def _checked_flops(stage_flops: Sequence[float], stages: int) -> Float[np.ndarray, " exits"]:
    flops = np.asarray(stage_flops, np.float64)
    if flops.shape != (stages,) or not (np.isfinite(flops) & (flops > 0)).all():
        raise InputError(
            f"stage_flops {flops.tolist()} must be {stages} positive numbers, one for each stage"
        )
    return flops
