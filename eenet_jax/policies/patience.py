"""`patience`: leave once enough exits in a row agree, PABEE's rule.

Source: Zhou et al., BERT Loses Patience: Fast and Robust Inference with Early Exit (2020).

One integer for all exits gives at most K + 1 costs, so that much of a budget may stay unused.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from eenet_jax.policies.measure import MeasurePolicy
from eenet_jax.policies.problem import (
    Family,
    Problem,
    both_ends,
    fixed_thresholds,
    measure_scores,
    policy_fields,
)
from eenet_jax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Patience(MeasurePolicy):
    """The score is how many exits in a row agree, exit k the last of them."""

    name = "patience"
    measure = "patience"


def patience_family(
    problem: Problem,
    scores: Float[Array, "exits samples"],
) -> Family:
    """One integer from 2 to K as every exit's threshold, and both ends."""
    exits = scores.shape[0]
    same = np.repeat(np.arange(2, exits + 1, dtype=np.float32)[:, None], exits, axis=1)
    same[:, -1] = -np.inf
    members = np.concatenate([both_ends(exits), same])
    return fixed_thresholds(problem, scores, members)


def fit_patience(problem: Problem) -> list[Patience]:
    """The integer whose realised validation cost is the largest not above each budget.

    Args:
      problem: Validation predictions, costs and budgets.

    Returns:
      One policy a budget.
    """
    scores = measure_scores(problem, "patience")
    chosen = patience_family(problem, scores).filling(problem.budgets)
    return [
        Patience(**policy_fields(problem, scores, thresholds, budget))
        for thresholds, budget in zip(chosen, problem.budgets, strict=True)
    ]
