"""The easiest and the hardest test images of each exit, as the fitted policy sees them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import eenet_jax
from eenet_jax.data import datasets
from eenet_jax.errors import InputError
from eenet_jax.report.sources import Fit, Sources, TrainingRun, prediction_paths
from eenet_jax.report.style import GREY, INK, WRONG, new_figure
from eenet_jax.types import Array, ExitPredictions

IMAGES_A_SIDE = 6
LONGEST_NAME = 11

ImageSource = Callable[[Mapping[str, Any], np.ndarray], np.ndarray]
"""From predictions' `meta` and sample ids to uint8 images [batch, height, width, channels]."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Leavers:
    """Who leaves at one exit.

    Attributes:
      count: How many samples leave there.
      easiest: Sample indices, the highest score first.
      hardest: Sample indices, the lowest score first; none is among the easiest.
    """

    count: int
    easiest: Int[np.ndarray, " easy"]
    hardest: Int[np.ndarray, " hard"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """One image, and what the exit made of it.

    Attributes:
      image: uint8 [height, width, channels].
      title: The true class, and what was said where that is another; for labelled pixels, the
        share of them that is right.
      wrong: Whether another class was said.
    """

    image: np.ndarray
    title: str
    wrong: bool


def choose_leavers(
    scores: Float[Array, "exits samples"],
    exits: Int[Array, " samples"],
    a_side: int = IMAGES_A_SIDE,
) -> list[Leavers]:
    """The samples with the highest and the lowest scores among those that leave at each exit.

    Args:
      scores: Exit scores.
      exits: 0-based exit of each sample.
      a_side: At most so many easiest and so many hardest.
    """
    scores, exits = np.asarray(scores), np.asarray(exits)
    return [_leavers(scores[k], np.flatnonzero(exits == k), a_side) for k in range(len(scores))]


def _leavers(scores: np.ndarray, members: np.ndarray, a_side: int) -> Leavers:
    ranked = members[np.argsort(-scores[members], kind="stable")]
    easy = min(a_side, (len(ranked) + 1) // 2)
    hard = min(a_side, len(ranked) - easy)
    return Leavers(count=len(ranked), easiest=ranked[:easy], hardest=ranked[::-1][:hard])


def open_images(meta: Mapping[str, Any], ids: np.ndarray) -> np.ndarray:
    """Images of the registered data set that predictions were made on.

    Raises:
      InputError: the metadata name no registered set, it is not prepared, or ids are unknown.
    """
    if not meta.get("dataset"):
        raise InputError("the predictions name no data set: make them with `eenet predict`")
    if datasets.get(str(meta["dataset"])).kind == "text":
        raise InputError("texts are not drawn")
    split = datasets.open_split(
        str(meta["dataset"]), "test", data_dir=str(meta.get("data_dir") or "data")
    )
    order = np.argsort(split.ids)
    places = np.searchsorted(split.ids, ids, sorter=order).clip(max=len(split) - 1)
    found = order[places]
    if not np.array_equal(split.ids[found], ids):
        raise InputError(f"the test split of '{meta['dataset']}' lacks some ids of the predictions")
    return split.gather(found)["image"]


def easiest_hardest(sources: Sources, images: ImageSource = open_images) -> tuple[Figure, str]:
    """The gallery of a policy at the middle budget, and the sentence that goes with it.

    Args:
      sources: Artifacts; the first fit with saved policies is shown.
      images: Where images come from.

    Raises:
      InputError: what the gallery lacks (test predictions, a saved policy, the images).
    """
    fit, path, budget = _middle_policy(sources)
    predictions = _test_predictions(sources, fit)
    policy = eenet_jax.load_policy(path)
    said = (predictions.probs, predictions.measures)
    chosen = choose_leavers(np.asarray(policy.scores(*said)), np.asarray(policy.decide(*said)))
    rows = _tiles(chosen, predictions, images)
    name = path.stem.removesuffix(f"-{budget}")
    figure = _draw(rows, chosen, predictions)
    subject = f"{name} at a budget of {budget} {sources.unit}"
    if predictions.correct is None:
        above = "above each image its true class; ✗ where the exit said another"
        marks = "wrong answers are marked with ✗ and coloured"
    else:
        above = marks = "above each image the share of its labelled pixels that are right"
    title = f"Easiest and hardest test images of each exit: {subject}\n{above}"
    figure.suptitle(title, fontsize=12)
    return figure, f"Among those who leave at each exit under {subject}; {marks}."


def _middle_policy(sources: Sources) -> tuple[Fit, Path, str]:
    budget = sources.budgets[len(sources.budgets) // 2]
    names = ["eenet", *(p for p in sources.policies if p not in ("eenet", "static", "oracle"))]
    for fit in sources.fits:
        for name in names:
            path = fit.folder / "policies" / f"{name}-{budget}.json"
            if path.is_file():
                return fit, path, budget
    raise InputError("no saved policy for the middle budget: keep the policies folder of the fit")


def _test_predictions(sources: Sources, fit: Fit) -> ExitPredictions:
    run = _run_of(sources, fit)
    if run is None or "test" not in run.predictions:
        raise InputError("no test predictions: give the training run's folder too")
    return run.predictions["test"]


def _run_of(sources: Sources, fit: Fit) -> TrainingRun | None:
    """The run whose test predictions the fit used, where it says so, else the first with some."""
    named = prediction_paths(fit).get("test")
    for run in sources.runs:
        if named and (run.folder / "predictions" / "test.npz") == named.resolve():
            return run
    return sources.main_run()


def _tiles(
    chosen: Sequence[Leavers], predictions: ExitPredictions, images: ImageSource
) -> list[tuple[list[Tile], list[Tile]]]:
    wanted = np.concatenate([np.concatenate([row.easiest, row.hardest]) for row in chosen])
    ids = predictions.ids if predictions.ids is not None else np.arange(predictions.num_samples)
    pixels = images(predictions.meta, ids[wanted])
    place = {int(sample): index for index, sample in enumerate(wanted)}
    names = _class_names(predictions)

    def tile(k: int, sample: int) -> Tile:
        image = pixels[place[sample]]
        if predictions.correct is not None:
            share = 100 * predictions.correct[k, sample]
            return Tile(image=image, title=f"{share:.0f} % right", wrong=False)
        true = names[int(predictions.labels[sample])]
        said = names[int(predictions.probs[k, sample].argmax())]
        title = true if said == true else f"{true} ✗\nsaid {said}"
        return Tile(image=image, title=title, wrong=said != true)

    return [
        ([tile(k, int(i)) for i in row.easiest], [tile(k, int(i)) for i in row.hardest])
        for k, row in enumerate(chosen)
    ]


def _class_names(predictions: ExitPredictions) -> list[str]:
    names = predictions.meta.get("class_names")
    if not names or len(names) != predictions.num_classes:
        names = range(predictions.num_classes)
    return [_short(str(name)) for name in names]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _draw(
    rows: Sequence[tuple[list[Tile], list[Tile]]],
    chosen: Sequence[Leavers],
    predictions: ExitPredictions,
) -> Figure:
    figure = new_figure(14.2, 0.8 + 1.62 * len(rows))
    scale = max(
        (int(tile.image.max()) for row in rows for side in row for tile in side), default=255
    )
    # The left half also holds the names of the exits, about an inch.
    halves = list(figure.subfigures(1, 2, squeeze=False, wspace=0.03, width_ratios=[1.14, 1])[0])
    for side, (half, word) in enumerate(zip(halves, ("easiest", "hardest"), strict=True)):
        half.suptitle(f"{word} (score {'highest' if side == 0 else 'lowest'})", fontsize=11)
        grid = half.subplots(len(rows), IMAGES_A_SIDE, squeeze=False)
        for k, row in enumerate(rows):
            _draw_row(list(grid[k]), row[side], max(scale, 1))
            if side == 0:
                share = 100 * chosen[k].count / predictions.num_samples
                _name_row(grid[k, 0], f"exit {k + 1}\n{share:.0f} % leave", bool(row[0]))
    return figure


def _name_row(axes: Axes, text: str, occupied: bool) -> None:
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(occupied)
    axes.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=10, labelpad=8)
    if not occupied:
        axes.text(
            0.5, 0.5, "nobody", ha="center", va="center", color=GREY, transform=axes.transAxes
        )


def _draw_row(axes_row: Sequence[Axes], tiles: Sequence[Tile], scale: int) -> None:
    for axes in axes_row:
        axes.set_axis_off()
    for axes, tile in zip(axes_row, tiles, strict=False):
        image, wrong = tile.image, tile.wrong
        if image.shape[-1] == 1:
            axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=scale, interpolation="nearest")
        else:
            axes.imshow(image, interpolation="nearest")
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=WRONG if wrong else GREY, linewidth=2.5 if wrong else 0.8)
        axes.set_title(tile.title, fontsize=9, color=WRONG if wrong else INK, pad=3)
