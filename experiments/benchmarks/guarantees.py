"""How often a promised cost, or loss of accuracy, is broken: many draws from real predictions.

Command:
    python experiments/benchmarks/guarantees.py NAME=FOLDER … [--draws 200] [--write FILE.md]

FOLDER is as for `quality.py`. Validation and test predictions together are the population, whose
means are the truth. Each draw takes `--samples` of them with replacement, fits on these alone, and
looks up what the policy truly costs and loses. Promises: a cost within the budget and a loss within
what is allowed, each at 95 %. Beside them the same budget without a confidence, and how often the
95 % intervals of cost and accuracy hold the truth.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from quality import load

import eenet_jax
from eenet_jax.environment import environment
from eenet_jax.policies.problem import Problem
from eenet_jax.report.report import update_readme
from eenet_jax.report.tables import Table
from eenet_jax.types import ExitPredictions

CONFIDENCE = 0.95
BUDGET_LEVELS = (0.25, 0.5, 0.75)
DROPS = (0.005, 0.02)


def population_of(folder: Path) -> Problem:
    """Validation and test samples together, and budgets at quarters of the range of costs."""
    val, test = load(folder)
    both = ExitPredictions(
        probs=np.concatenate([val.predictions.probs, test.predictions.probs], axis=1),
        labels=np.concatenate([val.predictions.labels, test.predictions.labels]),
    )
    low, high = val.costs.costs[0], val.costs.costs[-1]
    budgets = tuple(low + level * (high - low) for level in BUDGET_LEVELS)
    return Problem(predictions=both, costs=val.costs, budgets=budgets)


def truth(population: Problem, policy) -> tuple[float, float, float]:
    """True cost, accuracy and loss of accuracy."""
    exits = policy.decide(population.predictions.probs)
    right = population.correct[exits, np.arange(exits.size)].mean()
    cost = np.asarray(population.costs.costs)[exits].mean()
    return float(cost), float(right), float(population.correct[-1].mean() - right)


def inside(interval: list[float], value: float) -> bool:
    return interval[0] - 1e-6 <= value <= interval[1] + 1e-6


def draw(population: Problem, samples: int, seed: int, policy: str) -> dict[str, list[float]]:
    """What one draw's policies truly come to, by what was asked for."""
    places = np.random.default_rng(seed).integers(0, population.predictions.num_samples, samples)
    some, costs, budgets = population.predictions.take(places), population.costs, population.budgets
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(float(value))

    for confidence in (None, CONFIDENCE):
        fitted = eenet_jax.fit(
            some, costs, budgets, policy=policy, seed=seed, confidence=confidence
        )
        word = "certified" if confidence else "plain"
        for each in fitted:
            cost, right, _ = truth(population, each)
            note(f"{word}: over", cost > each.budget)
            note(f"{word}: share", cost / each.budget)
            if not confidence:
                note("cost inside", inside(each.info["cost_interval_95"], cost))
                note("accuracy inside", inside(each.info["accuracy_interval_95"], right))
    for drop in DROPS:
        cheapest = eenet_jax.fit_cheapest(
            some, costs, max_accuracy_drop=drop, confidence=CONFIDENCE, policy=policy, seed=seed
        )
        cost, _, lost = truth(population, cheapest)
        note(f"drop {drop}: over", lost > drop)
        note(f"drop {drop}: saved", 1 - cost / costs.costs[-1])
    return found


def gathered(draws: list[dict[str, list[float]]]) -> dict[str, np.ndarray]:
    """[draws, values] by name."""
    return {name: np.asarray([each[name] for each in draws]) for name in draws[0]}


def frequency(hits: np.ndarray) -> str:
    """A share of draws with its standard error, the draws' own values not being independent."""
    means = hits.mean(1)
    error = means.std(ddof=1) / math.sqrt(len(means))
    return f"{100 * means.mean():.1f} ± {100 * error:.1f}"


def row(name: str, policy: str, found: dict[str, np.ndarray]) -> tuple[str, ...]:
    drops = [
        cell
        for drop in DROPS
        for cell in (
            frequency(found[f"drop {drop}: over"]),
            f"{100 * found[f'drop {drop}: saved'].mean():.1f}",
        )
    ]
    return (
        name,
        policy,
        frequency(found["plain: over"]),
        frequency(found["certified: over"]),
        f"{100 * found['certified: share'].mean():.2f}",
        *drops,
        frequency(found["cost inside"]),
        frequency(found["accuracy inside"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--policies", default="eenet,max_prob,vote,patience")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    started, rows, line = time.perf_counter(), [], {}
    for text in given.sets:
        name, _, folder = text.partition("=")
        population = population_of(Path(folder))
        for policy in given.policies.split(","):
            draws = [draw(population, given.samples, s, policy) for s in range(given.draws)]
            found = gathered(draws)
            rows.append(row(name, policy, found))
            print(rows[-1], flush=True)
            line |= {f"{name}_{policy}_{key}": value.mean() for key, value in found.items()}
    asked = [c for d in DROPS for c in (f"loss above {100 * d:g} points", f"saved at {100 * d:g}")]
    table = Table(
        title="How often promises are broken (% of draws)",
        header=(
            "set", "policy", "cost above budget, nothing promised", "cost above budget, promised",
            "cost over budget, promised", *asked, "cost inside its interval",
            "accuracy inside its interval",
        ),
        rows=tuple(rows),
        note=(
            f"{given.draws} draws of {given.samples:,} samples from validation and test together,"
            f" whose means are the truth; ± is a standard error. Promises are made at"
            f" {100 * CONFIDENCE:g} %: the columns 'promised' and 'loss' may be at most"
            f" {100 * (1 - CONFIDENCE):g}. Budgets at {', '.join(f'{b:g}' for b in BUDGET_LEVELS)}"
            " of the range of costs. Cost over budget and saved cost in %. Intervals are of the"
            " policies without promise, and should hold the truth in 95 %."
        ),
    )  # fmt: skip
    print(table.markdown())
    if given.write:
        update_readme(given.write, "guarantees", table.markdown())
    line |= {"seconds": time.perf_counter() - started, "device": environment()["device"]}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
