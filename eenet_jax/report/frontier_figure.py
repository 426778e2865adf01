"""Accuracy against realised cost: the figure that the whole project is about."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eenet_jax.report.sources import Fit, Sources
from eenet_jax.report.style import GREY, INK, Look, looks, new_figure, tidy
from eenet_jax.report.tables import percent

ORACLE_HEADROOM = 0.35
"""The oracle may stretch the picture by this share of what the policies span, no further."""

REFERENCE = "max_prob"
DEEPEST_DIP_POINTS = 1.5
"""The lower panel shows at least this far down, in percentage points, where lines go there."""

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Costs, accuracies in percent, their deviations over fits (zero for one fit)."""


def accuracy_cost(sources: Sources, subject: str) -> Figure:
    """Accuracy of every policy against its realised cost, with static exits and the oracle.

    Below, where `max_prob` was fitted: what each policy gains over it at the same budget.

    Args:
      sources: Artifacts; error bars show the deviation where there are several fits.
      subject: Data set and network, for the title.
    """
    relative = REFERENCE in sources.policies
    figure = new_figure(8.8, 7.4 if relative else 5.0)
    panels = figure.subplots(
        2 if relative else 1, 1, squeeze=False, height_ratios=[3, 2][: 1 + relative]
    )
    curves = {policy: _curve(sources, policy) for policy in sources.policies}
    curves = {policy: curve for policy, curve in curves.items() if len(curve[0])}
    top = panels[0, 0]
    _draw_levels(top, sources, curves)
    _frame(top, sources, curves)
    if relative:
        _draw_gains(panels[1, 0], sources)
        panels[1, 0].set_xlim(top.get_xlim())
    handles, names = top.get_legend_handles_labels()
    # Policies first, in the order of the table; what they are measured against after them.
    order = sorted(range(len(names)), key=lambda index: not isinstance(handles[index], Container))
    figure.legend(
        [handles[index] for index in order],
        [names[index] for index in order],
        loc="outside right upper",
        frameon=False,
    )
    over = f" (mean ± sd of {len(sources.fits)} fits)" if len(sources.fits) > 1 else ""
    figure.suptitle(f"Accuracy against cost: {subject}{over}", fontsize=12)
    return figure


def full_accuracy(sources: Sources) -> float | None:
    """The last exit's accuracy in percent, from predictions or from a row that uses it alone."""
    exits = _exit_accuracy(sources)
    if exits is not None:
        return float(exits[-1])
    rows = [row for fit in sources.fits for row in fit.rows if row.split == sources.split]
    everyone = [row.accuracy for row in rows if row.exit_rates[-1] == 1 and row.policy != "oracle"]
    return 100 * everyone[0] if everyone else None


def _exit_accuracy(sources: Sources) -> np.ndarray | None:
    """Accuracy of every exit alone in percent, the mean over training runs with predictions."""
    found = [
        run.predictions[sources.split] for run in sources.runs if sources.split in run.predictions
    ]
    if not found or len({predictions.num_exits for predictions in found}) > 1:
        return None
    levels = [predictions.correctness().mean(axis=1, dtype=float) for predictions in found]
    return 100 * np.mean(levels, axis=0)


def _curve(sources: Sources, policy: str) -> Curve:
    found = [sources.rows(policy, budget, sources.split) for budget in sources.budgets]
    found = [rows for rows in found if rows]
    accuracy = [[100 * row.accuracy for row in rows] for rows in found]
    return (
        np.asarray([np.mean([row.cost for row in rows]) for rows in found]),
        np.asarray([np.mean(values) for values in accuracy]),
        np.asarray([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in accuracy]),
    )


def _static_exits(sources: Sources, curve: Curve) -> Curve:
    """All exits where predictions and costs are at hand, else those that `static` chose."""
    accuracy, table = _exit_accuracy(sources), sources.cost_table
    if accuracy is not None and table and len(accuracy) == len(table.costs):
        return np.asarray(table.costs), accuracy, np.zeros(len(accuracy))
    costs, first = np.unique(curve[0], return_index=True)
    return costs, curve[1][first], curve[2][first]


def _draw_levels(axes: Axes, sources: Sources, curves: dict[str, Curve]) -> None:
    for policy, look in looks(curves).items():
        if policy == "static":
            costs, accuracy, _ = _static_exits(sources, curves[policy])
            _draw_static(axes, costs, accuracy, look)
        elif policy == "oracle":
            costs, accuracy, _ = curves[policy]
            # At generous budgets the oracle is one point, and a line would not show.
            lone = "D" if np.ptp(costs) == 0 else None
            axes.plot(
                costs, accuracy, look.line, color=look.color, marker=lone,
                label="oracle (bound)", zorder=1,
            )  # fmt: skip
        else:
            _draw_policy(axes, curves[policy], look, policy)
    level = full_accuracy(sources)
    if level is not None:
        label = f"full network\n({percent([level / 100])} %)"
        axes.axhline(level, color=INK, linestyle=":", linewidth=1.1, label=label, zorder=1)


