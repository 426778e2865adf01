"""Time adaptive inference beside the full network, on the same batches in the same run."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from eenet_jax.costs import measure_latency
from eenet_jax.dense import all_image_means
from eenet_jax.errors import InputError
from eenet_jax.execution.compacted import Compacted
from eenet_jax.execution.device_compacted import device_compacted
from eenet_jax.execution.masked import masked
from eenet_jax.policies.policy import Policy
from eenet_jax.types import PyTree, StagedNetwork

STRATEGIES = ("masked", "compacted", "device_compacted")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One strategy, one policy, one batch size.

    Attributes:
      policy: Its name.
      budget: As given when it was fitted.
      strategy: "full" (every exit for everybody), "last_exit" (the backbone and its last head
        alone), or one of `STRATEGIES`.
      batch_size: Samples a batch.
      samples: Samples in one timed pass.
      samples_per_second: At the median pass.
      median_seconds: Of the passes.
      spread_seconds: Slowest minus fastest pass.
      repeats: Timed passes.
      speedup: Full network's median over this one's.
      ideal_speedup: T_full / T_ideal, T_ideal being T_full times the sum over stages of the
        stage's part of the summed stage times and the share of samples that reaches it.
      realised_over_ideal: (T_full - T) / (T_full - T_ideal); None where nothing can be saved.
      exit_rates: Share that left at each exit.
      same_exits: Share of samples that left where the policy's decision on the full network's
        outputs says; below 1 only where a score is within rounding of its threshold.
      device: Its name.
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
    exit_rates: tuple[float, ...]
    same_exits: float
    device: str


class Bench:
    """The full network, timed over some batches, and what is needed to judge strategies by it.

    Args:
      network: The network.
      variables: Its weights.
      batches: Inputs [batch, …] on the host; the last may have fewer samples.
      repeats: Timed passes of everything.
      device: Name to report.
    """

    def __init__(
        self,
        network: StagedNetwork,
        variables: PyTree,
        batches: Sequence[PyTree],
        repeats: int,
        device: str,
    ):
        self.network, self.variables = network, variables
        self.repeats, self.device = repeats, device
        self.batches = [jax.device_put(batch) for batch in batches]
        sizes = [jax.tree.leaves(batch)[0].shape[0] for batch in batches]
        self.batch_size, self.samples = sizes[0], sum(sizes)
        self._full = jax.jit(network.apply)
        self._last = jax.jit(lambda variables, x: network.apply(variables, x)[-1])
        table = measure_latency(network, variables, batch_size=sizes[0], repeats=repeats)
        parts = np.add(table.extra["stage_ms"], table.extra["head_ms"])
        self.stage_parts = parts / parts.sum()
        outputs = [self._outputs(x) for x in self.batches]
        self.probs = np.concatenate([probs for probs, _ in outputs], axis=1)
        found = [measures for _, measures in outputs if measures is not None]
        self.measures = np.concatenate(found, axis=1) if found else None

    def _outputs(self, x: PyTree) -> tuple[np.ndarray, np.ndarray | None]:
        """The full network's softmax outputs and, for dense prediction, its measures."""
        logits = self._full(self.variables, x)
        if not self.network.dense:
            return np.asarray(jax.nn.softmax(logits)), None
        probs, measures = jax.jit(all_image_means)(logits)
        return np.asarray(probs), np.asarray(measures)

    def measure(self, policy: Policy, strategies: Sequence[str] = STRATEGIES) -> list[Measurement]:
        """Time the full network, its last exit alone, and each strategy, pass by pass in turn.

        Args:
          policy: Fitted for the network's exits.
          strategies: Of `STRATEGIES`.

        Returns:
          One measurement a strategy, "full" and "last_exit" first.
        """
        calls = self._calls(policy, strategies)
        exits = {name: self._exits(name, call, policy) for name, call in calls.items()}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(self.repeats):
            for name, call in calls.items():
                seconds[name].append(self._time(call))
        full = statistics.median(seconds["full"])
        wanted = policy.decide(self.probs, self.measures)
        return [
            self._measurement(policy, name, times, full, exits[name], wanted)
            for name, times in seconds.items()
        ]

    def _calls(self, policy: Policy, strategies: Sequence[str]) -> dict[str, Callable]:
        calls: dict[str, Callable] = {"full": self._full, "last_exit": self._last}
        for name in strategies:
            if name == "masked":
                calls[name] = masked(self.network, policy)
            elif name == "device_compacted":
                calls[name] = device_compacted(self.network, policy)
            elif name == "compacted":
                calls[name] = Compacted(self.network, policy, self.batch_size)
                for x in self._shapes():
                    calls[name].warm_up(self.variables, x)
            else:
                raise InputError(f"strategy '{name}' is unknown: choose {', '.join(STRATEGIES)}")
        return calls

    def _shapes(self) -> list[PyTree]:
        """A batch of each shape; texts have several, and the last batch's own needs no bucket."""
        found = {}
        for x in self.batches:
            leaf = jax.tree.leaves(x)[0]
            if leaf.shape[0] == self.batch_size:
                found[leaf.shape] = x
        return list(found.values())

    def _exits(self, name: str, call: Callable, policy: Policy) -> Int[np.ndarray, " samples"]:
        """Where samples leave; running every batch once also warms up."""
        results = [call(self.variables, x) for x in self.batches]
        if name in ("full", "last_exit"):
            jax.block_until_ready(results)
            return np.full(self.samples, policy.num_exits - 1)
        return np.concatenate([np.asarray(result.exit_index) for result in results])

    def _time(self, call: Callable) -> float:
        """Seconds for one pass over all batches, each answer on the host before the next."""
        start = time.perf_counter()
        for x in self.batches:
            jax.device_get(call(self.variables, x))
        return time.perf_counter() - start

    def _measurement(self, policy, name, times, full, exits, wanted) -> Measurement:
        median = statistics.median(times)
        adaptive = name not in ("full", "last_exit")
        rates = np.bincount(exits, minlength=policy.num_exits) / self.samples
        ideal = full * self._ideal_share(rates) if adaptive else full
        return Measurement(
            policy=policy.name,
            budget=policy.budget,
            strategy=name,
            batch_size=self.batch_size,
            samples=self.samples,
            samples_per_second=self.samples / median,
            median_seconds=median,
            spread_seconds=max(times) - min(times),
            repeats=self.repeats,
            speedup=full / median,
            ideal_speedup=full / ideal,
            realised_over_ideal=_ratio(full - median, full - ideal) if adaptive else None,
            exit_rates=tuple(float(rate) for rate in rates),
            same_exits=float((exits == wanted).mean()) if adaptive else 1.0,
            device=self.device,
        )

    def _ideal_share(self, rates: Float[np.ndarray, " exits"]) -> float:
        """The share of the full network's time that is left if samples run only their stages."""
        reaching = np.cumsum(rates[::-1])[::-1]
        return float(self.stage_parts @ reaching)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 1e-9 and math.isfinite(whole) else None


def to_json(measurement: Measurement) -> Mapping[str, Any]:
    """A measurement as JSON values."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(measurement).items()}
