"""Time adaptive inference beside the full network, on the same batches in the same run."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eenet_jax.dense import all_image_means
from eenet_jax.errors import InputError
from eenet_jax.execution.auto import DECIDING, choose_strategy, stream_for
from eenet_jax.execution.host_compacted import HostCompacted
from eenet_jax.execution.latency import (
    StageLatency,
    cached_stage_latency,
    measure_stage_latency,
)
from eenet_jax.execution.masked import answered_in_full
from eenet_jax.execution.prediction import ideal_share
from eenet_jax.execution.samples import samples_of
from eenet_jax.execution.strategies import BATCHED, Strategy, build_strategy
from eenet_jax.execution.streaming import Stream
from eenet_jax.pieces import in_pieces, suitable_pieces
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import PyTree

STRATEGIES = (*BATCHED, "streaming", "auto")
REFERENCES = ("full", DECIDING, "last_exit")
"""What runs whole, whatever the policy says: the full network's own pass; every exit for everybody
and the policy's answers, as `auto` runs them where leaving early is not worth it; and the last
exit alone."""
LONG_SECONDS = 60.0
"""Of timed stages of one size, after which no turn begins."""
LATENCY_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One strategy, one policy, one batch size.

    Attributes:
      policy: Its name.
      budget: As given when it was fitted.
      strategy: "full" (every exit for everybody), "full_with_decisions" (that, and the policy's
        answers, in the way of `compacted` and `masked`: what those save beside it, leaving early
        saves alone), "last_exit" (the backbone and its last head alone), or one of
        `STRATEGIES`.
      batch_size: Samples a batch.
      samples: Samples in one timed pass.
      samples_per_second: At the median pass.
      median_seconds: Of the passes.
      spread_seconds: Slowest minus fastest pass.
      repeats: Timed passes.
      speedup: What the full network takes over what this takes, the median over the passes. What
        the full network takes at a pass lies between its passes before and after: a machine's
        speed changes, and both feel it alike.
      ideal_speedup: T_full / T_ideal, T_ideal being T_full times `ideal_share`: the sum over
        stages of the stage's part of the summed stage times and the share that reaches it.
      realised_over_ideal: (T_full - T) / (T_full - T_ideal), T_full / T being `speedup`; None
        where nothing can be saved.
      p50_ms: Of samples, from being handed over to being answered: the whole batch's time, and
        for a stream each sample's own.
      p95_ms: Likewise.
      exit_rates: Share that left at each exit.
      same_exits: Share of samples that left where the policy's decision on the full network's
        outputs says; below 1 only where a score is within rounding of its threshold.
      device: Its name.
      picked: What "auto" picked, and why; empty for the others.
    """

    policy: str
    budget: float
    strategy: str
    batch_size: int
    samples: int
    samples_per_second: float
    median_seconds: float
    spread_seconds: float
    repeats: int
    speedup: float
    ideal_speedup: float
    realised_over_ideal: float | None
    p50_ms: float
    p95_ms: float
    exit_rates: tuple[float, ...]
    same_exits: float
    device: str
    picked: str = ""


@dataclasses.dataclass
class _Timed:
    """Passes of one strategy over all batches.

    Attributes:
      run: One pass: where samples left, and the seconds that each waited for its answer.
      picked: See `Measurement`.
      exits: Where samples left in the first pass, which warms up.
      seconds: Of each timed pass.
      middles: When half of each was over.
      waits: Of each sample in each timed pass, in seconds.
    """

    run: Callable[[], tuple[np.ndarray, np.ndarray]]
    picked: str = ""
    exits: np.ndarray | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    middles: list[float] = dataclasses.field(default_factory=list)
    waits: list[np.ndarray] = dataclasses.field(default_factory=list)

    def time_a_pass(self) -> None:
        """Run it once more."""
        began = time.perf_counter()
        _, waits = self.run()
        self.seconds.append(time.perf_counter() - began)
        self.middles.append(began + self.seconds[-1] / 2)
        self.waits.append(waits)


def check_strategies(names: Sequence[str]) -> None:
    """Raise InputError where one of them is none of `STRATEGIES` or `REFERENCES`."""
    for name in names:
        if name not in (*STRATEGIES, *REFERENCES):
            raise InputError(f"strategy '{name}' is unknown: choose {', '.join(STRATEGIES)}")


