"""`eenet` against the best baseline, with what each really cost."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Sequence

from eenet_jax.report.sources import Comparison, Fit, Sources
from eenet_jax.report.tables import Table, mean_sd, percent

ALIKE_IN_COST = 0.02
"""Relative difference in realised cost up to which accuracies are compared as they are."""


@dataclasses.dataclass(frozen=True)
class _Compared:
    """One fit's comparison at one budget, with the cost that `eenet` really had over the other's.

    Attributes:
      entry: Accuracies.
      cost_ratio: On test; None where a row is missing.
    """

    entry: Comparison
    cost_ratio: float | None


def comparison_table(sources: Sources) -> Table | None:
    """`eenet` minus the best baseline at every budget; None where no fit has a comparison."""
    fits = [fit for fit in sources.fits if fit.comparison]
    if not fits:
        return None
    found = [_Compared(entry, _cost_ratio(fit, entry)) for fit in fits for entry in fit.comparison]
    rows = []
    for budget in sources.budgets:
        here = [each for each in found if each.entry.budget_text == budget]
        rows += [_comparison_row(budget, here)] if here else []
    means = [statistics.fmean(entry.difference for entry in fit.comparison) for fit in fits]
    rows.append(("mean", "", percent(means, 3), "", "", ""))
    return Table(
        title="`eenet` minus the best baseline, accuracy on test in percentage points",
        header=(
            f"budget ({sources.unit})",
            "best baseline",
            "difference",
            "95 % ±",
            "cost ratio",
            "verdict",
        ),
        rows=tuple(rows),
        note=(
            f"n = {len(fits)} fit{'s' if len(fits) > 1 else ''}. The baseline is chosen on"
            " validation data alone; the interval is paired over test samples, its half-width the"
            " mean over fits. The cost ratio is `eenet`'s realised cost on test over the"
            " baseline's. The verdict counts fits whose interval lies above, around or below"
            " zero; what is above but cost over 2 % more counts as dearer, what is below but"
            " cost over 2 % less as cheaper."
        ),
    )


def _cost_ratio(fit: Fit, entry: Comparison) -> float | None:
    costs = {
        row.policy: row.cost
        for row in fit.rows
        if (row.budget_text, row.split) == (entry.budget_text, "test")
    }
    if not {"eenet", entry.baseline} <= costs.keys():
        return None
    return costs["eenet"] / costs[entry.baseline]


def _comparison_row(budget: str, found: Sequence[_Compared]) -> tuple[str, ...]:
    entries = [each.entry for each in found]
    return (
        budget,
        ", ".join(dict.fromkeys(entry.baseline for entry in entries)),
        percent([entry.difference for entry in entries], 3),
        f"{100 * statistics.fmean(entry.half_width for entry in entries):.3f}",
        mean_sd([each.cost_ratio for each in found if each.cost_ratio is not None], 3),
        _verdict(found),
    )


def _verdict(found: Sequence[_Compared]) -> str:
    counts = Counter(map(_word, found))
    if len(found) == 1:
        return next(iter(counts))
    order = ("better", "dearer", "level", "cheaper", "worse")
    return ", ".join(f"{counts[word]} {word}" for word in order if counts[word])


def _word(compared: _Compared) -> str:
    entry, ratio = compared.entry, compared.cost_ratio or 1.0
    if abs(entry.difference) <= entry.half_width:
        return "level"
    if entry.difference > 0:
        return "dearer" if ratio > 1 + ALIKE_IN_COST else "better"
    return "cheaper" if ratio < 1 - ALIKE_IN_COST else "worse"
