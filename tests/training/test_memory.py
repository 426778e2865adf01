"""What is freed stays with the process, where glibc is asked to keep it."""

import subprocess
import sys
from types import SimpleNamespace

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


@pytest.fixture
def asked(monkeypatch):
    """What malloc and JAX are asked for."""
    options = []

    def mallopt(option, value):
        options.append(option)
        return 1

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(memory.jax.config, "update", lambda name, value: options.append(name))
    return options


def test_without_glibc_nothing_is_changed(monkeypatch, asked):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_memory()
    assert asked == []


def test_beside_an_accelerator_memory_is_left_as_it_is(monkeypatch, asked):
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "tpu")
    assert not memory.keep_memory()
    assert asked == ["jax_cpu_enable_async_dispatch"]
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "cpu")
    assert memory.keep_memory()
    assert len(asked[1:]) == 3
