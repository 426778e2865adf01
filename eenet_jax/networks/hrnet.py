"""HRNet for segmentation (Sun et al. 2019, arXiv 1904.04514: HRNetV2) with four exits.

The stem brings the image to a quarter of its size, where the highest-resolution branch stays;
each later stage adds a branch at half the resolution of the last. Every module ends in an
exchange: each branch receives the sum of all, resized. An exit sits after each stage.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from eenet_jax.errors import InputError
from eenet_jax.networks.bilinear import resize_bilinear
from eenet_jax.networks.contract import MultiExitNetwork
from eenet_jax.networks.layers import BatchNorm, Conv
from eenet_jax.networks.materialise import materialised_relu
from eenet_jax.networks.resnet import Block
from eenet_jax.networks.stems import image_shape

NUM_STAGES = 4

# "branches": a feature map each, highest resolution first; "image": the input with all its
# channels dropped, which weighs nothing and says how large the logits must be.
Carry = Mapping[str, Any]
Map = Float[Array, "batch _height _width _channels"]


class ConvNorm(nn.Module):
    """Convolution + BatchNorm, and ReLU where wanted.

    Attributes:
      features: Output channels.
      size: Kernel size in pixels.
      stride: In pixels.
      relu: Whether a ReLU follows.
    """

    features: int
    size: int = 3
    stride: int = 1
    relu: bool = True

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Convolve and normalise."""
        x = Conv(self.features, self.size, self.stride, name="conv")(x)
        x = BatchNorm(name="bn")(x, train)
        return nn.relu(x) if self.relu else x


class FirstStage(nn.Module):
    """The stem, two 3×3 convolutions of stride 2, and bottleneck blocks at one resolution.

    Attributes:
      stem_channels: Channels of the stem.
      width: Channels inside a bottleneck; four times as many leave it.
      blocks: Bottlenecks.
    """

    stem_channels: int
    width: int
    blocks: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool) -> Carry:
        """Apply the stage."""
        image = x[..., :0]
        for i in (1, 2):
            x = Conv(self.stem_channels, stride=2, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(name=f"bn{i}")(x, train))
        for i in range(self.blocks):
            x = Block("bottleneck", self.width, 1, name=f"layer1_{i}")(x, train)
        return {"branches": [x], "image": image}


