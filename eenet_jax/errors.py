"""The one error a user is meant to read."""

import contextlib
import signal
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """Bad input: a single line that names the offending value and the remedy.

    Everything that validates what a user gave (settings, files, budgets) raises
    this; the command line prints it on stderr and exits with status 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


@contextlib.contextmanager
def told_in_one_line(program: str) -> Iterator[None]:
    """Bad input ends the program with a line on stderr and status 2, and Ctrl-C with one and 130.

    Args:
      program: Its name, which the line begins with.
    """
    try:
        yield
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            f"{program}: interrupted; a training continues from its last checkpoint if typed again",
            file=sys.stderr,
        )
        sys.exit(128 + signal.SIGINT)


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)
