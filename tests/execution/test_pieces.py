"""A batch in pieces is the batch: the same numbers, in the same places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from replay import replay_network

from eenet_jax import networks, pieces
from eenet_jax.pieces import cached_samples, in_pieces, suitable_pieces


@pytest.mark.parametrize("size", [1, 3, 4, 11, 20])
def test_pieces_give_what_the_whole_gives(size):
    x = {"a": np.arange(22.0).reshape(11, 2), "b": np.arange(11)}
    seen = []

    def double(weight, x):
        jax.debug.callback(lambda: seen.append(x["b"].shape[0]))
        return {"sum": weight * x["a"].sum(1), "b": x["b"][:, None]}

    found = jax.jit(in_pieces(double, size))(2.0, x)
    jax.effects_barrier()
    np.testing.assert_array_equal(found["sum"], 2 * x["a"].sum(1))
    np.testing.assert_array_equal(found["b"], x["b"][:, None])
    assert seen == [min(size, 11)] * -(-11 // size)


def test_as_many_samples_as_a_cache_holds_of_what_a_stage_takes_and_gives(monkeypatch):
    network = replay_network(3, 4)  # Hands on 12 floats.
    x = np.zeros((500, 3, 4), np.float32)
    monkeypatch.setattr(pieces, "CACHE_BYTES", 1000)
    assert cached_samples(network, {"params": {}}, x) == (16,) * 3
    monkeypatch.setattr(pieces, "CACHE_BYTES", 10)
    assert cached_samples(network, {"params": {}}, x) == (1,) * 3
    monkeypatch.setattr(pieces, "CACHE_BYTES", 2**30)
    assert suitable_pieces(network, {"params": {}}, x) == (500,) * 3


def test_resnet56_ends_in_larger_pieces_than_it_begins_in():
    network = networks.build("resnet56_3")
    variables = jax.eval_shape(network.init, jax.random.key(0))
    # 32 x 32 pixels of 64 channels are 256 KiB, which the second stage takes and the first gives;
    # what the last one takes is half of that.
    assert cached_samples(network, variables, network.example(128)) == (16, 16, 32)


def test_texts_go_in_smaller_pieces_for_the_sake_of_wider_maps_inside():
    network = networks.build(
        "bert", layers=2, width=384, heads=12, mlp_width=1536, exit_after=(1,), vocab_size=9
    )
    variables = jax.eval_shape(network.init, jax.random.key(0))
    tokens = {name: np.ones((128, 64), np.int32) for name in ("input_ids", "attention_mask")}
    # 64 tokens of width 384 are 96 KiB, of which half of 4 MiB holds 21.
    assert cached_samples(network, variables, tokens) == (16, 16)


def test_the_full_pass_in_pieces_gives_the_whole_ones_logits(monkeypatch):
    network = networks.build(
        "cnn", widths=(4, 4, 4), depths=(1, 1, 1), num_classes=3, input_shape=(8, 8, 1)
    )
    variables = network.init(jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(11, 8, 8, 1)), jnp.float32)
    whole = jax.jit(network.apply)(variables, images)
    monkeypatch.setattr(pieces, "CACHE_BYTES", 4 * 8 * 8 * 4 * 4)
    assert min(cached_samples(network, variables, images)) == 4
    lowered = jax.jit(lambda variables, x: network.apply(variables, x)).lower(variables, images)
    assert "while" in lowered.as_text()
    np.testing.assert_allclose(lowered.compile()(variables, images), whole, rtol=1e-5, atol=1e-6)
