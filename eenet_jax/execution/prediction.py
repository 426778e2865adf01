"""How long each strategy takes, predicted from a table of stage latencies, measured or modelled.

Samples are taken to be independent, each reaching stage k with the probability that the exit
rates give, so that of a batch a binomial number reaches it; times are means over that number.
Gathering survivors is left out, and what a device may lose in a conditional; so is what a stage
gains by a piece of its own that is larger than the network's, as stages are timed in the latter.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln, xlog1py, xlogy

from eenet_jax.errors import InputError
from eenet_jax.execution.buckets import measured_buckets
from eenet_jax.execution.latency import StageLatency
from eenet_jax.execution.sides import SIDES
from eenet_jax.execution.sizes import switch_sizes

RATE_SUM_TOLERANCE = 1e-6
_Seconds = Callable[[StageLatency, np.ndarray, int], float]
STREAM_SECONDS = 12e-6
"""What a stream's host does for a sample: checks it, queues it and hands its answer over. It took
9 to 14 µs on a core (AMD EPYC)."""


def predict(
    latency: StageLatency, exit_rates: Sequence[float], batch_size: int, strategy: str
) -> float:
    """Seconds per sample.

    - "full": the full network's own pass.
    - "masked": stage by stage on pieces, in one program; a stage is skipped for a piece of p
      samples with the probability (1 - r_k)^p, r_k being the probability to reach it.
    - "compacted": in one program, a stage on pieces of its survivors, and the last of them on the
      smallest of a piece's `switch_sizes` that holds them.
    - "host_compacted": a stage on its survivors, in the cheapest buckets that hold them.
    - "streaming": in one program a batch, every stage on pieces filled by survivors of many; and
      `STREAM_SECONDS` a sample.

    Where the table says what programs gain beside one another (`StageLatency.beside`), "masked" and
    "compacted" run both halves of a batch at once, and a stream two batches.

    Args:
      latency: Of every stage.
      exit_rates: Share of samples that leaves at each exit.
      batch_size: Samples that come together.
      strategy: One of `STRATEGIES`.

    Raises:
      InputError: the strategy is unknown, the batch larger than any in the table, or the rates
        are no shares, or of other exits.
    """
    reach = _reach(exit_rates, latency)
    if not 1 <= batch_size <= latency.sizes[-1]:
        raise InputError(
            f"batch_size is {batch_size}, the latencies are of batches of 1 to"
            f" {latency.sizes[-1]}: give a size of those, or make the table for larger ones"
        )
    if strategy not in _SECONDS:
        raise InputError(f"strategy '{strategy}' is unknown: choose {', '.join(STRATEGIES)}")
    return float(_SECONDS[strategy](latency, reach, batch_size)) / batch_size


def _full(latency: StageLatency, reach: np.ndarray, batch: int) -> float:
    return float(latency.full_pass_seconds(np.asarray([batch]))[0])


def _work(latency: StageLatency, k: int, rows: np.ndarray, piece: int, batch: int) -> np.ndarray:
    """Seconds of stage k on so many rows inside a program that puts a batch through in pieces."""
    alone = latency.stage_seconds(k, rows) - latency.call_seconds
    largest = latency.sizes[-1]
    if batch <= piece or piece >= largest:
        return alone
    # The largest batch was measured in pieces: what one takes that isn't called by itself.
    called, inside = latency.stage_seconds(k, [piece, largest]) - latency.call_seconds
    return alone * min(1.0, inside * piece / (largest * called))


def _masked(latency: StageLatency, reach: np.ndarray, batch: int) -> float:
    piece, seconds = min(latency.piece, batch), latency.call_seconds
    pieces = np.asarray([piece] * -(-batch // piece))
    for k, chance in enumerate(reach):
        work = _work(latency, k, pieces, piece, batch)
        seconds += float(((1 - (1 - chance) ** pieces) * work).sum())
    return seconds


def _compacted(latency: StageLatency, reach: np.ndarray, batch: int) -> float:
    seconds = latency.call_seconds
    for k, share in enumerate(survivor_shares(reach, batch)):
        piece = min(latency.pieces[k], batch)
        each = float(_work(latency, k, np.asarray([piece]), piece, batch)[0])
        if k == 0:
            # Nobody waits for it, so that its last piece is a whole one too.
            seconds += -(-batch // piece) * each
            continue
        # What can't run in whole pieces; where a piece is the batch it has sizes for that too.
        whole = np.arange(batch + 1) // piece if piece < batch else np.zeros(batch + 1, int)
        sizes = np.asarray([0, *switch_sizes(piece)])
        last = sizes[np.searchsorted(sizes, np.arange(batch + 1) - whole * piece)]
        work = _work(latency, k, np.maximum(last, 1), piece, batch)
        # Nobody: the stage is skipped.
        seconds += float(share @ (whole * each + np.where(last > 0, work, 0.0)))
    return seconds


def _host_compacted(latency: StageLatency, reach: np.ndarray, batch: int) -> float:
    buckets = measured_buckets(latency, batch)
    shares = survivor_shares(reach, batch)
    costs = [[buckets.cost_of(k, n) for n in range(batch + 1)] for k in range(len(reach))]
    return float((shares * np.asarray(costs)).sum())


def _streaming(latency: StageLatency, reach: np.ndarray, batch: int) -> float:
    seconds = latency.call_seconds
    for k, chance in enumerate(reach):
        piece = min(latency.pieces[k], batch)
        each = float(_work(latency, k, np.asarray([piece]), piece, batch)[0])
        seconds += batch / piece * float(chance) * each
    # Another batch goes through at once.
    return seconds * latency.share_beside(batch) + batch * STREAM_SECONDS


def _side_by_side(seconds: _Seconds) -> _Seconds:
    """Of a strategy that runs both halves of a batch at once, where the device does that."""

    def of_both(latency: StageLatency, reach: np.ndarray, batch: int) -> float:
        if latency.beside is None or batch < SIDES:
            return seconds(latency, reach, batch)
        part = -(-batch // SIDES)
        return SIDES * latency.share_beside(part) * seconds(latency, reach, part)

    return of_both


_SECONDS: dict[str, _Seconds] = {
    "full": _full,
    "masked": _side_by_side(_masked),
    "compacted": _side_by_side(_compacted),
    "host_compacted": _host_compacted,
    "streaming": _streaming,
}
STRATEGIES = tuple(_SECONDS)


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
    latency: StageLatency,
    exit_rates: Sequence[float],
    batch_sizes: Sequence[int],
    strategies: Sequence[str] = STRATEGIES,
) -> list[Prediction]:
    """A row for each batch size and strategy; arguments as for `predict`."""
    rows = []
    for batch in batch_sizes:
        full = predict(latency, exit_rates, batch, "full")
        saved = full * (1 - ideal_share(latency, exit_rates, batch))
        for strategy in strategies:
            seconds = predict(latency, exit_rates, batch, strategy)
            rows.append(
                Prediction(
                    strategy=strategy,
                    batch_size=batch,
                    seconds_per_sample=seconds,
                    realised_over_ideal=(full - seconds) / saved if saved > 1e-9 * full else None,
                )
            )
    return rows


def ideal_share(latency: StageLatency, exit_rates: Sequence[float], batch_size: int) -> float:
    """The share of the full network's time that is left if samples run only their stages.

    That is the sum over stages of the stage's part of the summed stage times and the share of
    samples that reaches it. A stage is timed as the full network is: on a batch of this size,
    which goes through in the same pieces.

    Args:
      latency: Of every stage.
      exit_rates: Share of samples that leaves at each exit.
      batch_size: Samples that come together.
    """
    reach = _reach(exit_rates, latency)
    parts = [float(latency.stage_seconds(k, [batch_size])[0]) for k in range(len(reach))]
    return float(np.asarray(parts) @ reach / sum(parts))


def _reach(exit_rates: Sequence[float], latency: StageLatency) -> Float[np.ndarray, " exits"]:
    """The probability that a sample reaches each stage."""
    rates = np.asarray(exit_rates, np.float64)
    if len(rates) != len(latency.seconds):
        raise InputError(
            f"exit_rates {rates.tolist()} are of {len(rates)} exits, the stages measured are"
            f" {len(latency.seconds)}: take those of this network"
        )
    if not (rates >= 0).all() or abs(rates.sum() - 1) > RATE_SUM_TOLERANCE:
        raise InputError(f"exit_rates {rates.tolist()} must be shares that sum to 1")
    reach = np.clip(np.cumsum(rates[::-1])[::-1], 0, 1)
    reach[0] = 1.0
    return reach


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


def validate(latency: StageLatency, measured: Sequence[Measured]) -> list[Validation]:
    """Predictions from the stages' latencies alone beside what strategies were measured to take.

    Args:
      latency: Of the device that the strategies were measured on, or the model fitted to it.
      measured: In any order, which is kept.
    """
    return [_validation(latency, row) for row in measured]


def _validation(latency: StageLatency, row: Measured) -> Validation:
    if not row.seconds_per_sample > 0:
        raise InputError(
            f"{row.strategy} at {row.batch_size} took {row.seconds_per_sample} s: measure again"
        )
    seconds = predict(latency, row.exit_rates, row.batch_size, row.strategy)
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
