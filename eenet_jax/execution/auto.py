"""Which strategy to run: predicted from the stages' latencies, and tried before it is trusted."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax

from eenet_jax.errors import InputError
from eenet_jax.execution.latency import StageLatency
from eenet_jax.execution.masked import answered_in_full
from eenet_jax.execution.prediction import predict
from eenet_jax.execution.samples import samples_of
from eenet_jax.execution.strategies import BATCHED, Strategy, build_strategy
from eenet_jax.execution.streaming import Stream
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.timing import measure_in_turn
from eenet_jax.types import PyTree

TRIALS = 3
SHORT_PASSES, LEAST_SECONDS = 15, 0.1
"""Passes that take less than so many seconds are timed more often, for they scatter more."""
WORTH_IT = 0.97
"""A strategy that takes more than this share of the full network's time, decisions included, is not
picked."""
DECIDING = "full_with_decisions"
"""What "full" stands for where it is picked: every exit for everybody, and the policy's answers."""
TRIED = 2
"""Strategies that are compiled and tried, those predicted to be fastest."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """What was picked, and why.

    Attributes:
      name: "full", "streaming", or one of `strategies.BATCHED`.
      predicted: Seconds per sample by strategy, from the stages' latencies.
      tried: Seconds per sample by strategy, measured; "full" is the network's own pass, without
        a policy, `DECIDING` that with it.
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
    ready: Mapping[str, Strategy | Stream] = MappingProxyType({}),
) -> Choice:
    """Pick the fastest strategy for batches like these; never one slower than the full network.

    The two fastest by prediction, and those that are ready, are run on the batches in turn with
    the full network, and the one that took least is picked if it took less than 0.97 of what the
    full network takes for the same answers: its own pass, and the decisions of the policy.

    Args:
      network: The network.
      variables: Its weights.
      policy: Fitted for its exits.
      batches: One or more of the size to run at, to try strategies on.
      latency: Of the network's stages on this device.
      exit_rates: Share of samples that is expected to leave at each exit, e.g. on validation.
      names: What to choose from, besides "full"; "streaming" only where samples need not be
        answered batch by batch.
      ready: Strategies that are compiled already, by their names; `DECIDING` is one.

    Raises:
      InputError: there are no batches, or the rates are not of this network.
    """
    if not batches:
        raise InputError("there are no batches to try strategies on: give one at least")
    sizes = [jax.tree.leaves(x)[0].shape[0] for x in batches]
    predicted = {name: predict(latency, exit_rates, sizes[0], name) for name in ("full", *names)}
    adaptive = sorted((n for n in predicted if n != "full"), key=lambda name: predicted[name])
    whole = ready.get(DECIDING) or answered_in_full(network, policy)
    assert not isinstance(whole, Stream)
    made: dict[str, Strategy] = {"full": whole}
    passes: dict[str, Callable[[], Any]] = {
        "full": functools.partial(_run_all, jax.jit(network.apply), variables, batches),
        DECIDING: functools.partial(_run_all, made["full"], variables, batches),
    }
    for name in [n for i, n in enumerate(adaptive) if i < TRIED or n in ready]:
        if name == "streaming":
            stream = ready.get(name) or stream_for(network, variables, policy, batches)
            assert isinstance(stream, Stream)
            samples = [sample for x in batches for sample in samples_of(x)]
            passes[name] = functools.partial(stream.answers, samples)
        else:
            run = ready.get(name) or build_strategy(name, network, policy, sizes[0], latency)
            assert not isinstance(run, Stream)
            made[name] = run
            passes[name] = functools.partial(_run_all, made[name], variables, batches)
    return _pick(made, predicted, _try(passes, sum(sizes)))


def _run_all(run: Callable, variables: PyTree, batches: Sequence[PyTree]) -> None:
    for x in batches:
        jax.block_until_ready(run(variables, x))


def stream_for(
    network: StagedNetwork, variables: PyTree, policy: Policy, batches: Sequence[PyTree]
) -> Stream:
    """A stream of the samples of batches, texts being padded as they are there.

    Args:
      network: The network.
      variables: Its weights.
      policy: Fitted for its exits.
      batches: Of one size.
    """
    shapes = [jax.tree.leaves(x)[0].shape for x in batches]
    lengths = sorted({shape[1] for shape in shapes}) if network.inputs == "tokens" else None
    size = max(shape[0] for shape in shapes)
    return Stream(network, variables, policy, batch_size=size, lengths=lengths)


def _try(passes: Mapping[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Seconds per sample, pass by pass in turn."""
    found = measure_in_turn(passes, TRIALS)
    if max(timing.median_s for timing in found.values()) < LEAST_SECONDS:
        found = measure_in_turn(passes, SHORT_PASSES)
    return {name: timing.median_s / count for name, timing in found.items()}


def _pick(
    made: Mapping[str, Strategy], predicted: Mapping[str, float], tried: Mapping[str, float]
) -> Choice:
    shares = {name: tried[name] / tried[DECIDING] for name in tried if name != DECIDING}
    best = min((name for name in shares if name != "full"), key=lambda name: shares[name])
    worth_it = shares[best] <= WORTH_IT
    why = f"{best} took {shares[best]:.2f} of what the full network takes for the same answers"
    if not worth_it:
        why += ", which is not worth it"
    others = [f"{name} {shares[name]:.2f}" for name in sorted(shares) if name not in (best, "full")]
    others.append(f"without deciding, the full network {shares['full']:.2f}")
    name = best if worth_it else "full"
    return Choice(
        name=name,
        predicted=predicted,
        tried=tried,
        why="; ".join([why, *others]),
        run=made.get(name),
    )
