"""A stream's samples are each answered once, as the simulation says, whatever happens to it."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array, Float
from replay import exit_probs, replay_network

from eenet_jax.errors import InputError
from eenet_jax.execution.lane_programs import LanePrograms
from eenet_jax.execution.streaming import Result, Sample, Stream
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.policies.max_prob import MaxProb

EXITS, CLASSES = 3, 4
NOTHING = {"params": {}, "batch_stats": {}}
LENGTHS = (6, 16)
CAPACITY = 100
MODES = ("as they come", "ordered", "overlapping", "two tracks", "two tracks in order")
IN_ORDER = ("ordered", "two tracks in order")


class HandOnTokens(nn.Module):
    """A stage that changes nothing."""

    @nn.compact
    def __call__(self, x: dict, train: bool):
        return x


class Digit(nn.Module):
    """A head that is surer the deeper it is, and of some texts more than of others.

    The sum of the ids that count says it all: its class, and its exit.
    """

    k: int

    @nn.compact
    def __call__(self, x: dict, train: bool) -> Float[Array, "batch classes"]:
        total = (x["input_ids"] * x["attention_mask"]).sum(-1)
        leaves = total // CLASSES % EXITS <= self.k
        return jnp.where(leaves, 9.0, 1.0)[:, None] * jax.nn.one_hot(total % CLASSES, CLASSES)


TEXTS = MultiExitNetwork(
    family="digits of sums",
    settings={"num_classes": CLASSES},
    stages=tuple(HandOnTokens() for _ in range(EXITS)),
    heads=tuple(Digit(k) for k in range(EXITS)),
    input_shape=(LENGTHS[-1],),
    inputs="tokens",
)
POLICY = MaxProb(
    budget=2.0, costs=(1.0, 2.0, 4.0), thresholds=np.asarray([0.9, 0.9, -np.inf], np.float32)
)
MALFORMED = (
    None,
    "a text",
    {"attention_mask": np.ones(3, int)},
    {"input_ids": np.zeros((2, 2), int)},
    {"input_ids": np.zeros(LENGTHS[-1] + 1, int)},
    {"input_ids": np.zeros(0, int)},
    {"input_ids": np.asarray([0.5])},
    {"input_ids": np.asarray([-1])},
    {"input_ids": np.ones(2, int), "attention_mask": np.ones(3, int)},
    {"input_ids": np.asarray([2**32 + 5])},
    {"input_ids": np.ones(2, int), "labels": 1},
    {"input_ids": [[1, 2], [3]]},
)


def _wanted(ids: np.ndarray) -> tuple[int, int]:
    """The exit and the class of a text."""
    return int(ids.sum()) // CLASSES % EXITS, int(ids.sum()) % CLASSES


def _check(results: list[Result], samples: list) -> None:
    """Each of the samples has one result: its own answer, or an error where it is malformed."""
    assert sorted(result.position for result in results) == list(range(len(samples)))
    for result in results:
        sample = samples[result.position]
        if not isinstance(sample, np.ndarray):
            assert result.error is not None
            assert result.logits is None
            assert result.exit_index == -1
            continue
        assert result.error is None
        assert result.logits is not None
        assert (result.exit_index, int(result.logits.argmax())) == _wanted(sample)


def _as_input(sample):
    return {"input_ids": sample} if isinstance(sample, np.ndarray) else sample


@pytest.fixture(scope="module")
def streams():
    """One for each way of going through and of handing out, compiled once."""
    made = {
        mode: Stream(
            TEXTS,
            NOTHING,
            POLICY,
            batch_size=16,
            lengths=LENGTHS,
            max_wait_s=0.05,
            ordered=mode in IN_ORDER,
            capacity=CAPACITY,
            overlap=mode == "overlapping",
            tracks=2 if mode.startswith("two tracks") else 1,
        )
        for mode in MODES
    }
    for stream in made.values():
        for length in LENGTHS:
            stream.warm_up({"input_ids": np.ones(length, int)})
    return made


_texts = st.lists(st.integers(0, 50), min_size=1, max_size=LENGTHS[-1]).map(np.asarray)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    samples=st.lists(st.one_of(_texts, _texts, st.sampled_from(MALFORMED)), max_size=90),
    mode=st.sampled_from(MODES),
)
def test_every_sample_is_answered_once(streams, samples, mode):
    results = list(streams[mode](map(_as_input, samples)))
    _check(results, samples)
    if mode in IN_ORDER:
        assert [result.position for result in results] == list(range(len(samples)))


class _Source:
    """Random texts, some of them malformed, with pauses; counts what has been taken of it."""

    def __init__(self, count: int, seed: int, pause_every: int = 0):
        self._draw = np.random.default_rng(seed)
        self._count, self._pause_every = count, pause_every
        self.samples = []

    def __iter__(self) -> Iterator:
        lengths = self._draw.integers(1, LENGTHS[-1] + 1, self._count)
        faults = self._draw.random(self._count) < 0.01
        for number, (length, fault) in enumerate(zip(lengths, faults, strict=True)):
            if self._pause_every and number % self._pause_every == 0:
                time.sleep(self._draw.exponential(0.002))
            broken = MALFORMED[number % len(MALFORMED)]
            sample = broken if fault else self._draw.integers(0, 50, length)
            self.samples.append(sample)
            yield _as_input(sample)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [8_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_samples_with_pauses_and_faults(streams, mode, count):
    source = _Source(count, seed=MODES.index(mode), pause_every=1000)
    results, most = [], 0
    for result in streams[mode](source):
        most = max(most, len(source.samples) - len(results))
        results.append(result)
        if len(results) % 4_000 == 0:
            time.sleep(0.2)
    _check(results, source.samples)
    if mode in IN_ORDER:
        assert [result.position for result in results] == list(range(len(results)))
    # On their way or held back; and in the queue and in the reader's hands.
    assert most <= CAPACITY + 16 + 2


def test_a_slow_consumer_holds_the_source_back(streams):
    source = _Source(5_000, seed=3)
    results = iter(streams["as they come"](source))
    next(results)
    time.sleep(0.3)
    taken = len(source.samples)
    time.sleep(0.3)
    assert len(source.samples) == taken
    # What the buffers of two lanes, three exits each, and the queue may hold.
    assert taken <= 2 * 4 * 16 + 16 + 2
    rest = list(results)
    assert len(rest) == 5_000 - 1


def test_what_the_source_raises_comes_after_the_answers(streams):
    def failing():
        for number in range(37):
            yield {"input_ids": np.full(3, number)}
        raise OSError("the camera is gone")

    results = []
    # `extend` keeps what came before.
    with pytest.raises(OSError, match="the camera is gone"):
        results.extend(streams["as they come"](failing()))
    _check(results, [np.full(3, number) for number in range(37)])


def test_ids_are_handed_on(streams):
    samples = [Sample(x={"input_ids": np.asarray([n])}, id=f"text {n}") for n in range(20)]
    results = list(streams["ordered"]([*samples, {"input_ids": np.asarray([7])}]))
    assert [result.id for result in results] == [*(sample.id for sample in samples), 20]


def test_answers_are_all_there_or_the_missing_one_is_named(streams):
    samples = [{"input_ids": np.asarray([n])} for n in range(20)]
    answers = streams["as they come"].answers(samples)
    assert [result.position for result in answers] == list(range(20))
    assert [result.exit_index for result in answers] == [n // CLASSES % EXITS for n in range(20)]
    with pytest.raises(InputError, match="sample 1 got no answer: tokens are wanted"):
        streams["as they come"].answers([samples[0], "a text"])


def test_a_stopped_consumer_stops_the_reader(streams):
    source = _Source(100_000, seed=5)
    before = threading.active_count()
    results = streams["as they come"](source)
    next(results)
    results.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert len(source.samples) < 1_000


@pytest.mark.parametrize("tracks", [1, 2])
def test_answers_are_handed_out_while_nothing_comes(tracks):
    stream = Stream(TEXTS, NOTHING, POLICY, batch_size=4, lengths=LENGTHS, tracks=tracks)
    asked = threading.Event()

    def pausing():
        for number in range(8):
            yield {"input_ids": np.asarray([number % CLASSES])}
        # Only answers let the source go on, and all leave at the first exit.
        assert asked.wait(20)
        yield {"input_ids": np.asarray([1])}

    results = stream(pausing())
    first = [next(results) for _ in range(8)]
    asked.set()
    assert sorted(result.position for result in first) == list(range(8))
    assert {result.exit_index for result in first} == {0}
    assert [result.position for result in results] == [8]


@pytest.mark.parametrize("tracks", [1, 2])
def test_nobody_waits_longer_than_allowed_for_a_batch_to_fill(tracks):
    stream = Stream(
        TEXTS, NOTHING, POLICY, batch_size=16, lengths=LENGTHS, max_wait_s=0.2, ordered=True,
        tracks=tracks,
    )  # fmt: skip
    stream.warm_up({"input_ids": np.ones(4, int)})
    asked = threading.Event()

    def trickling():
        for number in range(5):
            yield {"input_ids": np.asarray([number * CLASSES])}
        # Only an answer lets the source go on: without a limit both would wait for ever.
        assert asked.wait(20)
        yield {"input_ids": np.asarray([1])}

    results = stream(trickling())
    first = [next(results) for _ in range(5)]
    asked.set()
    assert [result.position for result in first] == list(range(5))
    assert [result.exit_index for result in first] == [0, 1, 2, 0, 1]
    assert min(result.seconds for result in first) >= 0.2
    assert len(list(results)) == 1


def test_stages_run_full_batches_whatever_share_leaves(streams):
    rows = [[] for _ in range(EXITS)]

    class Counted(nn.Module):
        k: int

        @nn.compact
        def __call__(self, logits: Float[Array, "batch exits classes"], train: bool):
            size = logits.shape[0]
            jax.debug.callback(lambda: rows[self.k].append(size))
            return logits

    network = replay_network(EXITS, CLASSES, [Counted(k) for k in range(EXITS)])
    stream = Stream(network, NOTHING, POLICY, batch_size=16)
    logits = np.zeros((64 * 3, EXITS, CLASSES), np.float32)
    # A third leaves at each exit: 192, 128 and 64 samples reach the stages.
    for n in range(len(logits)):
        logits[n, n % EXITS, n % CLASSES] = 9.0
    results = list(stream(logits))
    jax.effects_barrier()
    assert [sum(each) for each in rows] == [192, 128, 64]
    assert {size for each in rows for size in each} == {16}
    wanted = POLICY.decide(exit_probs(logits))
    for result in results:
        assert result.exit_index == wanted[result.position]
        np.testing.assert_array_equal(
            result.logits, logits[result.position, wanted[result.position]]
        )


@pytest.mark.parametrize("tracks", [1, 2])
def test_an_ordered_stream_is_not_held_up_where_few_leave(tracks, monkeypatch):
    """Whoever waits behind an exit goes on before too many wait for it to be handed out."""
    flushes, finish = [], LanePrograms.finish
    monkeypatch.setattr(LanePrograms, "finish", lambda *given: flushes.append(1) or finish(*given))
    logits = np.zeros((40 * 64, EXITS, CLASSES), np.float32)
    leave = np.where(np.random.default_rng(0).random(len(logits)) < 0.02, 0, EXITS - 1)
    logits[np.arange(len(logits)), leave, 0] = 9.0
    stream = Stream(
        replay_network(EXITS, CLASSES), NOTHING, POLICY, batch_size=64, ordered=True, tracks=tracks
    )
    results = list(stream(logits))
    assert [result.exit_index for result in results] == leave.tolist()
    # At the end alone.
    assert len(flushes) == tracks


def test_batches_take_turns_on_the_tracks():
    """Survivors wait among those of their own track: no piece has samples of both."""
    seen = [[] for _ in range(EXITS)]
    stages = [_Reporting(seen[k].append) for k in range(EXITS)]
    stream = Stream(replay_network(EXITS, CLASSES, stages), NOTHING, POLICY, batch_size=4, tracks=2)
    logits = np.zeros((24, EXITS, CLASSES), np.float32)
    # Half of each batch leaves at the first exit, and everybody else at the second.
    logits[:, 1, 1] = 9.0
    logits[::2, 0, 0] = 9.0
    logits[:, -1, 0] = np.arange(24)
    results = sorted(stream(logits), key=lambda result: result.position)
    jax.effects_barrier()
    assert [result.exit_index for result in results] == [0, 1] * 12
    begun, later, last = ([sorted(rows) for rows in each] for each in seen)
    assert sorted(begun) == [list(range(i, i + 4)) for i in range(0, 24, 4)]
    # Batches 0, 2 and 4, and 1, 3 and 5; what waits at the end is filled up to two.
    assert sorted(later) == [[1, 3, 9, 11], [5, 7, 13, 15], [17, 19], [21, 23]]
    assert last == []


class _Reporting(nn.Module):
    """A stage that changes nothing and reports the first logit of the last exit of every row."""

    report: Callable[[list[int]], None]

    @nn.compact
    def __call__(self, logits: Float[Array, "batch exits classes"], train: bool):
        def tell(rows: np.ndarray) -> None:
            self.report(np.asarray(rows).astype(int).tolist())

        jax.debug.callback(tell, logits[:, -1, 0])
        return logits


def test_answers_that_are_not_finite_are_errors():
    network = replay_network(EXITS, CLASSES)
    stream = Stream(network, NOTHING, POLICY, batch_size=8)
    good = np.zeros((EXITS, CLASSES), np.float32)
    bad = np.full_like(good, np.inf)
    results = {result.position: result for result in stream([good, bad, good])}
    assert "NaN or infinite" in results[1].error
    assert results[0].error is None
    assert results[2].error is None
    big = dataclasses.replace(network, stages=(_Overflow(), *network.stages[1:]))
    results = list(Stream(big, NOTHING, POLICY, batch_size=8)([good + 1]))
    assert [result.error for result in results] == [
        "the network's answer is not finite: look at the sample"
    ]


class _Overflow(nn.Module):
    """A stage whose numbers are too large."""

    @nn.compact
    def __call__(self, logits: Float[Array, "batch exits classes"], train: bool):
        return logits * jnp.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 3}, "capacity 3 is less than two batches: give 32 or more"),
        ({"max_wait_s": 0.0}, "max_wait_s is 0.0"),
        ({"max_wait_s": float("nan")}, "max_wait_s is nan"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"tracks": 0}, "tracks is 0: give 1 or more, or None"),
        ({"lengths": ()}, r"lengths .* must be one or more, from 1 to 16"),
    ],
)
def test_settings_out_of_range_are_input_errors(settings, message):
    with pytest.raises(InputError, match=message):
        Stream(TEXTS, NOTHING, POLICY, **({"batch_size": 16} | settings))
