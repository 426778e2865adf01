"""Masked, compacted and simulated execution send every sample to the same exit."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay import exit_probs, replay_network, streamed

from eenet_jax import networks
from eenet_jax.errors import InputError
from eenet_jax.execution import lane_programs
from eenet_jax.execution.buckets import default_buckets
from eenet_jax.execution.carry_over import carried_over
from eenet_jax.execution.compacted import compacted
from eenet_jax.execution.decision import Answers
from eenet_jax.execution.host_compacted import HostCompacted
from eenet_jax.execution.masked import masked
from eenet_jax.execution.sizes import switch_sizes
from eenet_jax.policies.eenet import EENet, num_features
from eenet_jax.policies.entropy import Entropy
from eenet_jax.policies.max_prob import MaxProb
from eenet_jax.policies.patience import Patience
from eenet_jax.policies.policy import Policy
from eenet_jax.policies.vote import Vote
from eenet_jax.scheduler.simulation import first_exit

EXITS, CLASSES, BATCH = 3, 4, 11
POLICIES = {"max_prob": MaxProb, "entropy": Entropy, "patience": Patience, "vote": Vote}
NAMES = (*POLICIES, "eenet", "combined")
COMBINATION = np.tril(np.full((EXITS, EXITS), 0.4, np.float32)) + 0.5 * np.eye(EXITS, dtype="f4")
NOTHING = {"params": {}, "batch_stats": {}}

# Logits that a batch is drawn from: smooth ones, and coarse ones, which tie with one another.
_DRAW = np.random.default_rng(0)
POOL = np.concatenate(
    [
        _DRAW.normal(0, 2, (24, EXITS, CLASSES)),
        _DRAW.integers(0, 3, (24, EXITS, CLASSES)),
        np.zeros((1, EXITS, CLASSES)),
    ]
).astype(np.float32)


def _policy(name: str, thresholds) -> Policy:
    fields = {
        "budget": 2.0,
        "costs": (1.0, 2.0, 4.0),
        "thresholds": np.asarray(thresholds, np.float32),
    }
    if name in POLICIES:
        return POLICIES[name](**fields)
    shape = (EXITS, num_features(EXITS) + CLASSES)
    now, last = np.random.default_rng(1).normal(0, 0.3, size=(2, *shape)).astype(np.float32)
    learned = EENet(measure="", gain_share=0.8, now=now, last=last, **fields)
    if name == "combined":
        return dataclasses.replace(learned, answer_weights=COMBINATION)
    return learned


@functools.cache
def _pool_scores(name: str) -> np.ndarray:
    return _policy(name, np.zeros(EXITS)).scores(exit_probs(POOL))


def _thresholds(name: str, kind: str) -> np.ndarray:
    """Each of them a score that some sample has, or beyond every score."""
    scores = _pool_scores(name)
    if name in ("patience", "vote"):
        # At the first exit all are alike, and later there are few values to tell samples by.
        at_a_score = np.concatenate([[np.inf], scores[1:].max(1)])
    else:
        at_a_score = np.sort(scores, axis=1)[:, scores.shape[1] * 2 // 3]
    changed = {
        "ties": {},
        "first exit empty": {0: np.inf},
        "second exit empty": {1: np.inf},
        "nobody before the last": {0: np.inf, 1: np.inf},
        "everybody at the first": {0: -np.inf},
        "everybody by the second": {1: -np.inf},
    }[kind]
    for k, value in changed.items():
        at_a_score[k] = value
    return at_a_score


@functools.cache
def _network():
    return replay_network(EXITS, CLASSES)


@functools.cache
def _strategies(name: str, kind: str):
    policy = _policy(name, _thresholds(name, kind))
    return policy, *_all_of(_network(), policy, BATCH)


def _all_of(network, policy, batch_size):
    return (
        masked(network, policy, piece=4),
        compacted(network, policy),
        compacted(network, policy, piece=4),
        HostCompacted(network, policy, default_buckets(network.num_exits, batch_size)),
    )


def check_agreement(policy: Policy, logits: np.ndarray, *strategies) -> None:
    """Every strategy leaves where the policy decides, with that exit's logits or the policy's."""
    probs = exit_probs(logits)
    wanted = policy.decide(probs)
    simulated = first_exit(policy.scores(probs), policy.thresholds)
    np.testing.assert_array_equal(simulated, wanted)
    for run in strategies:
        answers = run(NOTHING, logits)
        np.testing.assert_array_equal(answers.exit_index, wanted)
        if policy.answer_weights is None:
            np.testing.assert_array_equal(answers.logits, logits[np.arange(len(logits)), wanted])
            continue
        said = np.stack([policy.answer_logits(k, probs[: k + 1]) for k in range(EXITS)])
        chosen = said[wanted, np.arange(len(logits))]
        np.testing.assert_allclose(answers.logits, chosen, rtol=1e-5, atol=1e-5)


_rows = st.lists(st.integers(0, len(POOL) - 1), min_size=BATCH, max_size=BATCH)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "ties") for name in NAMES),
        ("max_prob", "first exit empty"),
        ("eenet", "second exit empty"),
        ("entropy", "nobody before the last"),
        ("eenet", "everybody at the first"),
        ("patience", "everybody by the second"),
    ],
)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=st.one_of(_rows, st.integers(0, len(POOL) - 1).map(lambda row: [row] * BATCH)))
def test_jitted_strategies_agree_from_the_same_logits(name, kind, rows):
    policy, *strategies = _strategies(name, kind)
    check_agreement(policy, POOL[rows], *strategies)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(
    "pieces",
    [(4,) * 2, (4,) * 5, (4, 4, 8), (8, 4, 4), (1, 1, 2), (2, 4, 8), (8, 4, 2), (3, 2, 7, 4)],
    ids=str,
)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_survivors_of_pieces_are_all_answered(pieces, backend, data):
    """Whatever waits behind the exits, however many there are, and on whatever a stage runs."""
    exits = len(pieces)
    leave = data.draw(st.lists(st.integers(0, exits - 1), min_size=13, max_size=13))
    logits = np.zeros((len(leave), exits, CLASSES), np.float32)
    for row, k in enumerate(leave):
        logits[row, k, row % CLASSES] = 9.0 + row
    for run in _in_pieces(pieces, backend):
        answers = run(NOTHING, logits)
        np.testing.assert_array_equal(answers.exit_index, leave)
        np.testing.assert_array_equal(answers.logits, logits[np.arange(len(leave)), leave])


@pytest.mark.parametrize("make", [masked, compacted])
def test_a_piece_is_at_least_a_sample(make):
    network, policy = _sure_at(3)
    with pytest.raises(InputError, match="piece is 0: give 1 or more, or None"):
        make(network, policy, piece=0)(NOTHING, np.zeros((4, 3, CLASSES), np.float32))


@functools.cache
def _in_pieces(pieces: tuple[int, ...], backend: str):
    """What copies samples is another for accelerators; it is traced here as for them."""
    network, policy = _sure_at(len(pieces))
    compacting = jax.jit(lambda variables, x: carried_over(network, policy, pieces, variables, x))
    stream = streamed(network, policy, batch_size=pieces[0] + 1)
    nothing = np.zeros((13, len(pieces), CLASSES), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane_programs, "suitable_pieces", lambda network, variables, x: pieces)
        patch.setattr(jax, "default_backend", lambda: backend)
        compacting(NOTHING, nothing)
        stream(NOTHING, nothing[:1])
    return compacting, stream


def _sure_at(exits: int):
    """A network, and a policy by which a sample leaves where its network is sure of it."""
    network = replay_network(exits, CLASSES)
    thresholds = np.asarray([0.9] * (exits - 1) + [-np.inf], np.float32)
    costs = tuple(float(k + 1) for k in range(exits))
    return network, MaxProb(budget=2.0, costs=costs, thresholds=thresholds)


@pytest.mark.parametrize("name", NAMES)
def test_thresholds_of_the_pool_are_ties_that_split_the_batch(name):
    policy, *_ = _strategies(name, "ties")
    scores = _pool_scores(name)
    exits = policy.decide(exit_probs(POOL))
    k = 0 if np.isfinite(policy.thresholds[0]) else 1
    tied = scores[k] == policy.thresholds[k]
    assert tied.any()
    assert (exits[tied] == k).all()
    assert len(np.unique(exits)) >= 2


@settings(max_examples=3, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_strategies_agree_at_random_thresholds(data, seed):
    name = data.draw(st.sampled_from(["max_prob", "entropy", "vote"]))
    draw = np.random.default_rng(seed)
    batches = draw.normal(0, 3, (6, BATCH, EXITS, CLASSES)).astype(np.float32)
    scores = _policy(name, np.zeros(EXITS)).scores(exit_probs(batches[0]))
    # Each a score of the first batch, a number between scores, or none that anybody reaches.
    thresholds = [
        data.draw(st.sampled_from([np.inf, -np.inf, 0.5, 0.8, *row.tolist()])) for row in scores
    ]
    policy = _policy(name, thresholds)
    strategies = _all_of(_network(), policy, BATCH)
    for logits in batches:
        check_agreement(policy, logits, *strategies)


@pytest.mark.parametrize(("batch", "largest"), [(1, 1), (3, 13), (21, 8)])
def test_batches_smaller_and_larger_than_announced(batch, largest):
    policy = _policy("max_prob", _thresholds("max_prob", "ties"))
    logits = POOL[np.arange(batch) * 2 % len(POOL)]
    check_agreement(policy, logits, *_all_of(_network(), policy, largest))


def test_a_batch_size_below_one_is_an_input_error():
    with pytest.raises(InputError, match="batch_size 0 must be at least 1"):
        default_buckets(EXITS, 0)


@pytest.fixture(scope="module")
def cnn():
    network = networks.build(
        "cnn", widths=(4, 4, 4), depths=(1, 1, 1), num_classes=CLASSES, input_shape=(8, 8, 1)
    )
    return network, network.init(jax.random.key(0))


@pytest.mark.parametrize("name", ["max_prob", "eenet"])
def test_through_a_network_only_near_ties_may_differ(cnn, name):
    network, variables = cnn
    images = np.random.default_rng(3).normal(0, 2, (24, 8, 8, 1)).astype(np.float32)
    full = np.asarray(jax.jit(network.apply)(variables, images))
    probs = np.asarray(jax.nn.softmax(full))
    policy = _policy(name, np.zeros(EXITS))
    scores = policy.scores(probs)
    thresholds = np.asarray([np.quantile(row, 0.6) for row in scores], np.float32)
    policy = dataclasses.replace(policy, thresholds=thresholds)
    wanted = policy.decide(probs)
    assert len(np.unique(wanted)) == EXITS
    clear = (np.abs(scores[:-1] - thresholds[:-1, None]) > 1e-5).all(0)
    assert clear.sum() >= 22
    for run in (*_all_of(network, policy, 24), streamed(network, policy, batch_size=8)):
        answers = run(variables, images)
        np.testing.assert_array_equal(np.asarray(answers.exit_index)[clear], wanted[clear])
        chosen = full[np.asarray(answers.exit_index), np.arange(24)]
        np.testing.assert_allclose(answers.logits, chosen, rtol=1e-4, atol=1e-5)


ON_DEVICES = """
import json, sys
sys.path[:0] = {paths!r}
import jax, numpy as np
from test_same_exits import BATCH, NOTHING, POOL, _network, _policy, _thresholds
from eenet_jax.execution.decision import Answers
from eenet_jax.execution.compacted import compacted
from eenet_jax.execution.masked import masked
devices = tuple(jax.devices())
logits = np.resize(POOL, (45, *POOL.shape[1:]))
found = {{"devices": len(devices)}}
for name in ("max_prob", "combined"):
    policy = _policy(name, _thresholds(name, "ties"))
    for strategy, piece in ((masked, None), (compacted, None), (compacted, 2)):
        run = strategy(_network(), policy, piece=piece, devices=devices)
        answers = run(NOTHING, logits)
        found[f"{{name}} {{strategy.__name__}} {{piece}}"] = [
            np.asarray(answers.exit_index).tolist(), np.asarray(answers.logits).tolist()
        ]
