"""What a single CPU computes in its own way."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from eenet_jax.types import PyTree


def on_one_cpu(*operands: Any, cpu: Callable[..., PyTree], default: Callable[..., PyTree]) -> Any:
    """`cpu` of the operands where there is one CPU device, `default` everywhere else.

    Both compute the same. Of a batch that XLA is left to cut over several devices, CPUs too, what
    looks at rows would be gathered.

    Args:
      operands: Arrays.
      cpu: Of them.
      default: Likewise.
    """
    if jax.device_count() > 1:
        return default(*operands)
    return lax.platform_dependent(*operands, cpu=cpu, default=default)
