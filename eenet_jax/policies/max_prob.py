"""`max_prob`: leave on the largest probability, MSDNet's rule.

Source: Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification (2018).
"""

import dataclasses

from jaxtyping import Float

from eenet_jax.policies.policy import Policy
from eenet_jax.policies.problem import Problem, geometric_solutions
from eenet_jax.scheduler.features import measure_score
from eenet_jax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaxProb(Policy):
    """The score is the measure `max`."""

    name = "max_prob"

    def score(
        self,
        k: int,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Float[Array, " samples"]:
        """The measure `max` at exit k; see `Policy.score`."""
        return measure_score("max", probs[: k + 1], measures)


def fit_max_prob(problem: Problem) -> list[MaxProb]:
    """Thresholds from the geometric exit distribution that best fills each budget.

    Args:
      problem: Validation predictions, costs and budgets.

    Returns:
      One policy a budget; its realised validation cost is not above the budget.
    """
    return [MaxProb(**fields) for fields in geometric_solutions(problem, "max")]
