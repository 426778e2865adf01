"""What the stems of several backbones share: for small images (CIFAR's) or large (ImageNet's)."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eenet_jax.errors import InputError

StemName = Literal["cifar", "imagenet"]

IMAGE_SIDES = {"cifar": 32, "imagenet": 224}


def image_shape(given: Sequence[int] | None, stem: StemName) -> tuple[int, int, int]:
    """The shape of an image.

    Args:
      given: (height, width, channels), or None.
      stem: Decides where none is given.

    Returns:
      (height, width, channels).

    Raises:
      InputError: these are not three numbers.
    """
    if given is None:
        return (IMAGE_SIDES[stem], IMAGE_SIDES[stem], 3)
    if len(given) != 3:
        raise InputError(f"input_shape {list(given)} must be height, width and channels")
    height, width, channels = given
    return (height, width, channels)


def max_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch _height _width channels"]:
    """Halve the resolution: the greatest value in each window of 3×3 pixels."""
    return nn.pool(x, -jnp.inf, jax.lax.max, (3, 3), (2, 2), ((1, 1), (1, 1)))
