"""`eenet run`: a run's network and fitted policies, on its test images, measured."""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from eenet_jax.artifacts import read_json, write_json
from eenet_jax.data import inputs, pipeline
from eenet_jax.data.split import Split
from eenet_jax.environment import device_name
from eenet_jax.errors import InputError
from eenet_jax.execution.auto import DECIDING
from eenet_jax.execution.measure import (
    REFERENCES,
    STRATEGIES,
    Bench,
    Measurement,
    check_strategies,
    to_json,
)
from eenet_jax.policies.policy import Policy, load_policy
from eenet_jax.predictions import load_network, open_run_split
from eenet_jax.types import PyTree

WIDTH = 144


def find_policies(fit: Path, name: str, budgets: Sequence[str] | None) -> list[Policy]:
    """The fitted policies of that name in `FIT/policies/`, cheapest budget first.

    Raises:
      InputError: there is none, or none for one of the budgets.
    """
    folder = fit / "policies"
    if not folder.is_dir():
        raise InputError(f"'{fit}' holds no policies: fit some with `eenet fit`, or check the path")
    if budgets is None:
        paths = sorted(folder.glob(f"{glob.escape(name)}-*.json"))
    else:
        paths = [_policy_file(folder, name, budget) for budget in budgets]
    found = sorted((load_policy(path) for path in paths), key=lambda policy: policy.budget)
    if not found:
        there = sorted({path.stem.rsplit("-", 1)[0] for path in folder.glob("*.json")})
        raise InputError(
            f"'{folder}' has no policy '{name}' (it has {', '.join(there) or 'none'}):"
            " fit it with `eenet fit`, or name another by --policy"
        )
    return found


def _policy_file(folder: Path, name: str, budget: str) -> Path:
    """The file of the policy fitted for a budget; InputError where there is none."""
    path = folder / f"{name}-{budget}.json"
    if not path.exists():
        there = sorted(each.stem.removeprefix(f"{name}-") for each in folder.glob(f"{name}-*.json"))
        fitted = f"there are {', '.join(there)}" if there else "there is none"
        raise InputError(
            f"no policy '{name}' was fitted for budget {budget} ({fitted}): give one of those, or"
            " fit it with `eenet fit`"
        )
    return path


def run_adaptive(
    run: str | Path,
    *,
    fit: str | Path | None = None,
    policy: str = "eenet",
    budgets: Sequence[str] | None = None,
    strategies: Sequence[str] = STRATEGIES,
    batch_size: int = 256,
    samples: int | None = None,
    repeats: int = 7,
    data_dir: str | None = None,
) -> list[Measurement]:
    """Measure adaptive inference on a run's test samples; writes `FIT/execution.json`.

    The latencies of the network's stages are kept in `RUN/stage_latency.json`, and measured
    anew where that is of another device, other samples or other batch sizes.

    Args:
      run: Folder of the training run.
      fit: Folder that `eenet fit` wrote; the run's own by default.
      policy: Which policy.
      budgets: As typed for `eenet fit`; all of them by default.
      strategies: Of `STRATEGIES`.
      batch_size: Images a batch; the last one may have fewer.
      samples: Test images to use, from the first; all by default.
      repeats: Timed passes of everything.
      data_dir: Where prepared data sets lie; the training's own by default.

    Returns:
      The measurements, by budget and strategy.
    """
    for name, value in (("batch_size", batch_size), ("samples", samples), ("repeats", repeats)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: give 1 or more")
    fit = Path(run) if fit is None else Path(fit)
    check_strategies(strategies)
    earlier = _earlier(fit / "execution.json")
    fitted = find_policies(fit, policy, budgets)
    split = open_run_split(run, "test", data_dir)
    network, variables, _ = load_network(run)
    for each in fitted:
        if each.num_exits != network.num_exits:
            raise InputError(
                f"policy '{each.name}' is for {each.num_exits} exits, the network of '{run}' has"
                f" {network.num_exits}: fit it on this network's predictions"
            )
    if samples is not None:
        split = split.take(np.arange(min(samples, len(split))), "test")
    batches = batches_of(split, min(batch_size, len(split)))
    kept = Path(run) / "stage_latency.json"
    bench = Bench(network, variables, batches, repeats, device_name(), kept)
    measured = [row for each in fitted for row in bench.measure(each, strategies)]
    _keep(fit / "execution.json", earlier, measured)
    return measured


def batches_of(split: Split, batch_size: int) -> list[PyTree]:
    """What the network takes of every batch of a split, without filling."""
    made = jax.jit(lambda batch: inputs.evaluation_inputs(batch, split.spec))
    return [
        jax.tree.map(lambda leaf, mask=batch["mask"]: np.asarray(leaf)[mask], made(batch))
        for batch in pipeline.eval_batches(split, batch_size=batch_size)
    ]


def _earlier(path: Path) -> list[dict[str, Any]]:
    """What was measured before; damage is told of before anything is measured anew."""
    return read_json(path, "table of measurements", "delete it") if path.exists() else []


def _keep(
    path: Path, earlier: Sequence[Mapping[str, Any]], measured: Sequence[Measurement]
) -> None:
    """Write the measurements, beside earlier ones of other policies, budgets and batch sizes."""

    def key(row):
        return tuple(row[name] for name in ("policy", "budget", "strategy", "batch_size"))

    rows = {key(row): row for row in [*earlier, *map(to_json, measured)]}
    write_json(path, list(rows.values()))


def print_measurements(measured: Sequence[Measurement], console: Console | None = None) -> None:
    """Samples per second of each strategy beside the full network's, and where samples left."""
    first = measured[0]
    console = console or Console()
    if not console.is_terminal:
        # A log has no width of its own; the table needs this much.
        console = Console(width=WIDTH, file=console.file)
    table = Table(
        title=f"{first.policy}, batch {first.batch_size}, {first.samples} samples,"
        f" median of {measured[-1].repeats} passes on {first.device}"
    )
    table.add_column("budget", justify="right")
    table.add_column("strategy", justify="right", no_wrap=True)
    for heading in ("samples/s", "speed-up", "ideal", "realised/ideal"):
        table.add_column(heading, justify="right")
    table.add_column("p50 / p95 ms", justify="right")
    table.add_column("% left at each exit", justify="right")
    table.add_column("exits as decided", justify="right")
    for row in measured:
        share = "" if row.realised_over_ideal is None else f"{row.realised_over_ideal:.2f}"
        adaptive = row.strategy not in REFERENCES
        decided = adaptive or row.strategy == DECIDING
        table.add_row(
            f"{row.budget:.4g}",
            row.strategy,
            f"{row.samples_per_second:,.0f}",
            f"{row.speedup:.2f}",
            f"{row.ideal_speedup:.2f}" if adaptive else "",
            share,
            f"{row.p50_ms:.3g} / {row.p95_ms:.3g}",
            " ".join(f"{100 * rate:.1f}" for rate in row.exit_rates) if decided else "",
            f"{100 * row.same_exits:.2f} %" if decided else "",
        )
    console.print(table)
    for row in measured:
        if row.picked:
            console.print(f"budget {row.budget:.4g}, auto picked {row.picked}", highlight=False)
