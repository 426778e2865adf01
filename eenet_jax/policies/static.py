"""`static`: one exit for everyone, the most accurate that the budget pays for."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from eenet_jax.policies.policy import Policy
from eenet_jax.policies.problem import Problem, policy_fields
from eenet_jax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Static(Policy):
    """All scores are 0; the thresholds are +∞ before the chosen exit and -∞ from it on."""

    name = "static"

    def score(
        self,
        k: int,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Float[Array, " samples"]:
        """Zero for every sample; see `Policy.score`."""
        return jnp.zeros(probs.shape[1], jnp.float32)


def static_thresholds(
    problem: Problem, present: Bool[np.ndarray, " samples"], budget: float
) -> Float[np.ndarray, " exits"]:
    """Thresholds that send everyone to the best exit within the budget; of equals, the cheapest."""
    costs = np.asarray(problem.costs.costs)
    accuracies = problem.correct[:, present].mean(1, dtype=np.float64)
    chosen = int(np.where(costs <= budget, accuracies, -1.0).argmax())
    return np.where(np.arange(len(costs)) < chosen, np.inf, -np.inf).astype(np.float32)


def fit_static(problem: Problem) -> list[Static]:
    """The most accurate exit on validation among those that cost no more than each budget.

    Args:
      problem: Validation predictions, costs and budgets.

    Returns:
      One policy a budget.
    """
    scores = np.zeros(problem.correct.shape, np.float32)
    return [
        Static(
            **policy_fields(
                problem, scores, static_thresholds(problem, problem.everyone, budget), budget
            )
        )
        for budget in problem.budgets
    ]
