"""`max_prob`: leave on the largest probability, MSDNet's rule.

Source: Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification (2018).
"""

import dataclasses

from eenet_jax.policies.measure import MeasurePolicy
from eenet_jax.policies.problem import Problem, geometric_solutions


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaxProb(MeasurePolicy):
    """The score is the measure `max`."""

    name = "max_prob"
    measure = "max"


def fit_max_prob(problem: Problem) -> list[MaxProb]:
    """Thresholds from the geometric exit distribution that best fills each budget.

    Args:
      problem: Validation predictions, costs and budgets.

    Returns:
      One policy a budget; its realised validation cost is not above the budget.
    """
    return [MaxProb(**fields) for fields in geometric_solutions(problem, "max")]
