"""The report's tables: every number read from an artifact, means and deviations over seeds."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eenet_jax.frontier import segmentation_scores
from eenet_jax.frontier_file import FrontierRow
from eenet_jax.report.sources import Sources, TrainingRun
from eenet_jax.types import ExitPredictions

BUDGET_SLACK = 1e-6
"""Relative; a mean over samples in another order differs by rounding."""

MISSING = "-"

SHOWN_BESIDE = {"full_with_decisions": "full with decisions", "last_exit": "last exit alone"}
"""What is shown beside the full network, and what it is called."""
FIXED_STRATEGIES = ("full", *SHOWN_BESIDE)
"""What every sample is sent through, whatever the policy; the others are adaptive."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table of text.

    Attributes:
      title: One line.
      header: Column names.
      rows: As many cells each as the header has.
      note: What a reader has to know to read the numbers; may be empty.
      numeric: Whether the cells after the first are numbers, to be aligned on the right.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    numeric: bool = True

    def markdown(self) -> str:
        """The table in GitHub's markdown."""
        rule = [":--"] + ["--:" if self.numeric else ":--"] * (len(self.header) - 1)
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.header, rule, *self.rows)]
        parts = [f"**{self.title}**", "\n".join(lines)] + ([self.note] if self.note else [])
        return "\n\n".join(parts)


def mean_sd(values: Sequence[float], decimals: int) -> str:
    """`mean ± standard deviation` (n - 1 in the denominator), the mean alone of one value."""
    if not values:
        return MISSING
    mean = f"{statistics.fmean(values):.{decimals}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def percent(fractions: Sequence[float], decimals: int = 2) -> str:
    """Fractions as percent, mean and deviation."""
    return mean_sd([100 * value for value in fractions], decimals)


def cost_decimals(largest: float) -> int:
    """So many decimals that costs show five significant digits."""
    return max(0, 4 - math.floor(math.log10(largest))) if largest > 0 else 2


def seeds_note(sources: Sources) -> str:
    """How many fits the numbers are taken over, and which seeds, in words."""
    seeds = [str(fit.settings["seed"]) for fit in sources.fits if "seed" in fit.settings]
    count = len(sources.fits)
    named = f" (seed{'s' if count > 1 else ''} {', '.join(seeds)})" if len(seeds) == count else ""
    if count == 1:
        return f"n = 1 fit{named}: no deviation can be given."
    repeated = " Some fits share a seed." if len(set(seeds)) < len(seeds) else ""
    return f"Mean ± standard deviation over n = {count} fits{named}.{repeated}"


def exit_table(sources: Sources) -> Table | None:
    """Every exit alone: accuracy, cost, latency; mean and deviation over the training runs.

    None without predictions.
    """
    runs = [run for run in sources.runs if run.predictions]
    if not runs:
        return None
    columns = _accuracy_columns(runs)
    first = runs[0]
    for table, word in ((first.costs or sources.cost_table, "cost"), (first.latency, "latency")):
        if table:
            decimals = cost_decimals(table.costs[-1])
            columns[f"{word} ({table.unit})"] = [f"{cost:.{decimals}f}" for cost in table.costs]
    exits = next(iter(first.predictions.values())).num_exits
    return Table(
        title=f"Every exit alone ({', '.join(run.folder.name for run in runs)})",
        header=("exit", *columns),
        rows=tuple((str(k + 1), *(cells[k] for cells in columns.values())) for k in range(exits)),
        note=_exit_note(runs),
    )


def _accuracy_columns(runs: Sequence[TrainingRun]) -> dict[str, list[str]]:
    """Accuracy in percent by split; for dense prediction mean IoU and pixel accuracy beside it."""
    columns = {}
    for split in runs[0].predictions:
        scores = [_exit_scores(run.predictions[split]) for run in runs if split in run.predictions]
        for name in scores[0]:
            exits = zip(*(each[name] for each in scores), strict=True)
            columns[f"{split} {name} (%)"] = [percent(values) for values in exits]
    return columns


def _exit_scores(predictions: ExitPredictions) -> dict[str, list[float]]:
    """Of each exit, for everybody."""
    scores = {"accuracy": [float(v) for v in predictions.correctness().mean(axis=1, dtype=float)]}
    words = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}
    everybody = [np.full(predictions.num_samples, k) for k in range(predictions.num_exits)]
    dense = [segmentation_scores(predictions, exits) for exits in everybody]
    return scores | {words[name]: [each[name] for each in dense] for name in dense[0]}


