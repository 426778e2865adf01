"""What settings of a fit may be, each wrong one named in a line; values may come as typed."""

import math
from collections.abc import Sequence
from typing import Any

from eenet_jax.errors import InputError


def check_whole(settings: Any, least: int, *names: str, most: int | None = None) -> None:
    """Raise InputError unless these settings are whole numbers in a range."""
    limits = f"{least} or more" if most is None else f"from {least} to {most}"
    for name in names:
        value = getattr(settings, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value > most):
            raise InputError(f"{name} is {value!r}: give a whole number, {limits}")


def check_number(settings: Any, *names: str, zero: bool = False) -> None:
    """Raise InputError unless these settings are finite numbers above 0, or 0 where that may be."""
    for name in names:
        value = getattr(settings, name)
        if not (is_number(value) and (value > 0 or (zero and value == 0))):
            allowed = "0 or more" if zero else "above 0"
            raise InputError(f"{name} is {value!r}: give a number, {allowed}")


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def several(value: Any) -> tuple[Any, ...]:
    """One value or several as a tuple; text is split at commas, as it comes from a command line."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, Sequence) else (value,)


def check_words(name: str, words: tuple[Any, ...], known: Sequence[str]) -> None:
    """Raise InputError unless each is known and given once."""
    for word in words:
        if word not in known:
            raise InputError(f"{name} has {word!r}: give some of {', '.join(known)}")
        if words.count(word) > 1:
            raise InputError(f"{name} has {word!r} twice: give it once")
