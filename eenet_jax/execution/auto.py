"""Which strategy to run: predicted from the stages' latencies, and tried before it is trusted."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import jax

from eenet_jax.errors import InputError
from eenet_jax.execution.latency import StageLatency
from eenet_jax.execution.prediction import predict
from eenet_jax.execution.strategies import (
    BATCHED,
    Strategy,
    answered_in_full,
    build_strategy,
    build_stream,
    samples_of,
)
from eenet_jax.execution.streaming import Stream
from eenet_jax.policies.policy import Policy
from eenet_jax.types import PyTree, StagedNetwork

TRIALS = 3
WORTH_IT = 0.97
"""Of the full network's time: a strategy that takes more than this share of it is not picked."""
TRIED = 2
"""Strategies that are tried, those predicted to be fastest."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """What was picked, and why.

    Attributes:
      name: The strategy's, one of `strategies.NAMES`.
      predicted: Seconds per sample by strategy, from the stages' latencies.
      tried: Seconds per sample by strategy, measured; "full" first.
      why: In a line.
      run: The strategy, ready to be called with a batch; None for "streaming".
    """

    name: str
    predicted: Mapping[str, float]
    tried: Mapping[str, float]
    why: str
    run: Strategy | None


def choose_strategy(
    network: StagedNetwork,
    variables: PyTree,
    policy: Policy,
    batches: Sequence[PyTree],
    latency: StageLatency,
    exit_rates: Sequence[float],
    *,
    names: Sequence[str] = BATCHED,
) -> Choice:
    """Pick the fastest strategy for batches like these; never one slower than the full network.

    The fastest by prediction are run on the batches in turn with the full network, and the one
    that took least is picked if it took less than 0.97 of the full network's time.

    Args:
      network: The network.
      variables: Its weights.
      policy: Fitted for its exits.
      batches: One or more of the size to run at, to try strategies on.
      latency: Of the network's stages on this device.
      exit_rates: Share of samples that is expected to leave at each exit, e.g. on validation.
      names: What to choose from, besides "full"; "streaming" only where samples need not be
        answered batch by batch.

    Raises:
      InputError: there are no batches, or the rates are not of this network.
    """
    if not batches:
        raise InputError("there are no batches to try strategies on: give one at least")
    size = jax.tree.leaves(batches[0])[0].shape[0]
    predicted = {name: predict(latency, exit_rates, size, name) for name in ("full", *names)}
    adaptive = sorted((n for n in predicted if n != "full"), key=lambda name: predicted[name])
    made: dict[str, Strategy] = {
        # As it is without a policy, and in the pieces that suit this device.
        "full": answered_in_full(network, policy),
        "full in pieces": build_strategy("full", network, policy, size, latency),
    }
    passes = {}
    for name in adaptive[:TRIED]:
        if name == "streaming":
            stream = build_stream(network, variables, policy, size, latency)
            passes[name] = functools.partial(_stream_all, stream, batches)
        else:
            made[name] = build_strategy(name, network, policy, size, latency)
    for name, run in made.items():
        passes[name] = functools.partial(_run_all, run, variables, batches)
    return _pick(made, predicted, _try(passes, size * len(batches)))


def _run_all(run: Strategy, variables: PyTree, batches: Sequence[PyTree]) -> None:
    for x in batches:
        jax.device_get(run(variables, x))


def _stream_all(stream: Stream, batches: Sequence[PyTree]) -> None:
    for _ in stream(sample for x in batches for sample in samples_of(x)):
        pass


def _try(passes: Mapping[str, Callable[[], None]], count: int) -> dict[str, float]:
    """Seconds per sample, pass by pass in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(TRIALS + 1):
        for name, run in passes.items():
            began = time.perf_counter()
            run()
            if turn:  # The first turn compiles.
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) / count for name, times in seconds.items()}


def _pick(
    made: Mapping[str, Strategy], predicted: Mapping[str, float], tried: Mapping[str, float]
) -> Choice:
    best = min((name for name in tried if name != "full"), key=lambda name: tried[name])
    share = tried[best] / tried["full"]
    if share > WORTH_IT:
        name, run = "full", made["full"]
        why = f"{best} took {share:.2f} of the full network's time, which is not worth it"
    else:
        name, run = ("full" if best == "full in pieces" else best), made.get(best)
        why = f"{best} took {share:.2f} of the full network's time"
    others = sorted(n for n in tried if n not in (best, "full"))
    if others:
        why += "; " + ", ".join(f"{n} {tried[n] / tried['full']:.2f}" for n in others)
    return Choice(
        name=name,
        predicted=predicted,
        tried=tried,
        why=why,
        run=run,
    )
