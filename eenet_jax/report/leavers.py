"""Who leaves where under each policy, and what the full network would have said of them."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eenet_jax.errors import InputError
from eenet_jax.report.saved import fitted_predictions, middle_budget, middle_policies
from eenet_jax.report.sources import Sources
from eenet_jax.report.style import depth_colors, new_figure, tidy
from eenet_jax.report.tables import MISSING, Table
from eenet_jax.types import ExitPredictions

MOST_NAMED_CLASSES = 20


def leavers_table(sources: Sources) -> Table | None:
    """Those who leave at each exit under each policy, and what the full network says of them."""
    if not sources.budgets:
        return None
    try:
        split, predictions = fitted_predictions(sources)
    except InputError:
        return None
    right, rows = predictions.correctness(), []
    for name, policy in middle_policies(sources).items():
        exits, full = policy.decide(predictions.probs, predictions.measures), right[-1]
        answered = policy.correctness(predictions)
        cells = [cell for k in range(len(right)) for cell in _cells(answered[k], full, exits == k)]
        rows.append((name, *cells))
    columns = [
        f"exit {k + 1}: {what}" for k in range(len(right)) for what in ("share", "right", "full")
    ]
    return Table(
        title=f"Those who left, and the full network on them, on {split} (%), at"
        f" {middle_budget(sources)} {sources.unit}",
        header=("policy", *columns),
        rows=tuple(rows),
        note=(
            "Share: of all samples. Right: accuracy of those who left at the exit. Full: the last"
            " exit's accuracy on the same samples. Of the first fit."
        ),
    )


def _cells(right: np.ndarray, full: np.ndarray, here: np.ndarray) -> tuple[str, str, str]:
    if not here.any():
        return "0.00", MISSING, MISSING
    values = (here.mean(), right[here].mean(), full[here].mean())
    first, second, third = (f"{100 * value:.2f}" for value in values)
    return first, second, third


def who_leaves(sources: Sources) -> tuple[Figure, str]:
    """Where samples leave, by difficulty and by class, a row a policy.

    Raises:
      InputError: an artifact is missing, or a sample has no one class.
    """
    split, predictions = fitted_predictions(sources)
    policies = middle_policies(sources)
    if not policies:
        raise InputError("no saved policies: keep the policies folder of the fit")
    if predictions.correct is not None:
        raise InputError("an image with labelled pixels has no one class, nor one difficulty")
    leaving = {
        name: policy.decide(predictions.probs, predictions.measures)
        for name, policy in policies.items()
    }
    count, labels = predictions.num_exits, predictions.labels
    # Where all leave at one exit there is nothing to see.
    alike = [name for name, exits in leaving.items() if (exits == exits[0]).all()]
    leaving = {name: exits for name, exits in leaving.items() if name not in alike}
    if not leaving:
        raise InputError("under every policy all samples leave at one exit")
    solved = predictions.correctness().sum(0).astype(int)
    order = _earliest_first(next(iter(leaving.values())), labels)
    figure = new_figure(11.0, 1.4 + 1.8 * len(leaving))
    panels = figure.subplots(
        len(leaving), 2, width_ratios=(1, 1.6), sharex="col", sharey=True, squeeze=False
    )
    for (name, exits), (left, right) in zip(leaving.items(), panels, strict=True):
        stack_shares(left, leave_shares(exits, solved, list(range(count + 1)), count))
        stack_shares(right, leave_shares(exits, labels, order, count))
        left.set_ylabel(f"{name} (%)", fontsize=9)
    _name_difficulties(panels[-1, 0], solved, count)
    _name_classes(panels[-1, 1], order, predictions)
    handles, names = panels[0, 1].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right center", frameon=False)
    figure.suptitle(
        f"Who leaves where, at a budget of {middle_budget(sources)} {sources.unit}, on {split}",
        fontsize=12,
    )
    return figure, (
        "Left: by how many exits are right, a sample's difficulty as hindsight knows it. Right: by"
        f" true class, those first that leave earliest under {next(iter(leaving))}."
        + (f" Not shown, for all leave at one exit: {', '.join(alike)}." if alike else "")
    )


def _earliest_first(exits: np.ndarray, labels: np.ndarray) -> list[int]:
    means = {int(c): exits[labels == c].mean() for c in np.unique(labels)}
    return sorted(means, key=means.__getitem__)


def leave_shares(exits: np.ndarray, groups: np.ndarray, order: list[int], count: int) -> np.ndarray:
    """[groups, exits]: what share of each group leaves where, in the order given.

    Args:
      exits: 0-based exit of each sample.
      groups: Group of each sample.
      order: The groups; an empty one has zeros.
      count: K.
    """
    return np.asarray(
        [
            np.bincount(exits[groups == group], minlength=count) / max(1, (groups == group).sum())
            for group in order
        ]
    )


def stack_shares(axes: Axes, shares: np.ndarray) -> None:
    """Draw `leave_shares` as stacked bars."""
    below = np.zeros(len(shares))
    width = 0.85 if len(shares) <= 40 else 1.0
    for k, color in enumerate(depth_colors(shares.shape[1])):
        axes.bar(
            range(len(shares)), 100 * shares[:, k], bottom=100 * below, width=width, color=color,
            label=f"exit {k + 1}",
        )  # fmt: skip
        below += shares[:, k]
    axes.set_ylim(0, 100)
    tidy(axes, grid="y")


def _name_difficulties(axes: Axes, solved: np.ndarray, exits: int) -> None:
    counts = np.bincount(solved, minlength=exits + 1)
    names = [f"{k}\n{100 * n / solved.size:.0f} %" for k, n in enumerate(counts)]
    axes.set_xticks(range(exits + 1), names, fontsize=8)
    axes.set_xlabel("exits that are right; share of samples", fontsize=9)


def _name_classes(axes: Axes, order: list[int], predictions: ExitPredictions) -> None:
    if len(order) > MOST_NAMED_CLASSES:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(order)} classes")
        return
    names = predictions.meta.get("class_names") or [str(c) for c in range(predictions.num_classes)]
    axes.set_xticks(
        range(len(order)), [str(names[c])[:14] for c in order], rotation=40, ha="right", fontsize=8
    )
    axes.set_xlabel("true class", fontsize=9)
