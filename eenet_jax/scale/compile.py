"""`eenet compile`: a run's programs for a slice, what each takes, and whether they fit."""

import dataclasses
import math
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from eenet_jax.artifacts import write_json
from eenet_jax.config import ExperimentConfig
from eenet_jax.data import datasets
from eenet_jax.errors import InputError
from eenet_jax.scale.chips import Chip, chip_of
from eenet_jax.scale.measured import Compiled, compile_program
from eenet_jax.scale.programs import RunPrograms
from eenet_jax.scale.solver_program import lower_solver
from eenet_jax.scale.topology import host_of, topology_devices
from eenet_jax.training.network import build_network
from eenet_jax.training.sharding import Layout, make_layout

LARGEST = "largest"
TOO_LARGE_STATUS = 3
"""Of `eenet compile`, where something doesn't fit."""
MOST_SAMPLES_A_CHIP = 4096
FIRST_TRIED = 8
"""Samples a chip."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceReport:
    """What a run would take on a slice.

    Attributes:
      topology: The slice, such as "v5e:4x4".
      devices: Chips in it.
      fsdp: Over how many of them the weights are cut.
      batch_size: Of a training step, all chips together.
      config: Of the run.
      programs: By name: "train_step", for all of the slice; "predict_step" and "solver", for
        one of its hosts, as they are run.
      weight_bytes: Of the network's weights, one set.
      versions: Of JAX and of the compiler.
    """

    topology: str
    devices: int
    fsdp: int
    batch_size: int
    config: ExperimentConfig
    programs: Mapping[str, Compiled]
    weight_bytes: int
    versions: Mapping[str, str]

    @property
    def chip(self) -> Chip:
        """Of the slice."""
        return chip_of(self.topology)

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return all(program.fits for program in self.programs.values())

    def verdict(self) -> str:
        """Fits or not, and what to change."""
        if self.fits:
            used = max(program.memory_bytes for program in self.programs.values())
            return f"fits: {used / 1e9:.1f} of {self.chip.memory_bytes / 1e9:.0f} GB a chip"
        failing = [name for name, program in self.programs.items() if not program.fits]
        changes = [change for name in failing for change in self._changes(name)]
        return f"does not fit ({', '.join(failing)}): try {', or '.join(changes)}"

    def _changes(self, name: str) -> list[str]:
        """What makes a program smaller."""
        data, training = self.config.data, self.config.training
        if name == "predict_step":
            return [f"a --data.eval-batch-size below {data.eval_batch_size}"]
        if name == "solver":
            return ["a smaller --data.val-size"]
        changes = [f"fewer samples than --batch {self.batch_size}"]
        if not training.rematerialise:
            changes.append("--training.rematerialise")
        if training.compute_dtype == "float32":
            changes.append("--training.compute-dtype bfloat16")
        if self.devices > self.fsdp:
            changes.append("a larger --fsdp")
        return [*changes, "more --training.micro-batches"]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "topology": self.topology,
            "devices": self.devices,
            "fsdp": self.fsdp,
            "batch_size": self.batch_size,
            "config": self.config.to_json(),
            "chip": dataclasses.asdict(self.chip),
            "weight_bytes": self.weight_bytes,
            "versions": dict(self.versions),
            "fits": self.fits,
            "verdict": self.verdict(),
            "programs": {name: self._program(each) for name, each in self.programs.items()},
        }

    def _program(self, program: Compiled) -> dict[str, Any]:
        described = dataclasses.asdict(program)
        if program.fits:
            described["intensity"] = program.intensity
            described["sent"] = program.sent
            bounds = program.bound_seconds(self.chip) if program.whole else None
            described["bound_seconds"] = bounds
        # What a program takes that doesn't fit is not known, and NaN is no JSON.
        floats = {name: value for name, value in described.items() if isinstance(value, float)}
        unknown = [name for name, value in floats.items() if math.isnan(value)]
        return {**described, **dict.fromkeys(unknown)}


def compile_run(
    config: ExperimentConfig, topology: str, *, batch: int | str | None = None, fsdp: int = 1
) -> SliceReport:
    """Compile a run's training step, its predictions and the scheduler's fit for a slice.

    Args:
      config: Of the run; its data need not be there.
      topology: A chip and a slice, such as "v5e:4x4".
      batch: Samples of a training step, all chips together; the config's by default. "largest"
        is the largest power of two a chip that fits.
      fsdp: Over how many chips the weights are cut.

    Raises:
      InputError: the TPU compiler or the slice is not there, or the batch doesn't divide.
    """
    layout = make_layout(fsdp, topology_devices(topology))
    # On some chips what is for a part of a slice can't be compiled for the slice.
    host = make_layout(devices=topology_devices(host_of(topology)))
    if batch != LARGEST:
        config = _with_batch(config, _batch_size(batch, config))
        layout.check_batch(config.data.batch_size, config.training.micro_batches)
    # First what is soon known, for a training step may take minutes.
    exits = build_network(config, datasets.get_configured(config.data)).num_exits
    chips = list(host.mesh.devices.ravel())
    solver = compile_program("solver", lower_solver(config, exits, chips))
    size = host.padded(config.data.eval_batch_size)
    lowered = RunPrograms(config=config, layout=host).predict_step()
    predict = compile_program("predict_step", lowered, size)
    if batch == LARGEST:
        config, step = _largest(config, layout, chip_of(topology))
    else:
        step = _train_step(config, layout)
    programs = RunPrograms(config=config, layout=layout)
    return SliceReport(
        topology=topology,
        devices=layout.devices,
        fsdp=fsdp,
        batch_size=config.data.batch_size,
        config=config,
        programs={each.name: each for each in (step, predict, solver)},
        weight_bytes=sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(programs.state().params)
        ),
        versions=_versions(),
    )


def _batch_size(batch: int | str | None, config: ExperimentConfig) -> int:
    if batch is None:
        return config.data.batch_size
    if isinstance(batch, str) and not batch.isdigit():
        raise InputError(f"batch is '{batch}': give a number of samples, or \"{LARGEST}\"")
    return int(batch)


def _train_step(config: ExperimentConfig, layout: Layout) -> Compiled:
    lowered = RunPrograms(config=config, layout=layout).train_step()
    size = config.data.batch_size
    # It may take a quarter of an hour.
    print(f"compiling the training step at batch {size:,} …", file=sys.stderr, flush=True)
    step = compile_program("train_step", lowered, size)
    print(
        f"batch {size:,}: {_gigabytes(step, 1)} a chip ({'fits' if step.fits else 'does not fit'}),"
        f" compiled in {step.compile_seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return step


def _with_batch(config: ExperimentConfig, size: int) -> ExperimentConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=size))


def _largest(
    config: ExperimentConfig, layout: Layout, chip: Chip
) -> tuple[ExperimentConfig, Compiled]:
    """The largest power of two a chip that fits; the least, where none does.

    Memory grows in proportion to the samples: one compilation says where to look.
    """
    least = layout.devices * config.training.micro_batches
    size = FIRST_TRIED * least
    tried = {size: _train_step(_with_batch(config, size), layout)}
    if tried[size].fits:
        state = RunPrograms(config=_with_batch(config, size), layout=layout).state_bytes
        each = max(1.0, tried[size].memory_bytes - state) / size
        most = max(least, (chip.memory_bytes - state) / each)
        size = least << int(math.log2(min(most, MOST_SAMPLES_A_CHIP * layout.devices) / least))

    def fits(size: int) -> bool:
        if size not in tried:
            tried[size] = _train_step(_with_batch(config, size), layout)
        return tried[size].fits

    while size > least and not fits(size):
        size //= 2
    while fits(size) and 2 * size <= MOST_SAMPLES_A_CHIP * layout.devices and fits(2 * size):
        size *= 2
    return _with_batch(config, size), tried[size]


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}


def describe(report: SliceReport) -> list[str]:
    """Lines for a person."""
    chip = report.chip
    lines = [
        f"{report.config.name} on {report.topology}: {report.devices} chips of"
        f" {chip.memory_bytes / 1e9:.0f} GB, batch {report.batch_size}"
        f" ({report.batch_size // report.devices} a chip), weights cut over {report.fsdp}"
    ]
    for program in report.programs.values():
        lines += ["", *_described(program, chip)]
    return [*lines, "", report.verdict()]


def _described(program: Compiled, chip: Chip) -> list[str]:
    head = f"{program.name}: {_gigabytes(program, 2)} a chip"
    if not program.fits:
        return [f"{head}, which does not fit: {program.trouble}"]
    loops = "a loop, its body" if program.loops == 1 else f"{program.loops} loops, their bodies"
    repeats = f" ({loops} counted once)" if program.loops else ""
    lines = [
        f"{head}, {program.flops / 1e9:,.1f} GFLOP, {program.bytes_accessed / 1e9:,.2f} GB of"
        f" memory traffic ({program.intensity:.1f} FLOP a byte){repeats}, compiled in"
        f" {program.compile_seconds:.0f} s",
    ]
    if program.whole:
        lines.append(_bound(program, chip))
    for kind, (count, total) in program.by_kind().items():
        lines.append(f"  {count} {kind}: {total / 1e6:,.3f} MB a chip")
    return lines


def _bound(program: Compiled, chip: Chip) -> str:
    bounds = program.bound_seconds(chip)
    limit = max(bounds, key=lambda name: bounds[name])
    each = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in bounds.items())
    rate = f": {program.samples / bounds[limit]:,.0f} samples/s" if program.samples else ""
    return f"  at best {1e3 * bounds[limit]:.2f} ms, bound by {limit} ({each}){rate}"


def _gigabytes(program: Compiled, digits: int) -> str:
    if math.isnan(program.memory_bytes):
        return "too many GB"
    return f"{program.memory_bytes / 1e9:.{digits}f} GB"


def write_report(report: SliceReport, path: str | Path) -> None:
    """As JSON."""
    write_json(Path(path), report.to_json())
