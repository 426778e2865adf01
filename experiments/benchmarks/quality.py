"""`eenet` beside every baseline on real predictions, at the cost that it really had on test.

Command:
    python experiments/benchmarks/quality.py NAME=FOLDER … [--seeds 5] [--write docs/scheduler.md]

FOLDER holds `val.npz` and `test.npz` (or `predictions/` with both) and `costs.json`. Ten budgets
are spread over the range of costs; every policy is fitted on validation alone, once a seed. On
test a baseline is read off at `eenet`'s own realised cost: linearly between the two members of
its family, thresholds set on validation, that cost next less and next more there. Differences are
paired over test samples. The tables are written by this program, into the section `quality`.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

import eenet_jax
from eenet_jax.comparison import paired_interval
from eenet_jax.environment import environment
from eenet_jax.policies.choice import MEASURE_OF_BASELINE
from eenet_jax.policies.oracle import oracle_exits
from eenet_jax.policies.patience import patience_family
from eenet_jax.policies.problem import Problem, geometric_family, measure_scores
from eenet_jax.report.report import update_readme
from eenet_jax.report.tables import Table
from eenet_jax.scheduler.simulation import first_exit
from eenet_jax.types import CostTable, ExitPredictions

BUDGETS = 10
MEASURES = {name: each for name, each in MEASURE_OF_BASELINE.items() if name != "static"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Frontier:
    """A baseline's family on test: cost and correctness of each member, by rising cost."""

    costs: np.ndarray
    right: np.ndarray

    def at(self, cost: float) -> np.ndarray:
        """Correctness of each sample at a cost, mixed from the two members next to it."""
        after = int(np.clip(np.searchsorted(self.costs, cost), 1, len(self.costs) - 1))
        low, high = self.costs[after - 1], self.costs[after]
        part = np.clip((cost - low) / max(high - low, 1e-12), 0.0, 1.0)
        return (1 - part) * self.right[after - 1] + part * self.right[after]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One budget of one seed.

    Attributes:
      budget: In the table's unit.
      cost: `eenet`'s realised cost on test.
      accuracy: `eenet`'s, on test.
      gaps: Paired difference to each baseline and its half-width, in points.
      paper_gap: Difference to `eenet_paper` at this cost, in points.
      oracle: The oracle's accuracy on test at this cost.
      max_prob: `max_prob`'s accuracy there.
      chosen: What `eenet` took.
    """

    budget: float
    cost: float
    accuracy: float
    gaps: dict[str, tuple[float, float]]
    paper_gap: tuple[float, float]
    oracle: float
    max_prob: float
    chosen: str


def family_frontier(val: Problem, test: Problem, name: str) -> Frontier:
    """A baseline's members, thresholds set on validation, as they do on test."""
    scores = measure_scores(val, MEASURES[name])
    family = (patience_family if name == "patience" else geometric_family)(val, scores)
    on_test = measure_scores(test, MEASURES[name])
    thresholds = np.unique(family.thresholds, axis=0)
    exits = [np.asarray(first_exit(on_test, row)) for row in thresholds]
    return frontier_of(test, exits)


def static_frontier(test: Problem) -> Frontier:
    """Every exit alone."""
    samples = test.predictions.num_samples
    return frontier_of(test, [np.full(samples, k) for k in range(test.predictions.num_exits)])


def frontier_of(test: Problem, exits: list[np.ndarray]) -> Frontier:
    costs = np.asarray(test.costs.costs)
    spent = np.asarray([costs[each].mean() for each in exits])
    right = np.stack([test.correct[each, np.arange(each.size)] for each in exits])
    order = np.argsort(spent, kind="stable")
    return Frontier(costs=spent[order], right=right[order])


def read_seed(val: Problem, test: Problem, frontiers: dict, seed: int) -> list[Reading]:
    """Fit `eenet` and `eenet_paper` with one seed, and read everything off at `eenet`'s cost."""
    fitted = {
        name: eenet_jax.fit(val.predictions, val.costs, val.budgets, policy=name, seed=seed)
        for name in ("eenet", "eenet_paper")
    }
    exits = {
        name: [each.decide(test.predictions.probs, test.predictions.measures) for each in policies]
        for name, policies in fitted.items()
    }
    paper = frontier_of(test, [*exits["eenet_paper"], *ends(test)])
    costs = np.asarray(test.costs.costs)
    readings = []
    for policy, where in zip(fitted["eenet"], exits["eenet"], strict=True):
        cost = float(costs[where].mean())
        ours = test.correct[where, np.arange(where.size)]
        bound = oracle_exits(test.correct, test.costs.costs, max(cost, costs[0]))
        gaps = {name: points(ours, frontier.at(cost)) for name, frontier in frontiers.items()}
        readings.append(
            Reading(
                budget=policy.budget,
                cost=cost,
                accuracy=float(ours.mean()),
                gaps=gaps,
                paper_gap=points(ours, paper.at(cost)),
                oracle=float(test.correct[bound, np.arange(bound.size)].mean()),
                max_prob=float(frontiers["max_prob"].at(cost).mean()),
                chosen=policy.info["chosen"],
            )
        )
    return readings


