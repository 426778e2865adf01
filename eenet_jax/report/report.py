"""`eenet report`: report.md, its figures, the table on the terminal, a README's section."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as RichTable

from eenet_jax.artifacts import write_text
from eenet_jax.errors import InputError
from eenet_jax.report import figures, style
from eenet_jax.report.comparison_table import comparison_table
from eenet_jax.report.explanation import paper_weights, reliability, score_weights
from eenet_jax.report.frontier_figure import accuracy_cost
from eenet_jax.report.gallery import ImageSource, easiest_hardest, open_images
from eenet_jax.report.header import header_table, subject
from eenet_jax.report.leavers import leavers_table, who_leaves
from eenet_jax.report.sources import Sources, read_sources
from eenet_jax.report.tables import (
    Table,
    cheapest_table,
    exit_table,
    frontier_tables,
    speed_table,
    timing_table,
)

FIGURES = (
    "accuracy_cost",
    "exit_rates",
    "who_leaves",
    "score_weights",
    "paper_weights",
    "reliability",
    "training_curves",
    "easiest_hardest",
    "speedup",
)
EXPLANATIONS = {
    "who_leaves": who_leaves,
    "score_weights": score_weights,
    "paper_weights": paper_weights,
    "reliability": reliability,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure that was written, with the sentence that goes under it."""

    name: str
    sentence: str

    def markdown(self) -> str:
        """The image and its sentence."""
        return f"![{self.name.replace('_', ' ')}](figures/{self.name}.png)\n\n{self.sentence}"


def write_report(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    title: str | None = None,
    readme: str | Path | None = None,
    section: str | None = None,
    images: ImageSource = open_images,
) -> Path:
    """Write `out/report.md` and `out/figures/*.png` from training-run and fit folders.

    Args:
      folders: Folders of `eenet train` and `eenet fit`; one `frontier.csv` at least. Several
        are several seeds of one fit.
      out: Folder of the report; figures of an earlier report there are replaced.
      title: First line; data set and network when None.
      readme: A markdown file that gets the tables too, between the markers of `section`.
      section: Name of that section.
      images: Where the gallery's images come from.

    Returns:
      The path of report.md.

    Raises:
      InputError: a folder is missing or no folder has a `frontier.csv`, artifacts are
        damaged, or just one of `readme` and `section` is given.
    """
    if (readme is None) != (section is None):
        raise InputError(f"readme is {readme} and section is {section}: give both or neither")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"'{out}' is a file: give a folder for the report")
    sources = read_sources(folders)
    heading = title or f"Adaptive inference: {subject(sources)}"
    tables = report_tables(sources)
    pictures, notes = _write_figures(sources, out / "figures", images)
    path = out / "report.md"
    notes += _missing(sources)
    write_text(path, _document(heading, tables, pictures, timing_table(sources), notes))
    if readme is not None and section is not None:
        update_readme(readme, section, _section_text(heading, tables))
    return path


def report_tables(sources: Sources) -> tuple[Table, ...]:
    """All tables that the artifacts allow, in the order of the report."""
    header = header_table(sources)
    leavers = leavers_table(sources)
    optional = ((header,) if header.rows else (), (leavers,) if leavers and leavers.rows else ())
    return (*optional[0], *result_tables(sources), *optional[1])


def result_tables(sources: Sources) -> tuple[Table, ...]:
    """`report_tables` without the one that says what was run."""
    exits = exit_table(sources)
    tables = [
        exits,
        *(frontier_tables(sources) if sources.budgets else ()),
        cheapest_table(sources),
        comparison_table(sources),
        speed_table(sources),
    ]
    return tuple(table for table in tables if table is not None and table.rows)


def print_table(folders: Sequence[str | Path], *, console: Console | None = None) -> None:
    """Print the report's tables on the terminal.

    Args:
      folders: As for `write_report`.
      console: Where to; standard output when None.

    Raises:
      InputError: as for `write_report`.
    """
    console = Console() if console is None else console
    for table in result_tables(read_sources(folders)):
        for part in _fitting(table, console.width):
            console.print(_rich(part))
            # Not the table's caption, which would be folded to the table's width.
            if part.note:
                console.print(_plain(part.note), style="dim")


def _fitting(table: Table, width: int) -> list[Table]:
    """The table cut into parts that fit the terminal, each with the first column."""
    cells = [
        [_plain(row[i]) for row in (table.header, *table.rows)] for i in range(len(table.header))
    ]
    widths = [max(map(len, column)) + 3 for column in cells]
    parts: list[list[int]] = [[]]
    room = width - widths[0] - 1
    for index in range(1, len(widths)):
        if parts[-1] and sum(widths[i] for i in parts[-1]) + widths[index] > room:
            parts.append([])
        parts[-1].append(index)
    return [
        dataclasses.replace(
            table,
            header=tuple(table.header[i] for i in (0, *part)),
            rows=tuple(tuple(row[i] for i in (0, *part)) for row in table.rows),
            note=table.note if part is parts[-1] else "",
        )
        for part in parts
    ]


