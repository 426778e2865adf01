"""The picture of docs/execution.md: which samples each strategy computes at each stage.

Command:
    python experiments/benchmarks/draw_strategies.py docs/images/strategies.png

Sixteen samples, of which eight leave at the first exit, five at the second and three at the last.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from eenet_jax.execution.sizes import switch_sizes

LEAVE = np.asarray([0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 0, 1, 2, 1, 1, 2])
STAGES, PIECE = 3, 4
NEEDED, WASTED, LATER = "#0072B2", "#E69F00", "#56B4E9"
TITLES = {
    "full": "full\nevery stage for everybody",
    "masked": "masked\na piece skips what none of it needs",
    "compacted": "compacted\nsurvivors share pieces",
    "streaming": "streaming\npieces filled by later samples",
}


def cells(strategy: str, k: int) -> list[str]:
    """Colours of the rows that stage k computes, from the top."""
    here = k <= LEAVE
    if strategy == "full":
        return [NEEDED if needed else WASTED for needed in here]
    if strategy == "masked":
        pieces = here.reshape(-1, PIECE)
        return [NEEDED if needed else WASTED for piece in pieces if piece.any() for needed in piece]
    rest = int(here.sum()) % PIECE
    if strategy == "compacted":
        size = next(size for size in (0, *switch_sizes(PIECE)) if size >= rest)
        return [NEEDED] * int(here.sum()) + [WASTED] * (size - rest)
    return [NEEDED] * int(here.sum()) + [LATER] * (-rest % PIECE)


def draw() -> Figure:
    """One panel a strategy, one column a stage, one square a sample that is computed."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    for axes, (strategy, title) in zip(
        figure.subplots(1, len(TITLES)), TITLES.items(), strict=True
    ):
        for k in range(STAGES):
            for row, color in enumerate(cells(strategy, k)):
                axes.bar(k, 0.86, 0.72, bottom=row + 0.07, color=color)
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(STAGES), [f"stage {k + 1}" for k in range(STAGES)], fontsize=8)
        axes.set_ylim(len(LEAVE), 0)
        axes.set_yticks([0, 4, 8, 12, 16])
        axes.tick_params(length=0, labelsize=8)
        axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    meanings = {
        NEEDED: "computed, and needed",
        WASTED: "computed, though it has left or only fills up",
        LATER: "a sample of a later batch",
    }
    figure.legend(
        handles=[Patch(color=color, label=label) for color, label in meanings.items()],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    draw().savefig(parser.parse_args().out, dpi=130)
