"""How much time leaving early saves, beside the full network and beside PyTorch.

Command:
    python experiments/benchmarks/execution.py [NETWORK[:BATCHES] …] [--runs RUN[:BATCHES] …]
        [--repeats 7] [--rows FILE.json] [--write docs/execution.md]

Networks with fresh weights (resnet56_3 and minilm unless others are named) answer random inputs by
policies whose thresholds let the shares of three mixes leave: easy (80, 15 and 5 %), even (a third
each) and hard (20, 30 and 50 %). `--runs` adds trained networks with their own test samples and
fitted policies. BATCHES are sizes separated by commas, 1,8,64,256 unless given. Everything is timed
in turn, pass by pass, in one process; the medians count. PyTorch (extra `torch`) runs the same
network with the same weights, in the memory layout that suits it, once in full and once on the
survivors alone. `--rows` keeps what was measured in a file, beside earlier rows of other networks,
batch sizes and mixes on the same device, and the tables are of all of them.

The last line is JSON with every figure by name.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eenet_jax import networks
from eenet_jax.artifacts import read_json, write_json
from eenet_jax.costs import count_costs
from eenet_jax.environment import device_name
from eenet_jax.errors import InputError
from eenet_jax.execution.adaptive import batches_of, find_policies
from eenet_jax.execution.latency import load_stage_latency
from eenet_jax.execution.masked import masked
from eenet_jax.execution.measure import STRATEGIES, Bench, Measurement
from eenet_jax.execution.planning import H100, TPU_V5E, fit_device
from eenet_jax.execution.prediction import Measured, Validation, predictions, validate
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.policies.max_prob import MaxProb
from eenet_jax.policies.policy import Policy
from eenet_jax.predictions import load_network, open_run_split
from eenet_jax.report.report import update_readme
from eenet_jax.report.tables import Table
from eenet_jax.types import PyTree

try:
    import torch
    import torch_networks
except ModuleNotFoundError:
    torch = None

MIXES = {"easy": (0.8, 0.15, 0.05), "even": (1 / 3, 1 / 3, 1 / 3), "hard": (0.2, 0.3, 0.5)}
BATCHES = "1,8,64,256"
SAMPLES = {1: 48, 8: 96, 64: 512, 256: 512}
"""Timed in a pass, by batch size: about a second's worth."""
FORWARD_BATCH = 128
MINILM = {
    "layers": 6, "width": 384, "heads": 12, "mlp_width": 1536, "exit_after": (2, 4),
    "pooling": "mean", "sequence_length": 64, "num_classes": 2,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its weights, samples, and the policies to run it by, by their names."""

    name: str
    network: MultiExitNetwork
    variables: PyTree
    samples: PyTree
    policies: Mapping[str, Policy]


def fresh(name: str) -> Case:
    """Random weights and inputs, and a policy for every mix."""
    draw, count = np.random.default_rng(0), max(SAMPLES.values())
    if name == "minilm":
        network = networks.build("bert", **MINILM)
        length = MINILM["sequence_length"]
        ids = draw.integers(1, 30_000, (count, length)).astype(np.int32)
        samples: PyTree = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    else:
        network = networks.build(name)
        samples = draw.normal(size=(count, *network.input_shape)).astype(np.float32)
    variables = _calmed(network, network.init(jax.random.key(0)), _rows(samples, 0, 64))
    probs = np.concatenate(
        [
            np.asarray(jax.nn.softmax(jax.jit(network.apply)(variables, _rows(samples, i, 64))))
            for i in range(0, count, 64)
        ],
        axis=1,
    )
    policies = {mix: _leaving(probs, shares) for mix, shares in MIXES.items()}
    return Case(name=name, network=network, variables=variables, samples=samples, policies=policies)


def _rows(x: PyTree, first: int, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[first : first + count], x)


def _calmed(network: MultiExitNetwork, variables: PyTree, x: PyTree) -> PyTree:
    """Fresh weights whose logits have a deviation of 1: else every exit is sure of everything."""
    spread = np.asarray(jax.jit(network.apply)(variables, x)).std((1, 2))

    def calm(path: tuple, leaf: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        head = names[1].removeprefix("head_")
        last = head.isdigit() and "kernel" in names and leaf.shape[-1] == network.num_classes
        return leaf / float(spread[int(head)]) if last else leaf

    return jax.tree_util.tree_map_with_path(calm, variables)


def _leaving(probs: np.ndarray, shares: Sequence[float]) -> Policy:
    """A policy by which these shares of the samples leave, no score being near its threshold."""
    scores, thresholds = probs.max(-1), []
    here = np.arange(scores.shape[1])
    for row, share in zip(scores, shares[:-1], strict=False):
        falling = np.sort(row[here])[::-1]
        leave = round(share * scores.shape[1])
        thresholds.append((falling[leave - 1] + falling[leave]) / 2)
        here = here[row[here] < thresholds[-1]]
    costs = tuple(float(k + 1) for k in range(len(shares)))
    return MaxProb(
        budget=2.0, costs=costs, thresholds=np.asarray([*thresholds, -np.inf], np.float32)
    )


def trained(run: Path) -> Case:
    """A run's network and test samples, with two of its fitted `eenet` policies."""
    network, variables, _ = load_network(run)
    fits = [run, run / "fit", run / "fit-0"]
    fit = next(each for each in fits if (each / "policies").is_dir())
    found = find_policies(fit, "eenet", None)
    split = open_run_split(run, "test")
    count = min(len(split), max(SAMPLES.values()))
    (samples,) = batches_of(split.take(np.arange(count), "test"), count)
    chosen = {
        f"eenet at {policy.budget:g}": policy for policy in (found[0], found[len(found) // 2])
    }
    return Case(
        name=run.name, network=network, variables=variables, samples=samples, policies=chosen
    )


class Torch:
    """The same network in PyTorch, in the faster of both memory layouts."""

    def __init__(self, case: Case):
        layouts = (True, False) if case.network.inputs == "image" else (True,)
        x = _rows(case.samples, 0, 64)
        made = []
        for channels_last in layouts:
            twin = torch_networks.torch_network(
                case.network, case.variables, channels_last=channels_last
            )
            torch_networks.largest_difference(case.network, case.variables, twin, x)
            made.append((self._seconds(twin, x, channels_last), channels_last, twin))
        _, self.channels_last, self.twin = min(made, key=lambda each: each[0])

    def _seconds(self, twin: Any, x: PyTree, channels_last: bool) -> float:
        given = torch_networks.torch_input(x, channels_last=channels_last)
        with torch.inference_mode():
            return _median(lambda: twin.full(given), 3)

    def batches(self, batches: Sequence[PyTree]) -> list[Any]:
        """As PyTorch takes them."""
        convert = torch_networks.torch_input
        return [convert(x, channels_last=self.channels_last) for x in batches]

    def passes(
        self, batches: Sequence[PyTree], exits: Sequence[np.ndarray], repeats: int
    ) -> dict[str, float]:
        """Median seconds of a pass over all batches: in full, and on survivors alone.

        Who leaves where is given, so that PyTorch pays nothing for a policy's score.
        """
        given = self.batches(batches)

        def full() -> None:
            for x in given:
                torch.stack(self.twin.full(x)).numpy()

        def survivors() -> None:
            for x, leaving in zip(given, exits, strict=True):
                torch_networks.compacted(self.twin, _decider(leaving), x)

        seconds: dict[str, list[float]] = {"torch_full": [], "torch_compacted": []}
        with torch.inference_mode():
            for turn in range(repeats + 1):
                for name, run in (("torch_full", full), ("torch_compacted", survivors)):
                    began = time.perf_counter()
                    run()
                    if turn:
                        seconds[name].append(time.perf_counter() - began)
        return {name: statistics.median(times) for name, times in seconds.items()}


def _decider(exits: np.ndarray) -> Callable[[int, Any], Any]:
    """Who leaves at exit k, of those who are still there."""
    here = np.arange(len(exits))

    def decide(k: int, _probs: Any) -> Any:
        nonlocal here
        leaves = exits[here] == k
        here = here[~leaves]
        return torch.from_numpy(leaves)

    return decide


def _median(call: Any, repeats: int) -> float:
    call()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure_case(
    case: Case, batch_sizes: Sequence[int], repeats: int, kept: Path
) -> list[dict[str, Any]]:
    """A row for each batch size, policy and strategy."""
    rows, twin = [], Torch(case) if torch is not None else None
    # The largest first: its table of latencies holds what the smaller ones need.
    for batch_size in sorted(batch_sizes, reverse=True):
        count = min(SAMPLES.get(batch_size, 256), jax.tree.leaves(case.samples)[0].shape[0])
        batches = [_rows(case.samples, i, batch_size) for i in range(0, count, batch_size)]
        bench = Bench(case.network, case.variables, batches, repeats, device_name(), kept)
        for mix, policy in case.policies.items():
            measured = bench.measure(policy, STRATEGIES)
            wanted = policy.decide(bench.probs, bench.measures)
            exits = [wanted[i : i + batch_size] for i in range(0, count, batch_size)]
            beside = twin.passes(batches, exits, repeats) if twin else {}
            rows += [_row(case.name, mix, row) for row in measured]
            rows += [
                {
                    "network": case.name,
                    "mix": mix,
                    "batch": batch_size,
                    "strategy": name,
                    "samples_per_second": count / seconds,
                    "speedup": measured[0].median_seconds / seconds,
                    "seconds": seconds,
                }
                for name, seconds in beside.items()
            ]
            _print(rows[-len(measured) - len(beside) :])
    return rows


def _row(network: str, mix: str, row: Measurement) -> dict[str, Any]:
    return {
        "network": network,
        "mix": mix,
        "batch": row.batch_size,
        "strategy": row.strategy,
        "seconds": row.median_seconds,
        "samples_per_second": row.samples_per_second,
        "speedup": row.speedup,
        "ideal_speedup": row.ideal_speedup,
        "realised_over_ideal": row.realised_over_ideal,
        "p50_ms": row.p50_ms,
        "p95_ms": row.p95_ms,
        "exit_rates": list(row.exit_rates),
        "same_exits": row.same_exits,
        "picked": row.picked,
    }


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        realised = row.get("realised_over_ideal")
        print(
            f"{row['network']:<22} batch {row['batch']:>3} {row['mix']:<12} {row['strategy']:<17}"
            f" {row['samples_per_second']:>8,.0f}/s {row['speedup']:>6.2f}"
            f" {'' if realised is None else format(realised, '.2f'):>6}  {row.get('picked', '')}",
            flush=True,
        )


def forward_figures(case: Case, repeats: int) -> dict[str, float]:
    """The full pass beside PyTorch's in both layouts, and masked execution when nobody leaves."""
    x = jax.device_put(_rows(case.samples, 0, FORWARD_BATCH))
    nobody = MaxProb(
        budget=3.0, costs=(1.0, 2.0, 3.0), thresholds=np.asarray([np.inf, np.inf, -np.inf], "f4")
    )
    full, stay = jax.jit(case.network.apply), masked(case.network, nobody)
    calls = {
        "full": lambda: jax.block_until_ready(full(case.variables, x)),
        "masked_nobody_leaves": lambda: jax.block_until_ready(stay(case.variables, x)),
    }
    if torch is not None:
        for layout, channels_last in (("channels_last", True), ("contiguous", False)):
            twin = torch_networks.torch_network(
                case.network, case.variables, channels_last=channels_last
            )
            given = torch_networks.torch_input(x, channels_last=channels_last)
            calls[f"torch_{layout}"] = lambda twin=twin, given=given: twin.full(given)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode() if torch is not None else jax.checking_leaks(False):
        for turn in range(repeats + 1):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def by_names(rows: Sequence[Mapping[str, Any]], figure: str) -> dict[str, Any]:
    """A figure by network, strategy, batch size and mix."""
    found: dict[str, Any] = {}
    for row in rows:
        if row.get(figure) is not None:
            here = found.setdefault(row["network"], {}).setdefault(row["strategy"], {})
            here.setdefault(str(row["batch"]), {})[row["mix"]] = row[figure]
    return found


def speed_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each network, batch size and mix."""
    strategies = list(dict.fromkeys(row["strategy"] for row in rows if row["strategy"] != "full"))
    lines = []
    for key in dict.fromkeys((row["network"], row["batch"], row["mix"]) for row in rows):
        here = {r["strategy"]: r for r in rows if (r["network"], r["batch"], r["mix"]) == key}
        ideal = here["masked"]["ideal_speedup"]
        cells = [f"{here[name]['speedup']:.2f}" if name in here else "" for name in strategies]
        lines.append(
            [*map(str, key), f"{here['full']['samples_per_second']:,.0f}", f"{ideal:.2f}", *cells]
        )
    headings = ["network", "batch", "mix", "full, samples/s", "ideal", *strategies]
    return _table(
        f"Speed-up over the full network's own jitted pass, {device_name()}", headings, lines
    )


def _table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    header = tuple(name.replace("_", " ") for name in headings)
    return Table(title=title, header=header, rows=tuple(tuple(line) for line in lines))


def realised_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Realised over ideal, and how long samples wait."""
    lines = []
    for key in dict.fromkeys((row["network"], row["batch"], row["mix"]) for row in rows):
        here = {r["strategy"]: r for r in rows if (r["network"], r["batch"], r["mix"]) == key}
        cells = []
        for name in STRATEGIES:
            realised = here[name]["realised_over_ideal"]
            cells.append("" if realised is None else f"{realised:.2f}")
        latency = "{p50_ms:.3g} / {p95_ms:.3g}"
        waits = [latency.format(**here[name]) for name in ("full", "compacted", "streaming")]
        lines.append([*map(str, key), *cells, *waits, here["auto"]["picked"].split(":")[0]])
    headings = [
        "network", "batch", "mix", *STRATEGIES, "full p50 / p95 ms", "compacted", "streaming",
        "auto picked",
    ]  # fmt: skip
    title = f"Realised over ideal saving, p50 / p95 latency in ms, {device_name()}"
    return _table(title, headings, lines)


def plans(
    case: Case, rows: Sequence[Mapping[str, Any]], kept: Path
) -> tuple[list[str], str, dict[str, float]]:
    """What the model says of this device beside what was measured, and of devices elsewhere."""
    latency = load_stage_latency(kept)
    costs = count_costs(case.network).costs
    flops = (2e6 * np.diff([0.0, *costs])).tolist()
    names = ("masked", "compacted", "host_compacted", "streaming")
    here = [row for row in rows if row["strategy"] in names and row["network"] == case.name]
    mixes = [row["mix"] for row in here]
    measured = [
        Measured(
            strategy=row["strategy"],
            batch_size=row["batch"],
            exit_rates=tuple(row["exit_rates"]),
            seconds_per_sample=1 / row["samples_per_second"],
        )
        for row in here
    ]
    table = validate(latency, measured)
    fitted = fit_device(latency, flops)
    model = validate(fitted.table(flops, latency.sizes), measured)
    errors = {
        "table": float(np.median([abs(row.relative_error) for row in table])),
        "model": float(np.median([abs(row.relative_error) for row in model])),
    }
    lines = []
    for device in (TPU_V5E, H100):
        for mix, shares in MIXES.items():
            found = predictions(
                device.table(flops, latency.sizes), shares, (64, 256, 1024), (*names, "full")
            )
            lines += [(device.name, mix, row) for row in found]
    return _validated(mixes, table), _planned(lines), errors


def _validated(mixes: Sequence[str], rows: Sequence[Validation]) -> list[str]:
    """Markdown: relative errors of the predictions by batch and mix, and of their median."""
    names = list(dict.fromkeys(row.strategy for row in rows))
    errors = {
        (row.batch_size, mix, row.strategy): row.relative_error
        for mix, row in zip(mixes, rows, strict=True)
    }
    lines = [
        [str(batch), mix, *(f"{100 * errors[batch, mix, name]:+.0f} %" for name in names)]
        for batch, mix in dict.fromkeys(key[:2] for key in errors)
    ]
    title = f"Predicted seconds over measured ones, resnet56_3, {device_name()}"
    return _table(title, ["batch", "mix", *names], lines).markdown().splitlines()


def _planned(lines: Sequence[tuple[str, str, Any]]) -> str:
    """Markdown: predicted speed-up over the full network, and the best strategy."""
    keys = dict.fromkeys((device, mix, row.batch_size) for device, mix, row in lines)
    names = list(dict.fromkeys(row.strategy for *_, row in lines if row.strategy != "full"))
    made = []
    for key in keys:
        here = {row.strategy: row for d, m, row in lines if (d, m, row.batch_size) == key}
        full = here["full"].seconds_per_sample
        cells = [f"{full / here[name].seconds_per_sample:.2f}" for name in names]
        best = min(here.values(), key=lambda row: row.seconds_per_sample).strategy
        made.append([*map(str, key), f"{1e6 * full:.3g}", *cells, best])
    headings = ["device (prediction)", "mix", "batch", "full, µs a sample", *names, "best"]
    title = "Predicted speed-up over the full network, resnet56_3: no measurement"
    return _table(title, headings, made).markdown()


def _with_earlier(path: Path | None, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows that are kept there by now, those of the same device; a newer one counts."""
    if path is None:
        return rows
    kept = {"device": device_name(), "rows": []}
    if path.exists():
        kept = read_json(path, "rows of the benchmark")
    if kept["device"] != device_name():
        raise InputError(f"'{path}' has rows of {kept['device']}: give another --rows")
    order = [row["network"] for row in [*kept["rows"], *rows]]
    found = {
        tuple(row[name] for name in ("network", "batch", "mix", "strategy")): row
        for row in [*kept["rows"], *rows]
    }
    merged = sorted(found.values(), key=lambda row: (order.index(row["network"]), -row["batch"]))
    write_json(path, {"device": device_name(), "rows": merged})
    return merged


def main() -> None:
    """Measure, print, and write the tables where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet56_3", "minilm"])
    parser.add_argument("--runs", nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    figures: dict[str, Any] = {"device": device_name(), "repeats": given.repeats}
    rows, planned = [], None
    with tempfile.TemporaryDirectory() as folder:
        for number, asked in enumerate([*given.networks, *given.runs]):
            what, _, sizes = asked.partition(":")
            batch_sizes = [int(size) for size in (sizes or BATCHES).split(",")]
            case = fresh(what) if number < len(given.networks) else trained(Path(what))
            kept = Path(folder) / f"{number}.json"
            if what == "resnet56_3":
                figures["forward_seconds"] = forward_figures(case, given.repeats)
                print(figures["forward_seconds"], flush=True)
            rows += measure_case(case, batch_sizes, given.repeats, kept)
            if what == "resnet56_3":
                planned = plans(case, rows, kept)
                figures["prediction_errors"] = planned[-1]
    rows = _with_earlier(given.rows, rows)
    for figure in ("realised_over_ideal", "speedup", "samples_per_second"):
        figures[f"{figure}_by_network"] = by_names(rows, figure)
    first = figures["realised_over_ideal_by_network"][rows[0]["network"]]
    figures["realised_over_ideal"] = first
    figures["rows"] = rows
    if given.write:
        update_readme(given.write, "speed", speed_table(rows).markdown())
        update_readme(given.write, "realised", realised_table(rows).markdown())
        if planned:
            update_readme(given.write, "validation", "\n".join(planned[0]))
            update_readme(given.write, "planned", planned[1])
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
