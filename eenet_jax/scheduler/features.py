"""What a score may look at: an exit's own softmax, and what earlier exits said of its answer."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from eenet_jax.confidence import sum_in_fixed_order
from eenet_jax.types import MEASURES, Array

PROBABILITY_FLOOR = 1e-9
"""Below this a probability's logarithm says nothing."""

OWN_FEATURES = (
    "bias",
    "log_odds",
    "log_margin",
    *MEASURES,
    "combined_log_odds",
    "combined_log_prob",
)
EARLIER_FEATURES = ("agrees_with", "log_prob_by", "log_odds_of")


def feature_names(exits: int) -> tuple[str, ...]:
    """Names of the columns of `exit_features` for K exits: K-1 columns an earlier-exit feature."""
    earlier = [f"{name}_{k}" for name in EARLIER_FEATURES for k in range(1, exits)]
    return (*OWN_FEATURES, *earlier)


def num_features(exits: int) -> int:
    """Columns of `exit_features` for K exits."""
    return len(feature_names(exits))


def exit_features(
    probs: Float[Array, "seen samples classes"],
    measures: Float[Array, "samples 5"],
    exits: int,
) -> tuple[Float[Array, "samples features"], Int[Array, " samples"]]:
    """The features of the last of the exits given.

    Args:
      probs: Softmax outputs of that exit and of every earlier one.
      measures: The confidence measures at that exit, in the order of `MEASURES`.
      exits: K, which sets the number of columns; those of exits not seen are 0.

    Returns:
      Columns in the order of `feature_names`: the answer's log-odds and its log-margin over
      the second; the confidence measures; log-odds and log-probability of the answer in the
      normalised geometric mean of all exits seen; then of each earlier exit whether it gives
      the same answer, the log-probability that it gives to it, and its own answer's log-odds.
      With it the answer itself, 0-based.
    """
    # In parts whose shapes are those of every exit, so that each is compiled once.
    *earlier, here = probs
    answer, log_odds, log_margin = _top_two(here)
    nothing = jnp.zeros(log_odds.shape, jnp.float32)
    combined, agrees, log_prob, odds = (nothing, nothing), [], [], []
    if earlier:
        total = functools.reduce(_add_log, probs[1:], _log(probs[0]))
        combined = _combined(total, len(probs), answer)
    for each in earlier:
        said, its_odds, _ = _top_two(each)
        same, of_answer = _of_answer(each, said, answer)
        agrees.append(same)
        log_prob.append(of_answer)
        odds.append(its_odds)
    unseen = [nothing] * (exits - len(probs))
    columns = (
        log_odds,
        log_margin,
        *combined,
        *agrees,
        *unseen,
        *log_prob,
        *unseen,
        *odds,
        *unseen,
    )
    return _table(measures, columns), answer


@jax.jit
def _log(probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.log(jnp.maximum(probs, PROBABILITY_FLOOR))


@jax.jit
def _add_log(total, probs):
    return total + _log(probs)


@jax.jit
def _top_two(
    probs: Float[Array, "samples classes"],
) -> tuple[Int[Array, " samples"], Float[Array, " samples"], Float[Array, " samples"]]:
    """The answer, its log-odds, and its log-probability less the second's."""
    answer = jnp.argmax(probs, axis=-1)
    others = jnp.where(_is_class(probs, answer), 0.0, probs)
    top = _log(jnp.max(probs, axis=-1))
    return answer, top - _log(sum_in_fixed_order(others)), top - _log(jnp.max(others, axis=-1))


def _is_class(values, classes):
    return jax.lax.broadcasted_iota(classes.dtype, values.shape, 1) == classes[:, None]


@jax.jit
def _of_answer(probs, said, answer):
    """Whether an exit says so, and the log-probability that it gives to it."""
    prob = jnp.take_along_axis(probs, answer[:, None], axis=1)[:, 0]
    return (said == answer).astype(jnp.float32), _log(prob)


@jax.jit
def _combined(total, seen, answer):
    """Log-odds and log-probability of an answer in the normalised geometric mean."""
    mean = total / seen
    peak = jnp.max(mean, axis=-1)
    here = jnp.take_along_axis(mean, answer[:, None], axis=1)[:, 0] - peak
    others = jnp.where(_is_class(mean, answer), 0.0, jnp.exp(mean - peak[:, None]))
    rest = sum_in_fixed_order(others)
    return here - _log(rest), here - _log(rest + jnp.exp(here))


@jax.jit
def _table(measures, columns):
    log_odds, log_margin, *rest = columns
    return jnp.stack([jnp.ones_like(log_odds), log_odds, log_margin, *measures.T, *rest], axis=-1)
