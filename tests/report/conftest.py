"""Run and fit folders as the other verbs would write them, small and made up."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from eenet_jax.policies.eenet import EENet
from eenet_jax.policies.eenet_paper import EENetPaper
from eenet_jax.policies.max_prob import MaxProb
from eenet_jax.report.report import write_report
from eenet_jax.scheduler.features import feature_names
from eenet_jax.types import MEASURES, CostTable, ExitPredictions

POLICIES = ("eenet", "eenet_paper", "max_prob", "entropy", "patience", "vote")


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """What to make up."""

    exits: int = 3
    classes: int = 10
    samples: int = 120
    budgets: int = 5
    dataset: str = "digits"
    policies: tuple[str, ...] = POLICIES
    unit: str = "MMACs"

    @property
    def costs(self) -> list[float]:
        return [round(11.13 + 17.31 * k**1.2, 2) for k in range(self.exits)]

    @property
    def budget_texts(self) -> list[str]:
        low, high = self.costs[0], self.costs[-1]
        return [f"{b:.4g}" for b in np.linspace(low * 1.15, high * 0.97, self.budgets)]


def predictions(world: World, split: str) -> ExitPredictions:
    """Later exits are surer and more often right, easy samples more than hard ones."""
    rng = np.random.default_rng({"val": 1, "test": 2}[split])
    labels = rng.integers(0, world.classes, world.samples)
    ease = rng.uniform(-0.5, 3, world.samples)
    logits = rng.normal(size=(world.exits, world.samples, world.classes))
    logits += 0.6 * rng.normal(size=(1, world.samples, world.classes))
    strength = np.linspace(1.3, 2.6, world.exits)[:, None] * (1 + ease)
    logits[:, np.arange(world.samples), labels] += strength
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    names = [f"class {c}" if c else "a very long name" for c in range(world.classes)]
    meta = {"dataset": world.dataset, "split": split, "class_names": names}
    return ExitPredictions(
        probs=probs.astype(np.float32), labels=labels, ids=np.arange(world.samples), meta=meta
    )


def write_run(folder: Path, world: World = World()) -> Path:
    """A training run's folder."""
    for split in ("val", "test"):
        predictions(world, split).save(folder / "predictions" / f"{split}.npz")
    CostTable(unit="MMACs", costs=tuple(world.costs)).save(folder / "costs.json")
    latency = tuple(0.1 * cost for cost in world.costs)
    CostTable(unit="ms", costs=latency, extra={"batch_size": 1}).save(folder / "latency.json")
    config = {
        "name": "made_up",
        "data": {"dataset": world.dataset, "val_size": world.samples, "folder": "/some/where"},
        "network": {"name": "cnn", "overrides": {}},
        "training": {"epochs": 12, "learning_rate": 0.1},
        "seed": 3,
    }
    (folder / "config.json").write_text(json.dumps(config))
    times = {"device": "cpu", "command": "eenet train x --out /a/b/c", "train_seconds": 75.0}
    (folder / "run.json").write_text(json.dumps(times))
    _write_metrics(folder / "metrics.jsonl", world)
    return folder


