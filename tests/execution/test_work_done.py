"""What is skipped is not computed: executions of stages and the rows they see, counted."""

import contextlib
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import numpy as np
import pytest
from jaxtyping import Array, Float
from replay import replay_network

from eenet_jax import pieces
from eenet_jax.execution.buckets import default_buckets
from eenet_jax.execution.compacted import compacted
from eenet_jax.execution.host_compacted import HostCompacted
from eenet_jax.execution.masked import masked
from eenet_jax.policies.max_prob import MaxProb

EXITS, CLASSES = 3, 2
NOTHING = {"params": {}, "batch_stats": {}}


class Counted(nn.Module):
    """A stage that changes nothing and reports each execution with its number of rows."""

    report: Callable[[int], None]

    @nn.compact
    def __call__(self, logits: Float[Array, "batch exits classes"], train: bool):
        rows = logits.shape[0]
        jax.debug.callback(lambda: self.report(rows))
        return logits


class Counter:
    """A replay network that tells which rows each stage was run on."""

    def __init__(self):
        self.rows = [[] for _ in range(EXITS)]
        stages = [Counted(self._reporter(k)) for k in range(EXITS)]
        self.network = replay_network(EXITS, CLASSES, stages)

    def _reporter(self, k: int) -> Callable[[int], None]:
        return lambda rows: self.rows[k].append(rows)

    def seen(self) -> list[list[int]]:
        """Since the last call: for each stage, the rows of each of its executions."""
        jax.effects_barrier()
        seen, self.rows[:] = list(self.rows), [[] for _ in range(EXITS)]
        return [sorted(rows, reverse=True) for rows in seen]


def _policy() -> MaxProb:
    """Leave an exit at which a class has 0.9."""
    return MaxProb(
        budget=2.0, costs=(1.0, 2.0, 4.0), thresholds=np.asarray([0.9, 0.9, -np.inf], np.float32)
    )


def _leaving_at(exits: list[int]) -> np.ndarray:
    """Logits of samples that leave at these exits."""
    logits = np.zeros((len(exits), EXITS, CLASSES), np.float32)
    for row, k in enumerate(exits):
        logits[row, k, row % CLASSES] = 9.0
    return logits


def test_masked_skips_the_stages_that_nobody_needs():
    counter = Counter()
    run = masked(counter.network, _policy())
    # One program for all of them: what differs is what runs inside it.
    for exits, executed in (
        ([0, 0, 0, 0], [[4], [], []]),
        ([0, 1, 1, 0], [[4], [4], []]),
        ([0, 0, 0, 1], [[4], [4], []]),
        ([2, 0, 0, 0], [[4], [4], [4]]),
    ):
        answers = run(NOTHING, _leaving_at(exits))
        np.testing.assert_array_equal(answers.exit_index, exits)
        assert counter.seen() == executed


def test_compacted_runs_later_stages_on_the_survivors_buckets_alone():
    counter = Counter()
    run = HostCompacted(counter.network, _policy(), default_buckets(EXITS, 32))
    for exits, executed in (
        ([0] * 32, [[32], [], []]),
        # A second call would cost as much as the six places that nobody fills.
        ([1] * 10 + [0] * 22, [[32], [16], []]),
        # 26 of 32 stay, and 5 of those.
        ([0] * 6 + [1] * 21 + [2] * 5, [[32], [32], [8]]),
        ([0, 2, 1, 2] * 8, [[32], [32], [16]]),
        ([2] * 32, [[32], [32], [32]]),
        ([0] * 12 + [1] * 8, [[32], [8], []]),
        # What is more than the largest bucket comes in two, and each of them goes on alone.
        ([1] * 2 + [0] * 30 + [1] * 8, [[32, 8], [8, 8], []]),
    ):
        answers = run(NOTHING, _leaving_at(exits))
        np.testing.assert_array_equal(answers.exit_index, exits)
        assert counter.seen() == executed


def test_a_bucket_goes_through_in_the_pieces_that_suit_the_network(monkeypatch):
    counter = Counter()
    # A sample's carry is the logits of all exits.
    monkeypatch.setattr(pieces, "CACHE_BYTES", 4 * EXITS * CLASSES * 4)
    run = HostCompacted(counter.network, _policy(), default_buckets(EXITS, 16))
    exits = [0] * 5 + [1] * 4 + [2] * 7
    answers = run(NOTHING, _leaving_at(exits))
    np.testing.assert_array_equal(answers.exit_index, exits)
    np.testing.assert_array_equal(answers.logits.argmax(1), np.arange(16) % CLASSES)
    assert counter.seen() == [[4] * 4, [4] * 4, [4] * 2]


