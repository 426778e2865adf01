"""What is freed stays with the process, where glibc is asked to keep it."""

import subprocess
import sys

import pytest

from eenet_jax.training import memory

PROGRAM = """
import resource
import numpy as np
from eenet_jax.training.memory import keep_memory

def faults_of_a_large_array():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)  # 128 MiB, every page of it written.
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = [faults_of_a_large_array() for _ in range(3)][-1]
assert keep_memory()
kept = [faults_of_a_large_array() for _ in range(3)][-1]
print(given_back, kept)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_an_array_that_comes_again_takes_no_new_pages():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    given_back, kept = map(int, ended.stdout.split())
    assert kept < 0.1 * given_back


def test_elsewhere_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_memory()
    monkeypatch.undo()
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "tpu")
    assert not memory.keep_memory()
