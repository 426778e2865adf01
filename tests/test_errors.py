"""How the command line ends: one line, the status, and output that nobody reads."""

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from eenet_jax.errors import InputError, told_in_one_line

sys.stdin.read()  # Till nobody reads.
with told_in_one_line("eenet"):
    print("words")
    {end}
"""


@pytest.mark.parametrize(
    ("end", "status", "line"),
    [
        ("pass", 0, ""),
        ("raise InputError('epochs is 0: give 1')", 2, "eenet: epochs is 0: give 1\n"),
        ("sys.exit(75)", 75, ""),
        ("raise KeyboardInterrupt", 128 + signal.SIGINT, "eenet: interrupted;"),
        ("sys.stdout.flush()", 128 + signal.SIGPIPE, ""),
        ("raise BrokenPipeError", 128 + signal.SIGPIPE, ""),
    ],
)
@pytest.mark.parametrize("read", [True, False])
def test_output_that_nobody_reads_changes_no_status(end, status, line, read):
    command = [sys.executable, "-c", PROGRAM.format(end=end)]
    pipe = subprocess.PIPE
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=buffered
    ) as running:
        assert running.stdin
        assert running.stdout
        assert running.stderr
        if not read:
            running.stdout.close()
        running.stdin.close()
        said = running.stderr.read()
    if read and status == 128 + signal.SIGPIPE:
        # Another pipe's error is told of as what it is.
        assert running.returncode == ("BrokenPipe" in end)
        assert ("BrokenPipeError" in said) == ("BrokenPipe" in end)
        return
    assert running.returncode == status
    assert said.startswith(line) if line else said == ""


def test_a_program_without_output_ends_well():
    command = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, PROGRAM.format(end="pass")]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
