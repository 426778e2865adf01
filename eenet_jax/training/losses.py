"""Joint loss of all exits, and late self-distillation from the last one."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from eenet_jax.types import Array


def exit_weights(kind: Literal["linear", "uniform"], num_exits: int) -> Float[Array, " exits"]:
    """Weights of the exits' losses, summing to 1.

    Args:
      kind: "linear" (exit k, counted from 1, in proportion to k; EENet, section 3) or "uniform".
      num_exits: K.
    """
    weights = jnp.arange(1.0, num_exits + 1) if kind == "linear" else jnp.ones(num_exits)
    return weights / weights.sum()


def joint_cross_entropy(
    logits: Float[Array, "exits batch classes"],
    labels: Int[Array, " batch"],
    weights: Float[Array, " exits"],
) -> Float[Array, ""]:
    """Σ_k w_k · CE_k, each cross-entropy a mean over the batch."""
    shared = jnp.broadcast_to(labels, logits.shape[:2])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, shared)
    return weights @ losses.mean(1)


def self_distillation(
    logits: Float[Array, "exits batch classes"], temperature: float
) -> Float[Array, ""]:
    """T² · Σ_{k<K} KL(last exit ‖ exit k) at temperature T (Hinton et al. 2015).

    The KL is a sum over classes and a mean over samples; no gradient flows through the teacher.
    """
    scaled = jax.nn.log_softmax(logits / temperature)
    teacher = jax.lax.stop_gradient(scaled[-1])
    divergence = jnp.sum(jnp.exp(teacher)[None] * (teacher[None] - scaled[:-1]), -1)
    return temperature**2 * divergence.mean(1).sum()
