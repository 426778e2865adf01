"""Two policies on the same samples: the paired difference, and `eenet` beside the baselines."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from eenet_jax.policies.certify import NORMAL_QUANTILE_95
from eenet_jax.policies.fit import BASELINES
from eenet_jax.policies.policy import Policy
from eenet_jax.types import ExitPredictions

COMPARISON_COLUMNS = (
    "budget",
    "baseline",
    "eenet_accuracy",
    "baseline_accuracy",
    "difference",
    "half_width_95",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A difference of means over the same samples.

    Attributes:
      mean: First minus second.
      half_width: Half the width of its 95 % interval.
    """

    mean: float
    half_width: float


def paired_interval(
    first: Float[np.ndarray, " samples"], second: Float[np.ndarray, " samples"]
) -> PairedDifference:
    """The difference of two policies' accuracies on the same samples, with its 95 % interval.

    Args:
      first: `correct` of each sample at the first policy's exits.
      second: The same for the second policy.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    spread = difference.std(ddof=1) if difference.size > 1 else 0.0
    half_width = NORMAL_QUANTILE_95 * spread / np.sqrt(difference.size)
    return PairedDifference(mean=float(difference.mean()), half_width=float(half_width))


def compare_with_baselines(
    exits: Mapping[tuple[str, int, str], np.ndarray],
    test: ExitPredictions,
    fitted: Mapping[str, Sequence[Policy]],
    texts: Sequence[str],
) -> list[tuple]:
    """Per budget, `eenet` on test against the baseline that is best on validation.

    Args:
      exits: Chosen exits [samples] by policy, place of the budget, and split.
      test: Test predictions.
      fitted: Policies by name, one a budget; `eenet` among them.
      texts: The budgets as typed.

    Returns:
      Rows in the order of `COMPARISON_COLUMNS`.
    """
    baselines = [name for name in fitted if name in BASELINES]
    lines = []
    for place, text in enumerate(texts):
        accuracy = {name: fitted[name][place].info["validation_accuracy"] for name in baselines}
        best = max(baselines, key=accuracy.__getitem__)
        ours, theirs = (
            fitted[name][place].correct_at(test, exits[name, place, "test"])
            for name in ("eenet", best)
        )
        gap = paired_interval(ours, theirs)
        means = (float(each.mean(dtype=np.float64)) for each in (ours, theirs))
        lines.append((text, best, *means, gap.mean, gap.half_width))
    return lines
