"""Why a policy does what it does: its score's weights, their reliability, and who leaves where."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import eenet_jax
from eenet_jax.errors import InputError
from eenet_jax.policies.eenet import EENet, solver_samples
from eenet_jax.policies.policy import Policy
from eenet_jax.policies.problem import Problem
from eenet_jax.report.sources import Fit, Sources, prediction_paths
from eenet_jax.report.style import GREY, INK, LOOKS, depth_colors, new_figure, tidy
from eenet_jax.report.tables import MISSING, Table
from eenet_jax.scheduler.features import feature_names
from eenet_jax.types import CostTable, ExitPredictions

BINS = 12
MOST_NAMED_CLASSES = 20


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """A policy and the samples that it is explained on.

    Attributes:
      policy: As it was saved.
      budget: As it was typed.
      split: "test" where there are test predictions, else "val".
      predictions: Of that split.
      exits: 0-based exit of each sample.
    """

    policy: Policy
    budget: str
    split: str
    predictions: ExitPredictions
    exits: Int[np.ndarray, " samples"]

    @property
    def right(self) -> Float[np.ndarray, "exits samples"]:
        """How right the policy's answer is at each exit."""
        return self.policy.correctness(self.predictions)


def explained(sources: Sources, name: str = "eenet") -> Explained:
    """A policy of the first fit, at the budget nearest the middle at which its score is learned.

    Args:
      sources: Artifacts.
      name: The policy's.

    Raises:
      InputError: no such policy was saved, or its predictions are gone.
    """
    fit = sources.fits[0]
    split, predictions = _predictions(sources, fit)
    middle = len(sources.budgets) // 2
    nearest = sorted(range(len(sources.budgets)), key=lambda place: abs(place - middle))
    found = [
        (sources.budgets[place], eenet_jax.load_policy(path))
        for place in nearest
        if (path := _policy_path(fit, name, sources.budgets[place])).is_file()
    ]
    if not found:
        raise InputError(f"no saved policy '{name}': keep the policies folder of the fit")
    learned = [each for each in found if isinstance(each[1], EENet) and not each[1].measure]
    budget, policy = (learned or found)[0]
    exits = policy.decide(predictions.probs, predictions.measures)
    return Explained(
        policy=policy, budget=budget, split=split, predictions=predictions, exits=exits
    )


def _policy_path(fit: Fit, name: str, budget: str) -> Path:
    return fit.folder / "policies" / f"{name}-{budget}.json"


def _predictions(sources: Sources, fit: Fit) -> tuple[str, ExitPredictions]:
    named = prediction_paths(fit)
    for split in ("test", "val"):
        if split in named and named[split].is_file():
            return split, ExitPredictions.load(named[split])
        for run in sources.runs:
            if split in run.predictions:
                return split, run.predictions[split]
    raise InputError("no predictions: keep the files that the fit was made from")


