"""One stage, its exit head and the decision to leave, as every strategy runs them."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from eenet_jax.networks import MultiExitNetwork
from eenet_jax.policies.policy import Policy
from eenet_jax.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Answers:
    """What adaptive inference says of a batch.

    Attributes:
      logits: Of the exit that each sample left at, [batch, classes].
      exit_index: 0-based, [batch].
    """

    logits: Float[Array, "batch classes"] | Float[np.ndarray, "batch classes"]
    exit_index: Int[Array, " batch"] | Int[np.ndarray, " batch"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reached:
    """Where a batch stands after an exit: all that the next stage and its decision need.

    Attributes:
      carry: The network's carry.
      probs: Softmax outputs of the exits so far, [exits so far, batch, classes].
    """

    carry: PyTree
    probs: Float[Array, "passed batch classes"]


def start(network: MultiExitNetwork, x: PyTree) -> Reached:
    """Before the first stage."""
    batch = jax.tree.leaves(x)[0].shape[0]
    return Reached(carry=x, probs=jnp.zeros((0, batch, network.num_classes)))


def advance(
    network: MultiExitNetwork, policy: Policy, k: int, variables: PyTree, reached: Reached
) -> tuple[Reached, Float[Array, "batch classes"], Bool[Array, " batch"]]:
    """Run stage k and its exit head on a batch, and decide.

    Args:
      network: The network.
      policy: Whose score at exit k is held against its threshold.
      k: 0-based.
      variables: Of the network.
      reached: After exit k-1.

    Returns:
      Where the batch stands now, the exit's logits, and who leaves here.
    """
    carry, _ = network.stage(k, variables, reached.carry, False, None)
    logits, _ = network.head(k, variables, carry, False, None)
    probs = jnp.concatenate([reached.probs, jax.nn.softmax(logits)[None]])
    if k == network.num_exits - 1:
        leaves = jnp.ones(logits.shape[0], bool)
    else:
        leaves = jnp.asarray(policy.score(k, probs)) >= policy.thresholds[k]
    return Reached(carry=carry, probs=probs), logits, leaves


def compile_advance(network: MultiExitNetwork, policy: Policy, k: int) -> Callable:
    """`advance` at exit k as one jitted function of (variables, reached)."""
    return jax.jit(lambda variables, reached: advance(network, policy, k, variables, reached))
