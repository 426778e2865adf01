"""What the policies share whose score is one confidence measure."""

import dataclasses
from typing import ClassVar

from jaxtyping import Float

from eenet_jax.confidence import measure_score
from eenet_jax.policies.policy import Policy
from eenet_jax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MeasurePolicy(Policy):
    """The score is one confidence measure.

    Attributes:
      measure: One of `MEASURES`, the same for every policy of a class.
    """

    measure: ClassVar[str]

    def score(
        self,
        k: int,
        probs: Float[Array, "exits samples classes"],
        measures: Float[Array, "exits samples 5"] | None = None,
    ) -> Float[Array, " samples"]:
        """The measure at exit k; see `Policy.score`."""
        self.check_seen(k, probs)
        return measure_score(self.measure, probs[: k + 1], measures)
