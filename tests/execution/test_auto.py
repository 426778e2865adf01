"""What is picked is what took least, and never what is slower than the full network."""

import dataclasses
from types import MappingProxyType

import numpy as np
import pytest
from replay import exit_probs, replay_network
from test_streaming import TEXTS

from eenet_jax.errors import InputError
from eenet_jax.execution import auto
from eenet_jax.execution.auto import choose_strategy
from eenet_jax.execution.planning import Device
from eenet_jax.execution.strategies import build_strategy
from eenet_jax.policies.max_prob import MaxProb

EXITS, CLASSES, BATCH = 3, 2, 16
NOTHING = {"params": {}, "batch_stats": {}}
POLICY = MaxProb(
    budget=2.0, costs=(1.0, 2.0, 4.0), thresholds=np.asarray([0.9, 0.9, -np.inf], np.float32)
)
LOGITS = np.random.default_rng(0).normal(0, 3, (BATCH, EXITS, CLASSES)).astype(np.float32)
RATES = (0.5, 0.25, 0.25)
NETWORK = replay_network(EXITS, CLASSES)


def _latency(launch_seconds: float):
    """Of a device on which calls cost so much."""
    device = Device(
        name="d",
        launch_seconds=launch_seconds,
        read_seconds=0.0,
        peak_flops=1e9,
        half_work=1e6,
        source="a test",
        predicted=True,
    )
    return device.table((1e6, 1e6, 1e6), (1, 2, 4, 8, 16))


def _choose(
    monkeypatch,
    seconds,
    launch_seconds=0.0,
    names=("masked", "host_compacted"),
    ready=MappingProxyType({}),
):
    """The choice where trials take these seconds, by name; every trial is run all the same."""
    tried = []

    def trial(passes, count):
        assert count == BATCH
        for name, run in passes.items():
            tried.append(name)
            run()
        return {name: seconds[name] for name in passes}

    monkeypatch.setattr(auto, "_try", trial)
    latency = _latency(launch_seconds)
    choice = choose_strategy(
        NETWORK, NOTHING, POLICY, [LOGITS], latency, RATES, names=names, ready=ready
    )
    return choice, tried


SECONDS = {
    "full": 1.0,
    "full_with_decisions": 1.0,
    "masked": 0.8,
    "host_compacted": 0.7,
    "streaming": 0.6,
}


def test_the_one_that_took_least_is_picked_and_answers_as_the_policy_says(monkeypatch):
    choice, tried = _choose(monkeypatch, SECONDS)
    assert sorted(tried) == ["full", "full_with_decisions", "host_compacted", "masked"]
    assert choice.name == "host_compacted"
    assert choice.why == (
        "host_compacted took 0.70 of what the full network takes for the same answers; masked 0.80;"
        " without deciding, the full network 1.00"
    )
    assert choice.run is not None
    answers = choice.run(NOTHING, LOGITS)
    wanted = POLICY.decide(exit_probs(LOGITS))
    np.testing.assert_array_equal(answers.exit_index, wanted)
    np.testing.assert_array_equal(answers.logits, LOGITS[np.arange(BATCH), wanted])


@pytest.mark.parametrize("least", [0.98, 1.2])
def test_the_full_network_is_kept_where_nothing_is_worth_it(monkeypatch, least):
    whole = {"full": 1.0, "full_with_decisions": 1.0}
    seconds = {name: max(least, value) for name, value in SECONDS.items()} | whole
    choice, _ = _choose(monkeypatch, seconds)
    assert choice.name == "full"
    assert "which is not worth it" in choice.why
    assert choice.run is not None
    answers = choice.run(NOTHING, LOGITS)
    np.testing.assert_array_equal(answers.exit_index, POLICY.decide(exit_probs(LOGITS)))


def test_the_full_network_pays_for_its_decisions_too(monkeypatch):
    # Slower than the bare pass, and faster than anything else that gives these answers.
    seconds = dict.fromkeys(SECONDS, 1.01) | {"full": 1.0, "full_with_decisions": 1.06}
    assert _choose(monkeypatch, seconds)[0].name != "full"
    seconds["full_with_decisions"] = 1.02
    assert _choose(monkeypatch, seconds)[0].name == "full"


def test_those_predicted_to_be_slowest_are_not_tried(monkeypatch):
    names = ("masked", "host_compacted", "compacted", "streaming")
    seconds = SECONDS | {"compacted": 0.5}
    # With cheap calls a stage for every survivor is best, and a stream has no padding at all.
    choice, tried = _choose(monkeypatch, seconds, 1e-6, names)
    assert set(tried) - {"full", "full_with_decisions"} == {"host_compacted", "streaming"}
    assert choice.name == "streaming"
    assert choice.run is None
    # Where calls cost more than anything, one program is.
    choice, tried = _choose(monkeypatch, seconds, 1.0, names)
    assert "host_compacted" not in tried
    assert choice.name == "compacted"
    assert choice.predicted["compacted"] < choice.predicted["host_compacted"]


def test_what_is_compiled_already_is_tried_whatever_was_predicted(monkeypatch):
    ready = {"masked": build_strategy("masked", NETWORK, POLICY, BATCH, _latency(1e-6))}
    names = ("masked", "host_compacted", "compacted", "streaming")
    choice, tried = _choose(monkeypatch, SECONDS | {"masked": 0.1}, 1e-6, names, ready)
    assert "masked" in tried
    assert choice.name == "masked"


def test_trials_are_timed_in_turn():
    calls = []
    found = auto._try({name: (lambda name=name: calls.append(name)) for name in "ab"}, 10)
    # Calls as short as these are timed again, more often.
    assert calls == list("ab") * (2 + auto.TRIALS + auto.SHORT_PASSES)
    assert found.keys() == {"a", "b"}
    assert min(found.values()) >= 0


def test_without_batches_nothing_can_be_tried():
    with pytest.raises(InputError, match="no batches to try strategies on"):
        choose_strategy(replay_network(EXITS, CLASSES), NOTHING, POLICY, [], _latency(0.0), RATES)


def test_texts_of_every_length_that_the_network_takes_are_tried():
    settings = {**TEXTS.settings, "max_positions": 32}
    network = dataclasses.replace(TEXTS, settings=settings, input_shape=(8,))
    ids = np.random.default_rng(0).integers(0, 50, (BATCH, 20)).astype(np.int32)
    batches = [{"input_ids": ids, "attention_mask": np.ones_like(ids)}]
    choice = choose_strategy(
        network, NOTHING, POLICY, batches, _latency(0.0), RATES, names=("streaming",)
    )
    assert choice.tried.keys() == {"full", "full_with_decisions", "streaming"}
    assert min(choice.tried.values()) > 0
