"""FLOPs and measured latency to each exit → `CostTable`.

MACs are counted from the traced stages: multiply-accumulates of convolutions and matrix
products, which is what the literature calls FLOPs. Earlier exit heads are included, for a
sample that leaves at exit k has gone through them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eenet_jax.environment import device_name
from eenet_jax.errors import InputError
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.predictions import load_network
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.timing import measure
from eenet_jax.types import CostTable, PyTree


def count_costs(network: MultiExitNetwork) -> CostTable:
    """Multiply-accumulates to each exit for one sample, in millions.

    Returns:
      A table in MMACs; its field `compiler_mflops` has the compiler's own count of floating
      point operations to each exit (None where the compiler gives none).
    """
    macs, flops = [], []
    for stage, head in _parts(network):
        macs.append(count_macs(_traced(*stage)) + count_macs(_traced(*head)))
        flops.append(_sum(_compiled_flops(*stage), _compiled_flops(*head)))
    return CostTable(
        unit="MMACs",
        costs=tuple(float(total) / 1e6 for total in np.cumsum(macs)),
        extra={"compiler_mflops": _cumulated_mflops(flops)},
    )


def count_layers(network: MultiExitNetwork) -> list[int]:
    """Convolutions and matrix products of each stage and its exit head."""
    one = {name: lambda _: 1 for name in MACS}
    return [
        sum(_total(_traced(run, *given), one) for run, *given in parts) for parts in _parts(network)
    ]


def _parts(network: MultiExitNetwork) -> Iterator[tuple[tuple[Callable, PyTree, PyTree], ...]]:
    """Of each exit: the stage and the head, each with the shapes of what it is called with."""
    variables, carry = jax.eval_shape(network.init, jax.random.key(0)), network.example()
    for k in range(network.num_exits):
        run_stage, run_head = _pieces(network, k)
        after = jax.eval_shape(run_stage, variables, carry)
        yield (run_stage, variables, carry), (run_head, variables, after)
        carry = after


def _pieces(network: StagedNetwork, k: int) -> tuple[Callable, Callable]:
    return (
        lambda variables, carry: network.stage(k, variables, carry, False, None)[0],
        lambda variables, carry: network.head(k, variables, carry, False, None)[0],
    )


def _traced(run: Callable, variables: PyTree, carry: PyTree) -> Any:
    return jax.make_jaxpr(run)(variables, carry).jaxpr


def count_macs(jaxpr: Any) -> int:
    """Multiply-accumulates of all convolutions and matrix products in a jaxpr, however nested.

    Of a `cond`'s branches the dearest counts; a `scan`'s body counts once for each of its steps,
    a `while`'s once, as nobody knows how often it runs.
    """
    return _total(jaxpr, MACS)


def _total(jaxpr: Any, counts: Mapping[str, Callable[[Any], int]]) -> int:
    """Sum of what is counted of each operation, by its name."""
    return sum(
        counts[equation.primitive.name](equation)
        if equation.primitive.name in counts
        else _nested(equation, counts)
        for equation in jaxpr.eqns
    )


def _nested(equation: Any, counts: Mapping[str, Callable[[Any], int]]) -> int:
    totals = [_total(inner, counts) for inner in _inner_jaxprs(equation)]
    if equation.primitive.name == "cond":
        return max(totals)
    return sum(totals) * (equation.params["length"] if equation.primitive.name == "scan" else 1)


def _dot_macs(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return int(np.prod(equation.outvars[0].aval.shape)) * int(
        np.prod([left[i] for i in contracted])
    )


def _conv_macs(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    outputs = equation.params["dimension_numbers"].rhs_spec[0]
    per_output = int(np.prod(kernel)) // kernel[outputs]
    return int(np.prod(equation.outvars[0].aval.shape)) * per_output


MACS = {"dot_general": _dot_macs, "conv_general_dilated": _conv_macs}
"""Multiply-accumulates of an operation, by its name."""


def _inner_jaxprs(equation: Any) -> list[Any]:
    found = []
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(each, "jaxpr", each)
            if getattr(inner, "eqns", None) is not None:
                found.append(inner)
    return found


def _compiled_flops(run: Callable, variables: PyTree, carry: PyTree) -> float | None:
    analysis = jax.jit(run).lower(variables, carry).compile().cost_analysis()
    return None if not analysis else analysis.get("flops")


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _cumulated_mflops(flops: Sequence[float | None]) -> list[float] | None:
    known = [value for value in flops if value is not None]
    if len(known) < len(flops):
        return None
    return [float(total) / 1e6 for total in np.cumsum(known)]


def measure_latency(
    network: StagedNetwork,
    variables: PyTree,
    *,
    batch_size: int = 1,
    repeats: int = 21,
    device: str = "",
) -> CostTable:
    """Milliseconds per sample to each exit's logits, stages run one at a time on a batch.

    Args:
      network: To measure.
      variables: Its weights.
      batch_size: Samples in a batch; a sample's share of the batch's time counts.
      repeats: Timed runs of each stage; the median counts.
      device: Name written into the table.

    Returns:
      A table in ms. Its fields `stage_ms` and `head_ms` have the parts for a whole batch,
      `spread_ms` the greatest minus the least of each exit's summed parts.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: give 1 or more")
    carry, stage_ms, head_ms, spread_ms = network.example(batch_size), [], [], []
    for k in range(network.num_exits):
        run_stage, run_head = (jax.jit(piece) for piece in _pieces(network, k))
        stage = measure(lambda run=run_stage, x=carry: run(variables, x), repeats)
        carry = run_stage(variables, carry)
        head = measure(lambda run=run_head, x=carry: run(variables, x), repeats)
        stage_ms.append(stage.median_s * 1e3)
        head_ms.append(head.median_s * 1e3)
        spread_ms.append((stage.spread_s + head.spread_s) * 1e3)
    extra = {
        "stage_ms": stage_ms,
        "head_ms": head_ms,
        "spread_ms": spread_ms,
        "batch_size": batch_size,
        "repeats": repeats,
        "device": device,
    }
    # A budget is an average per sample, and so is a cost.
    per_sample = np.cumsum(np.add(stage_ms, head_ms)) / batch_size
    costs = tuple(float(total) for total in per_sample)
    return CostTable(unit="ms", costs=costs, extra=extra)


def write_costs(
    run: str | Path, *, latency: bool = False, batch_size: int = 1, repeats: int = 21
) -> list[tuple[Path, CostTable]]:
    """Write `RUN/costs.json` (MMACs) and, on demand, `RUN/latency.json` (ms).

    Args:
      run: The run's folder.
      latency: Whether to measure.
      batch_size: Samples in a batch of the measurement.
      repeats: Timed runs of each stage.

    Returns:
      Each file with its table.
    """
    network, variables, _ = load_network(run)
    tables = [(Path(run) / "costs.json", count_costs(network))]
    if latency:
        measured = measure_latency(
            network, variables, batch_size=batch_size, repeats=repeats, device=device_name()
        )
        tables.append((Path(run) / "latency.json", measured))
    for path, table in tables:
        table.save(path)
    return tables
