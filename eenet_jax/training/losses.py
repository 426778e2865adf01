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
    smoothing: float = 0.0,
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Σ_k w_k · CE_k, each cross-entropy a mean over all that is labelled in the batch.

    Args:
      logits: Of every exit.
      labels: Negative where there is none.
      weights: Of the exits.
      smoothing: ε of label smoothing.
      count: What is divided by, where `logits` are of a part of the batch alone.
    """
    losses, labelled = cross_entropies(logits, labels, smoothing)
    total = jnp.asarray(labelled.sum() if count is None else count)
    return weights @ (losses.sum(tuple(range(1, losses.ndim))) / jnp.maximum(total, 1))


def cross_entropies(
    logits: Float[Array, "exits batch *dense classes"],
    labels: Int[Array, "batch *dense"],
    smoothing: float = 0.0,
) -> tuple[Float[Array, "exits batch *dense"], Bool[Array, "batch *dense"]]:
    """The cross-entropy of every sample or pixel, 0 where the label is negative; and where not.

    With smoothing ε it is that against (1 - ε) of the label and ε of all classes alike (Szegedy et
    al. 2016, section 7).
    """
    labelled = labels >= 0
    # A sum over a mask, not a gather, whose gradient would be a scatter: pixel by pixel that is
    # half the time of a training step on a CPU.
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.where(classes == labels[None, ..., None], logits, 0.0).sum(-1)
    if smoothing:
        chosen = (1 - smoothing) * chosen + smoothing * logits.mean(-1)
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
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """T² · Σ_{k<K} KL(last exit ‖ exit k) at temperature T (Hinton et al. 2015).

    The KL is a sum over classes and a mean over samples, or over labelled pixels; no gradient
    flows through the teacher. `count` is as in `joint_cross_entropy`.
    """
    scaled = jax.nn.log_softmax(logits / temperature)
    teacher = jax.lax.stop_gradient(scaled[-1])
    divergence = jnp.sum(jnp.exp(teacher)[None] * (teacher[None] - scaled[:-1]), -1)
    total = jnp.where(labelled[None], divergence, 0.0).sum()
    divisor = jnp.maximum(jnp.asarray(labelled.sum() if count is None else count), 1)
    return temperature**2 * total / divisor
