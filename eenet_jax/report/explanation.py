"""What a learned score looks at, and how far its chances can be trusted."""

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eenet_jax.confidence import confidence_measures
from eenet_jax.errors import InputError
from eenet_jax.policies.eenet import EENet, solver_samples
from eenet_jax.policies.eenet_paper import EENetPaper
from eenet_jax.policies.problem import Problem
from eenet_jax.report.saved import (
    fitted_predictions,
    middle_budget,
    saved_policy,
)
from eenet_jax.report.sources import Sources
from eenet_jax.report.style import GREY, INK, LOOKS, new_figure, tidy
from eenet_jax.scheduler.features import feature_names
from eenet_jax.scheduler.network import NUM_MEASURES
from eenet_jax.types import MEASURES, CostTable, ExitPredictions

BINS = 12


def learned_eenet(sources: Sources) -> tuple[str, EENet]:
    """`eenet` at the budget nearest the middle at which its score is learned, and that budget.

    Raises:
      InputError: it was not saved, or took a confidence measure at every budget.
    """
    middle = len(sources.budgets) // 2
    nearest = sorted(range(len(sources.budgets)), key=lambda place: abs(place - middle))
    budgets = [sources.budgets[place] for place in nearest]
    saved = [(budget, saved_policy(sources.fits[0], "eenet", budget)) for budget in budgets]
    found = [(budget, policy) for budget, policy in saved if isinstance(policy, EENet)]
    if not found:
        raise InputError("no saved policy 'eenet': keep the policies folder of the fit")
    learned = [each for each in found if not each[1].measure]
    if not learned:
        chosen = found[0][1].info.get("chosen", "a confidence measure")
        raise InputError(f"no score was learned: `eenet` took '{chosen}' at every budget")
    return learned[0]


def score_weights(sources: Sources) -> tuple[Figure, str]:
    """What `eenet`'s score looks at, exit by exit.

    Raises:
      InputError: `eenet` learned no score, or an artifact is missing.
    """
    budget, policy = learned_eenet(sources)
    _, predictions = fitted_predictions(sources)
    names, tables = weight_tables(policy, predictions)
    titles = ("log-odds that the exit is right", "log-odds that the full network is right")
    # With a gain share of 0 the score does not look at the second.
    shown = list(zip(tables, titles, strict=True))[: 2 if policy.gain_share else 1]
    height = 1.9 + 0.38 * len(shown) * policy.num_exits
    figure = new_figure(max(8.0, 0.42 * len(names) + 2), height)
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (table, title) in zip(panels, shown, strict=True):
        _draw_weights(axes, table, title)
    _name_columns(panels[-1], names)
    figure.suptitle(
        f"What the score of eenet looks at, at a budget of {budget} {sources.unit}"
        f" (gain share {policy.gain_share:g})",
        fontsize=12,
    )
    return figure, (
        "Weights times the deviation of what they weigh, so that their sizes compare; the last"
        " column is the deviation of the intercepts by answer. The score is the chance that the"
        " exit is right"
        + (f" less {policy.gain_share:g} of the full network's." if policy.gain_share else ".")
    )


def weight_tables(
    policy: EENet, predictions: ExitPredictions
) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
    """Names of what is weighed; and weights times deviations, [exits, names], of both chances."""
    names = feature_names(policy.num_exits)
    costs = CostTable(costs=policy.costs)
    problem = Problem(predictions=predictions, costs=costs, budgets=costs.costs[:1])
    spread = np.asarray(solver_samples(problem).features).std(axis=1)

    def table(weights):
        linear = weights[:, 1 : len(names)] * spread[:, 1:]
        by_answer = weights[:, len(names) :].std(axis=1, keepdims=True)
        return np.concatenate([linear, by_answer], axis=1)

    shown = [*(name.replace("_", " ") for name in names[1:]), "the answer (spread)"]
    return shown, (table(policy.now), table(policy.last))


