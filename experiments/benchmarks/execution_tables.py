"""The tables of docs/execution.md, from the rows that execution.py measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from eenet_jax.environment import device_name
from eenet_jax.execution.auto import DECIDING
from eenet_jax.execution.measure import STRATEGIES
from eenet_jax.execution.prediction import Validation
from eenet_jax.report.tables import Table


def speed_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each network, batch size and mix."""
    strategies = list(dict.fromkeys(row["strategy"] for row in rows if row["strategy"] != "full"))
    lines = []
    for key in dict.fromkeys((row["network"], row["batch"], row["mix"]) for row in rows):
        here = {r["strategy"]: r for r in rows if (r["network"], r["batch"], r["mix"]) == key}
        ideal = max(row.get("ideal_speedup", 1.0) for row in here.values())
        cells = [f"{here[name]['speedup']:.2f}" if name in here else "" for name in strategies]
        lines.append(
            [*map(str, key), f"{here['full']['samples_per_second']:,.0f}", f"{ideal:.2f}", *cells]
        )
    headings = ["network", "batch", "mix", "full, samples/s", "ideal", *strategies]
    return _table(
        f"Speed-up over the full network's own jitted pass, {device_name()}", headings, lines
    )


def _table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    header = tuple(name.replace("_", " ") for name in headings)
    return Table(title=title, header=header, rows=tuple(tuple(line) for line in lines))


BESIDE = ("compacted", "streaming")
"""Of which it is told what is realised beside the full network that decides, too."""


def realised_beside(row: Mapping[str, Any], deciding: Mapping[str, Any]) -> float | None:
    """The realised saving over the ideal one, `T_full` being the full network with decisions.

    Of strategies that put a batch through in the same halves this is what leaving early saves
    alone; streams put whole batches through at once.

    Args:
      row: Of a strategy.
      deciding: Of the full network with decisions, the same policy and batch size.
    """
    saved = 1 - 1 / row["ideal_speedup"]
    return (1 - deciding["speedup"] / row["speedup"]) / saved if saved > 1e-9 else None


def realised_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Realised over ideal, and how long samples wait."""
    lines, measured = [], {row["strategy"] for row in rows}
    shown = [name for name in STRATEGIES if name in measured]
    for key in dict.fromkeys((row["network"], row["batch"], row["mix"]) for row in rows):
        here = {r["strategy"]: r for r in rows if (r["network"], r["batch"], r["mix"]) == key}
        realised = [here.get(name, {}).get("realised_over_ideal") for name in shown]
        deciding = here.get(DECIDING)
        realised += [
            realised_beside(here[name], deciding) if deciding and name in here else None
            for name in BESIDE
        ]
        cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in realised]
        latency = "{p50_ms:.3g} / {p95_ms:.3g}"
        names = ("full", "compacted", "streaming")
        waits = [latency.format(**here[name]) if name in here else "" for name in names]
        picked = here.get("auto", {}).get("picked", "").split(":")[0]
        lines.append([*map(str, key), *cells, *waits, picked])
    headings = [
        "network", "batch", "mix", *shown,
        *(f"{name}, beside full with decisions" for name in BESIDE),
        "full p50 / p95 ms", "compacted", "streaming", "auto picked",
    ]  # fmt: skip
    title = f"Realised over ideal saving, p50 / p95 latency in ms, {device_name()}"
    return _table(title, headings, lines)


def validation_table(mixes: Sequence[str], rows: Sequence[Validation]) -> list[str]:
    """Markdown: relative errors of the predictions by batch and mix, and of their median."""
    names = list(dict.fromkeys(row.strategy for row in rows))
    errors = {
        (row.batch_size, mix, row.strategy): row.relative_error
        for mix, row in zip(mixes, rows, strict=True)
    }
    lines = [
        [str(batch), mix, *(f"{100 * errors[batch, mix, name]:+.0f} %" for name in names)]
        for batch, mix in dict.fromkeys(key[:2] for key in errors)
    ]
    title = f"Predicted seconds over measured ones, resnet56_3, {device_name()}"
    return _table(title, ["batch", "mix", *names], lines).markdown().splitlines()


def planning_table(lines: Sequence[tuple[str, str, Any]]) -> str:
    """Markdown: predicted speed-up over the full network, and the best strategy."""
    keys = dict.fromkeys((device, mix, row.batch_size) for device, mix, row in lines)
    names = list(dict.fromkeys(row.strategy for *_, row in lines if row.strategy != "full"))
    made = []
    for key in keys:
        here = {row.strategy: row for d, m, row in lines if (d, m, row.batch_size) == key}
        full = here["full"].seconds_per_sample
        cells = [f"{full / here[name].seconds_per_sample:.2f}" for name in names]
        best = min(here.values(), key=lambda row: row.seconds_per_sample).strategy
        made.append([*map(str, key), f"{1e6 * full:.3g}", *cells, best])
    headings = ["device (prediction)", "mix", "batch", "full, µs a sample", *names, "best"]
    title = "Predicted speed-up over the full network, resnet56_3: no measurement"
    return _table(title, headings, made).markdown()
