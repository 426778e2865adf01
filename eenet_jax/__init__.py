"""Multi-exit networks with a learned, budgeted early-exit scheduler, in JAX and Flax."""

import importlib
from typing import Any

from eenet_jax.policies.fit import fit, fit_cheapest
from eenet_jax.policies.policy import load_policy
from eenet_jax.types import CostTable, ExitPredictions

# pyright: reportUnsupportedDunderAll=false
__all__ = [
    "CostTable",
    "ExitPredictions",
    "fit",
    "fit_cheapest",
    "load_bundle",
    "load_policy",
]


def __getattr__(name: str) -> Any:
    # Execution comes after policies; whoever fits predictions doesn't import it.
    if name == "load_bundle":
        return importlib.import_module("eenet_jax.execution.bundle").load_bundle
    raise AttributeError(f"module 'eenet_jax' has no attribute '{name}'")
