"""What a score may look at: an exit's own softmax, and what earlier exits said of its answer."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from eenet_jax.confidence import measures_at, sum_in_fixed_order
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


def _log(probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.log(jnp.maximum(probs, PROBABILITY_FLOOR))


def _top_two(
    probs: Float[Array, "samples classes"],
) -> tuple[Int[Array, " samples"], Float[Array, " samples"], Float[Array, " samples"]]:
    """The answer, its log-odds, and its log-probability less the second's."""
    answer = jnp.argmax(probs, axis=-1)
    places = jax.lax.broadcasted_iota(answer.dtype, probs.shape, 1)
    others = jnp.where(places == answer[:, None], 0.0, probs)
    top = _log(jnp.max(probs, axis=-1))
    return answer, top - _log(sum_in_fixed_order(others)), top - _log(jnp.max(others, axis=-1))


def _of_class(
    probs: Float[Array, "samples classes"], classes: Int[Array, " samples"]
) -> Float[Array, " samples"]:
    return jnp.take_along_axis(probs, classes[:, None], axis=1)[:, 0]


def exit_features(
    probs: Float[Array, "seen samples classes"],
    measures: Float[Array, "seen samples 5"] | None,
    exits: int,
) -> tuple[Float[Array, "samples features"], Int[Array, " samples"]]:
    """The features of the last of the exits given.

    Args:
      probs: Softmax outputs of that exit and of every earlier one.
      measures: Dense prediction: image means of the measures at the same exits.
      exits: K, which sets the number of columns; those of exits not seen are 0.

    Returns:
      Columns in the order of `feature_names`: the answer's log-odds and its log-margin over
      the second; the confidence measures; log-odds and log-probability of the answer in the
      normalised geometric mean of all exits seen; then of each earlier exit whether it gives
      the same answer, the log-probability that it gives to it, and its own answer's log-odds.
      With it the answer itself, 0-based.
    """
    probs = jnp.asarray(probs)
    seen, samples = probs.shape[:2]
    answer, log_odds, log_margin = _top_two(probs[-1])
    own = measures_at(probs) if measures is None else jnp.asarray(measures)[seen - 1]
    nothing = jnp.zeros(samples, jnp.float32)
    combined, agrees, log_prob, odds = [nothing, nothing], [], [], []
    if seen > 1:
        combined = _combined(probs, answer)
    for earlier in probs[:-1]:
        said, its_odds, _ = _top_two(earlier)
        agrees.append((said == answer).astype(jnp.float32))
        log_prob.append(_log(_of_class(earlier, answer)))
        odds.append(its_odds)
    unseen = [nothing] * (exits - seen)
    columns = [
        jnp.ones(samples, jnp.float32), log_odds, log_margin, *own.T, *combined,
        *agrees, *unseen, *log_prob, *unseen, *odds, *unseen,
    ]  # fmt: skip
    return jnp.stack(columns, axis=-1), answer


def _combined(
    probs: Float[Array, "seen samples classes"], answer: Int[Array, " samples"]
) -> list[Float[Array, " samples"]]:
    """Log-odds and log-probability of an answer in the normalised geometric mean."""
    logs = _log(probs[0])
    for each in probs[1:]:
        logs = logs + _log(each)
    logs = logs / probs.shape[0]
    places = jax.lax.broadcasted_iota(answer.dtype, logs.shape, 1)
    peak = jnp.max(logs, axis=-1)
    shares = jnp.exp(logs - peak[:, None])
    here = _of_class(logs, answer) - peak
    rest = sum_in_fixed_order(jnp.where(places == answer[:, None], 0.0, shares))
    total = _log(rest + jnp.exp(here))
    return [here - _log(rest), here - total]
