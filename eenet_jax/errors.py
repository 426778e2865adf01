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

    Where whoever reads its output has enough (`| head`), it ends without a word: with status 141
    where it had more to say, else with its own.

    Args:
      program: Its name, which the line begins with.
    """
    closed = False
    try:
        try:
            yield
        finally:
            closed = _drop_what_nobody_reads()
    except BrokenPipeError:
        if not closed:
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


def _drop_what_nobody_reads() -> bool:
    """Whether the standard output is closed at its other end; then what is left for it is dropped.

    Python would try it again as it ends, complain, and end with a status of its own.
    """
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        # There is none, or it is no file.
        return False
    asked = select.poll()
    asked.register(descriptor, select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)