def _draw_static(axes: Axes, costs: np.ndarray, accuracy: np.ndarray, look: Look) -> None:
    axes.step(
        costs, accuracy, look.line, where="post", color=look.color, linewidth=look.width,
        marker=look.marker, markersize=8, label="static exits", zorder=2,
    )  # fmt: skip


def _draw_policy(axes: Axes, curve: Curve, look: Look, policy: str) -> None:
    costs, accuracy, deviation = curve
    order = np.argsort(costs, kind="stable")
    axes.errorbar(
        costs[order], accuracy[order], deviation[order] if deviation.any() else None,
        color=look.color, marker=look.marker, linestyle=look.line, linewidth=look.width,
        markersize=6, markeredgecolor="white", markeredgewidth=0.6, capsize=2.5, elinewidth=1,
        label=policy, zorder=5 if policy == "eenet" else 3,
    )  # fmt: skip


def _frame(axes: Axes, sources: Sources, curves: dict[str, Curve]) -> None:
    """Limits from the policies; the oracle may be cut off, and then says where it goes."""
    levels = [curve[1] for policy, curve in curves.items() if policy != "oracle"]
    if "static" in curves:
        levels.append(_static_exits(sources, curves["static"])[1])
    full = full_accuracy(sources)
    values = np.concatenate([*levels, [] if full is None else [full]])
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 0.5)
    top = high + 0.06 * span
    if "oracle" in curves:
        best = float(curves["oracle"][1].max())
        top = min(max(top, best + 0.04 * span), high + ORACLE_HEADROOM * span)
        if best > top:
            axes.text(
                0.99, 0.985, f"oracle goes on up to {best:.1f} %", color=GREY, fontsize=9,
                ha="right", va="top", transform=axes.transAxes,
            )  # fmt: skip
    axes.set_ylim(low - 0.06 * span, top)
    axes.set_xlabel(f"realised mean cost on {sources.split} ({sources.unit} per sample)")
    axes.set_ylabel(f"{sources.split} accuracy (%)")
    tidy(axes)


def _draw_gains(axes: Axes, sources: Sources) -> None:
    gains = {policy: _gain(sources, policy) for policy in sources.policies}
    shown = {
        policy: gain
        for policy, gain in gains.items()
        if len(gain[0]) and policy not in ("static", "oracle", REFERENCE)
    }
    table = looks(sources.policies)
    axes.axhline(0, color=table[REFERENCE].color, linewidth=table[REFERENCE].width)
    for policy, gain in shown.items():
        _draw_policy(axes, gain, table[policy], policy)
    values = np.concatenate([gain[1] for gain in shown.values()] or [np.zeros(1)])
    core = max(
        [float(np.abs(shown[p][1]).max()) for p in ("eenet", "entropy") if p in shown] or [0]
    )
    lowest = max(float(values.min()), -max(DEEPEST_DIP_POINTS, 2 * core))
    highest = max(float(values.max()), 0.1)
    pad = 0.1 * (highest - min(lowest, 0)) + 0.02
    axes.set_ylim(min(lowest, -0.1) - pad, highest + pad)
    axes.set_ylabel(f"accuracy minus {REFERENCE}'s\n(percentage points)")
    axes.set_xlabel(f"budget ({sources.unit} per sample)")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    if float(values.min()) < lowest - pad:
        axes.text(
            0.99, 0.03, f"lowest: {values.min():.1f}", color=GREY, fontsize=9, ha="right",
            transform=axes.transAxes,
        )  # fmt: skip
    tidy(axes)


def _gain(sources: Sources, policy: str) -> Curve:
    """Budgets, gain over the reference of the same fit in points, deviation over fits."""
    points = []
    for budget, value in zip(sources.budgets, sources.budget_values, strict=True):
        gains = [
            100 * (mine - base)
            for fit in sources.fits
            if (mine := _accuracy(sources, fit, policy, budget)) is not None
            and (base := _accuracy(sources, fit, REFERENCE, budget)) is not None
        ]
        if gains:
            deviation = np.std(gains, ddof=1) if len(gains) > 1 else 0.0
            points.append((value, np.mean(gains), deviation))
    costs, means, deviations = np.asarray(points, float).reshape(-1, 3).T
    return costs, means, deviations


def _accuracy(sources: Sources, fit: Fit, policy: str, budget: str) -> float | None:
    wanted = (policy, budget, sources.split)
    found = [r.accuracy for r in fit.rows if (r.policy, r.budget_text, r.split) == wanted]
    return found[0] if found else None