def _exit_note(runs: Sequence[TrainingRun]) -> str:
    counts = {split: found.num_samples for split, found in runs[0].predictions.items()}
    samples = " and ".join(f"{count:,} {split} samples" for split, count in counts.items())
    note = f"{samples}; cost includes everything that has run by then."
    if len(runs) > 1:
        note = f"Mean ± standard deviation over n = {len(runs)} trainings. {note}"
    batch = runs[0].latency.extra.get("batch_size") if runs[0].latency else None
    return note + (f" Latency measured at batch size {batch}." if batch else "")


def frontier_tables(sources: Sources) -> tuple[Table, ...]:
    """Accuracy and realised cost of every policy at every budget, a table each."""
    split = sources.split
    tables = [
        _policy_table(sources, f"Accuracy on {split} (%)", split, _accuracy_cell),
        _policy_table(sources, f"Realised cost on {split} ({sources.unit})", split, _cost_cell),
    ]
    if split == "test":
        title = f"Realised cost on val ({sources.unit})"
        tables.append(_policy_table(sources, title, "val", _held_cost_cell))
    note = seeds_note(sources)
    notes = [
        f"{note} Columns are budgets in {sources.unit}; `oracle` is an upper bound, not a policy.",
        note,
        f"{note} Budgets are held here, on the split that the thresholds are"
        " set on; (over) marks a cost above the budget.",
    ]
    shown = [dataclasses.replace(t, note=text) for t, text in zip(tables, notes, strict=False)]
    return (*shown, *_dense_tables(sources, split, note))


def cheapest_table(sources: Sources) -> Table | None:
    """Policies asked for by their loss of accuracy: what they cost, and what they really lost."""
    rows = [row for fit in sources.fits for row in fit.cheapest if row.split == sources.split]
    if not rows:
        return None
    decimals = cost_decimals(max(row.cost for row in rows))
    lines = []
    for name in dict.fromkeys(row.policy for row in rows):
        found = [row for row in rows if row.policy == name]
        lines.append(
            (
                name,
                percent([row.extra["max_accuracy_drop"] for row in found]),
                f"{100 * found[0].extra['confidence']:g}",
                percent([row.extra["accuracy_drop"] for row in found]),
                mean_sd([row.cost for row in found], decimals),
            )
        )
    return Table(
        title="Cheapest policies within a loss of accuracy",
        header=(
            "policy",
            "allowed (points)",
            "confidence (%)",
            f"lost on {sources.split} (points)",
            f"cost on {sources.split} ({sources.unit})",
        ),
        rows=tuple(lines),
        note=(
            f"{seeds_note(sources)} Lost: the last exit's accuracy less the policy's. Certified on"
            " half of the validation samples."
        ),
    )


def _dense_tables(sources: Sources, split: str, note: str) -> list[Table]:
    """Mean intersection over union and pixel accuracy, which dense prediction alone has."""
    titles = {"miou": "Mean IoU", "pixel_accuracy": "Pixel accuracy"}

    def cell(name: str) -> Callable[[Sources, Sequence[FrontierRow]], str]:
        return lambda _, rows: percent([row.extra[name] for row in rows if name in row.extra])

    present = [name for name in titles if name in sources.fits[0].rows[0].extra]
    tables = [
        _policy_table(sources, f"{titles[n]} on {split} (%)", split, cell(n)) for n in present
    ]
    return [dataclasses.replace(table, note=note) for table in tables]


def _policy_table(
    sources: Sources,
    title: str,
    split: str,
    cell: Callable[[Sources, Sequence[FrontierRow]], str],
) -> Table:
    rows = []
    for policy in sources.policies:
        found = [sources.rows(policy, budget, split) for budget in sources.budgets]
        if any(found):
            rows.append((f"{policy}", *(cell(sources, entries) for entries in found)))
    return Table(title=title, header=("policy", *sources.budgets), rows=tuple(rows))


def _accuracy_cell(sources: Sources, rows: Sequence[FrontierRow]) -> str:
    return percent([row.accuracy for row in rows]) + _fewer(sources, rows)


def _cost_cell(sources: Sources, rows: Sequence[FrontierRow]) -> str:
    decimals = cost_decimals(_largest_cost(sources))
    return mean_sd([row.cost for row in rows], decimals) + _fewer(sources, rows)


def _held_cost_cell(sources: Sources, rows: Sequence[FrontierRow]) -> str:
    over = any(row.cost > row.budget * (1 + BUDGET_SLACK) for row in rows)
    return _cost_cell(sources, rows) + (" (over)" if over else "")


def _fewer(sources: Sources, rows: Sequence[FrontierRow]) -> str:
    return f" (n = {len(rows)})" if 0 < len(rows) < len(sources.fits) else ""


def _largest_cost(sources: Sources) -> float:
    table = sources.cost_table
    return table.costs[-1] if table else max(row.budget for row in sources.fits[0].rows)


Measurements = Mapping[tuple[str, str, str, str], Sequence[Mapping[str, Any]]]
"""Entries of `execution.json`, one per fit, by policy, budget, batch size and strategy."""


