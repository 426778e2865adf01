"""A plain convolutional network with early exits, for small images and quick experiments."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from eenet_jax.errors import InputError
from eenet_jax.networks.contract import MultiExitNetwork
from eenet_jax.networks.heads import GridLinear
from eenet_jax.networks.layers import BatchNorm, Conv


class Stage(nn.Module):
    """3×3 convolutions with BatchNorm and ReLU, the first with a stride.

    Attributes:
      width: Channels.
      depth: Convolutions.
      stride: Of the first convolution, in pixels.
    """

    width: int
    depth: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch _height _width features"]:
        """Apply the stage."""
        for i in range(self.depth):
            x = Conv(self.width, stride=self.stride if i == 0 else 1, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(name=f"norm{i}")(x, train))
        return x


def build_cnn(
    *,
    widths: Sequence[int] = (8, 32, 64),
    depths: Sequence[int] = (1, 2, 3),
    strides: Sequence[int] = (1, 2, 1),
    num_classes: int = 10,
    input_shape: Sequence[int] = (8, 8, 1),
) -> MultiExitNetwork:
    """A plain CNN with an exit (grid pool and linear) after each stage.

    Args:
      widths: Channels of each stage.
      depths: Convolutions of each stage.
      strides: Of each stage's first convolution, in pixels.
      num_classes: C.
      input_shape: (height, width, channels) of an image.

    Returns:
      The network, with `len(widths)` exits.

    Raises:
      InputError: widths, depths and strides differ in length.
    """
    if not len(widths) == len(depths) == len(strides):
        raise InputError(
            f"widths {list(widths)}, depths {list(depths)} and strides {list(strides)} must have"
            " one entry per stage"
        )
    settings = {
        "widths": list(widths),
        "depths": list(depths),
        "strides": list(strides),
        "num_classes": num_classes,
        "input_shape": list(input_shape),
    }
    return MultiExitNetwork(
        family="cnn",
        settings=settings,
        stages=tuple(Stage(*of) for of in zip(widths, depths, strides, strict=True)),
        heads=tuple(GridLinear(num_classes) for _ in widths),
        input_shape=tuple(input_shape),
    )
