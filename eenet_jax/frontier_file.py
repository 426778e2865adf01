"""`frontier.csv`: a row a policy, budget and split, written and read."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eenet_jax.artifacts import write_csv
from eenet_jax.errors import InputError

LEADING_COLUMNS = ("policy", "budget", "split", "accuracy", "cost")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontierRow:
    """One policy at one budget on one split.

    Attributes:
      policy: Its name; `static` and `oracle` are always among them.
      budget: The budget, in the cost table's unit.
      budget_text: The budget as it was typed.
      split: "val" or "test".
      accuracy: Mean `correct` at the chosen exits, a fraction.
      cost: Realised mean cost, in the cost table's unit.
      exit_rates: Share of the samples that leaves at each exit.
      extra: Further columns: `n`, `accuracy_se`, for dense prediction `miou` and
        `pixel_accuracy`, what the fit expects on unseen samples (`cost_low_95`, …), and
        what was certified (`confidence`, `max_accuracy_drop`, and the `accuracy_drop` that
        it really came to).
    """

    policy: str
    budget: float
    budget_text: str
    split: str
    accuracy: float
    cost: float
    exit_rates: tuple[float, ...]
    extra: Mapping[str, float]


def write_frontier(path: str | Path, rows: Sequence[FrontierRow]) -> None:
    """Write `frontier.csv` in one step.

    Args:
      path: The file.
      rows: Rows of one network: the same exits and further columns throughout.
    """
    exits = len(rows[0].exit_rates)
    further = list(dict.fromkeys(name for row in rows for name in row.extra))
    header = [*LEADING_COLUMNS, *_rate_columns(exits), *further]
    write_csv(path, [header, *(_line(row, further) for row in rows)])


def _line(row: FrontierRow, further: Sequence[str]) -> list[Any]:
    """What a row has nothing to say of stays empty: the oracle knows no interval."""
    leading = [row.policy, row.budget_text, row.split, row.accuracy, row.cost]
    values = [row.extra.get(name, "") for name in further]
    values = [int(v) if name == "n" else v for name, v in zip(further, values, strict=True)]
    return [*leading, *row.exit_rates, *values]


def read_frontier(path: str | Path) -> list[FrontierRow]:
    """Read a `frontier.csv`.

    Args:
      path: The file.

    Raises:
      InputError: the file is missing or is no frontier.
    """
    try:
        lines = list(csv.reader(io.StringIO(Path(path).read_text())))
    except FileNotFoundError:
        raise InputError(f"no frontier at '{path}': make one with `eenet fit`") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"'{path}' is no readable CSV ({error}): fit again") from None
    header = lines[0] if lines else []
    exits = sum(name.startswith("exit_rate_") for name in header)
    leading = [*LEADING_COLUMNS, *_rate_columns(exits)]
    if not exits or header[: len(leading)] != leading:
        raise InputError(f"'{path}' has not the columns of a frontier: fit again")
    try:
        return [_parsed(dict(zip(header, line, strict=True)), leading) for line in lines[1:]]
    except ValueError as error:
        raise InputError(f"'{path}' has a damaged row ({error}): fit again") from None


def _parsed(values: dict[str, str], leading: list[str]) -> FrontierRow:
    return FrontierRow(
        policy=values["policy"],
        budget=float(values["budget"]),
        budget_text=values["budget"],
        split=values["split"],
        accuracy=float(values["accuracy"]),
        cost=float(values["cost"]),
        exit_rates=tuple(float(values[name]) for name in leading[len(LEADING_COLUMNS) :]),
        extra={name: float(text) for name, text in values.items() if name not in leading and text},
    )


def _rate_columns(exits: int) -> list[str]:
    return [f"exit_rate_{k}" for k in range(1, exits + 1)]
