"""Multi-exit networks with a learned, budgeted early-exit scheduler, in JAX and Flax."""

from eenet_jax.policies.fit import fit, fit_cheapest
from eenet_jax.policies.policy import load_policy
from eenet_jax.types import CostTable, ExitPredictions

__all__ = ["CostTable", "ExitPredictions", "fit", "fit_cheapest", "load_policy"]
