"""How much time leaving early saves, beside the full network and beside PyTorch.

Command:
    python experiments/benchmarks/execution.py [NETWORK[:BATCHES] …] [--runs RUN[:BATCHES] …]
        [--strategies masked …] [--samples 512] [--repeats 7] [--rows FILE.json]
        [--write docs/execution.md]

Networks with fresh weights (resnet56_3 and minilm unless others are named) answer random inputs by
policies whose thresholds let the shares of three mixes leave: easy (80, 15 and 5 %), even (a third
each) and hard (20, 30 and 50 %). `--runs` adds trained networks with their own test samples and
fitted policies. BATCHES are sizes separated by commas, 1,8,64,256 unless given. Everything is timed
in turn, pass by pass, in one process; the medians count. PyTorch (extra `torch`) runs the same
network with the same weights, in the memory layout that suits it, once in full and once on the
survivors alone. `--strategies` leaves others out; predictions are made where "auto" is among them,
for they take a table of latencies. `--samples` is how many there are of each network (of batches of
1 and 8 fewer are timed). `--rows` keeps what was measured in a file, as it is measured, beside
earlier rows of other networks, batch sizes and mixes on the same device, and the tables are of all
of them.

The last line is JSON with every figure by name.
"""

import argparse
import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from execution_cases import MIXES, Case, fresh, network_of, rows_of, trained
from execution_tables import planning_table, realised_table, speed_table, validation_table

from eenet_jax.artifacts import read_json, write_json
from eenet_jax.costs import count_costs, count_layers
from eenet_jax.environment import device_name
from eenet_jax.errors import InputError, told_in_one_line
from eenet_jax.execution.auto import DECIDING
from eenet_jax.execution.latency import load_stage_latency
from eenet_jax.execution.masked import answered_in_full, masked
from eenet_jax.execution.measure import STRATEGIES, Bench, Measurement
from eenet_jax.execution.planning import H100, H100_TF32, TPU_V5E, fit_device
from eenet_jax.execution.prediction import Measured, predictions, validate
from eenet_jax.policies.max_prob import MaxProb
from eenet_jax.report.report import update_readme
from eenet_jax.timing import measure, measure_in_turn
from eenet_jax.training.run import RunFolder
from eenet_jax.types import PyTree

try:
    import torch
    import torch_networks
except ModuleNotFoundError:
    torch = None

BATCHES = "1,8,64,256"
FEWER = {1: 48, 8: 96}
"""Samples timed in a pass, by batch size, where not all are: about a second's worth."""
FORWARD_BATCH = 128
PLANNED_BATCHES = (64, 256, 1024, 4096)


class Torch:
    """The same network in PyTorch, in the faster of both memory layouts."""

    def __init__(self, case: Case):
        layouts = (True, False) if case.network.inputs == "image" else (True,)
        x = rows_of(case.samples, 0, 64)
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
            return measure(lambda: _waited(twin, given), 3).median_s

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
                _waited(self.twin, x)

        def survivors() -> None:
            for x, leaving in zip(given, exits, strict=True):
                torch_networks.compacted(self.twin, _decider(leaving), x)
            torch_networks.wait()

        with torch.inference_mode():
            return _medians({"torch_full": full, "torch_compacted": survivors}, repeats)


def _waited(twin: Any, x: Any) -> None:
    """The full pass; nothing is fetched, as of the full network here."""
    twin.full(x)
    torch_networks.wait()


def _decider(exits: np.ndarray) -> Callable[[int, Any], Any]:
    """Who leaves at exit k, of those who are still there."""
    here = np.arange(len(exits))

    def decide(k: int, _probs: Any) -> Any:
        nonlocal here
        leaves = exits[here] == k
        here = here[~leaves]
        return torch.from_numpy(leaves).to(torch_networks.DEVICE)

    return decide


