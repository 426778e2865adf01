"""Confidence measures of an exit, from its own and the earlier exits' softmax outputs."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from eenet_jax.types import MEASURES, Array


def sum_in_fixed_order(terms: Float[Array, "*batch terms"]) -> Float[Array, "*batch"]:
    """Σ over the last axis, halves added to halves, so that no batch size changes a bit.

    A plain sum is vectorised as the compiler sees fit for a shape, and a score one unit
    in the last place off sends a sample at its threshold to another exit.
    """
    count = terms.shape[-1]
    width = 1 << (count - 1).bit_length()
    terms = jnp.pad(terms, [(0, 0)] * (terms.ndim - 1) + [(0, width - count)])
    while width > 1:
        width //= 2
        terms = terms[..., :width] + terms[..., width:]
    return terms[..., 0]


def max_prob(probs: Float[Array, "samples classes"]) -> Float[Array, " samples"]:
    """The largest probability."""
    return jnp.max(probs, axis=-1)


def entropy(probs: Float[Array, "samples classes"]) -> Float[Array, " samples"]:
    """One plus Σ p·log p / log C, with 0·log 0 = 0: 1 is sure, 0 is uniform."""
    positive = probs > 0
    logs = jnp.log(jnp.where(positive, probs, 1.0))
    terms = jnp.where(positive, probs * logs, 0.0)
    return jnp.clip(1.0 + sum_in_fixed_order(terms) * (1 / math.log(probs.shape[-1])), 0.0, 1.0)


def margin(probs: Float[Array, "samples classes"]) -> Float[Array, " samples"]:
    """The largest probability minus the second largest."""
    places = jax.lax.broadcasted_iota(jnp.int32, probs.shape, 1)
    rest = jnp.where(places == jnp.argmax(probs, axis=-1)[:, None], -jnp.inf, probs)
    return max_prob(probs) - jnp.max(rest, axis=-1)


def vote(classes: Int[Array, "exits samples"]) -> Float[Array, " samples"]:
    """The share of the exits given that name the class which most of them name."""
    agree = classes[:, None] == classes[None]
    return agree.sum(1).max(0).astype(jnp.float32) / classes.shape[0]


def patience(classes: Int[Array, "exits samples"]) -> Float[Array, " samples"]:
    """How many exits in a row, ending with the last one given, name that one's class."""
    agree = (classes == classes[-1:])[::-1]
    unbroken = jnp.ones(classes.shape[1:], bool)
    count = jnp.zeros(classes.shape[1:], jnp.float32)
    # A cumulative product would be a windowed reduction, slow to compile for an image's pixels.
    for each in agree:
        unbroken = unbroken & each
        count = count + unbroken
    return count


def measures_at(
    probs: Float[Array, "exits samples classes"],
) -> Float[Array, "samples 5"]:
    """Every measure at the last of the exits given, in the order of `MEASURES`.

    Args:
      probs: Softmax outputs of that exit and of every earlier one.
    """
    # In two programs: the first, most of the work, is compiled once for all exits.
    return _with_agreement(_own_measures(probs[-1]), probs)


@jax.jit
def _own_measures(here):
    return jnp.stack([max_prob(here), entropy(here), margin(here)], axis=-1)


@jax.jit
def _with_agreement(own, probs):
    return _joined(own, jnp.argmax(probs, axis=-1))


def _joined(own, classes):
    return jnp.concatenate([own, vote(classes)[:, None], patience(classes)[:, None]], axis=1)


def measures_of(
    here: Float[Array, "samples classes"], classes: Int[Array, "exits samples"]
) -> Float[Array, "samples 5"]:
    """Every measure at an exit, in the order of `MEASURES`.

    Args:
      here: Softmax outputs of the exit.
      classes: What every exit up to this one says.
    """
    return _joined(_own_measures(here), classes)


@jax.jit
def confidence_measures(
    probs: Float[Array, "exits samples classes"],
) -> Float[Array, "exits samples 5"]:
    """Every measure at every exit.

    Args:
      probs: Softmax outputs.

    Returns:
      The measures in the order of `MEASURES`; row k depends on `probs[:k+1]` alone.
      All lie in [0, 1] with 1 = sure, but patience, which counts 1..k.
    """
    return jnp.stack([measures_at(probs[: k + 1]) for k in range(probs.shape[0])])


def measure_score(
    name: str,
    probs: Float[Array, "exits samples classes"],
    measures: Float[Array, "exits samples 5"] | None = None,
) -> Float[Array, " samples"]:
    """One measure at the last of the exits given, computed, or taken from `measures`.

    Args:
      name: One of `MEASURES`.
      probs: Softmax outputs of that exit and of every earlier one.
      measures: Dense prediction: image means of the measures, row by row for the same exits;
        rows of later exits are not looked at.
    """
    # All five by the same programs, whichever is asked for: the bits don't depend on who asks,
    # and inside a jitted executor the four that nobody uses are eliminated.
    if measures is None:
        here = measures_at(jnp.asarray(probs))
    else:
        here = jnp.asarray(measures)[len(probs) - 1]
    return here[:, MEASURES.index(name)]
