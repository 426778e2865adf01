"""The oracle against every possible assignment."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet_jax.policies.oracle import oracle_exits

COSTS = (1.0, 2.0, 4.0)


def _best_of_all(correct, costs, budget):
    samples = correct.shape[1]
    best = -1.0
    for exits in itertools.product(range(len(costs)), repeat=samples):
        if np.mean([costs[k] for k in exits]) <= budget + 1e-9:
            best = max(best, np.mean([correct[k, n] for n, k in enumerate(exits)]))
    return best


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 1), min_size=15, max_size=15),
    st.sampled_from([1.0, 1.2, 1.5, 2.0, 2.6, 3.0, 4.0]),
)
def test_no_assignment_of_right_and_wrong_beats_it(values, budget):
    correct = np.asarray(values, np.float32).reshape(3, 5)
    exits = oracle_exits(correct, COSTS, budget)
    assert np.asarray(COSTS)[exits].mean() <= budget + 1e-9
    reached = correct[exits, np.arange(5)].mean()
    assert reached == pytest.approx(_best_of_all(correct, COSTS, budget))


def test_with_budget_enough_it_is_the_first_correct_exit_or_the_first():
    correct = np.asarray([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], np.float32)
    assert oracle_exits(correct, COSTS, 4.0).tolist() == [0, 1, 2, 0]


def test_soft_correctness_climbs_the_concave_hull():
    # Sample 0 skips exit 2 (below its hull); sample 1 climbs it step by step.
    correct = np.asarray([[0.0, 0.5], [0.1, 0.8], [0.9, 0.9]], np.float32)
    assert oracle_exits(correct, COSTS, 1.5).tolist() == [0, 1]
    assert oracle_exits(correct, COSTS, 3.0).tolist() == [2, 1]
    assert oracle_exits(correct, COSTS, 4.0).tolist() == [2, 2]


def test_the_smallest_budget_leaves_all_at_the_first_exit():
    correct = np.asarray([[0, 0], [1, 1]], np.float32)
    assert oracle_exits(correct, (1.0, 2.0), 1.0).tolist() == [0, 0]
