"""What is certified holds as often as it is said to, shown on many draws."""

import numpy as np
import pytest

from eenet_jax.policies.certify import (
    accuracy_interval,
    bets_against,
    last_certified,
    true_cost_quantiles,
)
from eenet_jax.scheduler.simulation import settle

COSTS = (1.0, 2.5, 4.0)
QUOTA = np.asarray([90, 60])


def _scores(random, samples):
    """Correlated scores of three exits, of no shape that a formula would know."""
    shared = random.exponential(size=samples)
    own = random.normal(size=(3, samples))
    return (np.sin(2 * shared)[None] + own * np.asarray([0.5, 1.0, 1.0])[:, None]).astype(
        np.float32
    )


def _true_costs(draws):
    random = np.random.default_rng(0)
    fresh = _scores(random, 20_000)
    found = []
    for _ in range(draws):
        thresholds, _ = settle(_scores(random, 200), QUOTA)
        reached = fresh >= thresholds[:, None]
        reached[-1] = True
        found.append(np.asarray(COSTS)[reached.argmax(0)].mean())
    return np.asarray(found)


def test_true_costs_follow_the_dirichlet_distribution_whatever_the_scores():
    draws = _true_costs(400)
    levels = (0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975)
    wanted = true_cost_quantiles(np.asarray([90, 60, 50]), 2, COSTS, levels)
    below = [(draws <= quantile).mean() for quantile in wanted]
    # Within 3.3 standard errors of 400 draws, and the noise of 20,000 fresh samples.
    error = np.sqrt(np.asarray(levels) * (1 - np.asarray(levels)) / 400)
    assert (np.abs(np.asarray(below) - levels) < 3.3 * error + 0.01).all()


def test_a_cost_that_nothing_can_change_has_no_spread():
    left = np.asarray([0, 200, 0])
    assert true_cost_quantiles(left, 1, COSTS, (0.05, 0.95)) == [2.5, 2.5]
    # Where the threshold is a score that new samples may stay below, some go on.
    low, high = true_cost_quantiles(left, 2, COSTS, (0.05, 0.95))
    assert 2.5 < low < high < 2.53


@pytest.mark.parametrize("skew", [0.5, 0.03])
def test_bets_are_won_by_chance_no_more_often_than_stated(skew):
    # Margins in {-1, 0.02…} of mean exactly 0: the hardest to tell from a positive mean.
    random = np.random.default_rng(1)
    up = skew / (1 - skew)
    margin = np.where(random.random((2000, 400)) < skew, -1.0, up)
    assert bets_against(margin, -1.0, 0.95).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_bets_are_won_where_the_margin_is_plain():
    random = np.random.default_rng(2)
    margin = 0.05 + 0.2 * random.uniform(-1, 1, (200, 1000))
    assert bets_against(margin, -1.0, 0.95).mean() > 0.99


def test_testing_stops_at_the_first_failure():
    assert last_certified(np.asarray([True, True, False, True])) == 1
    assert last_certified(np.asarray([False, True])) == -1
    assert last_certified(np.asarray([True, True])) == 1


@pytest.mark.parametrize("truth", [0.02, 0.5, 0.95])
def test_accuracy_intervals_cover_the_truth(truth):
    random = np.random.default_rng(3)
    draws = (random.random((2000, 150)) < truth).astype(np.float32)
    intervals = np.asarray([accuracy_interval(row) for row in draws])
    covered = ((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean()
    assert covered > 0.93


def test_an_accuracy_of_all_right_still_has_a_width():
    low, high = accuracy_interval(np.ones(50, np.float32))
    assert high == pytest.approx(1.0)
    assert 0.9 < low < 0.95
