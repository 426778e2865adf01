"""The score of a linear g at one exit, by the same compiled program wherever it is asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from eenet_jax.scheduler.features import measures_at
from eenet_jax.scheduler.network import NUM_MEASURES, exit_scores
from eenet_jax.types import MEASURES, Array


def linear_score(
    weights: Float[np.ndarray, "exits weights"],
    k: int,
    probs: Float[Array, "seen samples classes"],
    measures: Float[Array, "seen samples 5"] | None,
) -> Float[Array, " samples"]:
    """g at exit k, unclipped, from exits 0..k alone.

    Terms whose weights are all zero are left out of the program: g with all its weight
    on one measure costs what that measure costs, and gives it to the bit.

    Args:
      weights: g's weights at every exit.
      k: Exit index, 0-based.
      probs: Softmax outputs of exits 0..k.
      measures: Dense prediction only: image means of the measures at the same exits.
    """
    classes = probs.shape[-1]
    first_earlier = classes + NUM_MEASURES
    chained = bool(weights[: k + 1, first_earlier:].any())
    rows = np.arange(k + 1) if chained else np.asarray([k])
    used = weights[rows, classes:first_earlier].any(0)
    names = tuple(name for name, some in zip(MEASURES, used, strict=True) if some)
    by_class = bool(weights[rows, :classes].any())
    chosen = jnp.asarray(weights[rows])
    if measures is not None:
        measures = jnp.asarray(measures)
    return _score(chosen, jnp.asarray(probs), measures, tuple(rows.tolist()), names, by_class)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _score(weights, probs, measures, rows, names, by_class):
    samples, classes = probs.shape[1:]
    if measures is None:
        given = [_measures(probs[: row + 1], names) for row in rows]
    else:
        given = [measures[row] for row in rows]
    if by_class:
        return exit_scores(weights, probs[jnp.asarray(rows)], jnp.stack(given))[-1]
    no_classes = jnp.zeros((len(rows), samples, 0), jnp.float32)
    return exit_scores(weights[:, classes:], no_classes, jnp.stack(given))[-1]


def _measures(probs, names):
    """All five measures in order, those nobody weighs left at 0."""
    zeros = jnp.zeros(probs.shape[1], jnp.float32)
    if not names:
        return jnp.stack([zeros] * NUM_MEASURES, axis=-1)
    known = dict(zip(names, measures_at(probs, names).T, strict=True))
    return jnp.stack([known.get(name, zeros) for name in MEASURES], axis=-1)
