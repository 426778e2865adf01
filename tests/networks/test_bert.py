"""BERT with exits: the published numbers, a reference written out, padding that never counts."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import GOLDEN, state_dict

from eenet_jax import networks
from eenet_jax.costs import count_costs
from eenet_jax.errors import InputError
from eenet_jax.networks.bert import Dropout
from eenet_jax.networks.convert import from_torch, published_tensors

TINY = {
    "layers": 2,
    "width": 8,
    "heads": 2,
    "mlp_width": 12,
    "vocab_size": 11,
    "max_positions": 9,
    "exit_after": (1,),
    "num_classes": 3,
    "sequence_length": 5,
}
LENGTHS = (5, 3, 1)


@functools.cache
def _tiny(pooling="first", dropout=0.1):
    network = networks.build("bert", **TINY, pooling=pooling, dropout=dropout)
    weights = state_dict(published_tensors(network).items())
    return network, weights, from_torch(network, weights)


def _texts(length: int = 5):
    draw = np.random.default_rng(0)
    mask = np.arange(length)[None] < np.asarray(LENGTHS)[:, None]
    ids = np.where(mask, draw.integers(0, 11, (3, length)), 0)
    return {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask, jnp.int32)}


def _apply(network, variables, x):
    return np.asarray(jax.jit(network.apply)(variables, x))


def test_bert_4_computes_what_the_published_network_does():
    with np.load(GOLDEN / "bert_4_base.npz", allow_pickle=False) as archive:
        logits, tensors = archive["logits"], json.loads(str(archive["state_dict"]))
        x = {name: archive[name] for name in ("input_ids", "attention_mask")}
    network = networks.build("bert_4")
    shapes = published_tensors(network)
    assert shapes == {name: tuple(shape) for name, shape in tensors}
    assert sum(math.prod(shape) for shape in shapes.values()) == 111_266_320
    ours = _apply(network, from_torch(network, state_dict(tensors)), x)
    assert ours.shape == logits.shape == (4, 4, 4)
    assert np.abs(ours - logits).max() <= 1e-4 * np.abs(logits).max()
    # The texts are padded, and the exits and texts differ: the comparison says something.
    assert not x["attention_mask"].all()
    assert np.abs(logits - logits.mean(0)).max() > 0.1
    assert np.abs(logits - logits.mean(1, keepdims=True)).max() > 0.1


class _Reference:
    """One text at a time, without its padding, in double precision, in PyTorch's layout."""

    def __init__(self, weights):
        self._weights = {name: value.astype(np.float64) for name, value in weights.items()}

    def linear(self, x, name: str):
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def norm(self, x, name: str):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def embed(self, ids, types):
        word, place, kind = (
            self._weights[f"bert.embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        )
        return self.norm(word[ids] + place[: len(ids)] + kind[types], "bert.embeddings.LayerNorm")

    def attend(self, x, name: str, heads: int = 2):
        parts = [self.linear(x, f"{name}.self.{part}") for part in ("query", "key", "value")]
        contexts = []
        for query, key, value in zip(*(np.split(part, heads, 1) for part in parts), strict=True):
            scores = np.exp(query @ key.T / math.sqrt(query.shape[1]))
            contexts.append(scores / scores.sum(1, keepdims=True) @ value)
        return self.linear(np.concatenate(contexts, 1), f"{name}.output.dense")

    def layer(self, x, i: int):
        name = f"bert.encoder.layer.{i}"
        x = self.norm(x + self.attend(x, f"{name}.attention"), f"{name}.attention.output.LayerNorm")
        inner = self.linear(x, f"{name}.intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        return self.norm(x + self.linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def logits(self, ids, types, pooling: str):
        x, logits = self.embed(ids, types), []
        for i in range(2):
            x = self.layer(x, i)
            pooled = x[0] if pooling == "first" else x.mean(0)
            pooled = np.tanh(self.linear(pooled, f"bert.poolers.{i}.dense"))
            logits.append(self.linear(pooled, f"classifiers.{i}"))
        return np.stack(logits)


@pytest.mark.parametrize(("pooling", "typed"), [("first", False), ("mean", True)])
def test_logits_equal_a_reference_written_out(pooling, typed):
    network, weights, variables = _tiny(pooling)
    reference, x = _Reference(weights), _texts()
    types = np.random.default_rng(1).integers(0, 2, (3, 5)) * typed
    given = {**x, "token_type_ids": jnp.asarray(types)} if typed else x
    expected = [
        reference.logits(np.asarray(x["input_ids"])[n, :length], types[n, :length], pooling)
        for n, length in enumerate(LENGTHS)
    ]
    ours = _apply(network, variables, given)
    np.testing.assert_allclose(ours, np.stack(expected, 1), atol=2e-6)
    assert np.abs(np.diff(ours, axis=0)).max() > 0.1


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_padding_never_changes_a_logit(pooling):
    network, _, variables = _tiny(pooling)
    x = {**_texts(), "token_type_ids": jnp.ones((3, 5), jnp.int32)}
    plain = _apply(network, variables, x)
    wide = {name: jnp.pad(value, ((0, 0), (0, 4))) for name, value in x.items()}
    padding = wide["attention_mask"] == 0
    for odd in (3, -1, 11, 10**9):
        for name in ("input_ids", "token_type_ids"):
            padded = {**wide, name: jnp.where(padding, odd, wide[name])}
            np.testing.assert_allclose(_apply(network, variables, padded), plain, atol=1e-6)


def test_padding_gets_no_gradient_and_an_empty_row_no_nan():
    network, _, variables = _tiny("mean", 0.0)
    x = _texts()
    x["input_ids"] = jnp.where(x["attention_mask"] == 0, 7, x["input_ids"] % 7)
    x["attention_mask"] = x["attention_mask"].at[2].set(0)

    def total(params):
        logits, _ = network.apply_train({**variables, "params": params}, x, jax.random.key(0))
        return logits[:, :2].sum()

    gradient = jax.jit(jax.grad(total))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    words = np.asarray(gradient["stage_0"]["embeddings"]["word_embeddings"]["embedding"])
    seen = set(np.asarray(x["input_ids"])[np.asarray(x["attention_mask"]) == 1].tolist())
    assert {i for i, row in enumerate(words) if np.abs(row).max() > 1e-4} == seen
    assert np.abs(words[7:]).max() == 0
    assert np.isfinite(_apply(network, variables, x)).all()


def test_dropout_drops_its_share_and_scales_what_it_keeps():
    layer, x = Dropout(0.1), jnp.full((101, 99), 2.0)
    dropped = np.asarray(layer.apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    kept = dropped != 0
    assert abs(kept.mean() - 230 / 256) < 0.01
    np.testing.assert_allclose(dropped[kept], 2 * 256 / 230, rtol=1e-6)
    # Independent from place to place: rows and columns lose about the same share.
    assert np.abs(kept.mean(0) - 230 / 256).max() < 0.15
    assert np.abs(kept.mean(1) - 230 / 256).max() < 0.15
    assert abs(np.corrcoef(kept[:, :-1].ravel(), kept[:, 1:].ravel())[0, 1]) < 0.05
    np.testing.assert_array_equal(layer.apply({}, x, False), x)


def test_dropout_is_for_training_and_follows_its_key():
    network, _, variables = _tiny()
    train = jax.jit(network.apply_train)
    one, again, other = (train(variables, _texts(), jax.random.key(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-2
    still, _, _ = _tiny(dropout=0.0)
    logits, statistics = jax.jit(still.apply_train)(variables, _texts(), jax.random.key(0))
    np.testing.assert_allclose(logits, _apply(network, variables, _texts()), atol=1e-6)
    assert statistics == {}
    jaxpr = str(jax.make_jaxpr(still.apply_train)(variables, _texts(), jax.random.key(0)))
    assert "random_bits" not in jaxpr


def test_staged_equals_full_and_hands_the_mask_on():
    network, _, variables = _tiny("mean")
    carry, logits = _texts(), []
    for k in range(network.num_exits):
        carry, statistics = network.stage(k, variables, carry, False, None)
        logits.append(network.head(k, variables, carry, False, None)[0])
        np.testing.assert_array_equal(carry["mask"], _texts()["attention_mask"] == 1)
        assert carry["hidden"].shape == (3, 5, 8)
        assert statistics == {}
    np.testing.assert_allclose(
        jnp.stack(logits), _apply(network, variables, _texts()), rtol=1e-5, atol=1e-6
    )


def test_fresh_variables_and_the_example_input():
    network = networks.build("bert", **TINY)
    variables = network.init(jax.random.key(0))
    assert variables["batch_stats"] == {}
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    dense = variables["params"]["stage_1"]["layer1"]["intermediate_dense"]
    assert 0.01 < np.std(dense["kernel"]) < 0.03
    assert not np.any(dense["bias"])
    example = network.example(2)
    np.testing.assert_array_equal(example["input_ids"], np.zeros((2, 5), np.int32))
    np.testing.assert_array_equal(example["attention_mask"], np.ones((2, 5), np.int32))


def test_costs_are_those_of_the_layers_that_have_run():
    network = networks.build("bert", **TINY)
    layer = 5 * (4 * 8 * 8 + 2 * 8 * 12)
    attention = 2 * 5 * 5 * 8
    head = 8 * 8 + 8 * 3
    costs = np.asarray(count_costs(network).costs) * 1e6
    only_linear = np.asarray([layer + head, 2 * layer + 2 * head])
    with_attention = only_linear + attention * np.asarray([1, 2])
    np.testing.assert_allclose(costs, with_attention)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "width 8 cannot be shared by 3 heads: give a multiple"),
        ({"sequence_length": 10}, "sequence_length 10 is beyond max_positions 9: lower it"),
        ({"exit_after": (1, 2)}, r"exit_after \[1, 2\] must increase strictly within 1..1"),
        ({"pooling": "max"}, "pooling of network 'bert' is 'max': give one of first, mean"),
        ({"dropout": 1.0}, "dropout is 1.0: give a rate from 0 up to, but not, 1"),
        ({"dropout": "some"}, "dropout of network 'bert' is 'some': give a number"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        networks.build("bert", **{**TINY, **settings})


def test_wrong_texts_are_named():
    network, _, variables = _tiny()
    with pytest.raises(InputError, match="text of 10 tokens is longer than max_positions 9"):
        network.apply(variables, _texts(10))
    with pytest.raises(InputError, match="the text has no attention_mask: give both"):
        network.apply(variables, {"input_ids": _texts()["input_ids"]})
