"""The scheduler's fit, lowered for devices that need not be there."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from eenet_jax.config import ExperimentConfig
from eenet_jax.data import datasets
from eenet_jax.policies.eenet import EENetSettings
from eenet_jax.scheduler.features import feature_names
from eenet_jax.scheduler.solver import Samples, lower_solve

BUDGETS = 10
OWN_SPLIT = 5_000
"""Held-out samples of a data set with a validation split of its own, whose size is not known here;
a fit's memory and time grow in proportion to them."""


def lower_solver(
    config: ExperimentConfig, num_exits: int, devices: Sequence[Any]
) -> jax.stages.Lowered:
    """The default scheduler's fit of ten budgets to the run's held-out samples.

    Args:
      config: Of the run, whose data set says how many samples are held out (`OWN_SPLIT` where it
        doesn't), and of how many classes.
      num_exits: K.
      devices: Of one host, which share the fits.
    """
    spec = datasets.get_configured(config.data)
    count = config.data.val_size or spec.val_size or OWN_SPLIT
    width = len(feature_names(num_exits))
    shapes: list[Any] = [
        jax.ShapeDtypeStruct((num_exits, count, width), jnp.float32),
        jax.ShapeDtypeStruct((num_exits, count), jnp.int32),
        jax.ShapeDtypeStruct((num_exits, count, 5), jnp.float32),
        jax.ShapeDtypeStruct((num_exits, count), jnp.float32),
    ]
    return lower_solve(Samples(*shapes), spec.num_classes, BUDGETS, EENetSettings(), tuple(devices))
