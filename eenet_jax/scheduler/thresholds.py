"""Thresholds from an exit distribution, for many distributions at once."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from eenet_jax.types import Array

BLOCK = 64
"""Samples summed up by one matrix product."""


def running_sum(values: Float[Array, " samples"]) -> Float[Array, " samples"]:
    """The cumulative sum, by blocks: several times as fast as XLA's own on a processor.

    Counts of up to 2^24 samples are exact.
    """
    count = values.size
    blocks = jnp.pad(values, (0, -count % BLOCK)).reshape(-1, BLOCK)
    inside = blocks @ jnp.triu(jnp.ones((BLOCK, BLOCK), values.dtype))
    before = jnp.cumsum(inside[:, -1]) - inside[:, -1]
    return (inside + before[:, None]).reshape(-1)[:count]


def exit_quota(
    distribution: Float[np.ndarray, "*batch exits"], num_samples: int
) -> Int[np.ndarray, "*batch quotas"]:
    """⌊p_k·N⌋ for k = 1..K-1: how many samples each exit but the last is asked to take.

    The product is rounded up by a few units in its last place first: 0.29·100 is 29.

    Args:
      distribution: Shares of all samples by exit; each row sums to 1.
      num_samples: N.
    """
    shares = np.asarray(distribution)
    slack = 4 * np.finfo(shares.dtype).eps * num_samples
    quota = np.floor(shares[..., :-1].astype(np.float64) * num_samples + slack)
    return quota.astype(np.int32)


def ceil_quota(
    distribution: Float[Array, "*batch exits"], num_samples: Int[Array, ""] | int
) -> Int[Array, "*batch quotas"]:
    """⌈p_k·N⌉ for the early exits, less what float32 may add: rounding towards lower cost."""
    wanted = distribution[..., :-1] * num_samples
    return jnp.ceil(wanted - 1e-3).astype(jnp.int32)


def leave_by_quota(
    scores: Float[Array, "exits samples"],
    quota: Int[Array, " quotas"],
    present: Bool[Array, " samples"],
) -> tuple[Float[Array, " exits"], Bool[Array, "exits samples"]]:
    """The threshold routine.

    At each exit in turn the threshold is the quota-th largest score among the samples
    still in, and everyone who reaches it leaves. Each exit's scores are sorted once; a
    quota then costs one pass over the samples, so that this vmaps over quotas cheaply.

    Args:
      scores: Exit scores.
      quota: How many samples each exit but the last is asked to take.
      present: The samples that thresholds are set on; the others are left out.

    Returns:
      Thresholds, +∞ where nobody is asked for, -∞ at the last exit; and which of the samples
      present leave at each exit.
    """
    early = scores[:-1]
    order = jnp.argsort(early, axis=1, descending=True)

    def leave(remaining, exit_inputs):
        score, ranked, asked = exit_inputs
        so_far = running_sum(remaining[ranked].astype(jnp.float32))
        asked = jnp.minimum(asked, so_far[-1])
        place = jnp.searchsorted(so_far, asked)
        threshold = jnp.where(asked > 0, score[ranked[place]], jnp.inf)
        return remaining & (score < threshold), (threshold, remaining & (score >= threshold))

    last, (thresholds, leaving) = jax.lax.scan(leave, present, (early, order, quota))
    return jnp.append(thresholds, -jnp.inf), jnp.concatenate([leaving, last[None]])


def geometric(
    log_ratios: Float[np.ndarray, " members"], exits: int
) -> Float[np.ndarray, "members {exits}"]:
    """The exit distributions p_k ∝ s^k, one for each log s.

    Source: the budgeted evaluation of Huang et al., Multi-Scale Dense Networks (2018).
    """
    logits = np.asarray(log_ratios, np.float64)[:, None] * np.arange(exits)[None]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)
