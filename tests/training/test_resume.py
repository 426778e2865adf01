"""A run that was stopped and continued ends with the bits of one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import SOURCE, digest

from eenet_jax.data import datasets
from eenet_jax.predictions import load_network
from eenet_jax.training.checkpoint import Checkpoints
from eenet_jax.training.metrics import read_metrics

TESTS = Path(__file__).resolve().parent.parent
LAST = 9


def without_times(folder):
    timed = ("seconds", "samples_per_second")
    return [
        {name: value for name, value in line.items() if name not in timed}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same_run(folder, reference):
    assert without_times(folder) == without_times(reference)
    (_, ours, metadata), (_, theirs, expected) = load_network(folder), load_network(reference)
    assert metadata["step"] == expected["step"] == LAST
    assert metadata["position"] == expected["position"] == {"next_index": LAST}
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert json.loads((folder / "run.json").read_text())["steps"] == LAST


def test_the_final_checkpoint_holds_the_final_state(finished, compiled):
    folder, state = finished
    abstract = jax.eval_shape(lambda: state)
    with Checkpoints(folder / "checkpoints", 2, print) as checkpoints:
        assert checkpoints.steps() == [8, 9]
        restored, metadata = checkpoints.restore(abstract, compiled.network)
    assert metadata["step"] == LAST
    assert digest(restored) == digest(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_metrics_have_every_exit_and_epoch(finished):
    lines = read_metrics(finished[0] / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "val"] == [3, 6, 9]
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 3, 4, 6, 8, 9]
    assert all(len(line["accuracy"]) == 2 for line in lines)
    assert [line["lr"] for line in lines if line["split"] == "train"] == pytest.approx(
        [0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    )
    assert list((finished[0] / "tensorboard").glob("events*"))


def test_stopped_before_every_step_in_turn_and_continued(finished, compiled, tmp_path):
    # Checkpoints lie at 2, 3, 4, 6, 8 and 9, so each stop but the first goes back a step or none.
    for step in range(1, LAST + 1):
        with pytest.raises(KeyboardInterrupt):
            compiled.train(tmp_path / "run", stop_before=step)
    compiled.train(tmp_path / "run")
    assert_same_run(tmp_path / "run", finished[0])


def test_stopped_between_log_and_checkpoint(finished, compiled, tmp_path, monkeypatch):
    save = Checkpoints.save
    for at in (3, 6, 9):

        def stop(self, state, *rest, at=at):
            if int(state.step) == at:
                raise KeyboardInterrupt
            save(self, state, *rest)

        monkeypatch.setattr(Checkpoints, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            compiled.train(tmp_path / "run")
    monkeypatch.setattr(Checkpoints, "save", save)
    compiled.train(tmp_path / "run")
    assert_same_run(tmp_path / "run", finished[0])


def test_stopped_after_the_last_checkpoint_it_only_finishes(finished, compiled, tmp_path):
    compiled.train(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    compiled.train(tmp_path / "run", stop_before=LAST)
    assert_same_run(tmp_path / "run", finished[0])


def test_a_finished_run_says_so_and_is_left_alone(compiled, tmp_path, capsys):
    state = compiled.train(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.json*")}
    capsys.readouterr()
    again = compiled.train(tmp_path / "run", stop_before=1)
    assert "is finished: 9 steps; nothing to do" in capsys.readouterr().out
    assert digest(again) == digest(state)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.json*")}


class Trainings:
    """`eenet train` as a process of its own, killed and started again."""

    def __init__(self, folder):
        self.out = folder / "run"
        self.config = folder / "tiny.py"
        self.config.write_text(SOURCE)
        self.kills = 0

    def start(self):
        command = [sys.executable, "-m", "eenet_jax.cli", "train", str(self.config)]
        return subprocess.Popen(
            [*command, "--out", str(self.out)],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def kill_when(self, reached):
        """SIGKILL the moment `reached()` holds; nothing where the run ended before."""
        process = self.start()
        while process.poll() is None and not reached():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        _, complaint = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), complaint.decode()
        self.kills += process.returncode == -signal.SIGKILL

    def finish(self):
        process = self.start()
        _, complaint = process.communicate()
        assert process.returncode == 0, complaint.decode()
        # A kill leaves nothing that a later start finds fault with.
        assert "warning" not in complaint.decode()

    def saving(self, least):
        """Whether a checkpoint of step `least` or later is being written just now."""
        names = (path.name for path in (self.out / "checkpoints").glob("*tmp*"))
        return any(int(name.split(".")[0]) >= least for name in names)

    def logged(self, step):
        path = self.out / "metrics.jsonl"
        return path.exists() and any(line["step"] >= step for line in read_metrics(path))


def test_killed_while_it_saves_and_while_it_trains(finished, tmp_path):
    trainings = Trainings(tmp_path)
    trainings.kill_when(lambda: trainings.saving(least=3))
    trainings.kill_when(lambda: trainings.logged(step=6))
    trainings.finish()
    assert trainings.kills == 2
    assert_same_run(trainings.out, finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_points(finished, tmp_path, seed):
    trainings, draw = Trainings(tmp_path), random.Random(seed)
    for least in (0, 3, 4, 6, 9):
        trainings.kill_when(lambda least=least: trainings.saving(least))
        pause = draw.uniform(0, 0.5)
        began = []

        def later(began=began, pause=pause):
            if trainings.saving(0) and not began:
                began.append(time.monotonic())
            return bool(began) and time.monotonic() > began[0] + pause

        trainings.kill_when(later)
    trainings.finish()
    assert trainings.kills >= 5
    assert_same_run(trainings.out, finished[0])


def test_the_data_set_is_the_one_that_the_position_counts_on():
    assert len(datasets.open_split("digits", "train", val_size=1200)) // 78 * 3 == LAST
