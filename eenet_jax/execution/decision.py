"""One stage, its exit head and the decision to leave, as every strategy runs them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from eenet_jax.dense import image_means, pixel_classes
from eenet_jax.pieces import in_pieces
from eenet_jax.policies.policy import Policy
from eenet_jax.staged_network import StagedNetwork
from eenet_jax.types import MEASURES, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Answers:
    """What adaptive inference says of a batch.

    Attributes:
      logits: Of the exit that each sample left at, [batch, classes], or of each of its pixels
        [batch, height, width, classes]; the combined ones where the policy combines answers.
      exit_index: 0-based, [batch].
    """

    logits: Float[Array, "batch *dense classes"] | Float[np.ndarray, "batch *dense classes"]
    exit_index: Int[Array, " batch"] | Int[np.ndarray, " batch"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reached:
    """Where a batch stands after an exit: all that the next stage and its decision need.

    Attributes:
      carry: The network's carry.
      probs: Softmax outputs of the exits so far, [exits so far, batch, classes]; means over the
        pixels for dense prediction, where alone there are the rest.
      measures: Means over the pixels of the exits' measures.
      classes: What the exits say of each pixel.
    """

    carry: PyTree
    probs: Float[Array, "passed batch classes"]
    measures: Float[Array, "passed batch 5"] | None = None
    classes: Int[Array, "passed batch pixels"] | None = None

    def parts(self) -> tuple[PyTree, ...]:
        """The fields, for transformations that put shapes in the place of arrays."""
        return self.carry, self.probs, self.measures, self.classes

    def each(self, function: Callable[[Array, int], Array]) -> "Reached":
        """Every array by a function of itself and of its axis of samples."""
        return Reached(*each_part(function, self.parts()))

    @property
    def rows(self) -> int:
        """Samples, filling included."""
        return self.probs.shape[1]

    def put(self, source: "Reached", positions: Int[Array, " offered"]) -> "Reached":
        """With rows of `source` in their places; those placed beyond the last are left out.

        Args:
          source: After the same exit.
          positions: Where each of its rows goes.
        """

        def placed(own: Array, other: Array, axis: int) -> Array:
            return own.at[(slice(None),) * axis + (positions,)].set(other, mode="drop")

        return Reached(*each_part(placed, self.parts(), source.parts()))

    def take(self, rows: Int[Array, " taken"]) -> "Reached":
        """These rows of the batch."""
        return self.each(lambda leaf, axis: jnp.take(leaf, rows, axis=axis, mode="clip"))


def each_part(function: Callable[..., Any], *several: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    """`Reached.each` of parts, or of the same parts of several; they may be shapes, not arrays.

    What is kept of the exits has them as its first axis, and the samples as its second. The
    function takes a leaf of each, and the axis.
    """
    carries, passed = zip(*((carry, rest) for carry, *rest in several), strict=True)
    return (
        jax.tree.map(lambda *leaves: function(*leaves, 0), *carries),
        *jax.tree.map(lambda *leaves: function(*leaves, 1), *passed),
    )


def start(network: StagedNetwork, x: PyTree) -> Reached:
    """Before the first stage."""
    batch = jax.tree.leaves(x)[0].shape[0]
    reached = Reached(carry=x, probs=jnp.zeros((0, batch, network.num_classes)))
    if not network.dense:
        return reached
    pixels = math.prod(jax.tree.leaves(x)[0].shape[1:3])
    return dataclasses.replace(
        reached,
        measures=jnp.zeros((0, batch, len(MEASURES))),
        classes=jnp.zeros((0, batch, pixels), jnp.int32),
    )


def advance(
    network: StagedNetwork, policy: Policy, k: int, variables: PyTree, reached: Reached
) -> tuple[Reached, Float[Array, "batch *dense classes"], Bool[Array, " batch"]]:
    """Run stage k and its exit head on a batch, and decide.

    Args:
      network: The network.
      policy: Whose score at exit k is held against its threshold.
      k: 0-based.
      variables: Of the network.
      reached: After exit k-1.

    Returns:
      Where the batch stands now, the exit's logits (the policy's where it combines answers),
      and who leaves here.
    """
    carry, _ = network.stage(k, variables, reached.carry, False, None)
    logits, _ = network.head(k, variables, carry, False, None)
    reached = _noted(reached, carry, logits)
    if policy.answer_weights is not None:
        logits = jnp.asarray(policy.answer_logits(k, reached.probs))
    if k == network.num_exits - 1:
        leaves = jnp.ones(logits.shape[0], bool)
    else:
        score = policy.score(k, reached.probs, reached.measures)
        leaves = jnp.asarray(score) >= policy.thresholds[k]
    return reached, logits, leaves


def _noted(
    reached: Reached, carry: PyTree, logits: Float[Array, "batch *dense classes"]
) -> Reached:
    """What the decision at this exit and at later ones needs of the logits."""
    if reached.classes is None or reached.measures is None:
        probs = jnp.concatenate([reached.probs, jax.nn.softmax(logits)[None]])
        return Reached(carry=carry, probs=probs)
    classes = jnp.concatenate([reached.classes, pixel_classes(logits)[None].astype(jnp.int32)])
    probs, measures = image_means(logits, classes)
    return Reached(
        carry=carry,
        probs=jnp.concatenate([reached.probs, probs[None]]),
        measures=jnp.concatenate([reached.measures, measures[None]]),
        classes=classes,
    )


def compile_advance(network: StagedNetwork, policy: Policy, k: int) -> Callable:
    """`advance` at exit k as one jitted function of (variables, reached, samples a piece)."""

    def turned(parts: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        # What is kept of the exits has its samples second, and pieces are cut along the first.
        carry, *passed = parts
        return carry, *jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), passed)

    def one(variables: PyTree, parts: tuple[PyTree, ...]):
        after, logits, leaves = advance(network, policy, k, variables, Reached(*turned(parts)))
        return turned(after.parts()), logits, leaves

    def run(variables: PyTree, reached: Reached, piece: int):
        parts, logits, leaves = in_pieces(one, piece)(variables, turned(reached.parts()))
        return Reached(*turned(parts)), logits, leaves

    return jax.jit(run, static_argnums=2)
