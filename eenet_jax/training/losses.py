"""Joint loss of all exits, and late self-distillation from the last one."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

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
    logits: Float[Array, "exits batch *dense classes"],
    labels: Int[Array, "batch *dense"],
    weights: Float[Array, " exits"],
) -> Float[Array, ""]:
    """Σ_k w_k · CE_k, each cross-entropy a mean over all that is labelled in the batch."""
    losses, labelled = cross_entropies(logits, labels)
    axes = tuple(range(1, losses.ndim))
    return weights @ (losses.sum(axes) / jnp.maximum(labelled.sum(), 1))


def cross_entropies(
    logits: Float[Array, "exits batch *dense classes"], labels: Int[Array, "batch *dense"]
) -> tuple[Float[Array, "exits batch *dense"], Bool[Array, "batch *dense"]]:
    """The cross-entropy of every sample or pixel, 0 where the label is negative; and where not."""
    labelled = labels >= 0
    # A sum over a mask, not a gather, whose gradient would be a scatter: pixel by pixel that is
    # half the time of a training step on a CPU.
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.where(classes == labels[None, ..., None], logits, 0.0).sum(-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.where(labelled[None], losses, 0.0), labelled


def mean_per_sample(
    values: Float[Array, "exits batch *dense"], labelled: Bool[Array, "batch *dense"]
) -> Float[Array, "exits batch"]:
    """Each sample's mean over what is labelled in it; 0 where nothing is."""
    axes = tuple(range(2, values.ndim))
    sums = jnp.where(labelled[None], values, 0.0).sum(axes)
    return sums / jnp.maximum(labelled.sum(tuple(range(1, labelled.ndim))), 1)[None]


def self_distillation(
    logits: Float[Array, "exits batch *dense classes"],
    labelled: Bool[Array, "batch *dense"],
    temperature: float,
) -> Float[Array, ""]:
    """T² · Σ_{k<K} KL(last exit ‖ exit k) at temperature T (Hinton et al. 2015).

    The KL is a sum over classes and a mean over samples, or over labelled pixels; no gradient
    flows through the teacher.
    """
    scaled = jax.nn.log_softmax(logits / temperature)
    teacher = jax.lax.stop_gradient(scaled[-1])
    divergence = jnp.sum(jnp.exp(teacher)[None] * (teacher[None] - scaled[:-1]), -1)
    total = jnp.where(labelled[None], divergence, 0.0).sum()
    return temperature**2 * total / jnp.maximum(labelled.sum(), 1)
