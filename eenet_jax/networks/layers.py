"""Convolution and BatchNorm as every backbone here uses them: NHWC, PyTorch's conventions."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eenet_jax.networks.convolution import convolve
from eenet_jax.networks.normalisation import (
    batch_normalise,
    factor_and_constant,
    normalise,
    scaled,
)

MOMENTUM = 0.9
"""Of the running statistics; PyTorch counts what is new, 0.1."""


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
        return _Normalisation(name="norm")(x, train)


class _Normalisation(nn.Module):
    """Weights and statistics, by the names that Flax gives them."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        shape = x.shape[-1:]
        if not train and self.has_variable("batch_stats", "factor"):
            both = (self.get_variable("batch_stats", name) for name in ("factor", "constant"))
            return scaled(x, *map(jnp.asarray, both))
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        # Weights may be NumPy's.
        weights = jnp.asarray(scale), jnp.asarray(bias)
        if not train:
            return normalise(x, jnp.asarray(mean.value), jnp.asarray(variance.value), *weights)
        x, *seen = batch_normalise(x, *weights)
        if not self.is_initializing():
            for running, now in zip((mean, variance), seen, strict=True):
                running.value = MOMENTUM * running.value + (1 - MOMENTUM) * now
        return x


def folded(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables in which every BatchNorm is a factor and a constant; for evaluation alone.

    Args:
      variables: `params` and `batch_stats`, or what this has given before; may be traced.
    """
    params, statistics = _folded(variables["params"], variables.get("batch_stats", {}))
    return {**variables, "params": params, "batch_stats": statistics}


def _folded(params: Mapping[str, Any], statistics: Mapping[str, Any]) -> tuple[dict, dict]:
    if "mean" in statistics:
        own = (statistics["mean"], statistics["var"], params["scale"], params["bias"])
        # Jitted here, and not all of it: whatever is not computed on is not copied.
        factor, constant = jax.jit(factor_and_constant)(*own)
        return {}, {"factor": factor, "constant": constant}
    if "factor" in statistics:
        return dict(params), dict(statistics)
    both = {name: _folded(params.get(name, {}), below) for name, below in statistics.items()}
    kept = {name: below for name, below in params.items() if name not in both}
    return (
        kept | {name: below for name, (below, _) in both.items()},
        {name: below for name, (_, below) in both.items()},
    )