def measurements(sources: Sources) -> Measurements:
    """What was measured, from the smallest budget to the largest."""
    groups: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for entry in (entry for fit in sources.fits for entry in fit.execution):
        key = (
            str(entry.get("policy") or MISSING),
            budget_text(sources, entry.get("budget")),
            str(entry.get("batch_size") or MISSING),
            str(entry.get("strategy")),
        )
        groups.setdefault(key, []).append(entry)
    order = {budget: index for index, budget in enumerate(sources.budgets)}
    return dict(sorted(groups.items(), key=lambda item: order.get(item[0][1], -1)))


def speed_table(sources: Sources) -> Table | None:
    """Speed-up of every strategy at every budget; None where nothing was measured."""
    found = measurements(sources)
    if not found:
        return None
    strategies = [s for s in dict.fromkeys(key[3] for key in found) if s not in FIXED_STRATEGIES]
    settings = [key for key in dict.fromkeys(key[:3] for key in found) if _adaptive(found, key)]
    rows = []
    for key in settings:
        # The ideal is a property of the policy, whatever ran it: one strategy's entries tell it.
        entries = next(found[(*key, s)] for s in strategies if (*key, s) in found)
        shown = [*SHOWN_BESIDE, *strategies]
        cells = [_speedup_cell(found.get((*key, strategy), [])) for strategy in shown]
        rows.append((*key, mean_sd(numbers(entries, "ideal_speedup"), 2), *cells))
    return Table(
        title="Measured speed-up over the full network",
        header=("policy", "budget", "batch", "ideal", *SHOWN_BESIDE.values(), *strategies),
        rows=tuple(rows),
        note=_speed_note([entry for entries in found.values() for entry in entries]),
    )


def _adaptive(found: Measurements, key: tuple[str, str, str]) -> bool:
    return any(other[:3] == key and other[3] not in FIXED_STRATEGIES for other in found)


def _speedup_cell(entries: Sequence[Mapping[str, Any]]) -> str:
    share = numbers(entries, "realised_over_ideal")
    text = mean_sd(numbers(entries, "speedup"), 2)
    return f"{text} ({statistics.fmean(share):.2f})" if share else text


def timing_table(sources: Sources) -> Table | None:
    """Every measurement behind the speed-ups; None where nothing was measured."""
    found = measurements(sources)
    if not found:
        return None
    return Table(
        title="The measurements",
        header=("policy", "budget", "batch", "strategy", "samples/s", "median (ms)", "spread (ms)"),
        rows=tuple((*key, *_timing_cells(entries)) for key, entries in found.items()),
        note=_speed_note([entry for entries in found.values() for entry in entries]),
    )


def _timing_cells(entries: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    median, spread = (
        [1000 * value for value in numbers(entries, f"{name}_seconds")]
        for name in ("median", "spread")
    )
    rate = mean_sd(numbers(entries, "samples_per_second"), 0)
    return rate, mean_sd(median, 3), mean_sd(spread, 3)


def budget_text(sources: Sources, budget: Any) -> str:
    """A measured budget, text or number, as it was typed for the fit."""
    if budget is None:
        return MISSING
    if str(budget) in sources.budgets:
        return str(budget)
    for text, value in zip(sources.budgets, sources.budget_values, strict=True):
        if isinstance(budget, int | float) and math.isclose(budget, value, rel_tol=1e-6):
            return text
    return str(budget)


def numbers(entries: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The entries' values of one field, leaving out those that lack it."""
    return [float(entry[name]) for entry in entries if entry.get(name) is not None]


def _speed_note(entries: Sequence[Mapping[str, Any]]) -> str:
    devices = dict.fromkeys(str(e["device"]) for e in entries if e.get("device"))
    repeats = sorted({int(value) for value in numbers(entries, "repeats")})
    samples = sorted({int(value) for value in numbers(entries, "samples")})
    agreeing = numbers(entries, "same_exits")
    parts = [f"Device: {', '.join(devices)}."] if devices else []
    if repeats:
        over = f" over {' or '.join(f'{n:,}' for n in samples)} samples" if samples else ""
        parts.append(
            f"Median of n = {' or '.join(map(str, repeats))} passes{over};"
            " the spread is the slowest minus the fastest."
        )
    parts.append(
        "Ideal: every sample costs just the stages that it runs, at the speed that the full network"
        " runs them. Brackets: share of the ideal saving of time that was realised, negative where"
        " it is slower than the full network."
    )
    if agreeing:
        share = "All" if min(agreeing) == 1 else f"At least {100 * min(agreeing):.2f} %"
        parts.append(f"{share} of the samples left where the simulation says.")
    return " ".join(parts)