def paper_weights(sources: Sources) -> tuple[Figure, str]:
    """What `eenet_paper`'s g looks at, exit by exit, at the budget in the middle.

    Raises:
      InputError: it was not saved, or an artifact is missing.
    """
    policy = saved_policy(sources.fits[0], "eenet_paper", middle_budget(sources))
    if not isinstance(policy, EENetPaper):
        raise InputError("no saved policy 'eenet_paper': fit it to see what its score looks at")
    _, predictions = fitted_predictions(sources)
    names, table = paper_weight_table(policy, predictions)
    figure = new_figure(max(6.0, 0.5 * len(names) + 2), 1.6 + 0.5 * policy.num_exits)
    axes = figure.subplots()
    _draw_weights(axes, table, "")
    _name_columns(axes, names)
    figure.suptitle(
        f"What g of eenet_paper looks at, at a budget of {middle_budget(sources)} {sources.unit}",
        fontsize=12,
    )
    return figure, (
        "Weights times the deviation of what they weigh; of the classes' probabilities together"
        " the deviation of their weighted sum, which has no sign."
    )


def paper_weight_table(
    policy: EENetPaper, predictions: ExitPredictions
) -> tuple[list[str], np.ndarray]:
    """Names of what g weighs, and weights times deviations, [exits, names]."""
    exits, classes = policy.num_exits, predictions.num_classes
    given = predictions.measures
    measures = confidence_measures(predictions.probs) if given is None else given
    scores = np.clip(policy.scores(predictions.probs, given), 0.0, 1.0)
    weights = policy.weights
    by_class = np.einsum("knc,kc->kn", predictions.probs, weights[:, :classes]).std(1)
    by_measure = weights[:, classes : classes + NUM_MEASURES] * np.asarray(measures).std(1)
    by_score = weights[:, classes + NUM_MEASURES :][:, :-1] * scores[:-1].std(1)[None]
    names = ["probabilities", *MEASURES, *(f"score of {k}" for k in range(1, exits))]
    return names, np.concatenate([by_class[:, None], by_measure, by_score], axis=1)


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


def _name_columns(axes: Axes, names: list[str]) -> None:
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)


def reliability(sources: Sources) -> tuple[Figure, str]:
    """How often those of a stated chance are right, before calibration and after.

    Raises:
      InputError: an artifact is missing.
    """
    split, predictions = fitted_predictions(sources)
    stated = stated_chances(sources, predictions)
    exits, right = predictions.num_exits, predictions.correctness()
    across = min(exits, 4)
    down = -(-exits // across)
    figure = new_figure(3.0 * across + 0.6, 3.1 * down + 0.6)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for k, axes in enumerate(panels[:exits]):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
        for name, chances in stated.items():
            means, found, error = reliability_curve(chances[k], right[k])
            look = LOOKS[name]
            axes.plot(
                means, found, color=look.color, marker=look.marker, markersize=4,
                label=f"{name}: error {100 * error:.1f}",
            )  # fmt: skip
        axes.set_title(f"exit {k + 1}", fontsize=10)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        tidy(axes)
    for axes in panels[exits:]:
        axes.set_axis_off()
    figure.supxlabel("stated chance of being right", fontsize=10)
    figure.supylabel("share that is right", fontsize=10)
    figure.suptitle(f"Reliability on {split}, before calibration and after", fontsize=12)
    return figure, (
        f"{BINS} bins of as many samples each. max_prob is the network's own largest probability,"
        " before any calibration; eenet's is its learned chance where it learned one;"
        " eenet_paper's its score, clipped to 0 and 1. Error: the mean distance between stated and"
        " found, in points (ECE)."
    )


def stated_chances(
    sources: Sources, predictions: ExitPredictions
) -> dict[str, Float[np.ndarray, "exits samples"]]:
    """What the network and each learned score say of the chance that an exit is right."""
    probs, given = predictions.probs, predictions.measures
    found = {"max_prob": probs.max(-1) if given is None else given[..., MEASURES.index("max")]}
    try:
        policy = learned_eenet(sources)[1]
        found["eenet"] = np.stack(
            [np.asarray(policy.chance(k, probs, given)) for k in range(policy.num_exits)]
        )
    except InputError:
        pass
    paper = saved_policy(sources.fits[0], "eenet_paper", middle_budget(sources))
    if paper is not None:
        found["eenet_paper"] = np.clip(paper.scores(probs, given), 0.0, 1.0)
    return found


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
