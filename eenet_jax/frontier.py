"""The frontier: policies by budget by split, fitted, evaluated, and written as artifacts."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from eenet_jax.artifacts import (
    check_folder,
    read_json,
    replacing_folder,
    sha256_of,
    write_csv,
    write_json,
)
from eenet_jax.comparison import COMPARISON_COLUMNS, compare_with_baselines
from eenet_jax.config import check_seed, differences
from eenet_jax.environment import environment
from eenet_jax.errors import InputError
from eenet_jax.frontier_file import FrontierRow, write_frontier
from eenet_jax.policies.fit import (
    POLICY_NAMES,
    check_policy_name,
    fit_problem,
    fit_problem_cheapest,
    parse_budget,
    setting_names,
    settings_of,
)
from eenet_jax.policies.guarantee import check_confidence, check_drop
from eenet_jax.policies.oracle import oracle_exits
from eenet_jax.policies.policy import Policy
from eenet_jax.policies.problem import Problem
from eenet_jax.scheduler.simulation import outcome
from eenet_jax.types import CostTable, ExitPredictions

DEFAULT_CONFIDENCE = 0.95
CERTIFICATES = ("confidence", "max_accuracy_drop", "accuracy_drop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What policies are asked to meet.

    Attributes:
      texts: Budgets as typed.
      confidence: Of costs on samples to come; None for budgets on validation alone.
      max_accuracy_drop: None where no policy is asked for by its loss of accuracy.
    """

    texts: list[str]
    confidence: float | None
    max_accuracy_drop: float | None

    @classmethod
    def checked(
        cls, texts: list[str], confidence: float | None, max_accuracy_drop: float | None
    ) -> "Wanted":
        """Raise InputError where nothing is asked for, or a number is out of range."""
        if confidence is not None:
            check_confidence(confidence)
        if max_accuracy_drop is not None:
            check_drop(max_accuracy_drop)
        elif not texts:
            raise InputError(
                "no budgets: give at least one with --budgets, in the cost table's unit, or"
                " --max-accuracy-drop, e.g. 0.005"
            )
        return cls(texts=texts, confidence=confidence, max_accuracy_drop=max_accuracy_drop)

    def budgets(self, table: CostTable) -> tuple[float, ...]:
        """Budgets as numbers; the last exit's cost where only a loss of accuracy is asked for."""
        return tuple(parse_budget(text) for text in self.texts) or (table.costs[-1],)


def fit_frontier(
    predictions_path: str | Path,
    test_path: str | Path | None,
    costs: CostTable | str | Path | Sequence[float],
    budgets: Sequence[str | float | int],
    policies: Sequence[str],
    seed: int,
    out: str | Path,
    *,
    confidence: float | None = None,
    max_accuracy_drop: float | None = None,
    **settings: Any,
) -> list[FrontierRow]:
    """Fit policies on validation predictions, evaluate them, and write what came out.

    Everything given is checked before anything is fitted, everything is fitted before
    anything is written, and `frontier.csv` is written last.

    Args:
      predictions_path: `.npz` of validation predictions.
      test_path: `.npz` of test predictions, or None for validation rows alone.
      costs: Cost of each exit, as `CostTable.parse` takes it.
      budgets: Average costs per sample, in the table's unit; kept as typed.
      policies: Names; `static` and `oracle` are added.
      seed: Draws everything random.
      out: Folder to write `frontier.csv`, `policies/`, `fit.json` and, with test
        predictions, `comparison.csv` into.
      confidence: Of each policy's cost being within its budget on samples to come; see
        `eenet_jax.fit`.
      max_accuracy_drop: Adds the cheapest policy of each name that loses no more accuracy
        than this fraction, at `confidence` (0.95 without one); see `eenet_jax.fit_cheapest`.
      **settings: Settings of the learned policies; each goes to those that know it.

    Returns:
      The rows of `frontier.csv`.

    Raises:
      InputError: an argument is unknown or out of range, or files are no good.
    """
    check_seed("seed", seed)
    names = _policy_names(policies)
    chosen = _settings_by_policy(names, settings)
    wanted = Wanted.checked(_budget_texts(budgets), confidence, max_accuracy_drop)
    splits = _load_splits(predictions_path, test_path)
    table = CostTable.parse(costs)
    problem = Problem(predictions=splits["val"], costs=table, budgets=wanted.budgets(table))
    described = _described(problem, chosen, wanted) | _given(predictions_path, test_path, seed)
    _check_same_fit(Path(out) / "fit.json", described)
    check_folder(out)
    started = time.perf_counter()
    fitted, seconds = _fit_all(problem, names, chosen, seed, wanted)
    exits = _decisions(fitted, splits) | _oracle(problem, splits, fitted[names[0]])
    rows = _rows(exits, splits, problem, fitted, wanted.texts)
    record = {
        **described,
        "seconds": time.perf_counter() - started,
        "seconds_by_policy": seconds,
        **environment(),
    }
    comparison = []
    if "test" in splits and "eenet" in fitted:
        comparison = compare_with_baselines(exits, splits["test"], fitted, wanted.texts)
    _write(Path(out), rows, fitted, wanted.texts, comparison, record)
    return rows


