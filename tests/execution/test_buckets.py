"""How samples are divided into batches: held by enough, at the least cost."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet_jax.errors import InputError
from eenet_jax.execution.buckets import (
    Buckets,
    bucket_sizes,
    default_buckets,
    measured_buckets,
)
from eenet_jax.execution.latency import StageLatency


def _least(sizes, cost, count: int) -> float:
    """The least cost of sizes that hold `count`, by trying all of them."""
    best = np.inf
    for counts in itertools.product(range(count // min(sizes) + 2), repeat=len(sizes)):
        if np.dot(counts, sizes) >= count:
            best = min(best, float(np.dot(counts, cost)))
    return best


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True).map(sorted),
    data=st.data(),
    count=st.integers(0, 12),
)
def test_a_cover_costs_as_little_as_any(sizes, data, count):
    cost = data.draw(st.lists(st.integers(1, 20), min_size=len(sizes), max_size=len(sizes)))
    buckets = Buckets(sizes=tuple(sizes), cost=np.asarray([cost], np.float64))
    chosen = buckets.cover(0, count)
    assert sum(chosen) >= count
    assert chosen == sorted(chosen, reverse=True)
    usable = buckets.usable(0)
    paid = sum(cost[sizes.index(size)] for size in chosen)
    if count < 2 * buckets.regular[0]:
        assert paid == pytest.approx(_least(usable, cost[: len(usable)], count))


def test_many_samples_go_in_regular_batches_and_the_rest_in_smaller_ones():
    buckets = default_buckets(1, 64)
    assert buckets.cover(0, 64 * 1000 + 10) == [64] * 1000 + [16]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, []),
        (1, [8]),
        (8, [8]),
        (9, [16]),
        (40, [32, 8]),
        (49, [64]),
        (150, [128, 32]),
        (205, [128, 64, 16]),
        (230, [256]),
        (192, [128, 64]),
        (256, [256]),
        (600, [256, 256, 64, 32]),
    ],
)
def test_powers_of_two_with_a_call_as_dear_as_eight_samples(count, sizes):
    assert default_buckets(2, 256).cover(1, count) == sizes


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [(1, (1,)), (8, (8,)), (11, (8, 11)), (20, (8, 16, 20)), (64, (8, 16, 32, 64))],
)
def test_sizes_rise_to_the_batch(batch, sizes):
    assert bucket_sizes(batch) == sizes


def test_measured_sizes_up_to_the_batch_are_used_where_they_cost_least_per_sample():
    latency = StageLatency(
        device="a test",
        sizes=(4, 16, 64),
        # The first stage is best at 16, the second at 64.
        seconds=np.asarray([[3.0, 8.0, 40.0], [3.0, 10.0, 20.0]]),
        full_seconds=np.asarray([6.0, 18.0, 60.0]),
        call_seconds=0.0,
        pieces=(64, 64),
    )
    buckets = measured_buckets(latency, 64)
    assert buckets.regular == (16, 64)
    assert buckets.cover(0, 64) == [16] * 4
    assert buckets.cover(1, 64) == [64]
    assert buckets.cover(1, 20) == [16, 4]
    assert measured_buckets(latency, 40).regular == (16, 16)
    with pytest.raises(InputError, match="batch_size 3 is below every size that was measured"):
        measured_buckets(latency, 3)


def test_a_batch_size_below_one_is_an_input_error():
    with pytest.raises(InputError, match="batch_size 0 must be at least 1"):
        default_buckets(3, 0)


@pytest.mark.parametrize(
    ("sizes", "cost"), [((), 1.0), ((4, 2), 1.0), ((0, 2), 1.0), ((2, 2), 1.0), ((1, 2, 3), 1.0)]
)
def test_sizes_must_rise_and_have_costs(sizes, cost):
    with pytest.raises(InputError, match="must rise from 1 or more"):
        Buckets(sizes=sizes, cost=np.full((1, 2), cost))
    with pytest.raises(InputError, match="must be positive"):
        Buckets(sizes=(1,), cost=np.zeros((1, 1)))
