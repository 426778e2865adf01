"""Arguments of the command line: their values, and complaints about them in one line."""

import ast
import contextlib
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from eenet_jax.errors import InputError


def listed(text: str) -> tuple[str, ...]:
    """The values of an option like `--budgets 25,30`.

    Raises:
      InputError: one of them is empty.
    """
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise InputError(f"'{text}' has an empty entry: separate the values by single commas")
    return parts


def setting(text: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`; what is no Python literal is a string.

    Raises:
      InputError: it is nothing of the kind.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(f"setting '{text}' is no NAME=VALUE, e.g. epochs=100")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def parse(
    kind: Callable[..., Any],
    arguments: Sequence[str],
    program: str,
    told_by: str = "",
    **options: Any,
) -> Any:
    """Parse with tyro; what it finds wrong becomes one line.

    Args:
      kind: A dataclass, or something else that tyro can make.
      arguments: Without the program's name.
      program: Its name, for the help.
      told_by: The command that lists the options, where it is not the program's `--help`.
      options: More for tyro.

    Raises:
      InputError: an unknown option, a missing one, or a value of another type.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=list(arguments), prog=program, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        told_by = told_by or f"{program} --help"
        raise InputError(f"{_one_line(complaint.getvalue())} (see `{told_by}`)") from None


def _one_line(complaint: str) -> str:
    """What tyro's boxed message says, without the box, its heading and the advice below a rule."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", complaint)
    lines = [re.sub(r"[│╭╮╰╯├┤]", " ", line).strip() for line in plain.splitlines()]
    lines = [line for line in lines if line][1:]
    body = [line for line in lines if set(line) - set("-─ ")]
    advice = next((i for i, line in enumerate(body) if line.startswith("For full help")), len(body))
    # The option's help need not be repeated in a complaint about its value.
    return " ".join(body[:advice]).partition(" Argument helptext:")[0]
