"""Exit heads that several backbones share."""

import flax.linen as nn
from jaxtyping import Array, Float

from eenet_jax.networks.layers import BatchNorm, Conv


class PooledLinear(nn.Module):
    """Global average pool and a linear classifier: the last exit, and the cheapest early one.

    Attributes:
      num_classes: C.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Classify a feature map."""
        return nn.Dense(self.num_classes, name="linear")(x.mean((1, 2)))


class GridLinear(nn.Module):
    """Average pool to a coarse grid and a linear classifier, which sees where things are.

    After few layers a global pool forgets too much to classify by.

    Attributes:
      num_classes: C.
      grid: Cells along each side; fewer where the feature map has fewer pixels.
    """

    num_classes: int
    grid: int = 2

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Classify a feature map."""
        window = tuple(max(1, side // self.grid) for side in x.shape[1:3])
        cells = nn.avg_pool(x, window, strides=window)
        return nn.Dense(self.num_classes, name="linear")(cells.reshape(x.shape[0], -1))


class ConvHead(nn.Module):
    """Three 3×3 convolution + BatchNorm + ReLU, then pool and linear (EENet's early exit).

    Attributes:
      num_classes: C.
      reduction: The first convolution divides the channels by this.
      num_convs: Convolutions before the pool.
    """

    num_classes: int
    reduction: int = 1
    num_convs: int = 3

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Classify a feature map."""
        channels = x.shape[-1] // self.reduction
        for i in range(self.num_convs):
            x = Conv(channels, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(name=f"norm{i}")(x, train))
        return PooledLinear(self.num_classes, name="classifier")(x, train)


def conv_head_place(name: str) -> int:
    """Where a part of `ConvHead` stands in the published head.

    That is one Sequential: convolution, norm and ReLU three times, pool, flatten, linear.
    """
    kind, number = name[:-1], name[-1]
    return {"conv": 0, "norm": 1}[kind] + 3 * int(number) if number.isdigit() else 11
