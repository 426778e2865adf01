"""The search for exit distributions: optimal where that can be checked by brute force."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet_jax.scheduler.distribution import (
    best_mixtures,
    cost_levels,
    fit_distributions,
    price_grid,
    price_path,
)


def _case(seed, exits=3, samples=24):
    random = np.random.default_rng(seed)
    scores = random.normal(size=(exits, samples)).round(1).astype(np.float32)
    chance = np.linspace(0.3, 0.8, exits)[:, None] + 0.2 * np.sign(scores)
    return scores, (random.random((exits, samples)) < chance).astype(np.float32)


def _value(scores, correct, thresholds, price, levels):
    reached = scores >= np.asarray(thresholds)[:, None]
    reached[-1] = True
    exits = reached.argmax(0)
    return (correct[exits, np.arange(exits.size)] - price * levels[exits]).mean()


def _brute_force(scores, correct, price, levels):
    choices = [np.append(np.unique(row), np.inf) for row in scores[:-1]]
    return max(
        _value(scores, correct, (*thresholds, -np.inf), price, levels)
        for thresholds in itertools.product(*choices)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_with_two_exits_every_price_has_its_exact_optimum(seed):
    scores, correct = _case(seed, exits=2)
    levels = cost_levels((1.0, 3.0))
    prices = np.asarray([0.0, 0.1, 0.3, 1.0], np.float32)
    shares, accuracies = price_path(
        scores, correct, jnp.ones(24), jnp.asarray(levels, jnp.float32), prices, 1
    )
    for share, accuracy, price in zip(shares, accuracies, prices, strict=True):
        found = float(accuracy) - float(price) * float(np.asarray(share) @ levels)
        assert found == pytest.approx(_brute_force(scores, correct, price, levels), abs=1e-5)


def test_with_three_exits_the_search_is_close_to_the_optimum():
    levels = cost_levels((1.0, 2.0, 4.0))
    lost = []
    for seed in range(20):
        scores, correct = _case(seed)
        prices = np.asarray([0.0, 0.2, 0.4], np.float32)
        shares, accuracies = price_path(
            scores, correct, jnp.ones(24), jnp.asarray(levels, jnp.float32), prices, 4
        )
        for place, price in enumerate(prices):
            found = float(accuracies[place]) - price * float(np.asarray(shares[place]) @ levels)
            best = _brute_force(scores, correct, price, levels)
            assert found <= best + 1e-5
            lost.append(best - found)
    # One exit at a time can stop at a local optimum: seldom, and near the best.
    assert np.mean(np.asarray(lost) < 1e-5) > 0.7
    assert np.mean(lost) < 0.01


def test_absent_samples_change_nothing():
    scores, correct = _case(3, samples=40)
    some = np.arange(40) < 25
    levels = jnp.asarray(cost_levels((1.0, 2.0, 4.0)), jnp.float32)
    prices, budgets = price_grid((1.0, 2.0, 4.0), 12), jnp.asarray([0.2, 0.5, 0.9])
    masked = fit_distributions(
        scores, correct, jnp.asarray(some, jnp.float32), levels, prices, budgets, 2
    )
    alone = fit_distributions(
        scores[:, :25], correct[:, :25], jnp.ones(25), levels, prices, budgets, 2
    )
    np.testing.assert_allclose(masked, alone, atol=1e-6)


def test_mixtures_cost_the_budget_where_that_buys_something_and_never_more():
    shares = np.asarray([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    accuracies = np.asarray([0.5, 0.7, 0.8, 0.75], np.float32)
    levels = np.asarray([0.0, 0.4, 1.0], np.float32)
    budgets = np.asarray([0.0, 0.1, 0.2, 0.3, 0.4, 1.0], np.float32)
    mixed = np.asarray(best_mixtures(*map(jnp.asarray, (shares, accuracies, levels, budgets))))
    np.testing.assert_allclose(mixed.sum(1), 1, atol=1e-6)
    # The last exit is worse than the second: what lies beyond the second is not spent.
    np.testing.assert_allclose(mixed @ levels, [0.0, 0.1, 0.2, 0.3, 0.4, 0.4], atol=1e-6)
    np.testing.assert_allclose(mixed[1], [0.75, 0.25, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    "costs", [(1.0, 2.0), (1.0, 10.0, 100.0, 1e6), tuple(np.arange(1.0, 13.0).tolist())]
)
def test_prices_reach_from_nothing_to_where_nothing_pays(costs):
    prices = price_grid(costs, 20)
    assert prices[0] == 0
    assert (np.diff(prices) > 0).all()
    assert prices[-1] * np.diff(cost_levels(costs)).min() >= 1
