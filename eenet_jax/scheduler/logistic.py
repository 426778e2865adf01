"""Ridge logistic regression with an intercept a class, by Newton's method; vmaps over fits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from eenet_jax.types import Array

ITERATIONS = 12
LARGEST_STEP = 4.0
LEAST_CURVATURE = 1e-4


class LogisticWeights(NamedTuple):
    """log-odds = features @ linear + by_class[answer]."""

    linear: Float[Array, "*fits features"]
    by_class: Float[Array, "*fits classes"]


def fit_logistic(
    features: Float[Array, "samples features"],
    classes: Int[Array, " samples"],
    target: Float[Array, " samples"],
    sample_weight: Float[Array, " samples"],
    num_classes: int,
    l2: float,
    class_l2: float,
) -> LogisticWeights:
    """The maximum a posteriori weights.

    The class intercepts' block of the Hessian is diagonal, so that it is eliminated first:
    a step costs a system of the features' size, however many classes there are.

    Args:
      features: Standardised inside, columns that don't vary left out; the first is the bias.
      classes: Each sample's class, 0-based.
      target: 0 or 1, or shares in between.
      sample_weight: How much each sample counts; 0 leaves it out.
      num_classes: C.
      l2: Penalty on the standardised features' weights, in units of a sample's information.
      class_l2: The same on the class intercepts.

    Returns:
      Weights for the features as given, not standardised.
    """
    with jax.default_matmul_precision("highest"):
        mean, scale = _moments(features, sample_weight)
        x = (features - mean[None]) / scale[None]
        penalty = jnp.full(x.shape[1], l2).at[0].set(1e-2)
        start = LogisticWeights(jnp.zeros(x.shape[1]), jnp.zeros(num_classes))

        def step(weights, _):
            return _newton_step(x, classes, target, sample_weight, penalty, class_l2, weights), None

        found, _ = jax.lax.scan(step, start, length=ITERATIONS)
        linear = found.linear / scale
        bias = linear[0] - mean @ linear
    return LogisticWeights(jnp.concatenate([bias[None], linear[1:]]), found.by_class)


def _moments(features, sample_weight):
    """Mean and scale of each column; the bias stays, a constant column becomes 0."""
    total = jnp.maximum(sample_weight.sum(), 1.0)
    mean = sample_weight @ features / total
    spread = jnp.sqrt(sample_weight @ (features - mean[None]) ** 2 / total)
    varies = spread > 1e-5 * (1 + jnp.abs(mean))
    first = jnp.arange(features.shape[1]) == 0
    scale = jnp.where(first, 1.0, jnp.where(varies, spread, 1e12))
    return jnp.where(first, 0.0, mean), scale


def _newton_step(x, classes, target, sample_weight, penalty, class_l2, weights):
    linear, by_class = weights
    right = jax.nn.sigmoid(x @ linear + by_class[classes])
    residual = sample_weight * (target - right)
    curvature = sample_weight * jnp.maximum(right * (1 - right), LEAST_CURVATURE)
    weighted = x * curvature[:, None]
    slope = residual @ x - penalty * linear
    class_slope = _by_class(residual, classes, by_class.size) - class_l2 * by_class
    cross = _by_class(weighted, classes, by_class.size)
    diagonal = _by_class(curvature, classes, by_class.size) + class_l2
    shared = cross / diagonal[:, None]
    reduced = x.T @ weighted + jnp.diag(penalty) - cross.T @ shared
    move = jnp.linalg.solve(reduced, slope - class_slope @ shared)
    class_move = (class_slope - cross @ move) / diagonal
    # Far from the optimum Newton overshoots: no sample's log-odds may leap.
    leap = jnp.max(jnp.abs(x @ move + class_move[classes]) * (sample_weight > 0))
    pace = jnp.minimum(1.0, LARGEST_STEP / jnp.maximum(leap, 1e-12))
    return LogisticWeights(linear + pace * move, by_class + pace * class_move)


def _by_class(values, classes, num_classes):
    return jax.ops.segment_sum(values, classes, num_classes)
