"""`eenet convert`: published names → variables → checkpoint → predictions, the same logits."""

import sys

import jax
import numpy as np
import pytest
from published import state_dict
from safetensors.numpy import save_file
from text_sets import write_sst2, write_tokenizer

from eenet_jax import cli, networks
from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig
from eenet_jax.data import datasets, inputs
from eenet_jax.errors import InputError
from eenet_jax.networks.convert import from_torch, published_tensors
from eenet_jax.networks.weight_files import read_weights
from eenet_jax.networks.zoo import PRESETS
from eenet_jax.predictions import load_network, predict
from eenet_jax.training.converted import DATASETS, convert_weights
from eenet_jax.training.network import build_network
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


@pytest.mark.parametrize("wrong", ["missing", "left over", "misshapen", "not finite"])
def test_wrong_tensors_are_named_and_nothing_is_written(tmp_path, published, wrong, capsys):
    stored = dict(published[1])
    if wrong == "missing":
        del stored["linear.bias"]
    elif wrong == "not finite":
        stored["linear.bias"] = np.full(10, np.nan, np.float32)
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


def test_a_text_network_needs_its_tokenizer_and_short_positions_are_kept(tmp_path, capsys):
    sizes = {"layers": 2, "width": 4, "heads": 2, "mlp_width": 4, "vocab_size": 12}
    network = networks.build("bert", exit_after=(1,), num_classes=2, max_positions=8, **sizes)
    save_file(state_dict(published_tensors(network).items()), tmp_path / "bert.safetensors")
    typed = [f"{name}={value}" for name, value in sizes.items()]
    options = ["convert", str(tmp_path / "bert.safetensors"), "--network", "bert", "--dataset"]
    options += ["sst2", "--build", *typed, "exit_after=1,", "max_positions=8"]
    options += ["--out", str(tmp_path / "run")]
    cli.main([*options[:-1], str(tmp_path / "without")])
    assert "warning: without --tokenizer" in capsys.readouterr().err
    loaded, variables, _ = load_network(tmp_path / "without")
    assert loaded.settings == network.settings
    with pytest.raises(SystemExit):
        cli.main([*options, "--tokenizer", str(tmp_path / "absent")])
    assert not (tmp_path / "run").exists()
    write_sst2(tmp_path / "SST-2", sizes=(5, 4, 6))
    datasets.prepare("sst2", data_dir=tmp_path / "data", source=tmp_path)
    tokenizer = write_tokenizer(tmp_path / "encoder")
    cli.main([*options, "--tokenizer", str(tokenizer), "--data-dir", str(tmp_path / "data")])
    (path,) = predict(tmp_path / "run", splits=("test",))
    found = ExitPredictions.load(path)
    test = datasets.open_split(
        "sst2",
        "test",
        data_dir=tmp_path / "data",
        settings=DataConfig(dataset="sst2", tokenizer=str(tokenizer), max_length=8),
    )
    x = inputs.evaluation_inputs(test.gather(np.arange(6)), test.spec)
    expected = jax.nn.softmax(jax.jit(network.apply)(variables, x))
    np.testing.assert_allclose(found.probs, expected, atol=1e-6)


def test_a_file_of_another_kind_under_a_known_name_is_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "weights.npz")
    with pytest.raises(InputError, match=r"no readable"):
        read_weights(tmp_path / "weights.npz")


@pytest.mark.parametrize("network", [name for name in networks.names() if "cnn" not in name])
def test_every_published_network_has_a_data_set_that_it_fits(network):
    family, _ = PRESETS.get(network, (network, {}))
    dataset = datasets.get(DATASETS.get(network) or DATASETS[family])
    config = ExperimentConfig(
        name="converted",
        data=DataConfig(dataset=dataset.name),
        network=NetworkConfig(name=network),
    )
    assert build_network(config, dataset).num_classes == dataset.num_classes


def test_a_network_without_published_weights_asks_for_a_data_set(tmp_path):
    with pytest.raises(InputError, match=r"'cnn' has no data set of its own: give --dataset"):
        convert_weights(tmp_path / "weights.npz", "cnn", out=tmp_path / "run")
