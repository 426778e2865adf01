"""Settings: validated as they are made, kept as JSON, loaded from files that say what they are."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from eenet_jax import config as configs
from eenet_jax.config import (
    DataConfig,
    ExperimentConfig,
    NetworkConfig,
    TrainingConfig,
    differences,
    find_config,
    from_json,
    load_config,
)
from eenet_jax.data import datasets
from eenet_jax.errors import InputError
from eenet_jax.training.network import build_network

CONFIGS = sorted((Path(__file__).parent.parent / "experiments" / "configs").glob("*.py"))


def some_config(**changes) -> ExperimentConfig:
    return ExperimentConfig(
        name="some",
        data=DataConfig(dataset="digits", val_size=7, augmentation="none"),
        network=NetworkConfig(name="cnn", overrides={"widths": [2, 3], "num_classes": 10}),
        training=TrainingConfig(epochs=3, decay_epochs=(1, 2), warmup_epochs=0.5),
        budgets=(0.25, 1.0),
        **changes,
    )


def test_json_holds_every_setting_and_comes_back():
    config = some_config(seed=5)
    value = json.loads(json.dumps(config.to_json()))
    assert value["training"]["decay_epochs"] == [1, 2]
    assert value["network"]["overrides"] == {"widths": [2, 3], "num_classes": 10}
    assert from_json(value) == config
    assert from_json(value).to_json() == value


def test_a_setting_that_came_later_counts_as_its_default():
    value = some_config().to_json()
    del value["training"]["nesterov"]
    assert from_json(value) == some_config()


def test_the_defaults_are_the_published_cifar_recipe():
    training = TrainingConfig()
    assert (training.epochs, training.decay_epochs, training.schedule) == (150, (50, 100), "step")
    assert (training.optimizer, training.momentum, training.learning_rate) == ("sgd", 0.9, 0.1)
    assert (training.weight_decay, training.nesterov, training.warmup_epochs) == (5e-4, False, 0)
    assert (training.loss_weights, training.distillation_start) == ("linear", 0.75)
    assert training.distillation_weight == pytest.approx(0.01 / 10)
    data = DataConfig(dataset="cifar10")
    spec = datasets.get("cifar10")
    assert (spec.val_size, spec.augmentation) == (5000, "pad_crop_flip")
    assert (data.batch_size, data.val_size, data.augmentation) == (128, None, None)


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("epochs", 0, "1 or more"),
        ("checkpoint_every", -2, "1 or more"),
        ("keep_checkpoints", 0, "1 or more"),
        ("learning_rate", 0.0, "more than 0"),
        ("learning_rate", float("nan"), "more than 0"),
        ("learning_rate", float("inf"), "finite"),
        ("distillation_temperature", -1.0, "more than 0"),
        ("micro_batches", 0, "1 or more"),
        ("weight_decay", -1e-9, "0 or more"),
        ("reference_batch_size", -256, "0 or more"),
        ("label_smoothing", 1.0, "less than 1"),
        ("ema_decay", -0.1, "0 or more"),
        ("warmup_epochs", -1.0, "0 or more"),
        ("distillation_weight", -1.0, "0 or more"),
        ("momentum", 1.5, "from 0 to 1"),
        ("distillation_start", -0.1, "from 0 to 1"),
    ],
)
def test_a_training_setting_out_of_range_names_value_and_remedy(setting, value, remedy):
    with pytest.raises(InputError) as error:
        from_json(some_config().to_json() | {"training": {setting: value}})
    assert f"training.{setting} is {value!r}" in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("val_size", 0, "1 or more"),
        ("batch_size", 0, "1 or more"),
        ("eval_batch_size", -1, "1 or more"),
    ],
)
def test_a_data_setting_out_of_range_names_value_and_remedy(setting, value, remedy):
    with pytest.raises(InputError) as error:
        from_json(some_config().to_json() | {"data": {"dataset": "digits", setting: value}})
    assert f"data.{setting} is {value!r}" in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    ("part", "setting", "known"),
    [
        ("training", "optimizer", "sgd, adamw"),
        ("training", "schedule", "step, cosine, linear, poly"),
        ("training", "select", "last, best"),
        ("training", "loss_weights", "linear, uniform"),
        ("training", "compute_dtype", "float32, bfloat16"),
        (
            "data",
            "augmentation",
            "none, shift, pad_crop_flip, resized_crop_flip, scale_crop_flip",
        ),
    ],
)
def test_a_choice_that_there_is_not_lists_those_there_are(part, setting, known):
    settings = getattr(some_config(), part)
    # Past the constructor, where the tests' own type checks would speak first.
    object.__setattr__(settings, setting, "other")
    with pytest.raises(InputError) as error:
        settings.__post_init__()
    assert str(error.value) == f"{part}.{setting} is 'other': choose one of {known}"


def test_budgets_are_shares_of_the_full_cost():
    for wrong in ((0.5, 1.5), (0.0,), (float("nan"),)):
        with pytest.raises(InputError, match="budgets is"):
            dataclasses.replace(some_config(), budgets=wrong)


@pytest.mark.parametrize(
    "changed",
    [
        {"training": {"learning_rat": 0.1}},
        {"data": {}},
        {"network": {"name": "cnn", "widths": [2]}},
        {"network": None},
        {"unknown": 1},
    ],
)
def test_json_of_something_else_is_refused(changed):
    with pytest.raises(InputError, match="no experiment's config"):
        from_json(some_config().to_json() | changed)


def test_settings_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        some_config().seed = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        DataConfig("digits")  # pyright: ignore[reportCallIssue]


def test_differences_name_section_and_both_values():
    old, new = some_config().to_json(), some_config(seed=2).to_json()
    new["network"]["overrides"]["widths"] = [2, 9]
    del new["training"]["momentum"]
    assert differences(old, new) == [
        "network.overrides.widths: [2, 3] → [2, 9]",
        "seed: 0 → 2",
        "training.momentum: 0.9 → None",
    ]
    assert differences(old, old) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "no config file at"),
        ("raise RuntimeError('broken')", r"RuntimeError: broken"),
        ("def get_config(:", "SyntaxError"),
        ("x = 1", "get_config"),
        ("def get_config():\n    return 3", "returns int: return ExperimentConfig"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
        (
            "from eenet_jax.config import DataConfig\n"
            "def get_config():\n    return DataConfig(dataset='digits', batch_size=0)",
            "data.batch_size is 0",
        ),
        (
            "from eenet_jax.config import DataConfig\n"
            "def get_config():\n    return DataConfig(dataset='digits', batchsize=0)",
            "batchsize",
        ),
    ],
)
def test_a_file_that_gives_no_config_is_one_line(tmp_path, source, words):
    path = tmp_path / "broken.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(InputError, match=words) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_a_file_is_found_by_path_or_by_name(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text(CONFIGS[0].read_text())
    assert find_config(str(path)) == load_config(CONFIGS[0])
    assert find_config("digits_cnn").name == "digits_cnn"
    with pytest.raises(InputError, match="no config 'mine'") as error:
        find_config("mine")
    for known in CONFIGS:
        assert known.stem in str(error.value)
    monkeypatch.setattr(configs, "CONFIG_FOLDERS", (tmp_path,))
    assert find_config("mine") == load_config(CONFIGS[0])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_project_says_what_it_is_and_builds(path):
    text = path.read_text()
    docstring = text.split('"""')[1]
    for word in ("Paper", "Command", "Hardware", "Time", "Expected"):
        assert f"{word}:" in docstring
    assert path.stem in docstring
    config = load_config(path)
    assert config.name == path.stem
    spec = datasets.get(config.data.dataset)
    network = build_network(config, spec)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    logits = jax.eval_shape(network.apply, variables, network.example(2))
    pixels = spec.image_shape[:2] if spec.kind == "segmentation" else ()
    assert logits.shape == (network.num_exits, 2, *pixels, spec.num_classes)
    assert from_json(config.to_json()) == config