class Bench:
    """The full network, timed over some batches, and what is needed to judge strategies by it.

    Args:
      network: The network.
      variables: Its weights.
      batches: Inputs [batch, …] on the host; the last may have fewer samples.
      repeats: Timed passes of everything.
      device: Name to report.
      latency_path: Where the latencies of the network's stages are kept, and looked for; None
        measures them anew.
    """

    def __init__(
        self,
        network: StagedNetwork,
        variables: PyTree,
        batches: Sequence[PyTree],
        repeats: int,
        device: str,
        latency_path: Path | None = None,
    ):
        self.network, self.variables = network, variables
        self.repeats, self.device = repeats, device
        self.latency: StageLatency | None = None
        self._ready: dict[str, Strategy | Stream] = {}
        self._latency_path = latency_path
        self.batches = [jax.device_put(batch) for batch in batches]
        sizes = [jax.tree.leaves(batch)[0].shape[0] for batch in batches]
        self.batch_size, self.samples = sizes[0], sum(sizes)
        self._full = jax.jit(network.apply)
        self._last = jax.jit(self._last_exit)
        outputs = [self._outputs(x) for x in self.batches]
        self.probs = np.concatenate([probs for probs, _ in outputs], axis=1)
        found = [measures for _, measures in outputs if measures is not None]
        self.measures = np.concatenate(found, axis=1) if found else None

    def _last_exit(self, variables: PyTree, x: PyTree) -> jax.Array:
        """The last head's logits, in the full pass's pieces; of `apply`'s, loops would keep all."""

        def whole(variables: PyTree, carry: PyTree) -> jax.Array:
            last = self.network.num_exits - 1
            for k in range(last + 1):
                carry, _ = self.network.stage(k, variables, carry, False, None)
            return self.network.head(last, variables, carry, False, None)[0]

        piece = min(suitable_pieces(self.network, variables, x))
        return in_pieces(whole, piece)(variables, x)

    def _outputs(self, x: PyTree) -> tuple[np.ndarray, np.ndarray | None]:
        """The full network's softmax outputs and, for dense prediction, its measures."""
        logits = self._full(self.variables, x)
        if not self.network.dense:
            return np.asarray(jax.nn.softmax(logits)), None
        probs, measures = jax.jit(all_image_means)(logits)
        return np.asarray(probs), np.asarray(measures)

    def measure(self, policy: Policy, strategies: Sequence[str] = STRATEGIES) -> list[Measurement]:
        """Time the references and each strategy, pass by pass in turn.

        Args:
          policy: Fitted for the network's exits.
          strategies: Of `STRATEGIES`.

        Returns:
          One measurement a strategy, those of `REFERENCES` first.

        Raises:
          InputError: an unknown strategy.
        """
        # The full network is measured whoever asks for it.
        check_strategies(strategies)
        strategies = [name for name in strategies if name not in REFERENCES]
        wanted_sizes = self._sizes(strategies)
        if self.latency is None or not set(wanted_sizes) <= set(self.latency.sizes):
            self.latency = self._measure_latency(policy, wanted_sizes)
        self._ready = {}
        # "auto" last: what it tries is compiled by then.
        names = sorted((*REFERENCES, *strategies), key=lambda name: name == "auto")
        timed = {name: self._timed(name, policy) for name in names}
        for each in timed.values():
            each.exits, _ = each.run()
        for _ in range(self.repeats):
            for each in timed.values():
                each.time_a_pass()
        # Once more, so that every pass lies between two of them.
        full = timed["full"]
        full.time_a_pass()
        wanted = policy.decide(self.probs, self.measures)
        return [self._measurement(policy, name, each, full, wanted) for name, each in timed.items()]

    def _sizes(self, strategies: Sequence[str]) -> list[int]:
        """At which stages are measured: the batch's, and others for who chooses by them."""
        if not {"auto", "host_compacted"} & set(strategies):
            return [self.batch_size]
        return [*(size for size in LATENCY_SIZES if size < self.batch_size), self.batch_size]

    def _measure_latency(self, policy: Policy, sizes: Sequence[int]) -> StageLatency:
        # Batches of texts come shortest first.
        typical = self.batches[len(self.batches) // 2]
        asked = (self.network, policy, self.variables, typical, sizes)
        # What is ideal comes of their parts, and a wrong part is wrong in every figure.
        timing = {"repeats": 3 * self.repeats, "limit_s": LONG_SECONDS}
        if self._latency_path is None:
            return measure_stage_latency(*asked, **timing)
        return cached_stage_latency(self._latency_path, *asked, **timing)

    def _timed(self, name: str, policy: Policy) -> _Timed:
        assert self.latency is not None
        if name == "full":
            return self._fixed(self._full)
        if name == "last_exit":
            return self._fixed(self._last)
        if name == DECIDING:
            made = self._ready[DECIDING] = answered_in_full(self.network, policy)
            return self._batched(made)
        if name == "streaming":
            return self._streaming(policy)
        if name == "auto":
            return self._auto(policy)
        made = build_strategy(name, self.network, policy, self.batch_size, self.latency)
        self._ready[name] = made
        return self._batched(made)

    def _fixed(self, call: Callable[[PyTree, PyTree], Any]) -> _Timed:
        last = np.full(self.samples, self.network.num_exits - 1)
        # Nothing is fetched, which is in favour of what strategies are compared with.
        return _Timed(lambda: (last, self._one_by_one(call, jax.block_until_ready)[1]))

    def _batched(self, strategy: Strategy, picked: str = "") -> _Timed:
        if isinstance(strategy, HostCompacted):
            for x in self._shapes():
                strategy.warm_up(self.variables, x)

        def run() -> tuple[np.ndarray, np.ndarray]:
            answers, waits = self._one_by_one(strategy)
            return np.concatenate([each.exit_index for each in answers]), waits

        return _Timed(run, picked)

    def _one_by_one(
        self, call: Callable[[PyTree, PyTree], Any], fetch: Callable[[Any], Any] = jax.device_get
    ) -> tuple[list, np.ndarray]:
        """All batches, each answer on the host before the next; and what samples waited."""
        answers, waits = [], []
        for x in self.batches:
            began = time.perf_counter()
            answers.append(fetch(call(self.variables, x)))
            count = jax.tree.leaves(x)[0].shape[0]
            waits.append(np.full(count, time.perf_counter() - began))
        return answers, np.concatenate(waits)

    def _streaming(self, policy: Policy, picked: str = "") -> _Timed:
        samples = [sample for x in self.batches for sample in samples_of(x)]
        stream = self._ready.get("streaming")
        if stream is None:
            stream = stream_for(self.network, self.variables, policy, self.batches)
            self._ready["streaming"] = stream
        assert isinstance(stream, Stream)
        for x in self._shapes():
            stream.warm_up(samples_of(x)[0])

        def run() -> tuple[np.ndarray, np.ndarray]:
            results = stream.answers(samples)
            exits = np.asarray([result.exit_index for result in results])
            return exits, np.asarray([result.seconds for result in results])

        return _Timed(run, picked)

    def _auto(self, policy: Policy) -> _Timed:
        assert self.latency is not None
        wanted = policy.decide(self.probs, self.measures)
        rates = np.bincount(wanted, minlength=policy.num_exits) / self.samples
        # From both ends and the middle, for texts come shortest first.
        chosen = sorted({0, len(self.batches) // 2, max(0, len(self.batches) - 2)})
        choice = choose_strategy(
            self.network, self.variables, policy, [self.batches[i] for i in chosen], self.latency,
            rates.tolist(), names=(*BATCHED, "streaming"), ready=self._ready,
        )  # fmt: skip
        picked = f"{choice.name}: {choice.why}"
        if choice.run is None:
            return self._streaming(policy, picked)
        return self._batched(choice.run, picked)

    def _shapes(self) -> list[PyTree]:
        """A batch of each shape; texts have several, and the last batch's own needs no bucket."""
        found = {}
        for x in self.batches:
            leaf = jax.tree.leaves(x)[0]
            if leaf.shape[0] == self.batch_size:
                found[leaf.shape] = x
        return list(found.values())

    def _measurement(
        self, policy: Policy, name: str, timed: _Timed, full: _Timed, wanted: np.ndarray
    ) -> Measurement:
        median, waits = statistics.median(timed.seconds), 1e3 * np.concatenate(timed.waits)
        beside = np.interp(timed.middles, full.middles, full.seconds)
        relative = float(np.median(timed.seconds / beside))
        adaptive, exits = name not in REFERENCES, np.asarray(timed.exits)
        rates = np.bincount(exits, minlength=policy.num_exits) / self.samples
        assert self.latency is not None
        share = ideal_share(self.latency, rates.tolist(), self.batch_size) if adaptive else 1.0
        return Measurement(
            policy=policy.name,
            budget=policy.budget,
            strategy=name,
            batch_size=self.batch_size,
            samples=self.samples,
            samples_per_second=self.samples / median,
            median_seconds=median,
            spread_seconds=max(timed.seconds) - min(timed.seconds),
            repeats=len(timed.seconds),
            speedup=1 / relative,
            ideal_speedup=1 / share,
            realised_over_ideal=_ratio(1 - relative, 1 - share) if adaptive else None,
            p50_ms=float(np.percentile(waits, 50)),
            p95_ms=float(np.percentile(waits, 95)),
            exit_rates=tuple(float(rate) for rate in rates),
            same_exits=float((exits == wanted).mean()) if adaptive or name == DECIDING else 1.0,
            device=self.device,
            picked=timed.picked,
        )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 1e-9 and math.isfinite(whole) else None


def to_json(measurement: Measurement) -> Mapping[str, Any]:
    """A measurement as JSON values."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(measurement).items()}
