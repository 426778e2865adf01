"""The strategies of execution by their names, each made for a network, a policy and a batch size.

All of them answer a batch alike: every sample leaves where the policy says, with that exit's
answer. They differ in what is computed on the way.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from eenet_jax.errors import InputError
from eenet_jax.execution.buckets import measured_buckets
from eenet_jax.execution.compacted import Compacted
from eenet_jax.execution.decision import Answers, advance, start
from eenet_jax.execution.device_compacted import device_compacted
from eenet_jax.execution.latency import StageLatency
from eenet_jax.execution.masked import masked
from eenet_jax.execution.pieces import in_pieces
from eenet_jax.execution.prediction import best_piece
from eenet_jax.execution.streaming import Stream
from eenet_jax.policies.policy import Policy
from eenet_jax.types import PyTree, StagedNetwork

Strategy = Callable[[PyTree, PyTree], Answers]
"""A function (variables, batch) → `Answers` in the batch's order."""

BATCHED = ("full", "masked", "compacted", "device_compacted")
"""Strategies that answer a batch before they take the next."""
NAMES = (*BATCHED, "streaming")


def answered_in_full(network: StagedNetwork, policy: Policy, piece: int | None = None) -> Strategy:
    """A jitted strategy that computes every exit for everybody, and saves nothing.

    Args:
      network: The network.
      policy: Fitted for its exits.
      piece: Samples that go through together; by default the batch.
    """

    def run(variables: PyTree, x: PyTree) -> Answers:
        reached = start(network, x)
        reached, logits, left = advance(network, policy, 0, variables, reached)
        exits = jnp.zeros(logits.shape[0], jnp.int32)
        for k in range(1, network.num_exits):
            reached, said, leaves = advance(network, policy, k, variables, reached)
            gone = left.reshape(-1, *[1] * (said.ndim - 1))
            logits, exits = jnp.where(gone, logits, said), jnp.where(left, exits, k)
            left = left | leaves
        return Answers(logits, exits)

    return jax.jit(in_pieces(run, piece))


def build_strategy(
    name: str, network: StagedNetwork, policy: Policy, batch_size: int, latency: StageLatency
) -> Strategy:
    """The strategy of that name, in the sizes that cost least where `latency` was measured.

    Args:
      name: One of `BATCHED`.
      network: The network.
      policy: Fitted for its exits.
      batch_size: The greatest batch it will be given.
      latency: Of the network's stages on this device.

    Raises:
      InputError: there is no such strategy.
    """
    piece = best_piece(latency, batch_size)
    if name == "full":
        return answered_in_full(network, policy, piece)
    if name == "masked":
        return masked(network, policy, piece=piece)
    if name == "device_compacted":
        return device_compacted(network, policy, piece=piece)
    if name == "compacted":
        buckets = measured_buckets(latency, batch_size)
        return Compacted(network, policy, batch_size, buckets)
    raise InputError(f"strategy '{name}' is unknown: choose {', '.join(BATCHED)}")


def build_stream(
    network: StagedNetwork,
    variables: PyTree,
    policy: Policy,
    batch_size: int,
    latency: StageLatency,
    **settings,
) -> Stream:
    """A stream in the sizes that cost least where `latency` was measured.

    Args:
      network: The network.
      variables: Its weights.
      policy: Fitted for its exits.
      batch_size: The greatest batch that a stage runs on.
      latency: Of the network's stages on this device.
      **settings: Further ones of `Stream`.
    """
    buckets = measured_buckets(latency, batch_size)
    return Stream(network, variables, policy, batch_size=batch_size, buckets=buckets, **settings)


def samples_of(x: PyTree) -> list[PyTree]:
    """The samples of a batch one by one, as a stream takes them."""
    x = jax.tree.map(np.asarray, x)
    count = len(jax.tree.leaves(x)[0])
    return [jax.tree.map(lambda leaf, n=n: leaf[n], x) for n in range(count)]
