"""`vote`: leave on the share of exits so far that agree on a class.

Source: Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet
(2024), where it is a baseline.

Its scores take few values, so that few costs are reached and much of a budget may stay unused.
"""

import dataclasses

from jaxtyping import Float

from eenet_jax.policies.policy import Policy
from eenet_jax.policies.problem import Problem, geometric_solutions
from eenet_jax.scheduler.features import measure_score
from eenet_jax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Vote(Policy):
    """The score is the measure `vote`."""

    name = "vote"

    def score(
        self,
        k: int,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Float[Array, " samples"]:
        """The measure `vote` at exit k; see `Policy.score`."""
        return measure_score("vote", probs[: k + 1], measures)


def fit_vote(problem: Problem) -> list[Vote]:
    """Thresholds from the geometric exit distribution that best fills each budget.

    Args:
      problem: Validation predictions, costs and budgets.

    Returns:
      One policy a budget; its realised validation cost is not above the budget.
    """
    return [Vote(**fields) for fields in geometric_solutions(problem, "vote")]
