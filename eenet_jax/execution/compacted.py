"""Compacted execution inside one program: no trip to the host between exits.

After each exit the survivors are gathered to the front, into the smallest of a few sizes that
holds them, and `lax.switch` runs the next stage on that many. Every size is compiled into the
program, which therefore takes longer to compile than the host-driven form does. Where a batch
goes through in pieces, survivors of several pieces share one: `carry_over.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from eenet_jax.execution.carry_over import carried_over
from eenet_jax.execution.decision import Answers, Reached, advance, start
from eenet_jax.execution.shards import Devices, on_devices
from eenet_jax.execution.sizes import switch_sizes
from eenet_jax.pieces import checked_piece, suitable_pieces
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import PyTree


def compacted(
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
      piece: Samples that a stage runs on at a time; by default what suits the device, see
        `suitable_pieces`.
      devices: Each takes a part of the batch, and compacts its own survivors: none of them ever
        waits for another. By default the first alone.
    """

    def run(variables: PyTree, x: PyTree) -> Answers:
        variables = network.prepared(variables)
        if piece is None:
            pieces = suitable_pieces(network, variables, x)
        else:
            pieces = (checked_piece(piece),) * network.num_exits
        if min(pieces) < jax.tree.leaves(x)[0].shape[0]:
            return carried_over(network, policy, pieces, variables, x)
        return _switched(network, policy, variables, x)

    return on_devices(run, devices)


def _switched(network: StagedNetwork, policy: Policy, variables: PyTree, x: PyTree) -> Answers:
    reached, logits, left = advance(network, policy, 0, variables, start(network, x))
    batch = logits.shape[0]
    # Where in the batch each of the samples at the front belongs, and who goes on.
    places, stay, exits = jnp.arange(batch), ~left, jnp.zeros(batch, jnp.int32)
    state = (reached.parts(), places, stay, logits, exits)
    for k in range(1, network.num_exits):
        state = _exit(network, policy, k, variables, state)
    return Answers(*state[-2:])


def _exit(network, policy, k: int, variables, state):
    """Exit k for the survivors, as many as the smallest size holds; nothing where there are none.

    Args:
      network: The network.
      policy: Whose decision is made.
      k: 0-based.
      variables: Of the network.
      state: Parts of `Reached`, places, who goes on, and the answers' logits and exits.
    """
    batch = state[1].size

    def branch(size: int):
        return lambda state: _advance(network, policy, k, variables, state, size)

    def skip(state):
        shapes = jax.eval_shape(branch(batch), state)[0]
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return (nothing, *state[1:])

    sizes = switch_sizes(batch)
    count = state[2].sum()
    which = jnp.where(count == 0, 0, 1 + jnp.searchsorted(jnp.asarray(sizes), count))
    return jax.lax.switch(which, [skip, *map(branch, sizes)], state)


def _advance(network, policy, k: int, variables, state, size: int):
    """Exit k on the survivors at the front of `size` rows; all sizes give arrays of one shape."""
    parts, places, stay, logits, exits = state
    batch = places.size
    rows = jnp.nonzero(stay, size=size, fill_value=0)[0]
    valid = jnp.arange(size) < stay.sum()
    after, said, leaves = advance(network, policy, k, variables, Reached(*parts).take(rows))
    own = places[rows]
    # Whoever stays, and what only fills the size up, is written nowhere.
    target = jnp.where(valid & leaves, own, batch)

    def filled_up(leaf, axis):
        return jnp.pad(leaf, [(0, batch - size if i == axis else 0) for i in range(leaf.ndim)])

    return (
        after.each(filled_up).parts(),
        filled_up(own, 0),
        filled_up(valid & ~leaves, 0),
        logits.at[target].set(said, mode="drop"),
        exits.at[target].set(k, mode="drop"),
    )
