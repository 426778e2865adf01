"""Names → networks."""

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from eenet_jax.errors import InputError
from eenet_jax.networks.bert import build_bert
from eenet_jax.networks.cnn import build_cnn
from eenet_jax.networks.contract import MultiExitNetwork
from eenet_jax.networks.hrnet import build_hrnet
from eenet_jax.networks.resnet import build_resnet

FAMILIES: Mapping[str, Callable[..., MultiExitNetwork]] = {
    "resnet": build_resnet,
    "cnn": build_cnn,
    "bert": build_bert,
    "hrnet": build_hrnet,
}

PRESETS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "resnet56_3": (
        "resnet",
        {"block": "bottleneck", "stage_blocks": (9, 9, 9), "exit_after": (9, 18)},
    ),
    "resnet20_3": ("resnet", {"block": "basic", "stage_blocks": (3, 3, 3), "exit_after": (3, 6)}),
    "digits_cnn_3": ("cnn", {}),
    "bert_4": ("bert", {}),
    "hrnet_4": ("hrnet", {}),
    "hrnet_4_cpu": (
        "hrnet",
        {
            "width": 16,
            "stage_modules": (1, 1, 1, 1),
            "stage_blocks": (2, 2, 2, 2),
            "stem_channels": 32,
            "bottleneck_width": 16,
            "head_channels": 64,
            "num_classes": 11,
            "input_shape": (240, 320, 3),
        },
    ),
}


# Settings that are no counts: the builder's own to check.
WORDS = ("block", "pooling", "dropout", "head_channels", "align_corners")
SINGLE_COUNTS = (
    "num_classes",
    "width",
    "layers",
    "heads",
    "mlp_width",
    "vocab_size",
    "max_positions",
    "sequence_length",
    "stem_channels",
    "bottleneck_width",
)


def names() -> tuple[str, ...]:
    """Every name that `build` takes: families, then presets."""
    return (*FAMILIES, *PRESETS)


def build(name: str, **overrides: Any) -> MultiExitNetwork:
    """The network of that name.

    Args:
      name: A family (`resnet`) or a preset of one (`resnet56_3`); `names()` lists them.
      **overrides: Settings of the family's builder, over the preset's.

    Returns:
      The network; it holds no weights.

    Raises:
      InputError: an unknown name or setting, or settings that make no network.
    """
    family, settings = PRESETS.get(name, (name, {}))
    if family not in FAMILIES:
        raise InputError(f"network '{name}' is unknown: choose one of {', '.join(names())}")
    builder = FAMILIES[family]
    known = inspect.signature(builder).parameters
    for setting in overrides:
        if setting not in known:
            raise InputError(
                f"network '{name}' has no setting '{setting}': it has {', '.join(known)}"
            )
    chosen = {**settings, **overrides}
    check_settings(name, chosen)
    return builder(**chosen)


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Check the counts among a builder's settings; `WORDS` are the builder's own to check.

    Args:
      name: Of the network, for the message.
      settings: By name.

    Raises:
      InputError: a value is no positive whole number, or no sequence of them, where it must be
        one; or there are fewer than 2 classes.
    """
    for setting, value in settings.items():
        if setting in WORDS:
            continue
        least = 2 if setting == "num_classes" else 1
        if setting in SINGLE_COUNTS:
            holds, wanted = _is_count(value, least), "a whole number"
        else:
            sequence = isinstance(value, list | tuple) and len(value) > 0
            holds, wanted = sequence and all(_is_count(n, least) for n in value), "whole numbers"
        if not holds:
            raise InputError(
                f"{setting} of network '{name}' is {value!r}: give {wanted} from {least} up"
            )


def _is_count(value: Any, least: int) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= least
