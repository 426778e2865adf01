"""CIFAR ResNet (He et al. 2016, section 4.2) with early exits, basic or bottleneck blocks."""

import itertools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Float

from eenet_jax.errors import InputError
from eenet_jax.networks.contract import MultiExitNetwork
from eenet_jax.networks.heads import ConvHead, PooledLinear, conv_head_place
from eenet_jax.networks.layers import BatchNorm, Conv
from eenet_jax.networks.materialise import materialised_relu

EXPANSION = {"basic": 1, "bottleneck": 4}


class Block(nn.Module):
    """A residual block: two 3×3 convolutions, or 1×1, 3×3, 1×1 with four times the channels out.

    Attributes:
      kind: "basic" or "bottleneck".
      width: Channels inside the block.
      stride: Of the block, in pixels.
    """

    kind: Literal["basic", "bottleneck"]
    width: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch _height _width features"]:
        """Apply the block."""
        features = self.width * EXPANSION[self.kind]
        y = x
        for i, (channels, size, stride) in enumerate(self._convs(features), start=1):
            y = nn.relu(y) if i > 1 else y
            y = BatchNorm(name=f"bn{i}")(Conv(channels, size, stride, name=f"conv{i}")(y), train)
        if self.stride != 1 or x.shape[-1] != features:
            x = Conv(features, 1, self.stride, name="shortcut_conv")(x)
            x = BatchNorm(name="shortcut_bn")(x, train)
        return materialised_relu(x + y)

    def _convs(self, features: int) -> list[tuple[int, int, int]]:
        """(channels, size, stride) of each convolution on the main path."""
        if self.kind == "basic":
            return [(self.width, 3, self.stride), (features, 3, 1)]
        return [(self.width, 1, 1), (self.width, 3, self.stride), (features, 1, 1)]


class Stage(nn.Module):
    """Consecutive blocks, the stem before the first.

    Attributes:
      kind: Of the blocks.
      base_width: Channels of the stem and of the first group's blocks.
      blocks: (group, index within the group) of each block, both from 0.
      stem: Whether the 3×3 stem convolution comes first.
    """

    kind: Literal["basic", "bottleneck"]
    base_width: int
    blocks: tuple[tuple[int, int], ...]
    stem: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch _height _width features"]:
        """Apply the stage."""
        if self.stem:
            x = Conv(self.base_width, name="conv1")(x)
            x = nn.relu(BatchNorm(name="bn1")(x, train))
        for group, index in self.blocks:
            stride = 2 if group > 0 and index == 0 else 1
            width = self.base_width * 2**group
            x = Block(self.kind, width, stride, name=f"group{group}_block{index}")(x, train)
        return x


def build_resnet(
    *,
    block: Literal["basic", "bottleneck"] = "bottleneck",
    stage_blocks: Sequence[int] = (9, 9, 9),
    exit_after: Sequence[int] = (9, 18),
    num_classes: int = 10,
    width: int = 16,
    input_shape: Sequence[int] = (32, 32, 3),
) -> MultiExitNetwork:
    """A CIFAR ResNet with an exit after each block counted in `exit_after`, and one at the end.

    Args:
      block: "basic" or "bottleneck".
      stage_blocks: Blocks in each group; every group after the first halves the resolution.
      exit_after: Blocks, counted over all groups, after which an early exit sits. At a
        group's border it sits before the next group's stride.
      num_classes: C.
      width: Channels of the stem; doubled from group to group.
      input_shape: (height, width, channels) of an image.

    Returns:
      The network, with `len(exit_after) + 1` exits.

    Raises:
      InputError: an unknown block, or exits that don't lie inside the network in order.
    """
    blocks = [(g, i) for g, count in enumerate(stage_blocks) for i in range(count)]
    _check(block, stage_blocks, exit_after, len(blocks))
    borders = [0, *exit_after, len(blocks)]
    stages = tuple(
        Stage(block, width, tuple(blocks[start:stop]), start == 0)
        for start, stop in itertools.pairwise(borders)
    )
    early = tuple(ConvHead(num_classes, EXPANSION[block]) for _ in exit_after)
    settings = {
        "block": block,
        "stage_blocks": list(stage_blocks),
        "exit_after": list(exit_after),
        "num_classes": num_classes,
        "width": width,
        "input_shape": list(input_shape),
    }
    return MultiExitNetwork(
        family="resnet",
        settings=settings,
        stages=stages,
        heads=(*early, PooledLinear(num_classes)),
        input_shape=tuple(input_shape),
    )


def _check(block: str, stage_blocks: Sequence[int], exit_after: Sequence[int], total: int) -> None:
    if block not in EXPANSION:
        raise InputError(f"block '{block}' is unknown: choose one of {sorted(EXPANSION)}")
    if not stage_blocks or min(stage_blocks) < 1:
        raise InputError(f"stage_blocks {list(stage_blocks)} must all be at least 1")
    inside = all(0 < after < total for after in exit_after)
    if not exit_after or not inside or list(exit_after) != sorted(set(exit_after)):
        raise InputError(
            f"exit_after {list(exit_after)} must increase strictly within 1..{total - 1},"
            f" for {total} blocks have a last exit of their own"
        )


def published_name(settings: dict, path: tuple[str, ...]) -> str:
    """The published PyTorch name of the module at `path`, e.g. ("stage_1", "group1_block0", "bn2").

    Published groups are cut into segments at their exits: `layer2.1.0` is group 2, segment 1,
    block 0 of that segment. An exit at a group's border belongs to the next group, whose
    segment 0 is then empty.
    """
    place, *rest = path
    exit_after, stage_blocks = settings["exit_after"], settings["stage_blocks"]
    starts = [sum(stage_blocks[:g]) for g in range(len(stage_blocks))]
    if place.startswith("head_"):
        return _head_name(int(place.removeprefix("head_")), rest, exit_after, starts)
    if not rest[0].startswith("group"):
        return rest[0]
    group, index = (int(part) for part in rest[0].removeprefix("group").split("_block"))
    cuts = [a - starts[group] for a in exit_after if _group_of(a, starts) == group]
    segment = sum(cut <= index for cut in cuts)
    first = cuts[segment - 1] if segment else 0
    inner = {"shortcut_conv": "shortcut.0", "shortcut_bn": "shortcut.1"}.get(rest[1], rest[1])
    return f"layer{group + 1}.{segment}.{index - first}.{inner}"


def _group_of(after: int, starts: Sequence[int]) -> int:
    """The group that holds block number `after` (from 0), i.e. the one after the exit."""
    return sum(start <= after for start in starts) - 1


def _head_name(k: int, rest: Sequence[str], exit_after: Sequence[int], starts: list[int]) -> str:
    if k == len(exit_after):
        return "linear"
    group = _group_of(exit_after[k], starts)
    number = sum(_group_of(after, starts) == group for after in exit_after[:k])
    return f"ee{group + 1}.{number}.{conv_head_place(rest[0])}"
