"""What training takes on TPU slices that are not there, by compiling for them.

Command:
    pip install libtpu
    python experiments/benchmarks/slices.py [--only CONFIG:CHIP:SLICE:FSDP[:BATCH] …]
        [--rows FILE.json] [--write docs/tpu.md]

Each case is compiled at the largest power-of-two batch a chip that fits, or at the BATCH that is
given for all chips together. Bytes sent are held against what arithmetic says must be sent.
`--rows` keeps what came out in a file, case by case, beside earlier ones, and the table is of all
of them: a large network takes minutes a compilation, and several to find its batch. `--only`
without a case writes what there is. The last line is JSON with every figure by name.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from eenet_jax.artifacts import read_json, write_json
from eenet_jax.config import find_config
from eenet_jax.errors import InputError, told_in_one_line
from eenet_jax.report.report import update_readme
from eenet_jax.scale.compile import LARGEST, SliceReport, compile_run, describe
from eenet_jax.scale.expected import expected_bytes
from eenet_jax.scale.programs import RunPrograms
from eenet_jax.scale.topology import topology_devices
from eenet_jax.training.sharding import make_layout

CASES = (
    "imagenet_msdnet35_pod:v5e:4x4:1",
    "imagenet_msdnet35_pod:v5e:4x4:4",
    "imagenet_msdnet35_pod:v5e:16x16:1",
    "imagenet_msdnet35_pod:v5e:16x16:16",
    "sst2_bert:v5e:2x2:1",
    "sst2_bert:v5e:2x2:4",
)
HEADINGS = (
    "run",
    "slice",
    "fsdp",
    "batch a chip",
    "GB a chip",
    "GFLOP a sample",
    "FLOP a byte",
    "bound, µs a sample",
    "bound by",
    "of the peak",
    "sent, MB",
    "by arithmetic, MB",
    "compiled, s",
)


def compiled(case: str) -> tuple[SliceReport, dict[str, Any]]:
    """A case's report, and its figures by heading."""
    name, chip, shape, fsdp, *batch = case.split(":")
    size = batch[0] if batch else LARGEST
    report = compile_run(find_config(name), f"{chip}:{shape}", batch=size, fsdp=int(fsdp))
    step = report.programs["train_step"]
    if not step.whole:
        raise InputError(
            f"{name} repeats what is counted once: give a config without micro-batches"
        )
    layout = make_layout(int(fsdp), topology_devices(report.topology))
    expected = expected_bytes(RunPrograms(config=report.config, layout=layout))
    bounds = step.bound_seconds(report.chip)
    limit = max(bounds, key=lambda name: bounds[name])
    here = report.batch_size // report.devices
    values = (
        name,
        report.topology,
        report.fsdp,
        here,
        step.memory_bytes / 1e9,
        step.flops / here / 1e9,
        step.intensity,
        1e6 * bounds[limit] / report.batch_size,
        limit,
        bounds["arithmetic"] / bounds[limit],
        step.sent / 1e6,
        expected.sent / 1e6,
        step.compile_seconds,
    )
    figures = dict(zip(HEADINGS, values, strict=True))
    figures["expected"] = vars(expected)
    figures["sent_by_kind"] = step.by_kind()
    return report, figures


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --: |" * len(HEADINGS)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in HEADINGS) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Compile, print, and write the table where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=CASES, help="CONFIG:CHIP:SLICE:FSDP[:BATCH]")
    parser.add_argument("--rows", type=Path, help="JSON file that keeps the cases")
    parser.add_argument("--write", type=Path, help="Markdown file whose marked table is replaced")
    given = parser.parse_args()
    kept = read_json(given.rows) if given.rows and given.rows.exists() else {}
    for case in given.only:
        report, figures = compiled(case)
        print("\n".join(describe(report)), "\n", flush=True)
        kept[":".join(case.split(":")[:4])] = {"figures": figures, "report": report.to_json()}
        if given.rows:
            write_json(given.rows, kept)
    order = {case: number for number, case in enumerate(CASES)}
    cases = sorted(kept, key=lambda case: (order.get(case, len(order)), case))
    if given.write:
        update_readme(given.write, "slices", table([kept[case]["figures"] for case in cases]))
    print(json.dumps({case: kept[case] for case in cases}))


if __name__ == "__main__":
    with told_in_one_line("slices.py"):
        main()
