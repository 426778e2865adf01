"""The report's figures: exit shares, training curves, measured speed-up."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eenet_jax.report.sources import Sources, TrainingRun
from eenet_jax.report.style import INK, STRATEGY_COLORS, depth_colors, new_figure, tidy
from eenet_jax.report.tables import FIXED_STRATEGIES, SHOWN_BESIDE, budget_text, numbers
from eenet_jax.types import Array

SMALLEST_LABELLED_SHARE = 0.07
PANELS_ABREAST = 2
SMALLEST_DEVIATION = 1e-9
WIDE_BARS = 2  # Strategies beside one another.


def exit_rates(sources: Sources, subject: str) -> Figure:
    """Shares of samples that leave at each exit, a stacked bar per budget.

    One panel for `eenet` and one for `max_prob`, or for whichever of them was fitted; the
    mean over fits.
    """
    wanted = [name for name in ("eenet", "max_prob") if name in sources.policies]
    policies = wanted or [name for name in sources.policies if name not in ("static", "oracle")][:1]
    policies = policies or [sources.policies[0]]
    width = 1.6 + len(policies) * max(2.8, 0.62 * len(sources.budgets) + 0.6)
    figure = new_figure(max(width, 6.4), 4.4)
    axes = figure.subplots(1, len(policies), sharey=True, squeeze=False)[0]
    for panel, policy in zip(axes, policies, strict=True):
        _stack(panel, sources, policy)
        panel.set_title(policy, fontsize=11)
    axes[0].set_ylabel(f"share of {sources.split} samples (%)")
    handles, names = axes[0].get_legend_handles_labels()
    # Stacked from exit 1 at the bottom: the legend reads in the same direction.
    figure.legend(
        handles[::-1],
        names[::-1],
        loc="outside right center",
        frameon=False,
        title="leaves at",
    )
    figure.suptitle(f"Where samples leave, by budget: {subject}", fontsize=12)
    return figure


def mean_rates(sources: Sources, policy: str) -> np.ndarray:
    """Exit rates of a policy [budgets, exits], the mean over fits; NaN where it has no row."""
    exits = len(sources.fits[0].rows[0].exit_rates)
    found = [sources.rows(policy, budget, sources.split) for budget in sources.budgets]
    return np.asarray(
        [
            np.mean([row.exit_rates for row in rows], axis=0) if rows else np.full(exits, np.nan)
            for rows in found
        ]
    )


def _stack(axes: Axes, sources: Sources, policy: str) -> None:
    rates = 100 * np.nan_to_num(mean_rates(sources, policy))
    places = np.arange(len(sources.budgets))
    floor = np.zeros(len(places))
    for k, color in enumerate(depth_colors(rates.shape[1])):
        name = f"exit {k + 1}"
        axes.bar(places, rates[:, k], 0.82, floor, color=color, edgecolor="white", label=name)
        _write_shares(
            axes, places, rates[:, k], floor, "black" if sum(color[:3]) > 1.4 else "white"
        )
        floor += rates[:, k]
    axes.set_xticks(places, sources.budgets, rotation=45 if _crowded(sources.budgets) else 0)
    axes.set_xlabel(f"budget ({sources.unit})")
    axes.set_ylim(0, 100)
    tidy(axes, grid="y")


def _crowded(budgets: Sequence[str]) -> bool:
    return max(map(len, budgets)) > 5 and len(budgets) > 5


def _write_shares(
    axes: Axes, places: np.ndarray, shares: np.ndarray, floor: np.ndarray, color: str
) -> None:
    for place, share, base in zip(places, shares, floor, strict=True):
        if share >= 100 * SMALLEST_LABELLED_SHARE:
            axes.text(
                place, base + share / 2, f"{share:.0f}", ha="center", va="center", color=color,
                fontsize=8,
            )  # fmt: skip


def training_curves(run: TrainingRun, subject: str) -> Figure | None:
    """Validation accuracy per exit and training loss over epochs; None without metrics."""
    series = {
        split: [e for e in run.metrics if e.get("split") == split] for split in ("train", "val")
    }
    if not any(series.values()):
        return None
    figure = new_figure(9.6, 4.0)
    left, right = figure.subplots(1, 2)
    # A run that has no validation entries yet still shows how it is doing.
    split = "val" if series["val"] else "train"
    _draw_accuracy(left, series[split], split)
    for name, color, line in (("train", INK, "-"), ("val", "#0072B2", "--")):
        _draw_loss(right, series[name], name, color, line)
    right.set_ylabel("joint loss")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        tidy(axes)
    figure.suptitle(f"Training: {subject}", fontsize=12)
    return figure


def _draw_accuracy(axes: Axes, entries: Sequence[Mapping[str, Any]], split: str) -> None:
    entries = [entry for entry in entries if entry.get("accuracy")]
    axes.set_ylabel(f"{split} accuracy (%)")
    if not entries:
        return
    epochs = np.asarray([entry["epoch"] for entry in entries], float)
    accuracy = 100 * np.asarray([entry["accuracy"] for entry in entries], float)
    dot = "o" if len(entries) < 25 else ""
    for k, color in enumerate(depth_colors(accuracy.shape[1])):
        label = f"exit {k + 1} (ends at {accuracy[-1, k]:.1f})"
        axes.plot(epochs, accuracy[:, k], color=color, marker=dot, markersize=3.5, label=label)
    handles, names = axes.get_legend_handles_labels()
    # Deepest first: mostly the order of the curves from top to bottom.
    axes.legend(handles[::-1], names[::-1], frameon=False, loc="lower right")


def _draw_loss(
    axes: Axes, entries: Sequence[Mapping[str, Any]], name: str, color: str, line: str
) -> None:
    entries = [entry for entry in entries if entry.get("loss") is not None]
    if not entries:
        return
    epochs = np.asarray([entry["epoch"] for entry in entries], float)
    loss = np.asarray([entry["loss"] for entry in entries], float)
    axes.plot(epochs, loss, line, color=color, linewidth=1.3, label=name)
    if loss.min() > 0 and loss.max() > 50 * loss.min():
        axes.set_yscale("log")


def speedup(sources: Sources, subject: str) -> Figure | None:
    """Measured speed-up of each strategy beside the ideal one; None where nothing was measured."""
    entries = [e for fit in sources.fits for e in fit.execution if numbers([e], "speedup")]
    entries = [entry for entry in entries if entry.get("strategy") != "full"]
    policies = list(dict.fromkeys(str(entry.get("policy")) for entry in entries))
    if not any(entry["strategy"] not in FIXED_STRATEGIES for entry in entries):
        return None
    policy = "eenet" if "eenet" in policies else policies[0]
    entries = [entry for entry in entries if str(entry.get("policy")) == policy]
    batches = sorted({int(entry.get("batch_size") or 0) for entry in entries})
    columns = min(len(batches), PANELS_ABREAST)
    lines = -(-len(batches) // columns)
    width = max(6.4, 1.0 + columns * max(3.2, 0.8 * len(sources.budgets) + 0.6))
    figure = new_figure(width, 1.4 + 3.5 * lines)
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for spare in axes[len(batches) :]:
        spare.set_axis_off()
    for panel, batch in zip(axes, batches, strict=False):
        _draw_speed(panel, sources, [e for e in entries if int(e.get("batch_size") or 0) == batch])
        panel.set_title(f"batch size {batch}" if batch else "", fontsize=11)
        panel.set_ylabel("times as fast as the full network")
        panel.label_outer()
    axes[0].set_ylim(0, 1.12 * max(panel.get_ylim()[1] for panel in axes[: len(batches)]))
    handles, names = axes[0].get_legend_handles_labels()
    # Five names in a row need this many inches.
    abreast = 5 if width >= 8 else 3
    figure.legend(handles, names, loc="outside lower center", ncols=abreast, frameon=False)
    devices = ", ".join(dict.fromkeys(str(e["device"]) for e in entries if e.get("device")))
    on = f"\n{devices}" if devices else ""
    figure.suptitle(f"Measured speed-up of {policy}: {subject}{on}", fontsize=12)
    return figure


def _draw_speed(axes: Axes, sources: Sources, entries: Sequence[Mapping[str, Any]]) -> None:
    budgets = sources.budgets
    found = dict.fromkeys(str(entry["strategy"]) for entry in entries)
    strategies = [name for name in found if name not in FIXED_STRATEGIES]
    width = 0.8 / len(strategies)
    places = np.arange(len(budgets))
    for index, strategy in enumerate(strategies):
        mine = [entry for entry in entries if entry["strategy"] == strategy]
        mean, deviation = _by_budget(sources, mine, "speedup")
        at = places + (index - (len(strategies) - 1) / 2) * width
        bars = axes.bar(
            at, mean, 0.92 * width, yerr=deviation, color=STRATEGY_COLORS.get(strategy, "#009E73"),
            label=strategy, ecolor=INK, capsize=2,
        )  # fmt: skip
        names = [f"{value:.2f}" if value > 0 else "" for value in mean]
        # The white ground keeps the figures readable where the line of the ideal passes behind.
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        # Upright where bars are narrower than what is written above them.
        turned = 90 if len(strategies) > WIDE_BARS else 0
        axes.bar_label(
            bars, names, padding=3, fontsize=8, color=INK, zorder=6, bbox=ground, rotation=turned
        )
    adaptive = [entry for entry in entries if entry["strategy"] in strategies]
    ideal, _ = _by_budget(sources, adaptive, "ideal_speedup")
    axes.hlines(ideal, places - 0.45, places + 0.45, color=INK, linewidth=1.8, label="ideal")
    axes.axhline(1.0, color=STRATEGY_COLORS["full"], linestyle=":", label="full network")
    for (name, label), line in zip(SHOWN_BESIDE.items(), ("-.", "--"), strict=True):
        found = numbers([e for e in entries if e["strategy"] == name], "speedup")
        if found:
            color = STRATEGY_COLORS[name]
            axes.axhline(np.median(found), color=color, linestyle=line, label=label)
    axes.set_xticks(places, budgets, rotation=45 if _crowded(budgets) else 0)
    axes.set_xlabel(f"budget ({sources.unit})")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7))
    tidy(axes, grid="y")


def _by_budget(
    sources: Sources, entries: Sequence[Mapping[str, Any]], name: str
) -> tuple[Array, Array | None]:
    """Mean and deviation per budget over the entries, NaN where a budget has none."""
    found = [
        numbers([e for e in entries if budget_text(sources, e.get("budget")) == budget], name)
        for budget in sources.budgets
    ]
    mean = np.asarray([np.mean(values) if values else np.nan for values in found])
    deviation = np.asarray([np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in found])
    return mean, deviation if deviation.max() > SMALLEST_DEVIATION else None
