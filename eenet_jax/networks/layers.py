"""Convolution and BatchNorm as every backbone here uses them: NHWC, PyTorch's conventions."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from eenet_jax.networks.convolution import convolve


class Conv(nn.Module):
    """A square convolution, padded by half its size as in PyTorch.

    Attributes:
      features: Output channels.
      size: Kernel size in pixels, odd.
      stride: In pixels.
      use_bias: Whether a bias is added to each channel.
    """

    features: int
    size: int = 3
    stride: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch _height _width features"]:
        """Convolve."""
        half = self.size // 2
        return nn.Conv(
            self.features,
            (self.size, self.size),
            strides=self.stride,
            padding=((half, half), (half, half)),
            use_bias=self.use_bias,
            kernel_init=nn.initializers.he_normal(),
            conv_general_dilated=_convolve,
            name="conv",
        )(x)


def _convolve(x: Array, kernel: Array, strides: Sequence[int], *args: Any, **kwargs: Any) -> Array:
    """What Flax calls; padding and the rest are `convolve`'s own."""
    del args, kwargs
    return convolve(x, kernel, strides[0])


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis (momentum and ε of PyTorch's default)."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], train: bool
    ) -> Float[Array, "*batch channels"]:
        """Normalise; updates the running statistics where `train`."""
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="norm")(
            x
        )