print(json.dumps(found))
"""


def test_on_eight_devices_each_does_its_own_part():
    here = os.path.dirname(os.path.abspath(__file__))
    # Fake devices share XLA's threads, which are as many as NPROC says, else as there are cores:
    # with fewer than devices they would wait for one another.
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", ON_DEVICES.format(paths=[here, os.path.dirname(here)])],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "16"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("devices") == 8
    assert len(found) == 6
    # 45 samples don't divide by 8: nobody is lost, or answered by what fills up.
    logits = np.resize(POOL, (45, *POOL.shape[1:]))
    for name, (exits, said) in found.items():
        answers = Answers(np.asarray(said, np.float32), np.asarray(exits, np.int32))
        policy = _policy(name.split()[0], _thresholds(name.split()[0], "ties"))
        check_agreement(policy, logits, lambda variables, x, answers=answers: answers)


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (8, (1, 2, 3, 4, 6, 8)),
        (20, (2, 6, 8, 10, 16, 20)),
        (64, (8, 16, 24, 32, 48, 64)),
        (256, (16, 32, 64, 96, 128, 192, 256)),
        (1000, (64, 128, 256, 376, 504, 752, 1000)),
    ],
)
def test_sizes_on_the_device_rise_to_the_batch(batch, sizes):
    assert switch_sizes(batch) == sizes
