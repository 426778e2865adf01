"""EENet's two networks, as plain arrays: g scores an exit, h assigns samples to exits.

g is linear without bias; its weights are one array [exits, classes + 5 + exits]: one a
class, one for each of `MEASURES`, one for each earlier exit's score. The paper's g takes
three of the five measures (max, entropy, vote); the other two are then zero.

Source: Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet (2024).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from eenet_jax.confidence import sum_in_fixed_order
from eenet_jax.types import MEASURES, Array

PAPER_MEASURES = ("max", "entropy", "vote")
NUM_MEASURES = len(MEASURES)


class AssignmentParams(NamedTuple):
    """h of every exit; hidden units past an exit's own number are masked away."""

    hidden: Float[Array, "exits inputs units"]
    hidden_bias: Float[Array, "exits units"]
    out: Float[Array, "exits units"]
    out_bias: Float[Array, " exits"]


class SchedulerParams(NamedTuple):
    """g's weights and h."""

    scores: Float[Array, "exits weights"]
    assignment: AssignmentParams


def measure_mask(names: tuple[str, ...]) -> Float[np.ndarray, " 5"]:
    """1 for each measure named, in the order of `MEASURES`."""
    return np.asarray([name in names for name in MEASURES], np.float32)


def trainable_weights(exits: int, classes: int, names: tuple[str, ...]) -> np.ndarray:
    """1 where g has a weight: classes, the measures named, and earlier exits only."""
    fixed = np.concatenate([np.ones(classes, np.float32), measure_mask(names)])
    earlier = np.tril(np.ones((exits, exits), np.float32), -1)
    return np.concatenate([np.tile(fixed, (exits, 1)), earlier], axis=1)


def exit_scores(
    weights: Float[Array, "exits weights"],
    probs: Float[Array, "exits samples classes"],
    measures: Float[Array, "exits samples 5"],
    *,
    exactly: bool = False,
) -> Float[Array, "exits samples"]:
    """g at every exit: q, unclipped.

    Earlier scores enter clipped to [0, 1] with their gradient stopped, at fitting and at
    inference alike.

    Args:
      weights: g's weights, for these exits.
      probs: Softmax outputs.
      measures: Confidence measures.
      exactly: Sum in an order that no batch size changes, as decisions need, instead of
        by matrix products, as a fit of many runs at once needs.
    """
    exits, _, classes = probs.shape
    inputs = jnp.concatenate([probs, measures], axis=-1)
    on_inputs = weights[:, : classes + NUM_MEASURES]
    if exactly:
        own = sum_in_fixed_order(inputs * on_inputs[:, None])
    else:
        own = jnp.einsum("knd,kd->kn", inputs, on_inputs)
    scores, earlier = [own[0]], []
    for k in range(1, exits):
        earlier.append(jax.lax.stop_gradient(jnp.clip(scores[-1], 0.0, 1.0)))
        on_earlier = weights[k, classes + NUM_MEASURES :][:k]
        seen = jnp.stack(earlier, axis=-1)
        by_earlier = sum_in_fixed_order(seen * on_earlier[None]) if exactly else seen @ on_earlier
        scores.append(own[k] + by_earlier)
    return jnp.stack(scores)


def exit_log_assignment(
    params: AssignmentParams,
    probs: Float[Array, "exits samples classes"],
    measures: Float[Array, "exits samples 5"],
    scores: Float[Array, "exits samples"],
    exit_distribution: str,
    hidden_ratio: float,
) -> Float[Array, "exits samples"]:
    """log p from h: how likely each sample is assigned to each exit.

    Args:
      params: h.
      probs: Softmax outputs.
      measures: Confidence measures, of which h sees the paper's three.
      scores: q, unclipped.
      exit_distribution: "stick_breaking" (p_k = r_k·Π_{j<k}(1-r_j), the remainder at K) or
        "softmax" (over k, of r_k).
      hidden_ratio: Hidden units over inputs, ρ.
    """
    inputs = _assignment_inputs(probs, measures, scores)
    units = _unit_mask(probs.shape[0], probs.shape[2], hidden_ratio)
    hidden = jnp.einsum("knd,kdh->knh", inputs, params.hidden) + params.hidden_bias[:, None]
    hidden = jax.nn.sigmoid(hidden) * units[:, None]
    logits = jnp.einsum("knh,kh->kn", hidden, params.out) + params.out_bias[:, None]
    if exit_distribution == "softmax":
        return jax.nn.log_softmax(jax.nn.sigmoid(logits), axis=0)
    return log_stick_breaking(logits)


def log_stick_breaking(logits: Float[Array, "exits samples"]) -> Float[Array, "exits samples"]:
    """log p_k = log r_k + Σ_{j<k} log(1-r_j), remainder at the last exit; r = sigmoid(logits)."""
    stay = jnp.cumsum(jax.nn.log_sigmoid(-logits[:-1]), axis=0)
    reach = jnp.concatenate([jnp.zeros_like(logits[:1]), stay])
    leave = jnp.concatenate([jax.nn.log_sigmoid(logits[:-1]), jnp.zeros_like(logits[:1])])
    return reach + leave


def _assignment_inputs(probs, measures, scores):
    exits = probs.shape[0]
    earlier = jax.lax.stop_gradient(jnp.clip(scores, 0.0, 1.0)).T[None]
    before = np.tril(np.ones((exits, exits), np.float32), -1)[:, None]
    kept = measures * measure_mask(PAPER_MEASURES)[None, None]
    return jnp.concatenate([probs, kept, earlier * before], axis=-1)


def hidden_units(exits: int, classes: int, hidden_ratio: float) -> list[int]:
    """h's hidden units at each exit: ρ times its inputs (classes, 3 measures, earlier scores)."""
    inputs = [classes + len(PAPER_MEASURES) + k for k in range(exits)]
    return [max(1, math.floor(hidden_ratio * count)) for count in inputs]


def _unit_mask(exits, classes, hidden_ratio):
    units = hidden_units(exits, classes, hidden_ratio)
    return (np.arange(max(units))[None] < np.asarray(units)[:, None]).astype(np.float32)


def random_params(
    random: np.random.Generator, runs: int, exits: int, classes: int, hidden_ratio: float
) -> SchedulerParams:
    """Random g and h: uniform within ±1/√(inputs), as the published code's layers start.

    Args:
      random: Source of randomness.
      runs: How many; each leaf gets a leading axis of that length.
      exits: K.
      classes: C.
      hidden_ratio: h's hidden units over its inputs, ρ.
    """
    trainable = trainable_weights(exits, classes, PAPER_MEASURES)
    inputs = trainable.sum(1)
    units = np.asarray(hidden_units(exits, classes, hidden_ratio), np.float32)
    width = int(units.max())

    def draw(shape, fan_in):
        bound = fan_in.reshape((exits,) + (1,) * (len(shape) - 1)) ** -0.5
        return (random.uniform(-1.0, 1.0, (runs, *shape)) * bound).astype(np.float32)

    assignment = AssignmentParams(
        hidden=draw((exits, trainable.shape[1], width), inputs),
        hidden_bias=draw((exits, width), inputs),
        out=draw((exits, width), units),
        out_bias=draw((exits,), units),
    )
    return SchedulerParams(scores=draw(trainable.shape, inputs) * trainable, assignment=assignment)
