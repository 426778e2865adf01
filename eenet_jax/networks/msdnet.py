"""MSDNet (Huang et al. 2018): dense layers over several scales, with exits at regular depths."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

from eenet_jax.errors import InputError
from eenet_jax.networks.contract import MultiExitNetwork
from eenet_jax.networks.multiscale import Head, Layer, Stage, Stem, Transition
from eenet_jax.networks.stems import StemName, image_shape

CIFAR_HEAD_WIDTH = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """How many layers, scales and channels there are, where; layers count from 1.

    The attributes are `build_msdnet`'s arguments.

    Raises:
      InputError: these settings make no network.
    """

    base: int
    step: int
    step_mode: Literal["even", "lin_grow"]
    num_scales: int
    channels: int
    growth_rate: int
    growth_factor: tuple[int, ...]
    bottleneck_factor: tuple[int, ...] | None
    prune: Literal["max", "min"]
    reduction: float
    num_exits: int
    stem: StemName
    num_classes: int

    def __post_init__(self):
        for name in ("growth_factor", "bottleneck_factor"):
            factors = getattr(self, name)
            if factors is not None and len(factors) != self.num_scales:
                raise InputError(
                    f"{name} {list(factors)} must hold one number for each of num_scales"
                    f" {self.num_scales}"
                )
        if any(self.growth_rate * factor % 2 for factor in self.growth_factor[1:]):
            raise InputError(
                f"growth_rate {self.growth_rate} times growth_factor {list(self.growth_factor)}"
                " must be even at every scale but the finest: it comes from two scales in halves"
            )
        if self.prune == "min" and self.num_layers < self.num_scales - 1:
            raise InputError(
                f"{self.num_layers} layers cannot drop {self.num_scales} scales one at a time:"
                " raise base or step, lower num_scales, or prune 'max'"
            )
        self._check_reduction()

    def _check_reduction(self) -> None:
        if not 0 <= self.reduction <= 1:
            raise InputError(f"reduction is {self.reduction}: give 0 (none) to 1")
        if min(self.widths) < 1:
            raise InputError(
                f"reduction {self.reduction} leaves no channels: raise it, channels"
                f" {self.channels} or growth_rate {self.growth_rate}"
            )

    @property
    def steps(self) -> tuple[int, ...]:
        """Layers of each stage."""
        grown = self.step_mode == "lin_grow"
        later = (self.step * j + 1 if grown else self.step for j in range(1, self.num_exits))
        return (self.base, *later)

    @property
    def num_layers(self) -> int:
        """Of all stages."""
        return sum(self.steps)

    def num_scales_after(self, layer: int) -> int:
        """How many scales, the coarsest ones, a layer hands on; the stem, layer 0, all."""
        if layer == 0:
            return self.num_scales
        if self.prune == "min":
            return min(self.num_scales, self.num_layers - layer + 1)
        interval = math.ceil(self.num_layers / self.num_scales)
        return self.num_scales - (layer - 1) // interval

    def reduces_after(self, layer: int) -> bool:
        """Whether a transition follows a layer."""
        if self.reduction == 0:
            return False
        if self.prune == "min":
            return layer in (self.num_layers // 3, 2 * self.num_layers // 3)
        return self.num_scales_after(layer) < self.num_scales_after(layer - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after the stem and each layer, its transition included.

        They are those of a scale whose growth factor is 1.
        """
        widths = [self.channels]
        for layer in range(1, self.num_layers + 1):
            width = widths[-1] + self.growth_rate
            reduced = self.reduces_after(layer)
            widths.append(math.floor(self.reduction * width) if reduced else width)
        return tuple(widths)

    def stages(self) -> tuple[Stage, ...]:
        """The stages."""
        borders = itertools.pairwise([0, *itertools.accumulate(self.steps)])
        widths = self.widths
        return tuple(
            Stage(self._units(range(start + 1, stop + 1), widths), stop == self.num_layers)
            for start, stop in borders
        )

    def _units(
        self, layers: range, widths: tuple[int, ...]
    ) -> tuple[Stem | Layer | Transition, ...]:
        units: list[Stem | Layer | Transition] = []
        if layers.start == 1:
            units.append(Stem(self.stem, self._scaled(self.channels, self.num_scales)))
        for layer in layers:
            scales = self.num_scales_after(layer)
            taken = self.num_scales_after(layer - 1)
            bottleneck = self.bottleneck_factor or (None,) * self.num_scales
            units.append(Layer(self._scaled(self.growth_rate, scales), bottleneck[-taken:]))
            if self.reduces_after(layer):
                units.append(Transition(self._scaled(widths[layer], scales)))
        return tuple(units)

    def _scaled(self, width: int, scales: int) -> tuple[int, ...]:
        return tuple(width * factor for factor in self.growth_factor[-scales:])