def _rich(table: Table) -> RichTable:
    drawn = RichTable(title=_plain(table.title), title_justify="left")
    for index, name in enumerate(table.header):
        drawn.add_column(name, justify="right" if index else "left", no_wrap=not index)
    for row in table.rows:
        drawn.add_row(*(_plain(cell) for cell in row))
    return drawn


def _plain(text: str) -> str:
    return text.replace("`", "").replace(" ± ", "±").replace("[", "\\[")


def _document(
    heading: str,
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    timings: Table | None,
    notes: Sequence[str],
) -> str:
    parts = [f"# {heading}", *(table.markdown() for table in tables)]
    if pictures:
        parts += ["## Figures", *(picture.markdown() for picture in pictures)]
    if timings:
        parts += ["## Measurements behind the speed-ups", timings.markdown()]
    if notes:
        parts += ["## Left out", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _section_text(heading: str, tables: Sequence[Table]) -> str:
    return "\n\n".join([f"## {heading}", *(table.markdown() for table in tables)])


def _missing(sources: Sources) -> list[str]:
    """What the report had to do without, and what would bring it."""
    notes = []
    if not sources.budgets:
        notes.append("All figures of policies: fit with `--budgets` to have them.")
    if sources.split == "val":
        notes.append("Test figures: fit with `--test` to have them; these are of validation data.")
    if not any(run.predictions for run in sources.runs):
        notes.append("Accuracy per exit: give the folder of the training run with its predictions.")
    if not any(fit.comparison for fit in sources.fits):
        notes.append("`eenet` against the best baseline: no comparison.csv in the fit folders.")
    if not any(fit.execution for fit in sources.fits):
        notes.append("Measured speed-up: no execution.json; `eenet run` makes it.")
    if not any(run.metrics for run in sources.runs):
        notes.append("Training curves: no metrics.jsonl in the folders given.")
    return notes


def _write_figures(
    sources: Sources, folder: Path, images: ImageSource
) -> tuple[list[Picture], list[str]]:
    """Write what can be drawn and remove what an earlier report left of the rest."""
    pictures, notes = [], []
    for name in FIGURES:
        try:
            drawn = _draw(name, sources, images)
        except InputError as error:
            drawn = None
            notes.append(f"{name.replace('_', ' ').capitalize()}: {error}.")
        path = folder / f"{name}.png"
        if drawn is None:
            path.unlink(missing_ok=True)
        else:
            style.save(drawn[0], path)
            pictures.append(Picture(name=name, sentence=drawn[1]))
    return pictures, notes


def _draw(name: str, sources: Sources, images: ImageSource) -> tuple[Figure, str] | None:
    if not sources.budgets and name != "training_curves":
        return None
    if name == "easiest_hardest":
        return easiest_hardest(sources, images)
    if name in EXPLANATIONS:
        return EXPLANATIONS[name](sources)
    about = subject(sources)
    run = next((run for run in sources.runs if run.metrics), None)
    training = f"{about} ({run.folder.name})" if run and len(sources.runs) > 1 else about
    makers: dict[str, Callable[[], Figure | None]] = {
        "accuracy_cost": lambda: accuracy_cost(sources, about),
        "exit_rates": lambda: figures.exit_rates(sources, about),
        "training_curves": lambda: figures.training_curves(run, training) if run else None,
        "speedup": lambda: figures.speedup(sources, about),
    }
    figure = makers[name]()
    return None if figure is None else (figure, _SENTENCES[name])


_SENTENCES = {
    "accuracy_cost": (
        "Accuracy of every policy against the mean cost that it really had; the staircase joins"
        " the exits used alone, the dashed line (or the diamond) is what an oracle could reach."
    ),
    "exit_rates": "Share of the samples that leaves at each exit, for each budget.",
    "training_curves": "Accuracy of each exit, and the joint loss, as training went on.",
    "speedup": (
        "How many times as fast as the full network adaptive inference ran; the black bars mark"
        " the ideal: every sample costs just the time of the stages that it runs."
    ),
}


def experiments_section(text: str, name: str, body: str) -> str:
    """`text` with what stands between the markers of section `name` replaced by `body`.

    The markers are `<!-- begin NAME -->` and `<!-- end NAME -->`; where there are none, the
    section is appended with them.

    Raises:
      InputError: the markers are not one pair in this order.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    block = f"{begin}\n{body.strip()}\n{end}"
    counts = (text.count(begin), text.count(end))
    if counts == (0, 0):
        return f"{text.rstrip()}\n\n{block}\n".lstrip()
    if counts != (1, 1) or text.index(begin) > text.index(end):
        raise InputError(
            f"section '{name}' has {counts[0]} '{begin}' and {counts[1]} '{end}':"
            " keep one of each, in this order"
        )
    return text[: text.index(begin)] + block + text[text.index(end) + len(end) :]


def update_readme(readme: str | Path, name: str, body: str) -> None:
    """Replace one section of a markdown file, in one step; the file is made where it is missing."""
    path = Path(readme)
    text = path.read_text() if path.is_file() else ""
    write_text(path, experiments_section(text, name, body))
