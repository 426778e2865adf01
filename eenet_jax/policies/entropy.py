"""`entropy`: leave on low entropy, BranchyNet's rule.

Source: Teerapittayanon et al., BranchyNet (2016).
"""

import dataclasses

from jaxtyping import Float

from eenet_jax.policies.policy import Policy
from eenet_jax.policies.problem import Problem, geometric_solutions
from eenet_jax.scheduler.features import measure_score
from eenet_jax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Entropy(Policy):
    """The score is the measure `entropy`."""

    name = "entropy"

    def score(
        self,
        k: int,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Float[Array, " samples"]:
        """The measure `entropy` at exit k; see `Policy.score`."""
        return measure_score("entropy", probs[: k + 1], measures)


def fit_entropy(problem: Problem) -> list[Entropy]:
    """Thresholds from the geometric exit distribution that best fills each budget.

    Args:
      problem: Validation predictions, costs and budgets.

    Returns:
      One policy a budget; its realised validation cost is not above the budget.
    """
    return [Entropy(**fields) for fields in geometric_solutions(problem, "entropy")]
