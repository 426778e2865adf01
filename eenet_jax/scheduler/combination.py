"""Answers that combine the exits passed: a weighted sum of their log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from eenet_jax.scheduler.features import PROBABILITY_FLOOR
from eenet_jax.types import Array

STEPS = 12
NUMBERS_A_BLOCK = 2**24
"""Probabilities looked at at once, so that memory does not follow the samples."""
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


@jax.jit
def _fit_row(probs, labels):
    start = jnp.zeros(probs.shape[0]).at[-1].set(1.0)

    def step(weights, _):
        slope, curvature = _derivatives(weights, probs, labels)
        slope = slope + PENALTY * (weights - start)
        curvature = curvature + PENALTY * jnp.eye(weights.size)
        move = jnp.linalg.solve(curvature, slope)
        return weights - jnp.clip(move, -0.5, 0.5), None

    return jax.lax.scan(step, start, length=STEPS)[0]


def _derivatives(weights, probs, labels):
    """Gradient and Hessian of the negative log-likelihood, summed up a block of samples at a time.

    The gradient is the mean log-probability under the combined answer less the true class's,
    the Hessian the covariance of the exits' log-probabilities under the combined answer.
    """
    seen, samples, classes = probs.shape
    block = max(1, min(samples, NUMBERS_A_BLOCK // (seen * classes)))
    padding = -samples % block
    probs = jnp.pad(probs, ((0, 0), (0, padding), (0, 0)), constant_values=1.0)
    labels = jnp.pad(labels, (0, padding))
    counts = jnp.arange(samples + padding) < samples

    def add(sums, first):
        some = jax.lax.dynamic_slice_in_dim(probs, first, block, axis=1)
        logs = jnp.log(jnp.maximum(some, PROBABILITY_FLOOR))
        answer = jax.nn.softmax(combined_logits(weights, some)) * _slice(counts, first)[:, None]
        true = jnp.take_along_axis(logs, _slice(labels, first)[None, :, None], axis=2)[..., 0]
        mean = jnp.einsum("knc,nc->kn", logs, answer, precision="highest")
        square = jnp.einsum("knc,jnc,nc->kj", logs, logs, answer, precision="highest")
        slope = (mean - true * _slice(counts, first)[None]).sum(1)
        return (sums[0] + slope, sums[1] + square - mean @ mean.T), None

    def _slice(values, first):
        return jax.lax.dynamic_slice_in_dim(values, first, block)

    nothing = (jnp.zeros(seen), jnp.zeros((seen, seen)))
    return jax.lax.scan(add, nothing, jnp.arange(0, samples, block))[0]
