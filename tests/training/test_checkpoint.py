"""Damaged checkpoints are passed over, and checkpoints and folders of something else refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import digest, other_network, tiny_config, write_run

from eenet_jax.data import datasets
from eenet_jax.errors import InputError
from eenet_jax.predictions import load_network
from eenet_jax.training import checkpoint, loop
from eenet_jax.training.checkpoint import FILE_DIGESTS, Checkpoints
from eenet_jax.training.metrics import MetricsLog, Window, read_metrics
from eenet_jax.training.network import build_network
from eenet_jax.training.run import RunFolder


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x15
    path.write_bytes(bytes(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    path.unlink()


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def largest(folder):
    return max(files_of(folder), key=lambda path: path.stat().st_size)


def restore(run, finished, compiled):
    said = []
    abstract = jax.eval_shape(lambda: finished[1])
    with Checkpoints(run / "checkpoints", 2, said.append) as checkpoints:
        return checkpoints.restore(abstract, compiled.network), said


def filled(tree, value):
    return jax.tree.map(lambda leaf: jnp.asarray(np.full(leaf.shape, value, leaf.dtype)), tree)


@pytest.mark.parametrize("damage", [flip, truncate, remove])
@pytest.mark.parametrize("part", ["state", "metadata", "top"])
def test_any_damage_falls_back_with_one_line_and_no_noise(
    run, finished, compiled, capfd, part, damage
):
    newest = run / "checkpoints" / "9"
    damage(newest / "_CHECKPOINT_METADATA" if part == "top" else largest(newest / part))
    capfd.readouterr()
    (state, metadata), said = restore(run, finished, compiled)
    assert metadata["step"] == int(state.step) == 8
    assert metadata["position"] == {"next_index": 8}
    assert len(said) == 1
    assert "checkpoint 9 in" in said[0]
    assert "passed over" in said[0]
    assert "\n" not in said[0]
    assert capfd.readouterr() == ("", "")


def test_a_changed_byte_is_noticed_in_every_file(run, finished, compiled):
    for path in files_of(run / "checkpoints" / "9"):
        whole = path.read_bytes()
        flip(path)
        (_, metadata), said = restore(run, finished, compiled)
        assert (metadata["step"], len(said)) == (8, 1), path
        path.write_bytes(whole)
    (_, metadata), said = restore(run, finished, compiled)
    assert (metadata["step"], said) == (9, [])


def test_without_the_list_of_files_it_is_read_all_the_same(run, finished, compiled):
    (run / "checkpoints" / "9" / FILE_DIGESTS).unlink()
    (_, metadata), said = restore(run, finished, compiled)
    assert (metadata["step"], said) == (9, [])


def test_training_goes_on_from_the_one_before_and_ends_with_the_same_bits(
    run, finished, compiled, capfd
):
    flip(largest(run / "checkpoints" / "9" / "state"))
    (run / "run.json").unlink()
    capfd.readouterr()
    state = compiled.train(run)
    assert digest(state) == digest(finished[1])
    complaint = capfd.readouterr().err.splitlines()
    assert complaint[0].startswith("warning: checkpoint 9 in")
    assert [line[:5] for line in complaint[1:]] == ["epoch"]
    # The damaged one has made room: the newest is whole again.
    (_, metadata), said = restore(run, finished, compiled)
    assert (metadata["step"], said) == (9, [])


def test_reading_a_run_leaves_what_a_training_is_writing_alone(run, finished, compiled):
    writing = run / "checkpoints" / "10.orbax-checkpoint-tmp"
    writing.mkdir()
    flip(largest(run / "checkpoints" / "9"))
    restore(run, finished, compiled)
    assert writing.exists()
    assert (run / "checkpoints" / "9").exists()
    compiled.train(run)
    assert not writing.exists()


def test_what_is_damaged_is_renamed_and_not_deleted(run, finished, compiled):
    broken = largest(run / "checkpoints" / "9" / "state")
    flip(broken)
    content = broken.read_bytes()
    (run / "run.json").unlink()
    compiled.train(run)
    kept = run / "checkpoints" / "9.damaged" / broken.relative_to(run / "checkpoints" / "9")
    assert kept.read_bytes() == content


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError(5, "Input/output error"), InputError), (MemoryError(), MemoryError)],
)
def test_what_cannot_be_read_just_now_is_not_taken_for_damaged(
    run, compiled, monkeypatch, error, told
):
    def fail(folder):
        raise error

    (run / "run.json").unlink()
    monkeypatch.setattr(checkpoint, "file_digests", fail)
    with pytest.raises(told):
        compiled.train(run)
    monkeypatch.undo()
    compiled.train(run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["8", "9"]


def test_a_first_checkpoint_that_was_not_finished_is_no_beginning(tmp_path):
    folder = RunFolder(tmp_path)
    (folder.checkpoints / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not folder.has_begun()
    (folder.checkpoints / "2").mkdir()
    assert folder.has_begun()


def test_all_damaged_is_an_error(run, compiled, capsys):
    for step in (8, 9):
        truncate(largest(run / "checkpoints" / str(step) / "state"))
    with pytest.raises(InputError, match="every checkpoint in"):
        compiled.train(run)
    assert capsys.readouterr().err.count("warning: checkpoint") == 2
    assert (run / "checkpoints" / "9").exists()


def test_a_checkpoint_of_another_network_names_both(run, finished):
    config = other_network(tiny_config())
    (run / "config.json").write_text(json.dumps({**config.to_json(), "data_dir": "data"}))
    with pytest.raises(InputError) as error:
        load_network(run)
    assert "'widths': [2, 2]" in str(error.value)
    assert "'widths': [3, 3]" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_config_lists_what_differs(run):
    config = dataclasses.replace(tiny_config(learning_rate=0.5, decay_epochs=()), seed=3)
    before = (run / "config.json").read_bytes()
    with pytest.raises(InputError) as error:
        loop.train(config, run)
    for difference in (
        "seed: 0 → 3",
        "training.learning_rate: 0.1 → 0.5",
        "decay_epochs: [2] → []",
    ):
        assert difference in str(error.value)
    assert "training.epochs" not in str(error.value)
    assert (run / "config.json").read_bytes() == before


def test_a_folder_without_a_run_and_a_run_without_checkpoints(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        load_network(tmp_path)
    RunFolder(tmp_path).claim(tiny_config(), "data")
    with pytest.raises(InputError, match="no checkpoint yet"):
        load_network(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_nan_loss_stops_and_the_last_good_checkpoint_stays(compiled, tmp_path, monkeypatch):
    train_step = compiled.train_step

    def poisoned(state, batch):
        if int(state.step) == 4:
            state = dataclasses.replace(state, params=filled(state.params, np.nan))
        return train_step(state, batch)

    monkeypatch.setattr(compiled, "train_step", poisoned)
    with pytest.raises(InputError, match=r"the loss is nan at step 5: lower training\.learning"):
        compiled.train(tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")][-1] == 4
    _, variables, metadata = load_network(tmp_path / "run")
    assert metadata["step"] == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    monkeypatch.setattr(compiled, "train_step", train_step)
    assert int(compiled.train(tmp_path / "run").step) == 9


def test_weights_that_are_not_finite_are_not_saved(compiled, tmp_path, monkeypatch):
    train_step = compiled.train_step

    def poisoned(state, batch):
        state, metrics = train_step(state, batch)
        if int(state.step) == 4:
            state = dataclasses.replace(state, params=filled(state.params, np.inf))
        return state, metrics

    monkeypatch.setattr(compiled, "train_step", poisoned)
    with pytest.raises(InputError, match="the weights are NaN or infinite at step 4"):
        compiled.train(tmp_path / "run")
    assert load_network(tmp_path / "run")[2]["step"] == 3


def test_an_unprepared_set_leaves_no_folder(tmp_path):
    config = dataclasses.replace(
        tiny_config(), data=dataclasses.replace(tiny_config().data, dataset="cifar10")
    )
    with pytest.raises(InputError, match="eenet data prepare cifar10"):
        loop.train(config, tmp_path / "run", tmp_path / "data")
    assert not (tmp_path / "run").exists()


def test_a_network_for_other_images_is_refused():
    config = tiny_config()
    network = dataclasses.replace(config.network, overrides={"num_classes": 7})
    with pytest.raises(InputError, match="7 classes, but digits has"):
        build_network(dataclasses.replace(config, network=network), datasets.get("digits"))


def test_metrics_cut_off_are_dropped_and_later_lines_too(tmp_path):
    line = {"step": 1, "split": "train", "loss": 2.0, "accuracy": [0.5, 0.25]}
    with MetricsLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write({**line, "step": step})
    with (tmp_path / "metrics.jsonl").open("a") as sink:
        sink.write('{"step": 4, "spl')
    with MetricsLog(tmp_path, 2) as log:
        log.write({**line, "step": 3, "loss": 1.0})
    assert [(each["step"], each["loss"]) for each in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 2.0), (2, 2.0), (3, 1.0),
    ]  # fmt: skip


def test_a_window_averages_its_steps_and_names_the_first_bad_one():
    window = Window()
    for loss in (1.0, 3.0):
        window.add({"loss": jnp.asarray(loss), "accuracy": jnp.asarray([loss / 4, 0.5])})
    assert window.take(2) == (2.0, [0.5, 0.5])
    assert len(window) == 0
    for loss in (1.0, np.inf, np.nan):
        window.add({"loss": jnp.asarray(loss), "accuracy": jnp.zeros(2)})
    with pytest.raises(InputError, match="the loss is inf at step 4"):
        window.take(5)


def test_a_setting_left_to_the_data_set_is_the_same_setting(tmp_path):
    written = tiny_config()
    data = dataclasses.replace(written.data, val_size=300)
    written = dataclasses.replace(written, data=data)
    RunFolder(tmp_path).claim(written, "data")
    left_open = dataclasses.replace(data, val_size=None, augmentation=None)
    RunFolder(tmp_path).claim(dataclasses.replace(written, data=left_open), "data")
    other = dataclasses.replace(left_open, augmentation="none")
    with pytest.raises(InputError, match=r"data.augmentation: shift → none"):
        RunFolder(tmp_path).claim(dataclasses.replace(written, data=other), "data")


def test_a_long_warm_up_keeps_no_run_from_being_read(tmp_path):
    write_run(tmp_path)
    config = tiny_config(epochs=1, warmup_epochs=0.6, decay_epochs=())
    (tmp_path / "config.json").write_text(json.dumps({**config.to_json(), "data_dir": "data"}))
    _, _, metadata = load_network(tmp_path)
    assert metadata["step"] == 4
