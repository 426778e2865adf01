"""`eenet convert`: published names → variables → checkpoint → predictions, the same logits."""

import sys

import jax
import numpy as np
import pytest
from published import state_dict
from safetensors.numpy import save_file

from eenet_jax import cli, networks
from eenet_jax.data import datasets, inputs
from eenet_jax.errors import InputError
from eenet_jax.networks.convert import from_torch, published_tensors
from eenet_jax.networks.weight_files import read_weights
from eenet_jax.predictions import load_network, predict
from eenet_jax.types import ExitPredictions

BUILD = {"block": "basic", "stage_blocks": (1, 1), "exit_after": (1,), "width": 2}
TYPED = ["block=basic", "stage_blocks=1,1", "exit_after=1,", "width=2"]


@pytest.fixture(scope="module")
def published():
    """A ResNet for the digits: its weights by published name."""
    network = networks.build("resnet", input_shape=(8, 8, 1), **BUILD)
    return network, state_dict(published_tensors(network).items())


def convert(path, out, *more):
    options = ["--network", "resnet", "--dataset", "digits", "--build", *TYPED]
    cli.main(["convert", str(path), *options, "--out", str(out), *more])


def test_converted_weights_predict_the_published_logits(tmp_path, published, capsys):
    network, weights = published
    stored = {f"module.{name}": tensor for name, tensor in weights.items()}
    stored["module.bn1.num_batches_tracked"] = np.zeros((), np.int64)
    save_file(stored, tmp_path / "weights.safetensors")
    convert(tmp_path / "weights.safetensors", tmp_path / "run")
    assert "skipped" in (told := capsys.readouterr().out)
    assert "module.bn1.num_batches_tracked" in told
    _, variables, metadata = load_network(tmp_path / "run")
    assert metadata["step"] == 0
    for ours, theirs in zip(
        jax.tree.leaves(variables), jax.tree.leaves(from_torch(network, weights)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    (path,) = predict(tmp_path / "run", splits=("test",))
    found = ExitPredictions.load(path)
    test = datasets.open_split("digits", "test")
    x = inputs.evaluation_inputs(test.gather(np.arange(len(test))), test.spec)
    expected = jax.nn.softmax(jax.jit(network.apply)(from_torch(network, weights), x))
    np.testing.assert_allclose(found.probs, expected, atol=1e-6)


@pytest.mark.parametrize("wrong", ["missing", "left over", "misshapen"])
def test_wrong_tensors_are_named_and_nothing_is_written(tmp_path, published, wrong, capsys):
    stored = dict(published[1])
    if wrong == "missing":
        del stored["linear.bias"]
    elif wrong == "left over":
        stored["extra.weight"] = np.zeros(3, np.float32)
    else:
        stored["linear.bias"] = np.zeros(3, np.float32)
    np.savez(tmp_path / "weights.npz", **stored)
    with pytest.raises(SystemExit) as stop:
        convert(tmp_path / "weights.npz", tmp_path / "run")
    assert stop.value.code == 2
    told = capsys.readouterr().err
    name = "extra.weight" if wrong == "left over" else "linear.bias"
    assert f"{wrong}: {name}" in told
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_kept(tmp_path, published, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("kept")
    np.savez(tmp_path / "weights.npz", **published[1])
    with pytest.raises(SystemExit):
        convert(tmp_path / "weights.npz", tmp_path / "run")
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_without_pytorch_the_remedy_is_named(tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"eenet-jax\[torch\]"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.npz"])
def test_damaged_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"no readable"):
        read_weights(tmp_path / name)
    with pytest.raises(InputError, match=r"no weights at"):
        read_weights(tmp_path / "absent.npz")


def test_pytorchs_own_files(tmp_path, published):
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    network, weights = published
    tensors = {f"module.{name}": torch.from_numpy(value) for name, value in weights.items()}
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "weights.pth.tar")
    read = from_torch(network, read_weights(tmp_path / "weights.pth.tar"))
    for ours, theirs in zip(
        jax.tree.leaves(read), jax.tree.leaves(from_torch(network, weights)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    torch.save({"state_dict": tensors, "args": pytest.Mark}, tmp_path / "unsafe.pth")
    with pytest.raises(InputError, match=r"could run code"):
        read_weights(tmp_path / "unsafe.pth")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    with pytest.raises(InputError, match=r"no state dict \(it has epoch\)"):
        read_weights(tmp_path / "nothing.pth")
    (tmp_path / "damaged.pth").write_bytes((tmp_path / "weights.pth.tar").read_bytes()[:900])
    with pytest.raises(InputError, match=r"damaged"):
        read_weights(tmp_path / "damaged.pth")