def ends(test: Problem) -> list[np.ndarray]:
    """All at the first exit, and all at the last."""
    samples, exits = test.predictions.num_samples, test.predictions.num_exits
    return [np.zeros(samples, int), np.full(samples, exits - 1)]


def points(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    gap = paired_interval(ours, theirs)
    return 100 * gap.mean, 100 * gap.half_width


def load(folder: Path) -> tuple[Problem, Problem]:
    """Validation and test, the budgets spread between the first cost and the last."""
    inside = folder / "predictions"
    where = inside if inside.is_dir() else folder
    table = CostTable.load(folder / "costs.json")
    low, high = table.costs[0], table.costs[-1]
    budgets = tuple(np.linspace(low, high, BUDGETS + 2)[1:-1].tolist())
    val, test = (
        Problem(
            predictions=ExitPredictions.load(where / f"{split}.npz"), costs=table, budgets=budgets
        )
        for split in ("val", "test")
    )
    return val, test


def measure(folder: Path, seeds: int) -> list[list[Reading]]:
    val, test = load(folder)
    frontiers = {name: family_frontier(val, test, name) for name in MEASURES}
    frontiers["static"] = static_frontier(test)
    return [read_seed(val, test, frontiers, seed) for seed in range(seeds)]


def set_table(name: str, unit: str, found: list[list[Reading]]) -> Table:
    """One row a budget: accuracy, cost, and the differences, means over seeds."""
    baselines = list(found[0][0].gaps)
    rows = []
    for at_budget in zip(*found, strict=True):
        gaps = [
            f"{np.mean([each.gaps[other][0] for each in at_budget]):+.2f}"
            f" ± {np.mean([each.gaps[other][1] for each in at_budget]):.2f}"
            for other in baselines
        ]
        mean = {
            field: np.mean([getattr(each, field) for each in at_budget])
            for field in ("cost", "accuracy", "oracle")
        }
        paper = np.mean([each.paper_gap[0] for each in at_budget])
        rows.append(
            (
                f"{at_budget[0].budget:.4g}",
                f"{mean['cost']:.4g}",
                f"{100 * mean['accuracy']:.2f}",
                *gaps,
                f"{paper:+.2f}",
                f"{100 * mean['oracle']:.2f}",
                ", ".join(sorted({each.chosen for each in at_budget})),
            )
        )  # fmt: skip
    header = ("budget", "cost on test", "eenet", *baselines, "eenet_paper", "oracle", "chosen")
    return Table(
        title=f"{name}: `eenet` on test (%), and its lead at the same cost (points)",
        header=header,
        rows=tuple(rows),
        note=(
            f"Budgets and costs in {unit}. Means over {len(found)} seeds of the fit; ± is half the"
            " paired 95 % interval over test samples."
        ),
    )


def summary_table(results: dict[str, list[list[Reading]]]) -> Table:
    """One row a set: mean leads, how often behind, and the share of the oracle's lead."""
    rows = []
    for name, found in results.items():
        readings = [reading for seed in found for reading in seed]
        baselines = list(readings[0].gaps)
        leads = [f"{np.mean([r.gaps[b][0] for r in readings]):+.2f}" for b in baselines]
        behind = sum(r.gaps[b][0] < -r.gaps[b][1] - 1e-9 for r in readings for b in baselines)
        paper = np.mean([r.paper_gap[0] for r in readings])
        ours = np.mean([r.accuracy - r.max_prob for r in readings])
        room = np.mean([r.oracle - r.max_prob for r in readings])
        rows.append(
            (name, *leads, f"{paper:+.2f}", f"{behind} of {len(readings) * len(baselines)}",
             f"{100 * room:.2f}", f"{100 * ours / room:.1f} %" if room > 0 else "-")
        )  # fmt: skip
    return Table(
        title="Mean lead of `eenet` on test (points), over budgets and seeds",
        header=("set", *baselines, "eenet_paper", "behind", "oracle over max_prob", "closed"),
        rows=tuple(rows),
        note=(
            "Behind: readings in which a baseline is ahead by more than the paired 95 % interval."
            " Closed: `eenet`'s lead over `max_prob` as a share of the oracle's."
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    started, results, tables = time.perf_counter(), {}, []
    for text in given.sets:
        name, _, folder = text.partition("=")
        results[name] = measure(Path(folder), given.seeds)
        unit = CostTable.load(Path(folder) / "costs.json").unit
        tables.append(set_table(name, unit, results[name]))
        print(tables[-1].markdown(), flush=True)
    tables.insert(0, summary_table(results))
    print(tables[0].markdown())
    if given.write:
        update_readme(given.write, "quality", "\n\n".join(each.markdown() for each in tables))
    leads = {
        name: float(np.mean([r.accuracy - r.max_prob for seed in found for r in seed]) * 100)
        for name, found in results.items()
    }
    line = {"lead_over_max_prob": leads, "seconds": time.perf_counter() - started}
    print(json.dumps(line | {"device": environment()["device"]}))


if __name__ == "__main__":
    main()
