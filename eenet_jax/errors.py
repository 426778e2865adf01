"""The one error a user is meant to read."""

import sys


class InputError(ValueError):
    """Bad input: a single line that names the offending value and the remedy.

    Everything that validates what a user gave (settings, files, budgets) raises
    this; the command line prints it on stderr and exits with status 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)
