"""Parts of a batch that run at once give what the whole gives, and do run at once."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from replay import HandOn, replay_network
from test_streaming import TEXTS

from eenet_jax import networks
from eenet_jax.execution import sides
from eenet_jax.execution.compacted import compacted
from eenet_jax.execution.decision import Answers
from eenet_jax.execution.masked import masked
from eenet_jax.execution.sides import SideBySide, number_of_sides
from eenet_jax.execution.streaming import Stream
from eenet_jax.policies.max_prob import MaxProb

EXITS, CLASSES = 3, 2
NOTHING = {"params": {}, "batch_stats": {}}
POLICY = MaxProb(
    budget=2.0, costs=(1.0, 2.0, 4.0), thresholds=np.asarray([0.9, 0.9, -np.inf], np.float32)
)
PATIENCE_S = 20.0


@pytest.fixture(params=[2, 3, 4])
def several(request, monkeypatch):
    monkeypatch.setattr(sides, "number_of_sides", lambda: request.param)
    return request.param


def _leaving_at(exits: np.ndarray) -> np.ndarray:
    """Logits of samples that leave at these exits, each its own."""
    logits = np.zeros((len(exits), EXITS, CLASSES), np.float32)
    rows = np.arange(len(exits))
    logits[rows, exits, rows % CLASSES] = 9.0 + rows
    return logits


@pytest.mark.parametrize("make", [masked, compacted])
@pytest.mark.parametrize("piece", [None, 2])
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 12])
def test_every_sample_has_its_own_answer(make, piece, batch, several):
    exits = np.random.default_rng(batch).integers(0, EXITS, batch)
    logits = _leaving_at(exits)
    answers = make(replay_network(EXITS, CLASSES), POLICY, piece=piece)(NOTHING, logits)
    np.testing.assert_array_equal(answers.exit_index, exits)
    np.testing.assert_array_equal(answers.logits, logits[np.arange(batch), exits])


def test_samples_are_cut_leaf_by_leaf(several):
    tokens = np.random.default_rng(1).integers(1, 50, (7, 6))
    tokens[:, 0] = np.arange(7) * (CLASSES + 3)
    # The first token alone counts.
    x = {"input_ids": tokens, "attention_mask": (np.arange(6) < 1) * np.ones_like(tokens)}
    found = compacted(TEXTS, POLICY)(NOTHING, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sides, "number_of_sides", lambda: 1)
        wanted = compacted(TEXTS, POLICY)(NOTHING, x)
    np.testing.assert_array_equal(found.exit_index, wanted.exit_index)
    np.testing.assert_array_equal(found.logits, wanted.logits)
    assert len(np.unique(wanted.exit_index)) == EXITS


def test_through_a_network_halves_answer_as_the_whole(monkeypatch):
    network = networks.build(
        "cnn", widths=(4, 4, 4), depths=(1, 1, 1), num_classes=CLASSES, input_shape=(8, 8, 1)
    )
    variables = network.init(jax.random.key(0))
    images = np.random.default_rng(3).normal(0, 2, (9, 8, 8, 1)).astype(np.float32)
    scores = np.asarray(jax.nn.softmax(jax.jit(network.apply)(variables, images))).max(-1)
    thresholds = np.asarray([*np.median(scores[:2], 1), -np.inf], np.float32)
    policy = dataclasses.replace(POLICY, thresholds=thresholds - 1e-4)
    for make in (masked, compacted):
        wanted = make(network, policy)(variables, images)
        with monkeypatch.context() as patch:
            patch.setattr(sides, "number_of_sides", lambda: 2)
            found = make(network, policy)(variables, images)
        np.testing.assert_array_equal(found.exit_index, wanted.exit_index)
        np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-5, atol=1e-6)
        assert len(np.unique(wanted.exit_index)) > 1


def test_where_no_thread_begins_any_more_parts_run_one_after_the_other(several, monkeypatch):
    ended = ThreadPoolExecutor(1)
    ended.shutdown()
    monkeypatch.setattr(sides, "_thread", lambda side: ended)
    exits = np.asarray([0, 2, 1, 1, 2])
    answers = masked(replay_network(EXITS, CLASSES), POLICY)(NOTHING, _leaving_at(exits))
    np.testing.assert_array_equal(answers.exit_index, exits)


class _Meeting(nn.Module):
    """A stage in which two programs wait for each other."""

    barrier: threading.Barrier

    @nn.compact
    def __call__(self, logits: Float[Array, "batch exits classes"], train: bool):
        def meet(x: np.ndarray) -> np.ndarray:
            self.barrier.wait(PATIENCE_S)
            return np.asarray(x)

        shape = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
        return jax.pure_callback(meet, shape, logits)


def _meeting():
    """A network of which two programs have to run at once, and a policy: all leave at once."""
    network = replay_network(2, CLASSES, [_Meeting(threading.Barrier(2)), HandOn()])
    thresholds = np.asarray([-np.inf, -np.inf], np.float32)
    return network, MaxProb(budget=1.0, costs=(1.0, 2.0), thresholds=thresholds)


def test_two_halves_run_at_once(monkeypatch):
    monkeypatch.setattr(sides, "number_of_sides", lambda: 2)
    network, policy = _meeting()
    logits = np.arange(20, dtype=np.float32).reshape(5, 2, CLASSES)
    answers = jax.device_get(masked(network, policy)(NOTHING, logits))
    np.testing.assert_array_equal(answers.logits, logits[:, 0])


def test_batches_on_two_tracks_run_at_once():
    network, policy = _meeting()
    logits = np.arange(64, dtype=np.float32).reshape(16, 2, CLASSES)
    results = Stream(network, NOTHING, policy, batch_size=4, tracks=2).answers(logits)
    np.testing.assert_array_equal([result.logits for result in results], logits[:, 0])


def test_without_jit_too(monkeypatch):
    monkeypatch.setattr(sides, "number_of_sides", lambda: 2)
    exits = np.asarray([0, 2, 1])
    logits = _leaving_at(exits)
    network = replay_network(EXITS, CLASSES)
    with jax.disable_jit():
        answers = masked(network, POLICY)(NOTHING, logits)
        results = Stream(network, NOTHING, POLICY, batch_size=2, tracks=2).answers(logits)
    np.testing.assert_array_equal(answers.exit_index, exits)
    assert [result.exit_index for result in results] == exits.tolist()


def test_it_is_traced_where_it_is_called_and_under_what_is_set_there(several):
    traced = []

    def run(variables, x):
        precision = jax.config.jax_default_matmul_precision  # pyright: ignore
        traced.append((threading.current_thread(), precision))
        return Answers(x @ variables["w"], jnp.zeros(len(x), jnp.int32))

    beside, x = SideBySide(run), np.ones((6, 2), np.float32)
    here = threading.current_thread()
    for _ in range(2):
        beside({"w": np.ones((2, 2), np.float32)}, x)
    assert traced == [(here, None)]
    with jax.default_matmul_precision("highest"):
        beside({"w": np.ones((2, 2), np.float32)}, x)
    assert traced == [(here, None), (here, "highest")]
    # Other weights are another program, and inside a jitted function it is a part of that.
    beside({"w": np.ones((2, 3), np.float32)}, x)
    assert len(traced) == 3
    inside = jax.jit(lambda x: beside({"w": 2 * np.ones((2, 2), np.float32)}, x).logits)
    np.testing.assert_array_equal(inside(x), np.full((6, 2), 4.0))
    assert len(traced) == 4


@pytest.mark.parametrize(
    ("backend", "devices", "cores", "wanted"),
    [("cpu", 1, 1, 1), ("cpu", 1, 2, 2), ("cpu", 1, 64, 2), ("cpu", 8, 64, 1), ("gpu", 1, 64, 1)],
)
def test_one_processor_of_several_cores_has_two(backend, devices, cores, wanted, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(sides, "cores", lambda: cores)
    assert number_of_sides() == wanted