class Transition(nn.Module):
    """Bring the branches to a stage's channels, and begin a new one at half the resolution.

    Attributes:
      widths: Channels of each branch, the new one included.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, branches: Sequence[Map], train: bool) -> list[Map]:
        """Apply the transition."""
        made = []
        for i, (x, width) in enumerate(zip(branches, self.widths, strict=False)):
            known = x.shape[-1] == width
            made.append(x if known else ConvNorm(width, name=f"branch{i}")(x, train))
        new = ConvNorm(self.widths[-1], stride=2, name=f"branch{len(branches)}")
        return [*made, new(branches[-1], train)]


class Exchange(nn.Module):
    """Every branch receives the sum of all, each brought to its resolution and channels.

    From a higher resolution by 3×3 convolutions of stride 2, of which the last alone changes the
    channels and has no ReLU; from a lower one by a 1×1 convolution and bilinear resizing.

    Attributes:
      align_corners: Of the resizing.
    """

    align_corners: bool

    @nn.compact
    def __call__(self, branches: Sequence[Map], train: bool) -> list[Map]:
        """Apply the exchange."""
        fused = []
        for i, target in enumerate(branches):
            received = [self._bring(x, target, j, i, train) for j, x in enumerate(branches)]
            total = functools.reduce(operator.add, received)
            fused.append(materialised_relu(total))
        return fused

    def _bring(self, x: Map, target: Map, source: int, to: int, train: bool) -> Map:
        """Branch `source`, at the size and channels of branch `to`."""
        name, width = f"to{to}_from{source}", target.shape[-1]
        if source == to:
            return x
        if source > to:
            x = ConvNorm(width, size=1, relu=False, name=name)(x, train)
            return resize_bilinear(x, target.shape[1:3], self.align_corners)
        for step in range(to - source):
            last = step == to - source - 1
            features = width if last else x.shape[-1]
            x = ConvNorm(features, stride=2, relu=not last, name=f"{name}_step{step}")(x, train)
        return x


class LaterStage(nn.Module):
    """A transition to one branch more, and modules of parallel basic blocks and an exchange.

    Attributes:
      widths: Channels of each branch, highest resolution first.
      modules: How many.
      blocks: Basic blocks of each branch in a module.
      align_corners: Of the exchanges' resizing.
    """

    widths: tuple[int, ...]
    modules: int
    blocks: int
    align_corners: bool

    @nn.compact
    def __call__(self, carry: Carry, train: bool) -> Carry:
        """Apply the stage."""
        branches = Transition(self.widths, name="transition")(carry["branches"], train)
        for m in range(self.modules):
            branches = [self._branch(x, m, b, train) for b, x in enumerate(branches)]
            branches = Exchange(self.align_corners, name=f"module{m}_exchange")(branches, train)
        return {"branches": branches, "image": carry["image"]}

    def _branch(self, x: Map, module: int, branch: int, train: bool) -> Map:
        for i in range(self.blocks):
            name = f"module{module}_branch{branch}_block{i}"
            x = Block("basic", self.widths[branch], 1, name=name)(x, train)
        return x


class DenseHead(nn.Module):
    """All branches at the highest resolution, classified pixel by pixel, at the image's size.

    Attributes:
      num_classes: C.
      channels: Of the hidden layer; 0: as many as the branches have together.
      align_corners: Of the resizing.
    """

    num_classes: int
    channels: int
    align_corners: bool

    @nn.compact
    def __call__(self, carry: Carry, train: bool) -> Float[Array, "batch height width classes"]:
        """Classify every pixel."""
        branches, size = carry["branches"], carry["branches"][0].shape[1:3]
        x = jnp.concatenate([resize_bilinear(b, size, self.align_corners) for b in branches], -1)
        x = Conv(self.channels or x.shape[-1], 1, use_bias=True, name="hidden")(x)
        x = nn.relu(BatchNorm(name="bn")(x, train))
        x = Conv(self.num_classes, 1, use_bias=True, name="classifier")(x)
        return resize_bilinear(x, carry["image"].shape[1:3], self.align_corners)


def build_hrnet(
    *,
    width: int = 48,
    stage_modules: Sequence[int] = (1, 1, 4, 3),
    stage_blocks: Sequence[int] = (4, 4, 4, 4),
    stem_channels: int = 64,
    bottleneck_width: int = 64,
    head_channels: int = 0,
    align_corners: bool = False,
    num_classes: int = 19,
    input_shape: Sequence[int] = (512, 1024, 3),
) -> MultiExitNetwork:
    """HRNet for segmentation with an exit after each of its four stages.

    The defaults are HRNetV2-W48 as published for Cityscapes. Sides that are no multiples of 32
    are rounded up at every halving, and the logits have the image's size all the same.

    Args:
      width: Channels of the highest-resolution branch; doubled from branch to branch.
      stage_modules: Modules in each stage; the first stage is always one.
      stage_blocks: Blocks in each stage, of every branch in every module.
      stem_channels: Channels of the stem.
      bottleneck_width: Channels inside the first stage's bottlenecks, whose output has four
        times as many.
      head_channels: Hidden channels of each exit head; 0: as many as the branches have
        together, as published.
      align_corners: Of every bilinear resizing, as PyTorch's argument of that name.
      num_classes: C.
      input_shape: (height, width, channels) of an image; others of another size may be given.

    Returns:
      The network; its logits are [4, batch, height, width, classes].

    Raises:
      InputError: not one number for each of the four stages, or a first stage of several
        modules.
    """
    _check_stages(stage_modules, stage_blocks)
    height, width_px, channels = image_shape(input_shape, "imagenet")
    settings = {
        "width": width,
        "stage_modules": list(stage_modules),
        "stage_blocks": list(stage_blocks),
        "stem_channels": stem_channels,
        "bottleneck_width": bottleneck_width,
        "head_channels": head_channels,
        "align_corners": align_corners,
        "num_classes": num_classes,
        "input_shape": list(input_shape),
    }
    widths = tuple(width * 2**branch for branch in range(NUM_STAGES))
    later = tuple(
        LaterStage(widths[: s + 1], stage_modules[s], stage_blocks[s], align_corners)
        for s in range(1, NUM_STAGES)
    )
    head = DenseHead(num_classes, head_channels, align_corners)
    return MultiExitNetwork(
        family="hrnet",
        settings=settings,
        stages=(FirstStage(stem_channels, bottleneck_width, stage_blocks[0]), *later),
        heads=(head,) * NUM_STAGES,
        input_shape=(height, width_px, channels),
        dense=True,
    )


def _check_stages(stage_modules: Sequence[int], stage_blocks: Sequence[int]) -> None:
    for name, values in (("stage_modules", stage_modules), ("stage_blocks", stage_blocks)):
        if len(values) != NUM_STAGES:
            raise InputError(f"{name} {list(values)} must hold a number for each of 4 stages")
    if stage_modules[0] != 1:
        raise InputError(
            f"stage_modules {list(stage_modules)} must begin with 1: stage 1 is one row of blocks"
        )


# The published head is one Sequential: convolution, norm, ReLU, convolution.
HEAD_PLACES = {"hidden": 0, "bn": 1, "classifier": 3}
INNER = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
PAIR = {"conv": 0, "bn": 1}


def published_name(settings: dict, path: tuple[str, ...]) -> str:
    """The published PyTorch name of the module at `path`.

    The names are those of the official segmentation network, whose one head, `last_layer`, is
    the last exit's; earlier exits are called `exits.0` to `exits.2` and made alike.

    Args:
      settings: Of the network.
      path: E.g. ("stage_1", "module0_branch1_block2", "bn2").

    Returns:
      E.g. "stage2.0.branches.1.2.bn2".
    """
    place, *rest = path
    kind, number = place.split("_")
    if kind == "head":
        exit_name = "last_layer" if int(number) == NUM_STAGES - 1 else f"exits.{number}"
        return f"{exit_name}.{HEAD_PLACES[rest[0]]}"
    if number == "0":
        return ".".join([rest[0].replace("_", "."), *(INNER.get(name, name) for name in rest[1:])])
    return _later_name(int(number), rest)


def _later_name(number: int, rest: Sequence[str]) -> str:
    """Of a module in stage `number` (0-based, from 1)."""
    if rest[0] == "transition":
        branch = int(rest[1].removeprefix("branch"))
        # What begins a branch is a chain of convolutions, of which there is one.
        link = ".0" if branch == number else ""
        return f"transition{number}.{branch}{link}.{PAIR[rest[2]]}"
    module, *inside = rest[0].split("_")
    stage = f"stage{number + 1}.{module.removeprefix('module')}"
    if inside == ["exchange"]:
        to, source, *steps = rest[1].split("_")
        ends = [to.removeprefix("to"), source.removeprefix("from")]
        chain = [*ends, *(step.removeprefix("step") for step in steps)]
        return f"{stage}.fuse_layers.{'.'.join(chain)}.{PAIR[rest[2]]}"
    branch, block = inside[0].removeprefix("branch"), inside[1].removeprefix("block")
    return f"{stage}.branches.{branch}.{block}.{rest[1]}"
