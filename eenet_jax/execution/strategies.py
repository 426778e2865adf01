"""The strategies of execution by their names, each made for a network and a policy.

All of them answer a batch alike: every sample leaves where the policy says, with that exit's
answer. They differ in what is computed on the way.
"""

from collections.abc import Callable

from eenet_jax.errors import InputError
from eenet_jax.execution.buckets import measured_buckets
from eenet_jax.execution.compacted import compacted
from eenet_jax.execution.decision import Answers
from eenet_jax.execution.host_compacted import HostCompacted
from eenet_jax.execution.latency import StageLatency
from eenet_jax.execution.masked import masked
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import PyTree

Strategy = Callable[[PyTree, PyTree], Answers]
"""A function (variables, batch) → `Answers` in the batch's order."""

BATCHED = ("masked", "compacted", "host_compacted")
"""Adaptive strategies that answer a batch before they take the next; a stream does not."""


def build_strategy(
    name: str, network: StagedNetwork, policy: Policy, batch_size: int, latency: StageLatency
) -> Strategy:
    """The strategy of that name.

    Args:
      name: One of `BATCHED`.
      network: The network.
      policy: Fitted for its exits.
      batch_size: The batch it will mostly be given.
      latency: Of the network's stages on this device, by which buckets are chosen.

    Raises:
      InputError: there is no such strategy.
    """
    if name == "masked":
        return masked(network, policy)
    if name == "compacted":
        return compacted(network, policy)
    if name == "host_compacted":
        return HostCompacted(network, policy, measured_buckets(latency, batch_size))
    raise InputError(f"strategy '{name}' is unknown: choose {', '.join(BATCHED)}")
