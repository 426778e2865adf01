"""The one error a user is meant to read."""

import contextlib
import os
import select
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

    Where whoever reads its output has enough (`| head`), it ends without a word, with status 141.

    Args:
      program: Its name, which the line begins with.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        sys.exit(128 + signal.SIGPIPE)
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            f"{program}: interrupted; typed again, a training goes on from its last checkpoint,"
            " if it has written one",
            file=sys.stderr,
        )
        sys.exit(128 + signal.SIGINT)


def _nobody_reads() -> bool:
    """Whether the standard output is closed at its other end; if so, the rest of it is dropped."""
    asked = select.poll()
    asked.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0)):
        return False
    # What is left would be tried again, and complained of, as the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)
