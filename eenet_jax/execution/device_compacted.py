"""Compacted execution inside one program: no trip to the host between exits.

After each exit the survivors are gathered to the front, into the smallest of a few sizes that
holds them, and `lax.switch` runs the next stage on that many. Every size is compiled into the
program, which therefore takes longer to compile than the host-driven form does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from eenet_jax.execution.decision import Answers, Reached, advance, start
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.policies.policy import Policy
from eenet_jax.types import PyTree

SHARES = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
"""Of a batch, that a size holds."""
SMALLEST = 8


def bucket_sizes(batch: int) -> tuple[int, ...]:
    """Sizes, rising, that survivors of a batch are gathered into; the last is the batch itself.

    Args:
      batch: Samples.
    """
    rounded = {min(batch, max(SMALLEST, -(-int(share * batch) // 8) * 8)) for share in SHARES}
    return tuple(sorted(rounded | {batch}))


def device_compacted(
    network: MultiExitNetwork, policy: Policy
) -> Callable[[PyTree, PyTree], Answers]:
    """A jitted function (variables, batch) → `Answers`.

    Args:
      network: The network.
      policy: Fitted for its exits.
    """

    def run(variables: PyTree, x: PyTree) -> Answers:
        reached, logits, left = advance(network, policy, 0, variables, start(network, x))
        batch = logits.shape[0]
        answers = Answers(logits, jnp.zeros(batch, jnp.int32))
        # Where in the batch each of the samples at the front belongs, and who goes on.
        places, stay = jnp.arange(batch), ~left
        for k in range(1, network.num_exits):
            exit_at = _Exit(network, policy, k, variables, batch)
            reached, places, stay, answers = exit_at(reached, places, stay, answers)
        return answers

    return jax.jit(run)


class _Exit:
    """One exit, for as many as the smallest size that holds the survivors."""

    def __init__(self, network, policy: Policy, k: int, variables: PyTree, batch: int):
        self._network, self._policy, self._k = network, policy, k
        self._variables, self._batch = variables, batch

    def __call__(self, reached: Reached, places, stay, answers: Answers):
        sizes = bucket_sizes(self._batch)
        count = stay.sum()
        # Branch 0 is for nobody.
        which = jnp.where(count == 0, 0, 1 + jnp.searchsorted(jnp.asarray(sizes), count))
        branches = [self._skip, *(self._branch(size) for size in sizes)]
        parts = (reached.carry, reached.probs, reached.measures, reached.classes)
        state = (parts, places, stay, answers.logits, answers.exit_index)
        (parts, places, stay, logits, exits) = jax.lax.switch(which, branches, state)
        return Reached(*parts), places, stay, Answers(logits, exits)

    def _skip(self, state):
        shapes = jax.eval_shape(self._branch(self._batch), state)[0]
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return (empty, *state[1:])

    def _branch(self, size: int):
        def run(state):
            parts, places, stay, logits, exits = state
            rows = jnp.nonzero(stay, size=size, fill_value=0)[0]
            valid = jnp.arange(size) < stay.sum()
            after, said, leaves = advance(
                self._network, self._policy, self._k, self._variables, _taken(parts, rows)
            )
            own = places[rows]
            # Whoever stays, and what only fills the size up, is written nowhere.
            target = jnp.where(valid & leaves, own, self._batch)
            logits = logits.at[target].set(said, mode="drop")
            exits = exits.at[target].set(self._k, mode="drop")
            carried = self._filled_up(after, size)
            fill = (0, self._batch - size)
            return carried, jnp.pad(own, fill), jnp.pad(valid & ~leaves, fill), logits, exits

        return run

    def _filled_up(self, reached: Reached, size: int):
        """All branches give as many; the last exit hands nothing on."""
        fill = self._batch - size

        def padded(leaf, axis):
            return jnp.pad(leaf, [(0, fill if i == axis else 0) for i in range(leaf.ndim)])

        if self._k == self._network.num_exits - 1:
            nothing = jnp.zeros((0, self._batch), jnp.float32)
            return (), nothing[..., None], None, None
        carry = jax.tree.map(lambda leaf: padded(leaf, 0), reached.carry)
        passed = (reached.probs, reached.measures, reached.classes)
        return (carry, *jax.tree.map(lambda leaf: padded(leaf, 1), passed))


def _taken(parts, rows) -> Reached:
    carry, *passed = parts
    # What is kept of the exits has them as its first axis.
    return Reached(
        jax.tree.map(lambda leaf: leaf[rows], carry),
        *jax.tree.map(lambda leaf: leaf[:, rows], passed),
    )
