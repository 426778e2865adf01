"""Answers that combine the exits passed: a weighted sum of their log-probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from eenet_jax.scheduler.features import PROBABILITY_FLOOR
from eenet_jax.types import Array

STEPS = 12
PENALTY = 10.0
"""Pull of a row of weights towards the exit's own answer, in samples' worth of information."""


def combined_logits(
    weights: Float[Array, " seen"], probs: Float[Array, "seen samples classes"]
) -> Float[Array, "samples classes"]:
    """The weighted sum of the exits' log-probabilities.

    Args:
      weights: One an exit seen.
      probs: Softmax outputs of these exits.
    """
    # Exit by exit, in an order that no batch size changes.
    total = weights[0] * jnp.log(jnp.maximum(probs[0], PROBABILITY_FLOOR))
    for weight, each in zip(weights[1:], probs[1:], strict=True):
        total = total + weight * jnp.log(jnp.maximum(each, PROBABILITY_FLOOR))
    return total


def fit_combination(
    probs: Float[Array, "exits samples classes"], labels: Int[Array, " samples"]
) -> Float[np.ndarray, "exits exits"]:
    """Weights of exits 1..k in exit k's answer, by penalised maximum likelihood.

    Args:
      probs: Softmax outputs.
      labels: True classes.

    Returns:
      One row an exit, 0 for the exits after it.
    """
    exits = probs.shape[0]
    weights = np.zeros((exits, exits), np.float32)
    for k in range(exits):
        weights[k, : k + 1] = _fit_row(jnp.asarray(probs[: k + 1]), jnp.asarray(labels))
    return weights


@functools.partial(jax.jit)
def _fit_row(probs, labels):
    start = jnp.zeros(probs.shape[0]).at[-1].set(1.0)

    def loss(weights):
        logits = combined_logits(weights, probs)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -picked.sum() + 0.5 * PENALTY * ((weights - start) ** 2).sum()

    def step(weights, _):
        move = jnp.linalg.solve(jax.hessian(loss)(weights), jax.grad(loss)(weights))
        return weights - jnp.clip(move, -0.5, 0.5), None

    return jax.lax.scan(step, start, length=STEPS)[0]
