"""The score of a linear g at one exit, by the same compiled program wherever it is asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from eenet_jax.confidence import measures_at
from eenet_jax.errors import InputError
from eenet_jax.policies.policy import Policy, sample_blocks
from eenet_jax.policies.problem import Problem
from eenet_jax.scheduler.network import exit_scores
from eenet_jax.types import MEASURES, Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LinearPolicy(Policy):
    """The score is g, unclipped.

    Attributes:
      weights: g's weights; see `eenet_jax.scheduler.network`.
    """

    weights: Float[np.ndarray, "exits weights"]

    def score(
        self,
        k: int,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Float[Array, " samples"]:
        """g at exit k; see `Policy.score`."""
        self.check_seen(k, probs)
        seen = None if measures is None else measures[: k + 1]
        return linear_score(self.weights, k, probs[: k + 1], seen)


def linear_score(
    weights: Float[np.ndarray, "exits weights"],
    k: int,
    probs: Float[Array, "seen samples classes"],
    measures: Float[Array, "seen samples 5"] | None,
) -> Float[Array, " samples"]:
    """g at exit k, unclipped, from exits 0..k alone.

    Args:
      weights: g's weights at every exit.
      k: Exit index, 0-based.
      probs: Softmax outputs of exits 0..k.
      measures: Dense prediction only: image means of the measures at the same exits.

    Raises:
      InputError: the number of classes is not the one the weights are for.
    """
    exits, wanted = len(weights), weights.shape[1]
    if probs.shape[-1] + len(MEASURES) + exits != wanted:
        raise InputError(
            f"probs has {probs.shape[-1]} classes, the policy was fitted to"
            f" {wanted - len(MEASURES) - exits}: use the network that it was fitted to"
        )
    probs = jnp.asarray(probs)
    if measures is None:
        measures = jnp.stack([measures_at(probs[: row + 1]) for row in range(k + 1)])
    return _last_score(jnp.asarray(weights[: k + 1]), probs, jnp.asarray(measures))


@jax.jit
def _last_score(weights, probs, measures):
    return exit_scores(weights, probs, measures, exactly=True)[-1]


def linear_scores(
    weights: Float[np.ndarray, "exits weights"], problem: Problem
) -> Float[np.ndarray, "exits samples"]:
    """g at every exit on the problem's samples, by the very programs of `linear_score`."""
    probs = problem.predictions.probs
    parts = [
        [
            _last_score(weights[: k + 1], probs[: k + 1, block], problem.measures[: k + 1, block])
            for block in sample_blocks(probs)
        ]
        for k in range(len(probs))
    ]
    return np.stack([np.concatenate(row) for row in parts])
