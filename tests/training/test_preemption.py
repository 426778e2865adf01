"""SIGTERM saves and ends with a status of its own; a dead process ends the others, by its name."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import digest

from eenet_jax.predictions import load_network
from eenet_jax.training import preemption, watch
from eenet_jax.training.metrics import read_metrics

TESTS = Path(__file__).resolve().parent.parent
EPOCHS = 40
CONFIG = f'''"""A network of a few hundred weights, trained for long enough to be stopped."""

from tiny_run import tiny_config


def get_config():
    """The settings of this run."""
    return tiny_config(epochs={EPOCHS}, checkpoint_every=5, select="SELECT")
'''
SECONDS = 120


class Job:
    """`eenet train` in one process, or in two that train together."""

    def __init__(self, folder: Path, processes: int, select: str):
        self.out, self.count = folder / "run", processes
        self.config = folder / "tiny.py"
        self.config.write_text(CONFIG.replace("SELECT", select))
        self.running: list[subprocess.Popen] = []

    def start(self, *of_the_second):
        """Start all; the second one may be given options that the first one isn't."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        for number in range(self.count):
            together = ["--coordinator", address, "--num-processes", "2", "--process-id", number]
            command = [sys.executable, "-m", "eenet_jax.cli", "train", self.config]
            command += ["--out", self.out, *(together if self.count > 1 else [])]
            command += of_the_second if number == 1 else []
            flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
            self.running.append(
                subprocess.Popen(
                    list(map(str, command)),
                    env={**os.environ, "PYTHONPATH": str(TESTS), "XLA_FLAGS": flags},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def wait_for(self, step: int):
        """Till that step is in the log."""
        path, began = self.out / "metrics.jsonl", time.monotonic()
        while not path.exists() or all(line["step"] < step for line in read_metrics(path)):
            assert time.monotonic() < began + SECONDS
            assert all(process.poll() is None for process in self.running)
            time.sleep(0.01)

    def end(self) -> list[tuple[int, str]]:
        """Status and complaint of each process."""
        said = [process.communicate(timeout=SECONDS) for process in self.running]
        ended = [
            (process.returncode, complaint)
            for process, (_, complaint) in zip(self.running, said, strict=True)
        ]
        self.running = []
        return ended


@pytest.fixture
def job(tmp_path):
    """Made by its number of processes; what still runs in the end is killed."""
    made = []

    def make(processes, folder=tmp_path, select="last"):
        made.append(Job(folder, processes, select))
        return made[-1]

    yield make
    for process in [process for each in made for process in each.running]:
        process.kill()
        process.communicate()


def statuses(ended):
    return [status for status, _ in ended]


def assert_same_end(folder, reference):
    (_, ours, _), (_, theirs, _) = load_network(folder), load_network(reference)
    assert digest(ours) == digest(theirs)
    timed = ("seconds",)
    ours, theirs = (
        [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(path)]
        for path in (folder / "metrics.jsonl", reference / "metrics.jsonl")
    )
    # A stop writes a line of its own, of the steps since the last one.
    kept = {line["step"] for line in theirs if line["split"] == "val"}
    assert [x for x in ours if x["split"] == "val"] == [x for x in theirs if x["split"] == "val"]
    assert max(kept) == EPOCHS * 3


@pytest.mark.parametrize(
    ("processes", "select"),
    [
        (1, "last"),
        *(pytest.param(2, select, marks=pytest.mark.slow) for select in ("last", "best")),
    ],
)
def test_sigterm_saves_and_the_same_command_ends_with_the_same_bits(
    job, tmp_path, processes, select
):
    unbroken, broken = (tmp_path / name for name in ("unbroken", "broken"))
    unbroken.mkdir()
    broken.mkdir()
    whole = job(processes, unbroken, select)
    whole.start()
    assert statuses(whole.end()) == [0] * processes
    stopped = job(processes, broken, select)
    stopped.start()
    stopped.wait_for(step=6)
    stopped.running[-1].send_signal(signal.SIGTERM)
    assert statuses(stopped.end()) == [preemption.EXIT_STATUS] * processes
    assert not (stopped.out / "run.json").exists()
    stopped.start()
    assert statuses(stopped.end()) == [0] * processes
    assert_same_end(stopped.out, whole.out)


@pytest.mark.slow
def test_sigterm_at_random_points_of_two_processes(job, tmp_path):
    (tmp_path / "unbroken").mkdir()
    whole = job(2, tmp_path / "unbroken")
    began = time.monotonic()
    whole.start()
    assert statuses(whole.end()) == [0, 0]
    seconds, draw = time.monotonic() - began, random.Random(0)
    ways = []
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        stopped = job(2, folder)
        stopped.start()
        time.sleep(draw.uniform(0, seconds))
        for process in stopped.running:
            # As a cloud does: to every machine, if not at the same moment.
            time.sleep(draw.uniform(0, 0.2))
            process.send_signal(signal.SIGTERM)
        ways.append(tuple(statuses(stopped.end())))
        # Before JAX listens, the signal ends a process; who misses it ends too.
        assert set(ways[-1]) <= {0, preemption.EXIT_STATUS, watch.EXIT_STATUS, -signal.SIGTERM}
        stopped.start()
        assert statuses(stopped.end()) == [0, 0]
        assert_same_end(stopped.out, whole.out)
        shutil.rmtree(folder)
    assert ways.count((preemption.EXIT_STATUS,) * 2) >= 5


def end_of_the_other(job, number):
    """Status and complaint of the process that is left when one is killed."""
    killed = job(2)
    killed.start()
    killed.wait_for(step=6)
    began = time.monotonic()
    killed.running[number].kill()
    ended = killed.end()
    assert time.monotonic() - began < 60
    return ended[1 - number]


@pytest.mark.slow
def test_a_killed_process_ends_the_job_by_its_name(job):
    status, complaint = end_of_the_other(job, 1)
    assert status == watch.EXIT_STATUS
    assert "eenet: process 1 of 2" in complaint.splitlines()[-1]
    assert "has died" in complaint.splitlines()[-1]


@pytest.mark.slow
def test_where_the_first_process_is_killed_jax_is_faster_and_says_so(job):
    status, complaint = end_of_the_other(job, 0)
    # JAX aborts the moment that its service is gone, if the watch hasn't ended the process.
    assert status in (watch.EXIT_STATUS, -signal.SIGABRT)
    assert "eenet: process 0" in complaint or "the leader task" in complaint.lower()


@pytest.mark.slow
def test_a_process_that_fails_ends_with_its_own_status_and_the_other_with_its_words(job):
    failing = job(2)
    failing.start("--data-dir", "nowhere", "--data.dataset", "cifar10")
    began = time.monotonic()
    (first, told), (second, said) = failing.end()
    assert time.monotonic() - began < 60
    assert second == 2
    words = "data.dataset is cifar10 in process 1 and digits in process 0"
    assert f"eenet: {words}" in said.splitlines()[-1]
    assert first == watch.EXIT_STATUS
    assert "eenet: process 1 of 2" in told.splitlines()[-1]
    assert f"has failed ({words}" in told.splitlines()[-1]


@pytest.mark.slow
def test_processes_with_different_settings_end(job):
    # Both would wait for ever for each other, in different programs.
    failing = job(2)
    failing.start("--fsdp", "2")
    (first, _), (second, said) = failing.end()
    assert (first, second) == (watch.EXIT_STATUS, 2)
    assert "fsdp is 2 in process 1 and 1 in process 0" in said


@pytest.mark.slow
def test_processes_that_do_not_see_one_folder_end_before_they_train(job, tmp_path):
    # What a host without the shared file system would write, nobody would find again.
    apart = job(2)
    apart.start("--out", tmp_path / "elsewhere")
    ended = apart.end()
    # Who hears of the other's end first ends by that.
    assert set(statuses(ended)) in ({2}, {2, watch.EXIT_STATUS})
    line = "in process 1 is not the folder of process 0: give --out"
    assert all(line in said for _, said in ended)
    assert not (tmp_path / "elsewhere").exists()
    assert list(apart.out.iterdir()) == []


SLOW_END = '''

import time

import jax

from eenet_jax.training import checkpoint

digests = checkpoint.file_digests


def slowly(folder):
    """As of gigabytes in a bucket: longer than JAX lets processes wait at their end."""
    time.sleep(25)
    return digests(folder)


checkpoint.file_digests = slowly
'''


@pytest.mark.slow
def test_a_checkpoint_that_takes_the_first_process_long_is_finished(job):
    slow = job(2)
    source = slow.config.read_text().replace(f"epochs={EPOCHS}", "epochs=1")
    slow.config.write_text(source + SLOW_END)
    slow.start()
    assert statuses(slow.end()) == [0, 0]
    assert (slow.out / "run.json").exists()
    assert (slow.out / "checkpoints" / "3" / "sha256.json").exists()
