"""Masked execution: one program for the whole batch, with whole stages skipped inside it.

Shapes stay fixed, as accelerators like it. Every stage runs on the whole batch, or on each piece
of it, until its last sample has left; from there on `lax.cond` skips.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from eenet_jax.execution.decision import Answers, Reached, advance, start
from eenet_jax.execution.shards import Devices, on_devices
from eenet_jax.pieces import checked_piece, in_pieces, suitable_pieces
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import PyTree


def masked(
    network: StagedNetwork,
    policy: Policy,
    *,
    piece: int | None = None,
    devices: Devices = (),
) -> Callable[[PyTree, PyTree], Answers]:
    """A function (variables, batch) → `Answers`, jitted.

    On a CPU of several cores that program runs on both halves of a batch at once, see `sides.py`.

    Args:
      network: The network.
      policy: Fitted for its exits.
      piece: Samples that go through together, and skip together; by default what suits the
        device, see `suitable_pieces`.
      devices: Each takes a part of the batch, and skips what its own part has no need of; by
        default the first alone.
    """

    return _by_pieces(network, policy, piece, devices, skipping=True)


def answered_in_full(network: StagedNetwork, policy: Policy) -> Callable[[PyTree, PyTree], Answers]:
    """The same answers in the same way, without skipping anything: every exit for everybody.

    Args:
      network: The network.
      policy: Fitted for its exits.
    """
    return _by_pieces(network, policy, None, (), skipping=False)


def _by_pieces(
    network: StagedNetwork, policy: Policy, piece: int | None, devices: Devices, skipping: bool
) -> Callable[[PyTree, PyTree], Answers]:
    def run(variables: PyTree, x: PyTree) -> Answers:
        reached, logits, left = advance(network, policy, 0, variables, start(network, x))
        answers = Answers(logits, jnp.zeros(logits.shape[0], jnp.int32))
        for k in range(1, network.num_exits):
            reached, answers, left = _exit(
                network, policy, k, variables, reached, answers, left, skipping
            )
        return answers

    def by_pieces(variables: PyTree, x: PyTree) -> Answers:
        if piece is None:
            size = min(suitable_pieces(network, variables, x))
        else:
            size = checked_piece(piece)
        return in_pieces(run, size)(network.prepared(variables), x)

    return on_devices(by_pieces, devices)


def _exit(network, policy, k: int, variables, reached: Reached, answers: Answers, left, skipping):
    """Exit k for those who have not left; where skipping, nothing at all if everybody has."""

    def go(reached: Reached):
        after, logits, leaves = advance(network, policy, k, variables, reached)
        each = left.reshape(-1, *[1] * (logits.ndim - 1))
        kept = jnp.where(each, answers.logits, logits)
        exit_index = jnp.where(left, answers.exit_index, k)
        return after, Answers(kept, exit_index), left | leaves

    def skip(reached: Reached):
        shapes = jax.eval_shape(lambda reached: go(reached)[0].parts(), reached)
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return Reached(*empty), answers, left

    return jax.lax.cond(left.all(), skip, go, reached) if skipping else go(reached)
