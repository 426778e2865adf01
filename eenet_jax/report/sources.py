"""What a report is made of: the artifacts found in training-run and fit folders."""

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eenet_jax.artifacts import read_json, sha256_of
from eenet_jax.errors import InputError
from eenet_jax.frontier_file import FrontierRow, read_frontier
from eenet_jax.training.metrics import read_metrics
from eenet_jax.types import CostTable, ExitPredictions

SPLITS = ("val", "test")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRun:
    """What a training-run folder holds; every part may be missing.

    Attributes:
      folder: Where it was read from.
      config: The resolved configuration.
      metrics: One mapping per logged step, as in `metrics.jsonl`.
      predictions: Predictions by split name.
      costs: Cost table in MMACs.
      latency: Cost table in milliseconds.
      times: Device, command and seconds.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    predictions: Mapping[str, ExitPredictions]
    costs: CostTable | None
    latency: CostTable | None
    times: Mapping[str, Any]

    @property
    def dataset(self) -> str:
        """Name of the data set, from the config or else from predictions; empty if unknown."""
        return self._named("data", "dataset") or self._named_by_predictions("dataset")

    @property
    def network(self) -> str:
        """Name of the network, from the config or else from predictions; empty if unknown."""
        return self._named("network", "name") or self._named_by_predictions("network")

    def _named(self, section: str, key: str) -> str:
        settings = self.config.get(section)
        return str(settings.get(key, "")) if isinstance(settings, Mapping) else ""

    def _named_by_predictions(self, key: str) -> str:
        metas = [predictions.meta for predictions in self.predictions.values()]
        return next((str(meta[key]) for meta in metas if isinstance(meta.get(key), str)), "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """`eenet` against the best baseline at one budget, on test; fractions, not percent."""

    budget_text: str
    baseline: str
    difference: float
    half_width: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """What a fit folder holds: one seed of every policy at every budget.

    Attributes:
      folder: Where it was read from.
      rows: The rows of `frontier.csv` that have a budget.
      cheapest: Those of policies asked for by their loss of accuracy.
      settings: `fit.json`, empty where it is missing.
      comparison: `comparison.csv`, one entry per budget.
      execution: `execution.json`, one mapping per measurement.
    """

    folder: Path
    rows: tuple[FrontierRow, ...]
    cheapest: tuple[FrontierRow, ...]
    settings: Mapping[str, Any]
    comparison: tuple[Comparison, ...]
    execution: tuple[Mapping[str, Any], ...]

    @property
    def num_exits(self) -> int:
        """K."""
        return len((*self.rows, *self.cheapest)[0].exit_rates)

    @property
    def cost_table(self) -> CostTable | None:
        """The cost table of the fit, where `fit.json` holds one."""
        costs = self.settings.get("costs")
        if isinstance(costs, Mapping):
            return CostTable(
                costs=tuple(float(cost) for cost in costs.get("costs", ())),
                unit=str(costs.get("unit", "cost")),
            )
        if isinstance(costs, Sequence) and not isinstance(costs, str):
            unit = str(self.settings.get("unit", "cost"))
            return CostTable(costs=tuple(float(cost) for cost in costs), unit=unit)
        return None

    def budgets(self) -> tuple[str, ...]:
        """The budgets as typed, from the smallest to the largest."""
        return tuple(dict.fromkeys(row.budget_text for row in _by_budget(self.rows)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """Everything that a report can draw on, and what it must do without."""

    folders: tuple[Path, ...]
    runs: tuple[TrainingRun, ...]
    fits: tuple[Fit, ...]

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets as typed, from the smallest to the largest."""
        return self.fits[0].budgets()

    @property
    def budget_values(self) -> tuple[float, ...]:
        """The budgets as numbers, in the order of `budgets`."""
        value = {row.budget_text: row.budget for row in self.fits[0].rows}
        return tuple(value[text] for text in self.budgets)

    @property
    def policies(self) -> tuple[str, ...]:
        """Policies of all fits, in the order in which they were written."""
        return tuple(dict.fromkeys(row.policy for fit in self.fits for row in fit.rows))

    @property
    def cost_table(self) -> CostTable | None:
        """The cost table that the budgets are counted in."""
        return self.fits[0].cost_table

    @property
    def unit(self) -> str:
        """The unit of budgets and costs."""
        table = self.cost_table
        return table.unit if table else "cost"

    @property
    def split(self) -> str:
        """`test` where there are test rows, else `val`."""
        return (
            "test"
            if any(row.split == "test" for row in (*self.fits[0].rows, *self.fits[0].cheapest))
            else "val"
        )

    def rows(self, policy: str, budget_text: str, split: str) -> tuple[FrontierRow, ...]:
        """The rows of one policy at one budget, one per fit that has it."""
        return tuple(
            row
            for fit in self.fits
            for row in fit.rows
            if (row.policy, row.budget_text, row.split) == (policy, budget_text, split)
        )

    def main_run(self) -> TrainingRun | None:
        """The first training run with test predictions, else the first, else None."""
        with_test = [run for run in self.runs if "test" in run.predictions]
        return (with_test or list(self.runs) or [None])[0]