def _decisions(
    fitted: Mapping[str, Sequence[Policy]], splits: Mapping[str, ExitPredictions]
) -> dict[tuple[str, int, str], Int[np.ndarray, " samples"]]:
    """Exits of every sample by policy, place of the budget, and split."""
    return {
        (name, place, split): policy.decide(predictions.probs, predictions.measures)
        for split, predictions in splits.items()
        for name, each in fitted.items()
        for place, policy in enumerate(each)
    }


def _given(predictions_path: str | Path, test_path: str | Path | None, seed: int) -> dict[str, Any]:
    """What a fit is made from: paths of predictions and their digests, and the seed."""
    found: dict[str, Any] = {}
    for name, path in (("predictions", predictions_path), ("test", test_path)):
        found[name] = None if path is None else str(Path(path).resolve())
        found[f"{name}_sha256"] = None if path is None else sha256_of(path)
    return found | {"seed": seed}


def _check_same_fit(path: Path, described: Mapping[str, Any]) -> None:
    """Raise InputError where the folder holds another fit: its policies would be lost."""
    if not path.exists():
        if (path.parent / "policies").exists():
            raise InputError(
                f"'{path.parent}' holds policies of no fit, which would be lost: give another --out"
            )
        return
    old = read_json(path, "description of a fit")
    new = json.loads(json.dumps(described))
    same = isinstance(old, dict)
    found = differences({name: old.get(name) for name in new}, new) if same else ["unreadable"]
    if found:
        raise InputError(
            f"'{path.parent}' holds another fit ({'; '.join(found)[:300]}): give another --out"
        )


