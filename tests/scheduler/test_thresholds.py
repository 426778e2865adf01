"""The threshold routine against METHOD's wording, carried out sample by sample."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet_jax.scheduler.simulation import (
    first_exit,
    lowered_to_budget,
    mean_cost,
    outcome,
    settle,
    simulate_quotas,
)
from eenet_jax.scheduler.thresholds import (
    exit_quota,
    geometric,
    leave_by_quota,
)

EXITS, SAMPLES = 4, 20


@jax.jit
def thresholds_from_quota(scores, quota, present):
    return leave_by_quota(scores, quota, present)[0]


def _by_the_book(scores, quota):
    remaining = set(range(scores.shape[1]))
    thresholds = []
    for k, asked in enumerate(quota):
        count = min(int(asked), len(remaining))
        ranked = sorted((scores[k, n] for n in remaining), reverse=True)
        threshold = ranked[count - 1] if count else math.inf
        remaining -= {n for n in remaining if scores[k, n] >= threshold}
        thresholds.append(threshold)
    return [*thresholds, -math.inf]


coarse_scores = st.lists(
    st.integers(-2, 2), min_size=EXITS * SAMPLES, max_size=EXITS * SAMPLES
).map(lambda values: np.asarray(values, np.float32).reshape(EXITS, SAMPLES))
quotas = st.lists(st.integers(0, SAMPLES + 3), min_size=EXITS - 1, max_size=EXITS - 1).map(
    lambda values: np.asarray(values, np.int32)
)
everyone = np.ones(SAMPLES, bool)


@settings(max_examples=40, deadline=None)
@given(coarse_scores, quotas)
def test_routine_is_the_book_s_with_ties_everywhere(scores, quota):
    ours = thresholds_from_quota(scores, quota, everyone)
    np.testing.assert_array_equal(ours, np.asarray(_by_the_book(scores, quota), np.float32))


@settings(max_examples=40, deadline=None)
@given(coarse_scores, quotas)
def test_settling_one_quota_lets_the_same_leave(scores, quota):
    thresholds, left = settle(scores, quota)
    routine = np.asarray(thresholds_from_quota(scores, quota, everyone))
    exits = np.asarray(first_exit(scores, routine))
    np.testing.assert_array_equal(first_exit(scores, thresholds), exits)
    np.testing.assert_array_equal(left, np.bincount(exits, minlength=EXITS))
    kept = thresholds > -np.inf
    np.testing.assert_array_equal(thresholds[kept], routine[kept])


@settings(max_examples=20, deadline=None)
@given(coarse_scores, quotas, st.integers(-3, 3))
def test_thresholds_follow_a_uniform_shift(scores, quota, shift):
    before = thresholds_from_quota(scores, quota, everyone)
    after = thresholds_from_quota(scores + np.float32(shift), quota, everyone)
    np.testing.assert_array_equal(np.asarray(before) + np.float32(shift), after)


@settings(max_examples=20, deadline=None)
@given(coarse_scores, st.lists(st.floats(-4, 4, width=16), min_size=4, max_size=4))
def test_everyone_leaves_somewhere_whatever_the_scores(scores, thresholds):
    exits = np.asarray(first_exit(scores, np.asarray(thresholds, np.float32)))
    assert ((exits >= 0) & (exits < EXITS)).all()


def test_an_empty_exit_lets_nobody_leave_even_above_one():
    scores = np.full((2, SAMPLES), 7.0, np.float32)
    thresholds = thresholds_from_quota(scores, np.asarray([0]), everyone)
    assert np.asarray(thresholds).tolist() == [math.inf, -math.inf]
    assert (np.asarray(first_exit(scores, thresholds)) == 1).all()


def test_a_negative_score_still_leaves_at_the_last_exit():
    scores = np.full((3, SAMPLES), -5.0, np.float32)
    exits = first_exit(scores, np.asarray([1.0, 1.0, 0.0], np.float32))
    assert (np.asarray(exits) == 2).all()


@pytest.mark.parametrize(
    ("share", "samples", "wanted"),
    [(0.29, 100, 29), (0.3, 10, 3), (0.57, 100, 57), (0.2999, 10, 2), (1.0, 7, 7), (0.0, 7, 0)],
)
def test_floor_is_not_fooled_by_floating_point(share, samples, wanted):
    for kind in (np.float32, np.float64):
        shares = np.asarray([share, 1 - share], kind)
        assert exit_quota(shares, samples).tolist() == [wanted]


def test_absent_samples_set_no_thresholds():
    scores = np.random.default_rng(0).normal(size=(EXITS, SAMPLES)).astype(np.float32)
    present = np.arange(SAMPLES) < 12
    quota = np.asarray([3, 3, 3], np.int32)
    ours = thresholds_from_quota(scores, quota, present)
    np.testing.assert_array_equal(ours, np.asarray(_by_the_book(scores[:, :12], quota), np.float32))


def test_geometric_shares_have_a_constant_ratio():
    shares = geometric(np.log([0.5, 1.0, 3.0]), 3)
    np.testing.assert_allclose(shares[0], [4 / 7, 2 / 7, 1 / 7])
    np.testing.assert_allclose(shares[1], [1 / 3] * 3)
    np.testing.assert_allclose(shares[2], [1 / 13, 3 / 13, 9 / 13])


def test_many_quotas_at_once_are_each_one_by_itself():
    random = np.random.default_rng(1)
    scores = random.normal(size=(EXITS, SAMPLES)).astype(np.float32)
    correct = random.integers(0, 2, (EXITS, SAMPLES)).astype(np.float32)
    many = random.integers(0, 9, (5, EXITS - 1)).astype(np.int32)
    thresholds, left, right = simulate_quotas(scores, correct, many)
    for row, quota in enumerate(many):
        single = np.asarray(thresholds_from_quota(scores, quota, everyone))
        np.testing.assert_array_equal(thresholds[row], single)
        result = outcome(np.asarray(first_exit(scores, single)), correct, (1.0, 2.0, 4.0, 8.0))
        assert np.asarray(left[row] / SAMPLES) == pytest.approx(result.exit_rates)
        assert float(right[row]) / SAMPLES == pytest.approx(result.accuracy)
        assert mean_cost(np.asarray(left[row]), (1.0, 2.0, 4.0, 8.0)) == result.cost


def test_outcome_counts_accuracy_cost_and_rates():
    correct = np.asarray([[1, 0, 0, 0], [0, 1, 1, 0]], np.float32)
    result = outcome(np.asarray([0, 0, 1, 1]), correct, (1.0, 3.0))
    assert (result.accuracy, result.cost, result.exit_rates) == (0.5, 2.0, (0.5, 0.5))


@pytest.mark.parametrize("cost", [54.97, 0.1, 3246.18])
def test_everyone_at_one_exit_costs_exactly_what_it_costs(cost):
    assert mean_cost(np.asarray([0, 4999]), (cost / 2, cost)) == cost


@pytest.mark.parametrize("budget", [1.0, 1.1, 2.6, np.nextafter(3.0, 0), 3.0, 5.0])
def test_lowering_the_first_threshold_costs_as_few_samples_as_the_budget_asks(budget):
    costs = (1.0, 3.0, 9.0)
    scores = np.random.default_rng(2).normal(size=(3, 1000)).astype(np.float32)
    thresholds = np.asarray([np.inf, -np.inf, -np.inf], np.float32)
    lowered = lowered_to_budget(scores, thresholds, costs, float(budget))
    left = np.bincount(np.asarray(first_exit(scores, lowered)), minlength=3)
    cost = float(mean_cost(left, costs))
    assert cost <= budget
    assert cost >= min(budget, 3.0) - 2 * 2.0 / 1000
    assert (lowered <= thresholds).all()


def test_an_exit_that_takes_all_who_are_left_takes_everybody_on_new_samples():
    scores = np.random.default_rng(3).normal(size=(3, 50)).astype(np.float32)
    thresholds, left = settle(scores, np.asarray([20, 30], np.int32))
    assert left.tolist() == [20, 30, 0]
    assert np.isfinite(thresholds[0])
    assert thresholds[1:].tolist() == [-np.inf, -np.inf]