def read_sources(folders: Sequence[str | Path]) -> Sources:
    """Read whatever the folders hold.

    Args:
      folders: Training-run folders, fit folders, or folders that are both.

    Raises:
      InputError: a folder is missing, none has a `frontier.csv`, or the fits differ in
        their budgets, exits or costs.
    """
    paths = tuple(dict.fromkeys(Path(folder).resolve() for folder in folders))
    for path in paths:
        if not path.is_dir():
            raise InputError(
                f"no folder '{path}': give the folders of `eenet train` and `eenet fit`"
            )
    fits = tuple(_read_fit(path) for path in paths if (path / "frontier.csv").is_file())
    if not fits:
        listed = ", ".join(f"'{path}'" for path in paths) or "(no folder given)"
        raise InputError(f"no frontier.csv in {listed}: make one with `eenet fit --out DIR`")
    for fit in fits[1:]:
        _check_alike(fits[0], fit)
    runs = tuple(_read_run(path) for path in paths if _is_run(path))
    for run in runs[1:]:
        _check_same_subject(runs[0], run)
    return Sources(folders=paths, runs=runs or _runs_behind(fits[:1]), fits=fits)


def _is_run(path: Path) -> bool:
    parts = ("config.json", "metrics.jsonl", "predictions", "costs.json", "run.json")
    return any((path / part).exists() for part in parts)


def _read_run(path: Path) -> TrainingRun:
    return TrainingRun(
        folder=path,
        config=_optional_json(path / "config.json", "configuration", {}),
        metrics=tuple(read_metrics(path / "metrics.jsonl")),
        predictions=_read_predictions(
            {split: path / "predictions" / f"{split}.npz" for split in SPLITS}
        ),
        costs=_optional_costs(path / "costs.json"),
        latency=_optional_costs(path / "latency.json"),
        times=_optional_json(path / "run.json", "record of the run", {}),
    )


def _runs_behind(fits: Sequence[Fit]) -> tuple[TrainingRun, ...]:
    """A fit whose prediction files are still there tells the accuracy of every exit."""
    return tuple(
        TrainingRun(
            folder=fit.folder,
            config={},
            metrics=(),
            predictions=found,
            costs=None,
            latency=None,
            times={},
        )
        for fit in fits
        if (found := _read_predictions(prediction_paths(fit)))
    )


def prediction_paths(fit: Fit) -> dict[str, Path]:
    """The prediction files that a fit says it was made from, by split name."""
    keys = {"val": "predictions", "test": "test"}
    named = {split: fit.settings.get(key) for split, key in keys.items()}
    return {split: Path(name) for split, name in named.items() if isinstance(name, str)}


def _check_unchanged(settings: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError where predictions have other content than when the fit was made."""
    for name in ("predictions", "test"):
        path, digest = settings.get(name), settings.get(f"{name}_sha256")
        if path and digest and Path(path).is_file() and sha256_of(path) != digest:
            raise InputError(f"'{path}' has changed since '{folder}' was fitted: fit again")


def _read_predictions(paths: Mapping[str, Path]) -> dict[str, ExitPredictions]:
    return {split: ExitPredictions.load(path) for split, path in paths.items() if path.is_file()}


def _read_fit(path: Path) -> Fit:
    rows = _read_rows(path / "frontier.csv")
    settings = _optional_json(path / "fit.json", "record of the fit", {})
    _check_unchanged(settings, path)
    asked = settings.get("budgets", [row.budget_text for row in rows])
    return Fit(
        folder=path,
        rows=tuple(row for row in rows if row.budget_text in asked),
        cheapest=tuple(row for row in rows if "max_accuracy_drop" in row.extra),
        settings=settings,
        comparison=_read_comparison(path / "comparison.csv"),
        execution=tuple(_optional_json(path / "execution.json", "record of execution", [])),
    )


def _read_rows(path: Path) -> tuple[FrontierRow, ...]:
    rows = tuple(read_frontier(path))
    if not rows:
        raise InputError(f"'{path}' has no rows: fit again")
    return rows


def _check_alike(first: Fit, other: Fit) -> None:
    pairs = {
        "budgets": (first.budgets(), other.budgets()),
        "number of exits": (first.num_exits, other.num_exits),
        "costs": (first.cost_table, other.cost_table),
    }
    for what, (expected, found) in pairs.items():
        if expected != found:
            raise InputError(
                f"'{first.folder}' and '{other.folder}' differ in their {what} ({expected} and"
                f" {found}): several fits in one report must be seeds of the same one"
            )


def _check_same_subject(first: TrainingRun, other: TrainingRun) -> None:
    pairs = {
        "data set": (first.dataset, other.dataset),
        "network": (first.network, other.network),
    }
    for what, (expected, found) in pairs.items():
        if expected and found and expected != found:
            raise InputError(
                f"'{first.folder}' and '{other.folder}' differ in their {what} ({expected} and"
                f" {found}): report them apart"
            )


def _by_budget(rows: Sequence[FrontierRow]) -> list[FrontierRow]:
    return sorted(rows, key=lambda row: row.budget)


def _optional_json(path: Path, what: str, default: Any) -> Any:
    if not path.is_file():
        return default
    value = read_json(path, what)
    if not isinstance(value, type(default)):
        kind = "an object" if isinstance(default, dict) else "a list"
        raise InputError(f"'{path}' is not {kind}: make it again")
    return value


def _optional_costs(path: Path) -> CostTable | None:
    return CostTable.load(path) if path.is_file() else None


def _read_comparison(path: Path) -> tuple[Comparison, ...]:
    if not path.is_file():
        return ()
    with path.open(newline="") as source:
        return tuple(_comparison(path, record) for record in csv.DictReader(source))


def _comparison(path: Path, record: Mapping[str, Any]) -> Comparison:
    try:
        entry = Comparison(
            budget_text=record["budget"],
            baseline=record["baseline"],
            difference=float(record["difference"]),
            half_width=float(record["half_width_95"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"'{path}' is not a readable comparison ({error!r}): fit again") from None
    if not (math.isfinite(entry.difference) and math.isfinite(entry.half_width)):
        raise InputError(
            f"'{path}' has no finite difference at budget {entry.budget_text}: fit again"
        )
    return entry
