"""How each policy looks in every figure: Okabe and Ito's colours, a marker of its own."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eenet_jax.artifacts import replacing

INK = "#222222"
GREY = "#777777"
WRONG = "#D55E00"
DPI = 150


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """Colour, marker and line of one policy."""

    color: str
    marker: str
    line: str = "-"
    width: float = 1.4


LOOKS = {
    "eenet": Look(color="#0072B2", marker="o", width=2.4),
    "eenet_paper": Look(color="#56B4E9", marker="D"),
    "max_prob": Look(color="#D55E00", marker="s"),
    "entropy": Look(color="#E69F00", marker="^"),
    "patience": Look(color="#009E73", marker="v"),
    "vote": Look(color="#CC79A7", marker="P"),
    "static": Look(color=INK, marker="X", line="-", width=1.2),
    "oracle": Look(color=GREY, marker="", line="--"),
}
SPARE = (
    Look(color="#8C6D1F", marker="<"),
    Look(color="#5D3A9B", marker=">"),
    Look(color="#4B4B4B", marker="*"),
)

STRATEGY_COLORS = {
    "full": GREY,
    "full_with_decisions": "#5D3A9B",
    "last_exit": "#CC79A7",
    "masked": "#E69F00",
    "host_compacted": "#0072B2",
    "compacted": "#009E73",
    "streaming": "#56B4E9",
    "auto": "#D55E00",
}


def looks(policies: Iterable[str]) -> dict[str, Look]:
    """A look for each policy; names without one of their own share the spare ones in turn."""
    policies = list(policies)
    strangers = [policy for policy in policies if policy not in LOOKS]
    return {
        policy: LOOKS[policy] if policy in LOOKS else SPARE[strangers.index(policy) % len(SPARE)]
        for policy in policies
    }


def depth_colors(exits: int) -> list[tuple[float, ...]]:
    """A colour per exit, from light (shallow) to dark (deep), distinct without hue."""
    scale = colormaps["viridis"]
    return [scale(0.92 - 0.8 * k / max(exits - 1, 1)) for k in range(exits)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, on the Agg canvas, apart from pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, *, grid: Literal["both", "x", "y"] = "both") -> None:
    """Light grid behind the data and no box around it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.7)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG in one step; the same figure gives the same bytes."""
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=DPI, metadata={"Software": None}, facecolor="white")
    return path