def _medians(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    return {name: timing.median_s for name, timing in measure_in_turn(calls, repeats).items()}


def measure_case(
    case: Case, batch_sizes: Sequence[int], strategies: Sequence[str], repeats: int, kept: Path
) -> Iterator[list[dict[str, Any]]]:
    """A row for each batch size, policy and strategy, a policy at a time."""
    twin = Torch(case) if torch is not None else None
    total = jax.tree.leaves(case.samples)[0].shape[0]
    # The largest first: its table of latencies holds what the smaller ones need.
    for batch_size in sorted(batch_sizes, reverse=True):
        count = min(FEWER.get(batch_size, total), total)
        batches = [rows_of(case.samples, i, batch_size) for i in range(0, count, batch_size)]
        bench = Bench(case.network, case.variables, batches, repeats, device_name(), kept)
        for mix, policy in case.policies.items():
            measured = bench.measure(policy, strategies)
            wanted = policy.decide(bench.probs, bench.measures)
            exits = [wanted[i : i + batch_size] for i in range(0, count, batch_size)]
            beside = twin.passes(batches, exits, repeats) if twin else {}
            rows = [_row(case.name, mix, row) for row in measured]
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
            _print(rows)
            yield rows


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
    """The full pass, with decisions, masked when nobody leaves, and PyTorch's in both layouts."""
    x = jax.device_put(rows_of(case.samples, 0, FORWARD_BATCH))
    nobody = MaxProb(
        budget=3.0, costs=(1.0, 2.0, 3.0), thresholds=np.asarray([np.inf, np.inf, -np.inf], "f4")
    )
    full, stay = jax.jit(case.network.apply), masked(case.network, nobody)
    decided = answered_in_full(case.network, nobody)
    calls = {
        "full": lambda: jax.block_until_ready(full(case.variables, x)),
        DECIDING: lambda: jax.block_until_ready(decided(case.variables, x)),
        "masked_nobody_leaves": lambda: jax.block_until_ready(stay(case.variables, x)),
    }
    if torch is not None:
        for layout, channels_last in (("channels_last", True), ("contiguous", False)):
            twin = torch_networks.torch_network(
                case.network, case.variables, channels_last=channels_last
            )
            given = torch_networks.torch_input(x, channels_last=channels_last)
            calls[f"torch_{layout}"] = lambda twin=twin, given=given: _waited(twin, given)
    with torch.inference_mode() if torch is not None else contextlib.nullcontext():
        return _medians(calls, repeats)


def by_names(rows: Sequence[Mapping[str, Any]], figure: str) -> dict[str, Any]:
    """A figure by network, strategy, batch size and mix."""
    found: dict[str, Any] = {}
    for row in rows:
        if row.get(figure) is not None:
            here = found.setdefault(row["network"], {}).setdefault(row["strategy"], {})
            here.setdefault(str(row["batch"]), {})[row["mix"]] = row[figure]
    return found


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
    modelled = dataclasses.replace(fitted.table(flops, latency.sizes), beside=latency.beside)
    model = validate(modelled, measured)
    errors = {
        "table": float(np.median([abs(row.relative_error) for row in table])),
        "model": float(np.median([abs(row.relative_error) for row in model])),
    }
    lines = []
    layers = count_layers(case.network)
    for device in (TPU_V5E, H100_TF32, H100):
        there = device.table(flops, (*latency.sizes, *PLANNED_BATCHES), layers)
        for mix, shares in MIXES.items():
            found = predictions(there, shares, PLANNED_BATCHES, (*names, "full"))
            lines += [(device.name, mix, row) for row in found]
    return validation_table(mixes, table), planning_table(lines), errors


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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="BATCHES are sizes separated by commas; 1,8,64,256 unless given.",
    )
    parser.add_argument(
        "networks",
        nargs="*",
        metavar="NETWORK[:BATCHES]",
        help="with fresh weights; resnet56_3 and minilm where no runs are given either",
    )
    parser.add_argument(
        "--runs",
        nargs="*",
        default=[],
        metavar="RUN[:BATCHES]",
        help="folders of trained networks with fitted policies",
    )
    parser.add_argument(
        "--strategies",
        nargs="+",
        default=list(STRATEGIES),
        choices=STRATEGIES,
        help="beside the full network; all unless given",
    )
    parser.add_argument(
        "--samples", type=int, default=512, help="of each network, 512 unless given"
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help="timed passes, 7 unless given; medians count"
    )
    parser.add_argument("--rows", type=Path, help="file that keeps what is measured")
    parser.add_argument("--write", type=Path, help="Markdown file whose marked tables are replaced")
    given = parser.parse_args()
    if not given.networks and not given.runs:
        given.networks = ["resnet56_3", "minilm"]
    for name in ("samples", "repeats"):
        if getattr(given, name) < 1:
            parser.error(f"{name} is {getattr(given, name)}: give 1 or more")
    if given.write and not given.write.is_file():
        parser.error(f"there is no file '{given.write}': give one with marked tables")
    return given


def _cases(given: argparse.Namespace) -> list[tuple[Callable, str, list[int]]]:
    """How each network is made, its name and its batch sizes; checked before anything is timed."""
    cases = []
    for made, named in [(fresh, n) for n in given.networks] + [(trained, r) for r in given.runs]:
        what, _, sizes = named.partition(":")
        batches = (sizes or BATCHES).split(",")
        if not all(size.isdigit() and int(size) > 0 for size in batches):
            raise InputError(f"batches '{sizes}' of '{what}': give sizes such as {BATCHES}")
        if made is fresh:
            network_of(what)
        else:
            RunFolder(Path(what)).config()
        cases.append((made, what, [int(size) for size in batches]))
    return cases


def main() -> None:
    """Measure, print, and write the tables where asked."""
    given = _arguments()
    figures: dict[str, Any] = {"device": device_name(), "repeats": given.repeats}
    latencies = figures["stage_latency"] = {}
    rows, planned = [], None
    with tempfile.TemporaryDirectory() as folder:
        for number, (made, what, batch_sizes) in enumerate(_cases(given)):
            case = made(what, given.samples)
            kept = Path(folder) / f"{number}.json"
            if what == "resnet56_3":
                figures["forward_seconds"] = forward_figures(case, given.repeats)
                print(figures["forward_seconds"], flush=True)
            asked = (batch_sizes, given.strategies, given.repeats)
            own = []
            for measured in measure_case(case, *asked, kept):
                own += measured
                rows = _with_earlier(given.rows, [*rows, *measured])
            latencies[case.name] = read_json(kept, "stages' latencies")
            if what == "resnet56_3" and "auto" in given.strategies:
                planned = plans(case, own, kept)
                figures["prediction_errors"] = planned[-1]
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
    with told_in_one_line("execution.py"):
        main()
