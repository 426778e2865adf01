"""The two losses of EENet's scheduler.

Source: Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet (2024).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from eenet_jax.types import Array

TINY = 1e-12
PROBABILITY_FLOOR = 1e-3
"""Scores stay this far from 0 and 1 inside the logarithms of the score loss."""


def clip_with_way_back(
    scores: Float[Array, "exits samples"], correct: Float[Array, "exits samples"]
) -> Float[Array, "exits samples"]:
    """Scores clipped to (0, 1), the gradient kept wherever it leads back inside.

    A plain clip has no gradient where it binds, so a fit that starts outside stays there.
    """
    clipped = jnp.clip(scores, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    passed = scores + jax.lax.stop_gradient(clipped - scores)
    satisfied = jnp.where(scores > clipped, correct >= clipped, correct <= clipped)
    return jnp.where((scores != clipped) & satisfied, jax.lax.stop_gradient(clipped), passed)


def score_loss(
    scores: Float[Array, "exits samples"],
    correct: Float[Array, "exits samples"],
    log_assignment: Float[Array, "exits samples"],
    present: Bool[Array, " samples"],
) -> Float[Array, ""]:
    """L_q: the mean over exits of Σ_n w[n,k]·BCE(q[k,n], correct[k,n]), w = p/Σ_n p.

    Args:
      scores: q, unclipped.
      correct: Targets, 0 or 1, or shares in between.
      log_assignment: log p; its gradient is stopped.
      present: The samples that count.
    """
    inside = clip_with_way_back(scores, correct)
    cross_entropy = -(correct * jnp.log(inside) + (1 - correct) * jnp.log1p(-inside))
    masked = jnp.where(present[None], log_assignment, -jnp.inf)
    # Shares of an exit's total, in logs: no 0/0 where an exit's whole column underflows.
    weights = jax.lax.stop_gradient(jax.nn.softmax(masked, axis=1))
    return jnp.where(present[None], weights * cross_entropy, 0.0).sum(1).mean()


def score_target(
    scores: Float[Array, "exits samples"], beta: float
) -> Float[Array, "exits samples"]:
    """q^β/Σ_k q^β of the clipped scores; uniform where all of them are 0."""
    powered = jnp.clip(scores, 0.0, 1.0) ** beta + TINY
    return powered / powered.sum(0, keepdims=True)


def budget_loss(
    scores: Float[Array, "exits samples"],
    log_assignment: Float[Array, "exits samples"],
    costs: Float[Array, " exits"],
    budget: Float[Array, ""],
    present: Bool[Array, " samples"],
    *,
    alpha_kl: float,
    alpha_budget: float,
    beta: float,
) -> Float[Array, ""]:
    """L_r = α_KL·KL(q^β/Σ_k q^β ‖ p) + α_B·|mean_n Σ_k p[n,k]·c[k] - B|/B.

    Args:
      scores: q; the target's gradient is stopped.
      log_assignment: log p.
      costs: Cost of each exit.
      budget: B, in the unit of the costs.
      present: The samples that count.
      alpha_kl: Weight of the KL, which is a mean over samples and exits.
      alpha_budget: Weight of the distance from the budget.
      beta: Sharpness of the target.
    """
    count = jnp.maximum(present.sum(), 1)
    target = jax.lax.stop_gradient(score_target(scores, beta))
    divergence = target * (jnp.log(target) - log_assignment)
    kl = jnp.where(present[None], divergence, 0.0).sum() / (count * scores.shape[0])
    spent = (jnp.exp(log_assignment) * costs[:, None]).sum(0)
    mean_cost = jnp.where(present, spent, 0.0).sum() / count
    return alpha_kl * kl + alpha_budget * jnp.abs(mean_cost - budget) / budget