def _described(problem: Problem, chosen: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    return {
        "costs": list(problem.costs.costs),
        "unit": problem.costs.unit,
        "policies": [*chosen],
        "budgets": wanted.texts,
        "confidence": wanted.confidence,
        "max_accuracy_drop": wanted.max_accuracy_drop,
        "settings": {name: dataclasses.asdict(each) for name, each in chosen.items() if each},
    }


def _policy_names(policies: Sequence[str]) -> tuple[str, ...]:
    """The names given, in order, `static` among them; `oracle` is a bound and needs no fit."""
    if isinstance(policies, str):
        policies = policies.split(",")
    names = [name.strip() for name in policies]
    if not names:
        raise InputError(f"no policies: give some of {', '.join(POLICY_NAMES)}")
    for name in names:
        if name != "oracle":
            check_policy_name(name)
        if names.count(name) > 1:
            raise InputError(f"policy '{name}' is given twice: give it once")
    fitted = [name for name in names if name != "oracle"]
    return (*fitted, *(() if "static" in fitted else ("static",)))


def _settings_by_policy(names: tuple[str, ...], settings: Mapping[str, Any]) -> dict[str, Any]:
    known = {setting for name in names for setting in setting_names(name)}
    for setting in settings:
        if setting not in known:
            others = [name for name in POLICY_NAMES if setting in setting_names(name)]
            remedy = (
                f"add {others[0]} to the policies"
                if others
                else f"they take {', '.join(sorted(known)) or 'none'}"
            )
            raise InputError(f"setting '{setting}' is unknown to {', '.join(names)}: {remedy}")
    return {
        name: settings_of(name, {k: v for k, v in settings.items() if k in setting_names(name)})
        for name in names
    }


def _budget_texts(budgets: Sequence[str | float | int]) -> list[str]:
    if isinstance(budgets, str):
        budgets = budgets.split(",")
    texts = [str(budget).strip() for budget in budgets]
    values = [parse_budget(text) for text in texts]
    for text, value in zip(texts, values, strict=True):
        if values.count(value) > 1:
            raise InputError(f"budget {text} is given twice: give it once")
    return texts


def _load_splits(
    predictions_path: str | Path, test_path: str | Path | None
) -> dict[str, ExitPredictions]:
    splits = {"val": ExitPredictions.load(predictions_path)}
    if test_path is None:
        return splits
    val, test = splits["val"], ExitPredictions.load(test_path)
    for axis, word in ((0, "exits"), (2, "classes")):
        if val.probs.shape[axis] != test.probs.shape[axis]:
            raise InputError(
                f"'{test_path}' has {test.probs.shape[axis]} {word}, '{predictions_path}' has"
                f" {val.probs.shape[axis]}: give predictions of the same network"
            )
    for name in ("correct", "measures", "confusion"):
        if (getattr(val, name) is None) != (getattr(test, name) is None):
            raise InputError(
                f"only one of '{predictions_path}' and '{test_path}' has '{name}': both must"
                " be of dense prediction, or neither"
            )
    return splits | {"test": test}


def _fit_all(
    problem: Problem, names: tuple[str, ...], chosen: Mapping[str, Any], seed: int, wanted: Wanted
) -> tuple[dict[str, list[Policy]], dict[str, float]]:
    """Policies by name, one a budget, then the one within the accuracy drop; and seconds."""
    fitted, seconds = {}, {}
    for name in names:
        started = time.perf_counter()
        settings, policies = chosen[name], []
        if wanted.texts:
            policies += fit_problem(problem, name, settings, seed, wanted.confidence)
        if wanted.max_accuracy_drop is not None:
            confidence = DEFAULT_CONFIDENCE if wanted.confidence is None else wanted.confidence
            policies.append(
                fit_problem_cheapest(
                    problem, name, settings, seed, wanted.max_accuracy_drop, confidence
                )
            )
        fitted[name] = policies
        seconds[name] = time.perf_counter() - started
    return fitted, seconds


def _oracle(
    problem: Problem, splits: Mapping[str, ExitPredictions], policies: Sequence[Policy]
) -> dict[tuple[str, int, str], np.ndarray]:
    """The bound at each policy's budget."""
    return {
        ("oracle", place, split): oracle_exits(
            predictions.correctness(), problem.costs.costs, policy.budget
        )
        for split, predictions in splits.items()
        for place, policy in enumerate(policies)
    }


def _text(policies: Sequence[Policy], place: int, texts: Sequence[str]) -> str:
    """A budget as typed; what a policy costs where it was asked for by its loss of accuracy."""
    if place < len(texts):
        return texts[place]
    text = f"{policies[place].budget:#.6g}"
    while text in texts:
        text += "0"
    return text


def _rows(exits, splits, problem, fitted, texts) -> list[FrontierRow]:
    """Rows by policy, then budget, then split."""
    order = list(dict.fromkeys(name for name, _, _ in exits))
    keys = sorted(exits, key=lambda key: (order.index(key[0]), key[1], list(splits).index(key[2])))
    rows = []
    for key in keys:
        name, place, split = key
        policies = fitted[order[0] if name == "oracle" else name]
        policy = None if name == "oracle" else policies[place]
        text = _text(policies, place, texts)
        rows.append(_row(key, text, splits[split], exits[key], problem.costs.costs, policy))
    return rows


def _row(key, text, predictions, exits, costs, policy) -> FrontierRow:
    name, _, split = key
    info = {} if policy is None else policy.info
    correct = predictions.correctness() if policy is None else policy.correctness(predictions)
    right = correct[exits, np.arange(exits.size)]
    result = outcome(exits, correct, costs)
    spread = right.std(ddof=1) if right.size > 1 else 0.0
    extra = {"n": float(right.size), "accuracy_se": float(spread / np.sqrt(right.size))}
    if "max_accuracy_drop" in info:
        full = predictions.correctness()[-1].mean(dtype=np.float64)
        info = dict(info) | {"accuracy_drop": float(full) - result.accuracy}
    return FrontierRow(
        policy=name,
        budget=parse_budget(text),
        budget_text=text,
        split=split,
        accuracy=result.accuracy,
        cost=result.cost,
        exit_rates=result.exit_rates,
        extra=extra | segmentation_scores(predictions, exits) | _expected(info),
    )


def _expected(info: Mapping[str, Any]) -> dict[str, float]:
    """What the fit says of samples to come: intervals, and what was certified."""
    found = {}
    for name in ("cost", "accuracy"):
        if f"{name}_interval_95" in info:
            low, high = info[f"{name}_interval_95"]
            found |= {f"{name}_low_95": low, f"{name}_high_95": high}
    return found | {n: info[n] for n in CERTIFICATES if n in info}


def segmentation_scores(
    predictions: ExitPredictions, exits: Int[np.ndarray, " samples"]
) -> dict[str, float]:
    """`miou` and `pixel_accuracy` from the summed confusion at the chosen exits.

    Classes that neither occur nor are predicted don't count. Empty without `confusion`.
    """
    if predictions.confusion is None:
        return {}
    total = predictions.confusion[exits, np.arange(len(exits))].sum(0).astype(np.float64)
    hits = total.diagonal()
    union = total.sum(0) + total.sum(1) - hits
    seen = union > 0
    return {
        "miou": float((hits[seen] / union[seen]).mean()) if seen.any() else 0.0,
        "pixel_accuracy": float(hits.sum() / max(total.sum(), 1.0)),
    }


def _write(out: Path, rows, fitted, texts, comparison, record) -> None:
    with replacing_folder(out / "policies") as folder:
        for name, policies in fitted.items():
            for place, policy in enumerate(policies):
                policy.save(folder / f"{name}-{_text(policies, place, texts)}.json")
    write_json(out / "fit.json", record)
    if comparison:
        write_csv(out / "comparison.csv", [COMPARISON_COLUMNS, *comparison])
    else:
        (out / "comparison.csv").unlink(missing_ok=True)
    # Measured with the policies that were just replaced.
    (out / "execution.json").unlink(missing_ok=True)
    write_frontier(out / "frontier.csv", rows)
