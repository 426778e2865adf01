"""A run on texts: pretrained start, best epoch, predictions in order, what does not fit."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from text_sets import VOCABULARY, write_sst2, write_tokenizer

from eenet_jax import networks
from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig
from eenet_jax.data import datasets
from eenet_jax.errors import InputError
from eenet_jax.networks.convert import published_tensors
from eenet_jax.predictions import load_network, predict
from eenet_jax.training.loop import train
from eenet_jax.training.network import build_network, initial_weights
from eenet_jax.training.run import RunFolder
from eenet_jax.types import ExitPredictions

SIZES = {"layers": 2, "width": 8, "heads": 2, "mlp_width": 8, "vocab_size": 20, "max_positions": 16}


def write_encoder(folder):
    """A local Hugging Face folder with random weights and the tests' tokenizer."""
    write_tokenizer(folder)
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "num_hidden_layers": SIZES["layers"],
        "hidden_size": SIZES["width"],
        "num_attention_heads": SIZES["heads"],
        "intermediate_size": SIZES["mlp_width"],
        "vocab_size": SIZES["vocab_size"],
        "max_position_embeddings": SIZES["max_positions"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    network = networks.build("bert", exit_after=(1,), num_classes=2, **SIZES)
    draw = np.random.default_rng(0)
    tensors = {
        name: draw.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in published_tensors(network).items()
        if name.startswith(("bert.embeddings.", "bert.encoder."))
    }
    save_file(tensors, folder / "model.safetensors")
    return tensors


def text_config(encoder, **training) -> ExperimentConfig:
    settings = {
        "epochs": 3,
        "optimizer": "adamw",
        "learning_rate": 0.03,
        "schedule": "linear",
        "clip_norm": 1.0,
        "weight_decay": 0.0,
        "distillation_weight": 0.0,
        "select": "best",
    }
    return ExperimentConfig(
        name="tiny_texts",
        data=DataConfig(
            dataset="sst2",
            tokenizer=str(encoder),
            max_length=16,
            batch_size=30,
            eval_batch_size=16,
        ),
        network=NetworkConfig(
            name="bert",
            overrides={**SIZES, "exit_after": (1,), "dropout": 0.0, "pooling": "mean"},
            pretrained=str(encoder),
        ),
        training=TrainingConfig(**settings | training),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of three epochs, its config and the tensors that it started from."""
    root = tmp_path_factory.mktemp("text_run")
    write_sst2(root / "SST-2", sizes=(90, 30, 20))
    datasets.prepare("sst2", data_dir=root / "data", source=root)
    tensors = write_encoder(root / "encoder")
    config = text_config(root / "encoder")
    train(config, root / "run", root / "data")
    return root, config, tensors


def test_training_starts_from_the_encoder(made):
    _, config, tensors = made
    network = build_network(config, datasets.get("sst2"))
    variables = initial_weights(config, network)(jax.random.key(0))
    words = variables["params"]["stage_0"]["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(words, tensors["bert.embeddings.word_embeddings.weight"])


def test_the_epoch_that_is_best_on_validation_is_the_one_that_counts(made):
    root, _, _ = made
    lines = list(map(json.loads, (root / "run" / "metrics.jsonl").read_text().splitlines()))
    val = [line for line in lines if line["split"] == "val"]
    assert [line["epoch"] for line in val] == [1, 2, 3]
    last_exit = [line["accuracy"][-1] for line in val]
    _, _, metadata = load_network(root / "run")
    assert metadata["step"] == val[int(np.argmax(last_exit))]["step"]
    assert metadata["best_accuracy"] == max(last_exit)


def test_predictions_are_in_the_splits_order_whatever_the_batches(made):
    root, config, _ = made
    (path,) = predict(root / "run", splits=("val",))
    found = ExitPredictions.load(path)
    val = datasets.open_config_split(config.data, "val", root / "data")
    np.testing.assert_array_equal(found.ids, np.arange(30))
    np.testing.assert_array_equal(found.labels, val.labels)
    network, variables, metadata = load_network(root / "run")
    assert found.correctness()[-1].mean() == pytest.approx(metadata["best_accuracy"])
    apply = jax.jit(network.apply)
    for n in (3, 17, 29):
        batch = val.gather(np.asarray([n]))
        x = {name: batch[name] for name in ("input_ids", "attention_mask")}
        np.testing.assert_allclose(
            found.probs[:, n], jax.nn.softmax(apply(variables, x))[:, 0], atol=1e-5
        )


def test_a_run_keeps_its_tokenizer(made):
    root, config, _ = made
    folder = RunFolder(root / "run")
    own = folder.own_tokenizer(config.data)
    assert own.tokenizer == str(root / "run" / "tokenizer.json")
    assert json.loads((root / "run" / "tokenizer.json").read_text())["model"]["vocab"] == VOCABULARY


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vocab_size": 11}, r"the tokenizer has 12 tokens, the network's vocab_size is 11"),
        ({"max_positions": 15}, r"max_length is 16, the network's max_positions is 15"),
        ({"layers": 3}, r"has layers 2: give the network the same"),
        ({"num_classes": 3}, r"gives 3 classes, but sst2 has texts and 2"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(made, tmp_path, overrides, message):
    root, config, _ = made
    network = dataclasses.replace(
        config.network, overrides={**config.network.overrides, **overrides}
    )
    if "layers" not in overrides:
        network = dataclasses.replace(network, pretrained="")
    wrong = dataclasses.replace(config, network=network)
    with pytest.raises(InputError, match=message):
        train(wrong, tmp_path / "run", root / "data")
    assert not (tmp_path / "run").exists()


def test_texts_need_a_network_that_takes_them(made, tmp_path):
    root, config, _ = made
    wrong = dataclasses.replace(config, network=NetworkConfig(name="cnn"))
    with pytest.raises(InputError, match=r"takes image, but sst2 has 2 classes, texts"):
        train(wrong, tmp_path / "run", root / "data")


def test_a_pretrained_encoder_is_no_image_networks(made):
    _, config, _ = made
    wrong = dataclasses.replace(config, network=NetworkConfig(name="cnn", pretrained="x"))
    with pytest.raises(InputError, match=r"'cnn' takes no text"):
        initial_weights(wrong, networks.build("cnn"))


def test_a_finished_run_needs_neither_encoder_nor_tokenizer(made, tmp_path):
    root, config, _ = made
    moved = shutil.copytree(root / "run", tmp_path / "run")
    gone = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, tokenizer=str(tmp_path / "gone")),
        network=dataclasses.replace(config.network, pretrained=str(tmp_path / "gone")),
    )
    stored = json.loads((moved / "config.json").read_text())
    stored |= gone.to_json()
    (moved / "config.json").write_text(json.dumps(stored))
    state = train(gone, moved, root / "data")
    assert int(state.step) == 9
    assert [path.name for path in predict(moved, splits=("test",))] == ["test.npz"]