def leavers_table(sources: Sources) -> Table | None:
    """Those who leave at each exit under each policy, and what the full network says of them."""
    if not sources.budgets:
        return None
    try:
        split, predictions = _predictions(sources, sources.fits[0])
    except InputError:
        return None
    budget = sources.budgets[len(sources.budgets) // 2]
    right, rows = predictions.correctness(), []
    for name in sources.policies:
        path = _policy_path(sources.fits[0], name, budget)
        if not path.is_file():
            continue
        policy = eenet_jax.load_policy(path)
        exits, full = policy.decide(predictions.probs, predictions.measures), right[-1]
        answered = policy.correctness(predictions)
        cells = [cell for k in range(len(right)) for cell in _cells(answered[k], full, exits == k)]
        rows.append((name, *cells))
    columns = [
        f"exit {k + 1}: {what}" for k in range(len(right)) for what in ("share", "right", "full")
    ]
    return Table(
        title=f"Those who left, and the full network on them, on {split} (%), at {budget}"
        f" {sources.unit}",
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


def score_weights(sources: Sources) -> tuple[Figure, str]:
    """What the learned score looks at, exit by exit.

    Raises:
      InputError: `eenet` learned no score, or an artifact is missing.
    """
    shown = explained(sources)
    policy = shown.policy
    if not isinstance(policy, EENet) or policy.measure:
        chosen = policy.info.get("chosen", policy.name)
        raise InputError(f"no score was learned: `eenet` took '{chosen}' at every budget")
    names = feature_names(policy.num_exits)
    spread = _feature_spread(shown)
    figure = new_figure(max(8.0, 0.42 * len(names) + 2), 1.9 + 0.75 * policy.num_exits)
    panels = figure.subplots(2, 1, sharex=True)
    titles = ("log-odds that the exit is right", "log-odds that the full network is right")
    for axes, weights, title in zip(panels, (policy.now, policy.last), titles, strict=True):
        linear = weights[:, 1 : len(names)] * spread[:, 1:]
        by_answer = weights[:, len(names) :].std(axis=1, keepdims=True)
        _draw_weights(axes, np.concatenate([linear, by_answer], axis=1), title)
    shared = [*(name.replace("_", " ") for name in names[1:]), "the answer (spread)"]
    panels[1].set_xticks(range(len(shared)), shared, rotation=60, ha="right", fontsize=8)
    figure.suptitle(
        f"What the score of eenet looks at, at a budget of {shown.budget} {sources.unit}"
        f" (gain share {policy.gain_share:g})",
        fontsize=12,
    )
    return figure, (
        "Weights times the deviation of what they weigh, so that their sizes compare; the last"
        " column is the deviation of the intercepts by answer. The score is the chance that the"
        f" exit is right less {policy.gain_share:g} of the full network's."
    )


def _feature_spread(shown: Explained) -> Float[np.ndarray, "exits features"]:
    costs = CostTable(costs=shown.policy.costs)
    problem = Problem(predictions=shown.predictions, costs=costs, budgets=costs.costs[:1])
    return np.asarray(solver_samples(problem).features).std(axis=1)


def _draw_weights(axes: Axes, values: np.ndarray, title: str) -> None:
    most = max(float(np.abs(values).max()), 1e-6)
    axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if abs(value) >= 0.005:
            color = "white" if abs(value) > 0.6 * most else INK
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=color
            )
    exits = len(values)
    axes.set_yticks(range(exits), [f"exit {k + 1}" for k in range(exits)])
    axes.set_title(title, fontsize=10)


def reliability(sources: Sources) -> tuple[Figure, str]:
    """How often those of a stated chance are right, before calibration and after.

    Raises:
      InputError: an artifact is missing, or no chance was learned.
    """
    shown = explained(sources)
    policy = shown.policy
    if not isinstance(policy, EENet) or policy.measure:
        raise InputError("no chance was learned: `eenet` took a confidence measure as it is")
    probs, given = shown.predictions.probs, shown.predictions.measures
    exits = policy.num_exits
    across = min(exits, 4)
    down = -(-exits // across)
    figure = new_figure(3.0 * across + 0.6, 3.1 * down + 0.6)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for k, axes in enumerate(panels[:exits]):
        seen = None if given is None else given[: k + 1]
        before = probs[k].max(-1) if given is None else given[k, :, 0]
        after = np.asarray(policy.chance(k, probs[: k + 1], seen))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
        for values, name, look in (
            (before, "before", LOOKS["max_prob"]), (after, "after", LOOKS["eenet"])
        ):  # fmt: skip
            stated, found, error = reliability_curve(values, shown.right[k])
            axes.plot(
                stated, found, color=look.color, marker=look.marker, markersize=4,
                label=f"{name}: error {100 * error:.1f}",
            )  # fmt: skip
        axes.set_title(f"exit {k + 1}", fontsize=10)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        tidy(axes)
    for axes in panels[exits:]:
        axes.set_axis_off()
    figure.supxlabel("stated chance of being right", fontsize=10)
    figure.supylabel("share that is right", fontsize=10)
    figure.suptitle(f"Reliability on {shown.split}, before calibration and after", fontsize=12)
    return figure, (
        f"{BINS} bins of as many samples each. Before: the largest probability; after: the learned"
        " chance. Error: the mean distance between stated and found, in points (ECE)."
    )


def reliability_curve(
    stated: Float[np.ndarray, " samples"], right: Float[np.ndarray, " samples"]
) -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"], float]:
    """Mean stated chance and mean correctness of bins of equal size, and their mean distance.

    Source: the expected calibration error of Naeini et al., Obtaining Well Calibrated
    Probabilities Using Bayesian Binning (2015), on bins of as many samples each.

    Args:
      stated: Chances, 0 to 1.
      right: Whether right, or how right.
    """
    parts = [part for part in np.array_split(np.argsort(stated, kind="stable"), BINS) if part.size]
    means = np.asarray([(stated[part].mean(), right[part].mean()) for part in parts])
    sizes = np.asarray([part.size for part in parts]) / stated.size
    error = float((np.abs(means[:, 0] - means[:, 1]) * sizes).sum())
    return means[:, 0], means[:, 1], error


def who_leaves(sources: Sources) -> tuple[Figure, str]:
    """Where samples leave, by difficulty and by class.

    Raises:
      InputError: an artifact is missing, or a sample has no one class.
    """
    shown = explained(sources)
    if shown.predictions.correct is not None:
        raise InputError("an image with labelled pixels has no one class, nor one difficulty")
    figure = new_figure(11.0, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    exits = shown.policy.num_exits
    solved = shown.right.sum(0).astype(int)
    _stack_shares(left, shown.exits, solved, range(exits + 1), exits)
    counts = np.bincount(solved, minlength=exits + 1)
    left.set_xticks(range(exits + 1), [f"{k}\n{100 * n / solved.size:.0f} %" for k, n in
                                       enumerate(counts)], fontsize=8)  # fmt: skip
    left.set_xlabel("exits that are right, and their share of the samples")
    left.set_ylabel("share that leaves (%)")
    labels = shown.predictions.labels
    means = {int(c): shown.exits[labels == c].mean() for c in np.unique(labels)}
    order = sorted(means, key=means.__getitem__)
    _stack_shares(right, shown.exits, labels, order, exits)
    _name_classes(right, order, shown.predictions)
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right center", frameon=False)
    figure.suptitle(
        f"Who leaves where: {shown.policy.name} at a budget of {shown.budget} {sources.unit},"
        f" on {shown.split}",
        fontsize=12,
    )
    return figure, (
        "Left: by how many exits are right, a sample's difficulty as hindsight knows it. Right: by"
        " true class, those that leave earliest first."
    )


def _stack_shares(axes: Axes, exits, groups, order, count: int) -> None:
    shares = np.asarray(
        [
            np.bincount(exits[groups == group], minlength=count) / max(1, (groups == group).sum())
            for group in order
        ]
    )
    below = np.zeros(len(shares))
    width = 0.85 if len(shares) <= 40 else 1.0
    for k, color in enumerate(depth_colors(count)):
        axes.bar(
            range(len(shares)), 100 * shares[:, k], bottom=100 * below, width=width, color=color,
            label=f"exit {k + 1}",
        )  # fmt: skip
        below += shares[:, k]
    axes.set_ylim(0, 100)
    tidy(axes, grid="y")


def _name_classes(axes: Axes, order: list[int], predictions: ExitPredictions) -> None:
    if len(order) > MOST_NAMED_CLASSES:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(order)} classes")
        return
    names = predictions.meta.get("class_names") or [str(c) for c in range(predictions.num_classes)]
    axes.set_xticks(
        range(len(order)), [str(names[c])[:14] for c in order], rotation=40, ha="right", fontsize=8
    )
    axes.set_xlabel("true class")
