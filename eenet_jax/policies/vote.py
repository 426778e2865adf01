"""`vote`: leave on the share of exits so far that agree on a class.

Source: Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet
(2024), where it is a baseline.

Its scores take few values, so that few costs are reached and much of a budget may stay unused.
"""

import dataclasses

from eenet_jax.policies.measure import MeasurePolicy
from eenet_jax.policies.problem import Problem, geometric_solutions


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Vote(MeasurePolicy):
    """The score is the measure `vote`."""

    name = "vote"
    measure = "vote"


def fit_vote(problem: Problem) -> list[Vote]:
    """Thresholds from the geometric exit distribution that best fills each budget.

    Args:
      problem: Validation predictions, costs and budgets.

    Returns:
      One policy a budget; its realised validation cost is not above the budget.
    """
    return [Vote(**fields) for fields in geometric_solutions(problem, "vote")]