def test_compacted_on_the_device_runs_the_smallest_size_that_holds_the_survivors():
    counter = Counter()
    run = compacted(counter.network, _policy())
    for exits, executed in (
        ([0] * 32, [[32], [], []]),
        ([1] * 10 + [0] * 22, [[32], [12], []]),
        ([0] * 6 + [1] * 21 + [2] * 5, [[32], [32], [8]]),
        ([0, 2, 1, 2] * 8, [[32], [24], [16]]),
        ([2] * 32, [[32], [32], [32]]),
    ):
        answers = run(NOTHING, _leaving_at(exits))
        np.testing.assert_array_equal(answers.exit_index, exits)
        assert counter.seen() == executed


def test_pieces_run_full_until_the_end_and_then_the_smallest_size_that_holds_the_rest():
    counter = Counter()
    run = compacted(counter.network, _policy(), piece=4)
    for exits, executed in (
        ([0] * 12, [[4] * 3, [], []]),
        # Six survivors of three pieces: one whole piece, and two behind it.
        ([0, 1, 0, 1] * 3, [[4] * 3, [4, 2], []]),
        ([0, 2, 0, 1] * 3, [[4] * 3, [4, 2], [3]]),
        ([2] * 12, [[4] * 3] * 3),
        ([0] * 11 + [2], [[4] * 3, [1], [1]]),
    ):
        answers = run(NOTHING, _leaving_at(exits))
        np.testing.assert_array_equal(answers.exit_index, exits)
        assert counter.seen() == executed
    # Ten samples: the last piece reaches back for two that are not counted twice.
    run = compacted(counter.network, _policy(), piece=4)
    answers = run(NOTHING, _leaving_at([1] * 10))
    np.testing.assert_array_equal(answers.exit_index, [1] * 10)
    assert counter.seen() == [[4] * 3, [4, 4, 2], []]


def test_masked_pieces_skip_for_themselves():
    counter = Counter()
    run = masked(counter.network, _policy(), piece=4)
    exits = [0] * 4 + [1, 0, 0, 0] + [0] * 4 + [2, 0]
    answers = run(NOTHING, _leaving_at(exits))
    np.testing.assert_array_equal(answers.exit_index, exits)
    # The last piece reaches back for two.
    assert counter.seen() == [[4] * 4, [4, 4], [4]]


@contextlib.contextmanager
def _compilations() -> Iterator[list[str]]:
    """The events of programs being compiled meanwhile."""
    compiled = []

    def note(event: str, _seconds: float, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_warming_up_leaves_nothing_to_compile():
    counter = Counter()
    run = HostCompacted(counter.network, _policy(), default_buckets(EXITS, 16))
    run.warm_up(NOTHING, _leaving_at([0] * 16))
    seen = counter.seen()
    assert seen == [[16, 8]] * EXITS
    with _compilations() as compiled:
        run(NOTHING, _leaving_at([0, 1, 2, 2] * 4))
        assert not compiled
        jax.jit(lambda x: x + 1)(np.zeros(3))
        assert len(compiled) == 1
    assert counter.seen() == [[16], [16], [8]]


class Seen(nn.Module):
    """A stage that changes nothing and reports the first logit of the last exit of every row."""

    report: Callable[[np.ndarray], None]

    @nn.compact
    def __call__(self, logits: Float[Array, "batch exits classes"], train: bool):
        jax.debug.callback(self.report, logits[:, -1, 0], ordered=True)
        return logits


@pytest.mark.parametrize(
    ("backend", "second"),
    [("cpu", [[4, 1, 6, 7], [2]]), ("gpu", [[1, 2, 4, 6], [7]])],
)
def test_survivors_stay_in_their_rows_on_a_cpu(backend, second, monkeypatch):
    seen = [[], []]
    stages = [
        Seen(lambda rows, k=k: seen[k].append(np.asarray(rows).astype(int).tolist()))
        for k in range(2)
    ]
    policy = MaxProb(
        budget=1.5, costs=(1.0, 2.0), thresholds=np.asarray([0.9, -np.inf], np.float32)
    )
    network = replay_network(2, CLASSES, stages)
    logits = np.zeros((8, 2, CLASSES), np.float32)
    logits[[0, 3, 5], 0, 0] = 9.0
    logits[:, 1, 0] = np.arange(8)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    answers = compacted(network, policy, piece=4)(NOTHING, logits)
    jax.effects_barrier()
    np.testing.assert_array_equal(answers.exit_index, [0, 1, 1, 0, 1, 0, 1, 1])
    # The two who stay of the first piece wait. In the second one has left, whose place the first of
    # them takes.
    assert seen[0] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert seen[1] == second
