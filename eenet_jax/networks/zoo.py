"""Names → networks."""

import inspect
import math
import numbers
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from eenet_jax.errors import InputError
from eenet_jax.networks.bert import build_bert
from eenet_jax.networks.cnn import build_cnn
from eenet_jax.networks.contract import MultiExitNetwork
from eenet_jax.networks.densenet import build_densenet
from eenet_jax.networks.hrnet import build_hrnet
from eenet_jax.networks.msdnet import build_msdnet
from eenet_jax.networks.resnet import build_resnet

FAMILIES: Mapping[str, Callable[..., MultiExitNetwork]] = {
    "resnet": build_resnet,
    "cnn": build_cnn,
    "densenet": build_densenet,
    "msdnet": build_msdnet,
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
    "densenet121_4": ("densenet", {}),
    "msdnet35_5": ("msdnet", {}),
    "msdnet12_5": (
        "msdnet",
        {
            "base": 4,
            "step": 2,
            "num_scales": 3,
            "channels": 16,
            "growth_rate": 6,
            "growth_factor": (1, 2, 4),
            "bottleneck_factor": (1, 2, 4),
            "stem": "cifar",
            "num_classes": 100,
        },
    ),
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


# Counts that may be 0.
FROM_ZERO = ("head_channels",)


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
    if _is_count(chosen.get("exit_after"), 1):
        chosen["exit_after"] = (chosen["exit_after"],)  # One early exit, typed without brackets.
    check_settings(name, chosen)
    return builder(**{setting: _plain(value) for setting, value in chosen.items()})


def _plain(value: Any) -> Any:
    """NumPy's integers, which JSON has no word for, as Python's."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(value) if integer else value


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Check settings against the types that the family's builder declares.

    Args:
      name: Of the network.
      settings: By name, all known to its builder.

    Raises:
      InputError: a count is no positive whole number, or no sequence of them; there are fewer
        than 2 classes; a number, a truth or a word is something else.
    """
    family, _ = PRESETS.get(name, (name, {}))
    declared = typing.get_type_hints(FAMILIES[family])
    for setting, value in settings.items():
        least = {"num_classes": 2, **dict.fromkeys(FROM_ZERO, 0)}.get(setting, 1)
        wanted = _what_is_wanted(declared[setting], value, least)
        if wanted:
            raise InputError(f"{setting} of network '{name}' is {value!r}: give {wanted}")


def _what_is_wanted(declared: Any, value: Any, least: int) -> str | None:
    """What a setting of the declared type should have been; None where the value is right."""
    if type(None) in typing.get_args(declared):
        (inner,) = (kind for kind in typing.get_args(declared) if kind is not type(None))
        return None if value is None else _what_is_wanted(inner, value, least)
    if typing.get_origin(declared) is Literal:
        words = typing.get_args(declared)
        return None if value in words else f"one of {', '.join(words)}"
    if declared is bool:
        return None if isinstance(value, bool) else "true or false"
    if declared is float:
        return None if _is_number(value) else "a number"
    if declared is int:
        return None if _is_count(value, least) else f"a whole number from {least} up"
    sequence = isinstance(value, list | tuple) and len(value) > 0
    holds = sequence and all(_is_count(n, least) for n in value)
    return None if holds else f"whole numbers from {least} up"


def _is_number(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _is_count(value: Any, least: int) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= least
