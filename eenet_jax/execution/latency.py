"""How long each stage takes at each batch size, measured and kept with the device's name."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from eenet_jax.artifacts import read_json, write_json
from eenet_jax.environment import device_name
from eenet_jax.errors import InputError
from eenet_jax.execution.decision import Reached, compile_advance, start
from eenet_jax.execution.sides import number_of_sides, on_side
from eenet_jax.pieces import suitable_pieces
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.timing import measure, measure_in_turn
from eenet_jax.types import PyTree

FORMAT = "eenet_jax.stage_latency.4"
LONG_SECONDS = 12.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StageLatency:
    """Seconds of every stage and of the full network at some batch sizes.

    Attributes:
      device: Name of what was measured.
      sizes: Batch sizes, rising.
      seconds: Of stage k, its exit head and the decision, [exits, sizes], a batch going through
        in the same pieces as through the full network; dispatching it and waiting for who leaves
        are included, as that is what each call costs.
      full_seconds: Of the full network's own jitted pass, [sizes].
      call_seconds: Of a call that has nothing to do; part of all of the above.
      pieces: Samples that go through each stage together inside one program, see
        `suitable_pieces`; the largest size where that is the whole batch.
      sample_shape: Of what was measured, without the batch axis; of tokens, (length,). Empty
        where that is not known.
      beside: What two batches of the same size take at once, through the full network, over what
        they take one after the other, [sizes]; None where the device is given one program at a
        time, see `execution/sides.py`.
    """

    device: str
    sizes: tuple[int, ...]
    seconds: Float[np.ndarray, "exits sizes"]
    full_seconds: Float[np.ndarray, " sizes"]
    call_seconds: float
    pieces: tuple[int, ...]
    sample_shape: tuple[int, ...] = ()
    beside: Float[np.ndarray, " sizes"] | None = None

    def __post_init__(self):
        shape = (len(self.seconds), len(self.sizes))
        if self.beside is not None and self.beside.shape != shape[1:]:
            raise InputError(
                f"beside {self.beside.shape} is not of {len(self.sizes)} sizes: measure again"
            )
        if self.seconds.shape != shape or self.full_seconds.shape != shape[1:]:
            raise InputError(
                f"seconds {self.seconds.shape} and full_seconds {self.full_seconds.shape} are not"
                f" of {len(self.sizes)} sizes: measure again"
            )
        if len(self.pieces) != len(self.seconds) or min(self.pieces, default=0) < 1:
            raise InputError(
                f"pieces {list(self.pieces)} are not one for each of {len(self.seconds)} stages:"
                " measure again"
            )
        for name in ("seconds", "full_seconds", "beside"):
            values = getattr(self, name)
            if values is not None and not (np.isfinite(values) & (values > 0)).all():
                raise InputError(f"{name} of '{self.device}' are not all positive: measure again")

    @property
    def piece(self) -> int:
        """Samples that go through the whole network together inside one program."""
        return min(self.pieces)

    def stage_seconds(self, k: int, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Seconds of stage k (0-based) on batches of these sizes: between those measured."""
        return self._between(self.seconds[k], rows)

    def full_pass_seconds(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Seconds of the full network on batches of these sizes: between those measured."""
        return self._between(self.full_seconds, rows)

    def share_beside(self, rows: int) -> float:
        """`beside` of a batch of this size: between those measured; 1 where it is None."""
        return 1.0 if self.beside is None else float(np.interp(rows, self.sizes, self.beside))

    def _between(self, seconds: Float[np.ndarray, " sizes"], rows) -> np.ndarray:
        rows = np.asarray(rows, np.float64)
        # Beyond the largest size, samples cost what they cost there; a smaller batch costs as
        # much as the smallest.
        beyond = np.maximum(1.0, rows / self.sizes[-1])
        return np.interp(rows, self.sizes, seconds) * beyond

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(
            path,
            {
                "format": FORMAT,
                "device": self.device,
                "sample_shape": list(self.sample_shape),
                "sizes": list(self.sizes),
                "seconds": self.seconds.tolist(),
                "full_seconds": self.full_seconds.tolist(),
                "call_seconds": self.call_seconds,
                "pieces": list(self.pieces),
                "beside": None if self.beside is None else self.beside.tolist(),
            },
        )


def measure_stage_latency(
    network: StagedNetwork,
    policy: Policy,
    variables: PyTree,
    x: PyTree,
    sizes: Sequence[int],
    repeats: int = 5,
    limit_s: float = LONG_SECONDS,
) -> StageLatency:
    """Time every stage and the full network at some batch sizes.

    Args:
      network: The network.
      policy: Any that is fitted for its exits: deciding costs alike.
      variables: Of the network.
      x: At least one sample [batch, …] of the shape to measure; values hardly matter.
      sizes: Batch sizes.
      repeats: Timed calls of each, in turn.
      limit_s: Seconds of timed calls of a size after which no turn begins.

    Raises:
      InputError: `repeats` or a size is not positive, or there are no sizes.
    """
    if min(sizes, default=0) < 1:
        raise InputError(f"sizes {list(sizes)} must be one or more, all at least 1")
    sizes = tuple(sorted(set(sizes)))
    steps = [compile_advance(network, policy, k) for k in range(network.num_exits)]
    full, begin = jax.jit(network.apply), jax.jit(lambda x: start(network, x))
    pieces = suitable_pieces(network, variables, _batch_of(x, sizes[-1]))
    seconds, full_seconds, beside = [], [], []
    for size in sizes:
        batch = _batch_of(x, size)
        calls = [lambda batch=batch: jax.block_until_ready(full(variables, batch))]
        calls += _stage_calls(steps, min(pieces), variables, begin(batch))
        # In turn, for what counts is their ratio, and a machine's speed changes.
        named = {str(number): call for number, call in enumerate(calls)}
        whole, *parts = measure_in_turn(named, repeats, limit_s).values()
        full_seconds.append(whole.median_s)
        seconds.append(_stage_medians(np.asarray([part.seconds for part in parts])))
        if number_of_sides() > 1:
            # Compiled here: another thread doesn't know what is set for this one.
            program = full.lower(variables, batch).compile()
            call = functools.partial(_waited, program, variables, batch)
            beside.append(_share_beside(call, repeats, limit_s / 2))
    return StageLatency(
        device=device_name(),
        sizes=sizes,
        seconds=np.asarray(seconds).T,
        full_seconds=np.asarray(full_seconds),
        call_seconds=_call_seconds(),
        pieces=pieces,
        sample_shape=shape_of_sample(x),
        beside=np.asarray(beside) if beside else None,
    )


def _waited(program: Callable, variables: PyTree, x: PyTree) -> None:
    jax.block_until_ready(program(variables, x))


def _share_beside(call: Callable[[], Any], repeats: int, limit_s: float) -> float:
    """Twice the call at once, over twice the call."""

    def at_once() -> None:
        other = on_side(0, call)
        call()
        other.result()

    calls = {"alone": call, "at once": at_once}
    alone, both = measure_in_turn(calls, repeats, limit_s).values()
    return float(np.median(np.asarray(both.seconds) / (2 * np.asarray(alone.seconds))))


def _stage_medians(
    seconds: Float[np.ndarray, "exits turns"],
) -> Float[np.ndarray, " exits"]:
    """Of the stages' sum over the turns, cut by the medians of each stage's part in its turn.

    Parts are compared within a turn, for a machine's speed changes from turn to turn.
    """
    total = seconds.sum(0)
    parts = np.median(seconds / total, 1)
    return np.median(total) * parts / parts.sum()


def shape_of_sample(x: PyTree) -> tuple[int, ...]:
    """Of a batch's samples; of tokens, (length,)."""
    return tuple(jax.tree.leaves(x)[0].shape[1:])


def cached_stage_latency(
    path: Path,
    network: StagedNetwork,
    policy: Policy,
    variables: PyTree,
    x: PyTree,
    sizes: Sequence[int],
    **timing: Any,
) -> StageLatency:
    """The table kept at `path` where it is of this device, samples and sizes; else a new one.

    Args:
      path: Of the table; a new one is kept there. Where only sizes are missing it has those of
        the one before too.
      network: The network.
      policy: Any that is fitted for its exits.
      variables: Of the network.
      x: At least one sample of the shape to measure.
      sizes: Batch sizes that are needed.
      timing: `repeats` and `limit_s` of `measure_stage_latency`.
    """
    with contextlib.suppress(InputError):
        kept = load_stage_latency(path)
        same = (kept.device, kept.sample_shape) == (device_name(), shape_of_sample(x))
        same = same and (kept.beside is None) == (number_of_sides() == 1)
        if same and len(kept.seconds) == network.num_exits:
            if set(sizes) <= set(kept.sizes):
                return kept
            sizes = (*sizes, *kept.sizes)
    measured = measure_stage_latency(network, policy, variables, x, sizes, **timing)
    measured.save(path)
    return measured


def _call_seconds(repeats: int = 101) -> float:
    nothing, x = jax.jit(lambda x: x + 1), jax.numpy.zeros(8)
    return measure(lambda: np.asarray(nothing(x)), repeats).median_s


def _stage_calls(
    steps: Sequence[Callable], piece: int, variables: PyTree, reached: Reached
) -> list[Callable[[], Any]]:
    """Each stage on what the ones before give; done when the decision is on the host."""
    calls = []
    for step in steps:

        def decided(step=step, reached=reached) -> np.ndarray:
            return np.asarray(step(variables, reached, piece)[2])

        calls.append(decided)
        reached = step(variables, reached, piece)[0]
    return calls


def _batch_of(x: PyTree, size: int) -> PyTree:
    """So many samples on the device, from the first again where there are fewer."""
    return jax.tree.map(
        lambda leaf: jax.device_put(np.resize(np.asarray(leaf), (size, *np.shape(leaf)[1:]))), x
    )


def load_stage_latency(path: str | Path) -> StageLatency:
    """Read what `StageLatency.save` wrote.

    Raises:
      InputError: the file is missing, or is none.
    """
    value = read_json(path, "table of stage latencies")
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f"'{path}' is no table of stage latencies: measure again")
    try:
        return StageLatency(
            device=value["device"],
            sizes=tuple(value["sizes"]),
            seconds=np.asarray(value["seconds"], np.float64),
            full_seconds=np.asarray(value["full_seconds"], np.float64),
            call_seconds=float(value["call_seconds"]),
            pieces=tuple(map(int, value["pieces"])),
            sample_shape=tuple(value["sample_shape"]),
            beside=None if value["beside"] is None else np.asarray(value["beside"], np.float64),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"'{path}' is damaged ({error}): measure again") from None
