"""A local Hugging Face folder becomes a network, whole or not at all."""

import json

import jax
import numpy as np
import pytest
from published import state_dict
from safetensors.numpy import save_file

from eenet_jax import networks
from eenet_jax.errors import InputError
from eenet_jax.networks import huggingface
from eenet_jax.networks.convert import from_torch
from eenet_jax.networks.huggingface import read_encoder

CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.2,
    "hidden_size": 4,
    "intermediate_size": 6,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 5,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": 7,
}
LAYER = {
    "attention.self.query": (4, 4),
    "attention.self.key": (4, 4),
    "attention.self.value": (4, 4),
    "attention.output.dense": (4, 4),
    "attention.output.LayerNorm": (4,),
    "intermediate.dense": (6, 4),
    "output.dense": (4, 6),
    "output.LayerNorm": (4,),
}


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes = {
        "embeddings.word_embeddings.weight": (7, 4),
        "embeddings.position_embeddings.weight": (5, 4),
        "embeddings.token_type_embeddings.weight": (2, 4),
        "embeddings.LayerNorm.weight": (4,),
        "embeddings.LayerNorm.bias": (4,),
    }
    for i in range(2):
        for name, shape in LAYER.items():
            shapes[f"encoder.layer.{i}.{name}.weight"] = shape
            shapes[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
    return {**shapes, "pooler.dense.weight": (4, 4), "pooler.dense.bias": (4,)}


ENCODER = state_dict(_shapes().items())


def _write(folder, tensors=ENCODER, **config):
    folder.mkdir(exist_ok=True)
    kept = {name: value for name, value in {**CONFIG, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    save_file(tensors, folder / "model.safetensors")
    return folder


def _start(folder, **settings):
    return networks.from_huggingface(folder, exit_after=(1,), num_classes=3, **settings)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    extra = {"embeddings.position_ids": np.arange(5)[None]}
    folder = _write(tmp_path_factory.mktemp("encoder"), {**ENCODER, **extra})
    network, start = _start(folder, pooling="mean", sequence_length=4)
    return network, start(jax.random.key(0))


def test_the_folder_decides_the_sizes_and_the_caller_the_rest(started):
    assert dict(started[0].settings) == {
        "layers": 2,
        "width": 4,
        "heads": 2,
        "mlp_width": 6,
        "vocab_size": 7,
        "max_positions": 5,
        "exit_after": [1],
        "num_classes": 3,
        "pooling": "mean",
        "dropout": 0.2,
        "sequence_length": 4,
    }


def test_the_encoder_is_the_folders_and_every_pooler_too(started):
    network, variables = started
    heads = [variables["params"][f"head_{k}"]["classifier"] for k in range(2)]
    tensors = {f"bert.{name}": value for name, value in ENCODER.items() if "pooler" not in name}
    for k, head in enumerate(heads):
        for end in ("weight", "bias"):
            tensors[f"bert.poolers.{k}.dense.{end}"] = ENCODER[f"pooler.dense.{end}"]
        tensors[f"classifiers.{k}.weight"] = np.asarray(head["kernel"]).T
        tensors[f"classifiers.{k}.bias"] = head["bias"]
    expected = from_torch(network, tensors)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # The classifiers are fresh: small, and not the same at both exits.
    assert 0.005 < np.std(heads[0]["kernel"]) < 0.05
    assert np.abs(heads[0]["kernel"] - heads[1]["kernel"]).max() > 0.005
    assert not np.any(heads[0]["bias"])


def test_names_with_a_prefix_other_tasks_heads_and_old_layer_norms(tmp_path):
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): value
        for name, value in ENCODER.items()
        if not name.startswith("pooler.")
    }
    masked = {"cls.predictions.bias": np.zeros(7, np.float32)}
    folder = _write(tmp_path / "masked", {**old, **masked})
    encoder = read_encoder(folder)
    assert encoder.skipped == ("cls.predictions.bias",)
    plain = read_encoder(_write(tmp_path / "plain"))
    assert plain.skipped == ()
    assert plain.tensors.keys() - encoder.tensors.keys() == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }
    for name, value in encoder.tensors.items():
        np.testing.assert_array_equal(value, plain.tensors[name])
    network, start = _start(folder)
    shapes = jax.eval_shape(start, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(
        jax.eval_shape(network.init, jax.random.key(0))
    )
    assert (network.settings["pooling"], network.settings["sequence_length"]) == ("first", 5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "roberta"}, "model_type in .*config.json' is 'roberta': give the folder"),
        ({"model_type": None}, "model_type in .* is None"),
        ({"hidden_act": "gelu_new"}, "hidden_act in .* is 'gelu_new': .* with 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps in .* is 1e-05"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type in"),
        ({"vocab_size": None}, "vocab_size in .* is None: give the folder of a BERT"),
        ({"hidden_size": "4"}, "hidden_size in .* is '4'"),
        ({"num_attention_heads": 3}, "width 4 cannot be shared by 3 heads"),
        ({"vocab_size": 8}, r"misshapen: bert.embeddings.word_embeddings.weight \(7, 4\) instead"),
        ({"num_hidden_layers": 3}, "missing: bert.encoder.layer.2.attention.output.LayerNorm.bias"),
    ],
)
def test_another_architecture_is_told_in_one_line(tmp_path, config, message):
    with pytest.raises(InputError, match=message) as error:
        _start(_write(tmp_path, **config))
    assert "\n" not in str(error.value)


def test_left_over_layers_and_half_a_pooler_are_named(tmp_path):
    more = {"encoder.layer.2.output.dense.bias": np.zeros(4, np.float32)}
    half = {name: value for name, value in ENCODER.items() if name != "pooler.dense.bias"}
    with pytest.raises(InputError) as error:
        _start(_write(tmp_path, {**half, **more}))
    assert str(error.value).endswith(
        "(missing: bert.pooler.dense.bias; left over: bert.encoder.layer.2.output.dense.bias)"
    )


def test_missing_and_damaged_files_are_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"no encoder's config at .*config.json"):
        _start(tmp_path / "nowhere")
    folder = _write(tmp_path / "encoder")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-20], whole[:50], b"", b"<html>" * 30):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match=r"model.safetensors' cannot be read") as error:
            _start(folder)
        assert "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(InputError, match=r"no weights at .*model.safetensors'"):
        _start(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match="is no encoder's config: give a Hugging Face folder"):
        _start(folder)


def test_a_size_is_the_folders_to_decide(tmp_path):
    with pytest.raises(InputError, match=r"decides all but exit_after, .*: drop width"):
        _start(_write(tmp_path), width=8)


@pytest.mark.parametrize(
    ("layers", "exits"), [(12, (3, 6, 9)), (6, (2, 4)), (4, (1, 2, 3)), (2, (1,)), (5, (1, 3))]
)
def test_exits_are_evenly_spaced_unless_said_otherwise(layers, exits):
    assert huggingface._evenly(layers) == exits
