"""What training carries from step to step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from eenet_jax.networks import Variables
from eenet_jax.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Immutable; every step makes a new one.

    Attributes:
      step: Steps taken, int32 scalar.
      params: Of all stages and heads.
      batch_stats: Running statistics of BatchNorm.
      opt_state: Of the optimizer.
      average: Moving averages of `params` and `batch_stats`, under their names; empty where none
        are kept.
    """

    # Any leaf, as in the other fields: an abstract state holds shapes, a mapped one what came out.
    step: PyTree
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree

    @property
    def variables(self) -> dict[str, Any]:
        """What is evaluated, as `MultiExitNetwork.apply` takes it: the average, if there is one."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    start: Callable[[jax.Array], Variables],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    averages: bool = False,
) -> TrainState:
    """Step 0.

    Args:
      start: PRNG key → weights, such as `network.init`.
      optimizer: From `training.optimizer`.
      key: For `start`.
      averages: Whether a moving average is kept.
    """
    variables = start(key)
    # Copies, for a step donates every array of its state, and none twice.
    average = jax.tree.map(jnp.array, dict(variables)) if averages else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        average=average,
    )
