"""`entropy`: leave on low entropy, BranchyNet's rule.

Source: Teerapittayanon et al., BranchyNet (2016).
"""

import dataclasses

from eenet_jax.policies.measure import MeasurePolicy
from eenet_jax.policies.problem import Problem, geometric_solutions


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Entropy(MeasurePolicy):
    """The score is the measure `entropy`."""

    name = "entropy"
    measure = "entropy"


def fit_entropy(problem: Problem) -> list[Entropy]:
    """Thresholds from the geometric exit distribution that best fills each budget.

    Args:
      problem: Validation predictions, costs and budgets.

    Returns:
      One policy a budget; its realised validation cost is not above the budget.
    """
    return [Entropy(**fields) for fields in geometric_solutions(problem, "entropy")]
