"""DenseNet-BC (Huang et al. 2017) with early exits after its transitions."""

import itertools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from eenet_jax.errors import InputError
from eenet_jax.networks.contract import MultiExitNetwork
from eenet_jax.networks.heads import ConvHead, PooledLinear, conv_head_place
from eenet_jax.networks.layers import BatchNorm, Conv
from eenet_jax.networks.stems import StemName, image_shape, max_pool

# A dense layer's 1×1 convolution gives so many times the growth rate; a head's first convolution
# divides the channels by as much.
EXPANSION = 4


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and convolution, 1×1 then 3×3; what it adds comes before what it was given.

    Attributes:
      growth_rate: Channels added.
    """

    growth_rate: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width features"]:
        """Apply the layer."""
        y = nn.relu(BatchNorm(name="bn1")(x, train))
        y = Conv(EXPANSION * self.growth_rate, 1, name="conv1")(y)
        y = nn.relu(BatchNorm(name="bn2")(y, train))
        y = Conv(self.growth_rate, name="conv2")(y)
        return jnp.concatenate([y, x], axis=-1)


class Transition(nn.Module):
    """BatchNorm, ReLU, 1×1 convolution, and an average pool that halves the resolution.

    Attributes:
      features: Channels out.
    """

    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch _height _width features"]:
        """Apply the transition."""
        x = Conv(self.features, 1, name="conv")(nn.relu(BatchNorm(name="bn")(x, train)))
        return nn.avg_pool(x, (2, 2), strides=(2, 2))


class Stage(nn.Module):
    """Consecutive groups of dense layers, a transition after every group but the network's last.

    Attributes:
      growth_rate: Of the dense layers.
      groups: (number from 1, layers, channels after its transition, None for the last) of each.
      stem: Of the network, where this is its first stage.
    """

    growth_rate: int
    groups: tuple[tuple[int, int, int | None], ...]
    stem: StemName | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch _height _width features"]:
        """Apply the stage."""
        if self.stem is not None:
            x = self._stem(x, train)
        for group, layers, reduced in self.groups:
            for i in range(layers):
                x = DenseLayer(self.growth_rate, name=f"dense{group}_{i}")(x, train)
            if reduced is None:
                return nn.relu(BatchNorm(name="bn")(x, train))
            x = Transition(reduced, name=f"trans{group}")(x, train)
        return x

    def _stem(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch _height _width features"]:
        features = 2 * self.growth_rate
        if self.stem == "cifar":
            return Conv(features, name="conv1")(x)
        x = Conv(features, 7, 2, name="conv1_0")(x)
        return max_pool(nn.relu(BatchNorm(name="conv1_1")(x, train)))


def build_densenet(
    *,
    stage_layers: Sequence[int] = (6, 12, 24, 16),
    growth_rate: int = 12,
    reduction: float = 0.5,
    exit_after: Sequence[int] = (1, 2, 3),
    num_classes: int = 100,
    stem: StemName | None = None,
    input_shape: Sequence[int] | None = None,
) -> MultiExitNetwork:
    """DenseNet-BC with an exit after each transition in `exit_after`, and one at the end.

    Args:
      stage_layers: Dense layers in each group; between two groups a transition halves the
        resolution.
      growth_rate: Channels that a dense layer adds; the stem gives twice as many.
      reduction: A transition multiplies the channels by this, and rounds down.
      exit_after: Transitions, counted from 1, after which an early exit sits.
      num_classes: C.
      stem: "cifar", a 3×3 convolution, or "imagenet", a 7×7 one and a pool, with a stride of 2
        each; None for the published choice, which is "imagenet" for 1,000 classes.
      input_shape: (height, width, channels) of an image; None for the stem's own data.

    Returns:
      The network, with `len(exit_after) + 1` exits.

    Raises:
      InputError: exits that don't lie inside the network in order, a reduction that leaves no
        channels, or images too small for so many transitions.
    """
    stem = stem or ("imagenet" if num_classes == 1000 else "cifar")
    shape = image_shape(input_shape, stem)
    _check(stage_layers, exit_after, reduction)
    _check_resolution(shape, stem, len(stage_layers) - 1)
    groups = _groups(stage_layers, growth_rate, reduction)
    borders = [0, *exit_after, len(groups)]
    stages = tuple(
        Stage(growth_rate, groups[start:stop], stem if start == 0 else None)
        for start, stop in itertools.pairwise(borders)
    )
    settings = {
        "stage_layers": list(stage_layers),
        "growth_rate": growth_rate,
        "reduction": reduction,
        "exit_after": list(exit_after),
        "num_classes": num_classes,
        "stem": stem,
        "input_shape": list(shape),
    }
    return MultiExitNetwork(
        family="densenet",
        settings=settings,
        stages=stages,
        heads=(*(ConvHead(num_classes, EXPANSION) for _ in exit_after), PooledLinear(num_classes)),
        input_shape=shape,
    )


def _groups(
    stage_layers: Sequence[int], growth_rate: int, reduction: float
) -> tuple[tuple[int, int, int | None], ...]:
    """(number, layers, channels after its transition) of each group."""
    groups, channels = [], 2 * growth_rate
    for number, layers in enumerate(stage_layers, start=1):
        channels = math.floor((channels + layers * growth_rate) * reduction)
        last = number == len(stage_layers)
        if not last and channels < EXPANSION:
            raise InputError(
                f"reduction {reduction} leaves {channels} channels after transition {number}:"
                f" raise it or growth_rate {growth_rate}, an exit head needs {EXPANSION}"
            )
        groups.append((number, layers, None if last else channels))
    return tuple(groups)


def _check(stage_layers: Sequence[int], exit_after: Sequence[int], reduction: float) -> None:
    transitions = len(stage_layers) - 1
    if transitions < 1:
        raise InputError(f"stage_layers {list(stage_layers)} has one group: give 2 or more")
    inside = all(0 < after <= transitions for after in exit_after)
    if not exit_after or not inside or list(exit_after) != sorted(set(exit_after)):
        raise InputError(
            f"exit_after {list(exit_after)} must increase strictly within 1..{transitions}, the"
            f" transitions between {len(stage_layers)} groups"
        )
    if not 0 < reduction <= 1:
        raise InputError(f"reduction is {reduction}: give more than 0 and at most 1")


def _check_resolution(shape: tuple[int, int, int], stem: StemName, transitions: int) -> None:
    least = 2**transitions * (4 if stem == "imagenet" else 1)
    if min(shape[:2]) < least:
        raise InputError(
            f"input_shape {list(shape)} is too small for {transitions} transitions and the"
            f" {stem} stem: give sides of {least} pixels or more"
        )


def published_name(settings: dict, path: tuple[str, ...]) -> str:
    """The published PyTorch name of the module at `path`.

    Args:
      settings: Of the network.
      path: E.g. ("stage_1", "dense2_0", "bn2").

    Returns:
      E.g. "dense2.0.bn2".
    """
    place, *rest = path
    if place.startswith("stage_"):
        return ".".join([rest[0].replace("_", "."), *rest[1:]])
    k = int(place.removeprefix("head_"))
    if k == len(settings["exit_after"]):
        return "linear"
    return f"ee_classifiers.{k}.{conv_head_place(rest[0])}"
