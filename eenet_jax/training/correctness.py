"""How often each exit is right."""

import jax.numpy as jnp
from jaxtyping import Float, Int

from eenet_jax.training import losses
from eenet_jax.types import Array


def correctness(
    logits: Float[Array, "exits batch *dense classes"], labels: Int[Array, "batch *dense"]
) -> Float[Array, "exits batch"]:
    """How right each exit is on each sample: 0 or 1, or the share of its labelled pixels."""
    right = (logits.argmax(-1) == labels[None]).astype(jnp.float32)
    return losses.mean_per_sample(right, labels >= 0)