def _write_metrics(path: Path, world: World) -> None:
    lines = []
    for step in range(1, 121):
        epoch, train = step / 10, step % 10 != 0
        level = 1 - np.exp(-epoch / np.linspace(3.2, 2.2, world.exits))
        lines.append(
            {
                "step": step,
                "epoch": epoch,
                "split": "train" if train else "val",
                "loss": 2.3 * float(np.exp(-epoch / 4))
                + 0.05 * (step * 7 % 5)
                + (0 if train else 0.1),
                "accuracy": [float(0.1 + 0.8 * value) for value in level],
                "lr": 0.1,
                "seconds": 1.5 * step,
                "samples_per_second": 100.0,
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 12')


def write_fit(folder: Path, world: World = World(), seed: int = 0) -> Path:
    """A fit's folder: thresholds on a noisy maximum stand in for the policies."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {split: predictions(world, split) for split in ("val", "test")}
    rows, costs = [], np.asarray(world.costs)
    for p, policy in enumerate(world.policies):
        rng = np.random.default_rng([seed if "eenet" in policy else 0, p])
        noise = {s: 0.03 * (p + 1) * rng.normal(size=splits[s].probs.shape[:2]) for s in splits}
        score = {s: splits[s].probs.max(-1) + noise[s] for s in splits}
        for budget in world.budget_texts:
            grid = np.quantile(score["val"], np.linspace(0, 1, 60))
            kept = [t for t in grid if costs[leave(score["val"], t)].mean() <= float(budget)]
            threshold = max(kept, default=-np.inf)
            _save_policy(folder / "policies" / f"{policy}-{budget}.json", threshold, world)
            for split, given in splits.items():
                rows.append(
                    _row(policy, budget, split, given, leave(score[split], threshold), costs)
                )
    rows += _bounds(world, splits, costs)
    _write_csv(folder / "frontier.csv", rows)
    _write_csv(folder / "comparison.csv", _comparison(world, seed))
    (folder / "fit.json").write_text(
        json.dumps({"seed": seed, "seconds": 12.5, "device": "cpu", "costs": _table(world)})
    )
    (folder / "execution.json").write_text(json.dumps(execution(world)))
    return folder


def _table(world: World) -> dict:
    return {"unit": world.unit, "costs": world.costs}


def leave(score: np.ndarray, threshold: float) -> np.ndarray:
    """First exit whose score reaches the threshold; the last one takes the rest."""
    reached = score >= threshold
    reached[-1] = True
    return reached.argmax(0)


def _save_policy(path: Path, threshold: float, world: World) -> None:
    thresholds = np.full(world.exits, threshold, np.float32)
    thresholds[-1] = -np.inf
    budget = float(path.stem.split("-")[-1])
    if path.stem.startswith("eenet-"):
        _learned(budget, world).save(path)
        return
    if path.stem.startswith("eenet_paper-"):
        _paper(budget, thresholds, world).save(path)
        return
    MaxProb(budget=budget, thresholds=thresholds, costs=tuple(world.costs)).save(path)


def _learned(budget: float, world: World) -> EENet:
    """A score that weighs the answer's log-odds, as a fit would."""
    names = feature_names(world.exits)
    weights = np.zeros((world.exits, len(names) + world.classes), np.float32)
    weights[:, names.index("log_odds")] = 0.7
    weights[:, len(names)] = 0.3
    thresholds = np.full(world.exits, -0.1, np.float32)
    thresholds[-1] = -np.inf
    return EENet(
        measure="", gain_share=0.8, now=weights, last=0.5 * weights,
        budget=budget, thresholds=thresholds, costs=tuple(world.costs),
    )  # fmt: skip


def _paper(budget: float, thresholds: np.ndarray, world: World) -> EENetPaper:
    """A score that is half the largest probability and, from the second exit on, a tenth of g_1."""
    weights = np.zeros((world.exits, world.classes + len(MEASURES) + world.exits), np.float32)
    weights[:, world.classes + MEASURES.index("max")] = 0.5
    weights[1:, world.classes + len(MEASURES)] = 0.1
    return EENetPaper(
        weights=weights, budget=budget, thresholds=thresholds, costs=tuple(world.costs)
    )


def _row(policy, budget, split, given, exits, costs) -> dict:
    rates = np.bincount(exits, minlength=len(costs)) / len(exits)
    row = {
        "policy": policy,
        "budget": budget,
        "split": split,
        "accuracy": given.correctness()[exits, np.arange(len(exits))].mean(dtype=float),
        "cost": costs[exits].mean(),
    }
    row |= {f"exit_rate_{k + 1}": rate for k, rate in enumerate(rates)}
    return {**row, "accuracy_se": 0.01}


def _bounds(world: World, splits: dict, costs: np.ndarray) -> list[dict]:
    rows = []
    for budget in world.budget_texts:
        best = int(np.flatnonzero(costs <= float(budget))[-1])
        for split, given in splits.items():
            exits = np.full(world.samples, best)
            rows.append(_row("static", budget, split, given, exits, costs))
            rows.append(_row("oracle", budget, split, given, _oracle(given, costs, budget), costs))
    return rows


def _oracle(given: ExitPredictions, costs: np.ndarray, budget: str) -> np.ndarray:
    """First correct exits, the cheapest gains first, while the budget lasts."""
    right = given.correctness() > 0
    goal = np.where(right.any(0), right.argmax(0), 0)
    order = np.argsort(costs[goal], kind="stable")
    spent = np.cumsum(costs[goal][order] - costs[0])
    exits = np.zeros_like(goal)
    affordable = order[spent <= (float(budget) - costs[0]) * given.num_samples]
    exits[affordable] = goal[affordable]
    return exits


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as sink:
        writer = csv.DictWriter(sink, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _comparison(world: World, seed: int) -> list[dict]:
    return [
        {
            "budget": budget,
            "baseline": ("max_prob", "entropy")[index % 2],
            "difference": 0.004 * (index - 1) + 0.001 * seed,
            "half_width_95": 0.005,
        }
        for index, budget in enumerate(world.budget_texts)
    ]


FIXED = {"full": 1.0, "full_with_decisions": 1.02, "last_exit": 1.05}
SHARES = dict.fromkeys(FIXED, 0.0) | {"masked": 0.35, "compacted": 0.8}


def execution(world: World, batches: tuple[int, ...] = (1, 32)) -> list[dict]:
    """Measurements of `eenet run`."""
    entries = []
    for batch in batches:
        for budget in world.budget_texts:
            ideal = world.costs[-1] / float(budget)
            for strategy, share in SHARES.items():
                fixed = FIXED.get(strategy)
                speedup = fixed or ideal * share * (0.7 + 0.01 * batch)
                entries.append(
                    {
                        "policy": "eenet",
                        "budget": float(budget),
                        "strategy": strategy,
                        "batch_size": batch,
                        "samples_per_second": 1000 * speedup,
                        "median_seconds": batch / (1000 * speedup),
                        "spread_seconds": 0.0001,
                        "repeats": 20,
                        "speedup": speedup,
                        "samples": 120,
                        "same_exits": 1.0,
                        "ideal_speedup": 1.0 if fixed else ideal,
                        "realised_over_ideal": None if fixed else speedup / ideal,
                        "exit_rates": [1 / world.exits] * world.exits,
                        "device": "cpu",
                    }
                )
    return entries


def images(meta, ids):
    """Blots: one per sample, of the data set's shape."""
    shape = (8, 8, 1) if meta["dataset"] == "digits" else (32, 32, 3)
    rows, columns = np.mgrid[: shape[0], : shape[1]] / shape[0]
    centre = (ids[:, None, None] % 7) / 7
    blot = np.exp(-((rows - centre) ** 2 + (columns - 0.5) ** 2) / 0.05)
    tint = 1 - 0.3 * ((ids[:, None] + np.arange(shape[2])) % 3)
    return (255 * blot[..., None] * tint[:, None, None, :]).astype(np.uint8)


@pytest.fixture(scope="session")
def report_folders(tmp_path_factory):
    """A report of a training run and three seeds of its fit: (inputs, output)."""
    base = tmp_path_factory.mktemp("report")
    world = World()
    inputs = [write_run(base / "run", world)]
    inputs += [write_fit(base / f"fit{seed}", world, seed) for seed in range(3)]
    write_report(inputs, base / "out", images=images)
    return inputs, base / "out"


@pytest.fixture
def image_source():
    """Stands in for a data set."""
    return images


@pytest.fixture
def folders(tmp_path):
    """A training run and one fit."""
    return [write_run(tmp_path / "run"), write_fit(tmp_path / "fit")]