def build_msdnet(
    *,
    base: int = 7,
    step: int = 7,
    step_mode: Literal["even", "lin_grow"] = "even",
    num_scales: int = 4,
    channels: int = 32,
    growth_rate: int = 16,
    growth_factor: Sequence[int] = (1, 2, 4, 4),
    bottleneck_factor: Sequence[int] | None = (1, 2, 4, 4),
    prune: Literal["max", "min"] = "max",
    reduction: float = 0.5,
    num_exits: int = 5,
    stem: StemName = "imagenet",
    num_classes: int = 1000,
    input_shape: Sequence[int] | None = None,
) -> MultiExitNetwork:
    """MSDNet with exits at regular depths.

    Args:
      base: Layers to the first exit.
      step: Layers from one exit to the next.
      step_mode: "even", or "lin_grow": step·(j-1) + 1 layers to exit j.
      num_scales: Resolutions kept side by side, each half of the one before.
      channels: Of the stem at a scale whose growth factor is 1.
      growth_rate: Channels that a layer adds to such a scale.
      growth_factor: Multiplies the channels of each scale, finest first.
      bottleneck_factor: At each scale taken in, a 1×1 convolution leaves at most so many times
        the channels that its 3×3 convolution adds; None for no such convolutions.
      prune: "max": scales are dropped at equal distances, from the first layers on; "min": as
        late as the last exit allows.
      reduction: Transitions multiply the channels by this, and round down; 0 for none.
      num_exits: K.
      stem: "cifar" or "imagenet"; the exit heads are made for the same.
      num_classes: C.
      input_shape: (height, width, channels) of an image; None for the stem's own data.

    Returns:
      The network, with `num_exits` exits.

    Raises:
      InputError: factors that don't fit the scales, or settings that leave no channels.
    """
    shape = image_shape(input_shape, stem)
    architecture = Architecture(
        base=base,
        step=step,
        step_mode=step_mode,
        num_scales=num_scales,
        channels=channels,
        growth_rate=growth_rate,
        growth_factor=tuple(growth_factor),
        bottleneck_factor=None if bottleneck_factor is None else tuple(bottleneck_factor),
        prune=prune,
        reduction=reduction,
        num_exits=num_exits,
        stem=stem,
        num_classes=num_classes,
    )
    settings = {**dataclasses.asdict(architecture), "input_shape": shape}
    return MultiExitNetwork(
        family="msdnet",
        settings={k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
        stages=architecture.stages(),
        heads=(Head(num_classes, CIFAR_HEAD_WIDTH if stem == "cifar" else None),) * num_exits,
        input_shape=shape,
    )


def published_name(settings: dict, path: tuple[str, ...]) -> str:
    """The published PyTorch name of the module at `path`.

    Args:
      settings: Of the network.
      path: E.g. ("stage_1", "units_0", "scale1_down", "reduce", "norm").

    Returns:
      E.g. "blocks.1.0.layers.1.conv_down.net.1".
    """
    place, *rest = path
    kind, number = place.split("_")
    if kind == "head":
        name = f"classifier.{number}"
        return f"{name}.m.{rest[0][-1]}.net.{PAIR[rest[1]]}" if rest else f"{name}.linear"
    unit, (scale, *branch) = rest[0].removeprefix("units_"), rest[1].split("_")
    name, scale = f"blocks.{number}.{unit}", scale.removeprefix("scale")
    if branch:
        behind = 3 * (rest[2] == "main" and settings["bottleneck_factor"] is not None)
        return f"{name}.layers.{scale}.conv_{branch[0]}.net.{behind + PAIR[rest[3]]}"
    if (number, unit) != ("0", "0"):
        return f"{name}.m.{scale}.net.{PAIR[rest[2]]}"
    net = "" if scale == "0" and settings["stem"] == "imagenet" else ".net"
    return f"{name}.layers.{scale}{net}.{PAIR[rest[2]]}"


# A published convolution stands beside its norm and ReLU in one Sequential.
PAIR = {"conv": 0, "norm": 1}
