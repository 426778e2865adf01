"""The parts of MSDNet: layers that work on several scales at once.

Between two parts goes a tuple of feature maps, finest scale first; exits look at the last.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from eenet_jax.networks.layers import BatchNorm, Conv
from eenet_jax.networks.stems import StemName, max_pool
from eenet_jax.types import PyTree

Scales = tuple[Float[Array, "batch _height _width _channels"], ...]


class ConvNormReLU(nn.Module):
    """A convolution, BatchNorm and ReLU.

    Attributes:
      features: Output channels.
      size: Kernel size in pixels.
      stride: In pixels.
      use_bias: Of the convolution.
    """

    features: int
    size: int = 3
    stride: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch _height _width features"]:
        """Apply the three."""
        x = Conv(self.features, self.size, self.stride, self.use_bias, name="conv")(x)
        return nn.relu(BatchNorm(name="norm")(x, train))


class Branch(nn.Module):
    """New features of one scale from one map: a 3×3 convolution, behind a 1×1 bottleneck or not.

    Attributes:
      features: Output channels.
      stride: 2 where the map is of the next finer scale.
      bottleneck: The bottleneck has at most so many times the output channels; None for none.
    """

    features: int
    stride: int
    bottleneck: int | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch _height _width features"]:
        """Apply the branch."""
        if self.bottleneck is not None:
            width = min(x.shape[-1], self.bottleneck * self.features)
            x = ConvNormReLU(width, 1, name="reduce")(x, train)
        return ConvNormReLU(self.features, 3, self.stride, name="main")(x, train)


class Stem(nn.Module):
    """The image at every scale, each made from the one before.

    Attributes:
      kind: Of the finest scale: "cifar", a 3×3 convolution, or "imagenet", a 7×7 one with a
        bias and a pool, with a stride of 2 each.
      widths: Channels of each scale, finest first.
    """

    kind: StemName
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool) -> Scales:
        """Make the scales."""
        size, stride = (3, 1) if self.kind == "cifar" else (7, 2)
        use_bias = self.kind == "imagenet"
        x = ConvNormReLU(self.widths[0], size, stride, use_bias, name="scale0")(x, train)
        scales = [max_pool(x) if self.kind == "imagenet" else x]
        for i, width in enumerate(self.widths[1:], start=1):
            scales.append(ConvNormReLU(width, 3, 2, name=f"scale{i}")(scales[-1], train))
        return tuple(scales)


class Layer(nn.Module):
    """Every scale with new features behind its own, half of them from the next finer scale.

    The finest scale taken in has no finer one; its new features are all its own, or, where fewer
    scales are handed on than taken in, it only gives to the next.

    Attributes:
      growth: New channels of each scale handed on, finest first.
      bottleneck: Factor of each scale taken in, finest first; None for no bottleneck.
    """

    growth: tuple[int, ...]
    bottleneck: tuple[int | None, ...]

    @nn.compact
    def __call__(self, scales: Scales, train: bool) -> Scales:
        """Apply the layer."""
        dropped = len(scales) - len(self.growth)
        return tuple(
            self._grown(scales, out + dropped, f"scale{out}", features, train)
            for out, features in enumerate(self.growth)
        )

    def _grown(self, scales: Scales, i: int, name: str, features: int, train: bool) -> Array:
        own, factor = scales[i], self.bottleneck[i]
        if i == 0:
            new = [Branch(features, 1, factor, name=f"{name}_normal")(own, train)]
        else:
            half, finer = features // 2, self.bottleneck[i - 1]
            down = Branch(half, 2, finer, name=f"{name}_down")(scales[i - 1], train)
            new = [down, Branch(half, 1, factor, name=f"{name}_normal")(own, train)]
        return jnp.concatenate([own, *new], axis=-1)


class Transition(nn.Module):
    """A 1×1 convolution, BatchNorm and ReLU at every scale, to fewer channels.

    Attributes:
      widths: Channels out of each scale, finest first.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, scales: Scales, train: bool) -> Scales:
        """Apply the transition."""
        return tuple(
            ConvNormReLU(width, 1, name=f"scale{i}")(x, train)
            for i, (width, x) in enumerate(zip(self.widths, scales, strict=True))
        )


class Stage(nn.Module):
    """Consecutive layers and transitions, the stem before the first.

    Attributes:
      units: In order.
      last: Whether no stage follows. Only the coarsest scale is then handed on, so that the
        compiler drops what nobody looks at.
    """

    units: tuple[Stem | Layer | Transition, ...]
    last: bool

    @nn.compact
    def __call__(self, x: PyTree, train: bool) -> Scales:
        """Apply the stage to an image, or to the scales of the stage before."""
        scales = functools.reduce(lambda scales, unit: unit(scales, train), self.units, x)
        return scales[-1:] if self.last else scales


class Head(nn.Module):
    """Two 3×3 convolutions with a stride of 2 on the coarsest scale, average pool, linear.

    Attributes:
      num_classes: C.
      width: Of the convolutions; None keeps the channels.
    """

    num_classes: int
    width: int | None

    @nn.compact
    def __call__(self, scales: Scales, train: bool) -> Float[Array, "batch classes"]:
        """Classify the coarsest scale."""
        x = scales[-1]
        width = self.width or x.shape[-1]
        for i in range(2):
            x = ConvNormReLU(width, 3, 2, name=f"conv{i}")(x, train)
        window = tuple(min(2, side) for side in x.shape[1:3])
        x = nn.avg_pool(x, window, strides=window)
        # One cell is left of the published image sizes; of larger images, the mean of all.
        return nn.Dense(self.num_classes, name="linear")(x.mean((1, 2)))
