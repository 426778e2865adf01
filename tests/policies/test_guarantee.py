"""Budgets and losses of accuracy that hold on samples to come, shown on many draws."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from synthetic_exits import synthetic

import eenet_jax
from eenet_jax.errors import InputError
from eenet_jax.policies.entropy import fit_entropy
from eenet_jax.policies.guarantee import within_confidence, within_drop
from eenet_jax.policies.max_prob import MaxProb, fit_max_prob
from eenet_jax.policies.problem import Problem, both_ends, policy_fields
from eenet_jax.scheduler.simulation import settle
from eenet_jax.scheduler.thresholds import ceil_quota
from eenet_jax.types import CostTable, ExitPredictions

GOLDEN = Path(__file__).parents[1] / "golden"
COSTS = (1.0, 2.5, 4.0)
POPULATION = synthetic(samples=30_000, seed=99)
DRAWS = 150
MOST_VIOLATIONS = 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / DRAWS)
QUICK = {"folds": 2, "prices": 16, "sweeps": 2}


def _problem(random, samples, budgets=(2.0,)):
    places = random.choice(POPULATION.num_samples, samples, replace=False)
    return Problem(
        predictions=POPULATION.take(places), costs=CostTable(costs=COSTS), budgets=budgets
    )


def _fixed_shape(problem):
    """`max_prob` with exit rates that only depend on the budget: quick, to be fitted often."""
    scores = problem.measures[..., 0]
    policies = []
    for budget in problem.budgets:
        level = (budget - 1.0) / 3.0
        shape = np.asarray([(1 - level) ** 2, 2 * level * (1 - level), level**2])
        thresholds, _ = settle(scores, np.asarray(ceil_quota(shape, scores.shape[1])))
        policies.append(MaxProb(**policy_fields(problem, scores, thresholds, budget)))
    return policies


def _true(policy):
    exits = policy.decide(POPULATION.probs)
    right = POPULATION.correctness()
    cost = np.asarray(COSTS)[exits].mean()
    return cost, right[-1].mean() - right[exits, np.arange(exits.size)].mean()


def test_a_budget_with_confidence_is_exceeded_as_seldom_as_stated():
    random = np.random.default_rng(0)
    costs = []
    for seed in range(DRAWS):
        problem = _problem(random, 200)
        policy = within_confidence(problem, _fixed_shape, 0.95, seed)[0]
        assert policy.info["validation_cost"] <= 2.0
        costs.append(_true(policy)[0])
    assert np.mean(np.asarray(costs) > 2.0) <= MOST_VIOLATIONS
    # Neither is it bought by leaving much of the budget unused.
    assert np.mean(costs) > 1.75


def test_without_confidence_every_second_budget_is_exceeded():
    random = np.random.default_rng(0)
    over = [_true(_fixed_shape(_problem(random, 200))[0])[0] > 2.0 for _ in range(60)]
    assert 0.2 < np.mean(over) < 0.8


def test_an_accuracy_drop_is_exceeded_as_seldom_as_stated():
    random = np.random.default_rng(1)
    drops, costs = [], []
    for seed in range(DRAWS):
        policy = within_drop(_problem(random, 600), _fixed_shape, 0.03, 0.95, seed)
        cost, drop = _true(policy)
        drops.append(drop)
        costs.append(cost)
    assert np.mean(np.asarray(drops) > 0.03) <= MOST_VIOLATIONS
    assert np.mean(costs) < 3.9


@pytest.mark.parametrize("name", ["eenet", "max_prob", "vote", "patience", "static"])
def test_every_policy_takes_a_confidence_and_a_drop(name):
    problem = _problem(np.random.default_rng(2), 300)
    settings = QUICK if name == "eenet" else {}
    budgets = [1.0, 2.0, 4.0]
    policies = eenet_jax.fit(
        problem.predictions, COSTS, budgets, policy=name, confidence=0.9, **settings
    )
    for budget, policy in zip(budgets, policies, strict=True):
        assert policy.budget == budget
        assert policy.info["validation_cost"] <= budget
        assert policy.info["confidence"] == 0.9
        assert policy.info["certified"] == "cost"
    cheapest = eenet_jax.fit_cheapest(
        problem.predictions, COSTS, max_accuracy_drop=0.2, policy=name, **settings
    )
    assert cheapest.info["max_accuracy_drop"] == 0.2
    assert cheapest.info["validation_cost"] <= cheapest.budget <= 4.0
    full = problem.correct[-1].mean()
    assert cheapest.info["validation_accuracy"] >= full - 0.2


@pytest.mark.parametrize("name", ["vote", "patience"])
@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_coarse_scores_keep_their_accuracy_under_a_confidence(name, unit):
    costs = [each * unit for each in (1.0, 2.0, 3.0, 4.0, 5.0)]
    some = synthetic(samples=2000, exits=5)
    plain, sure = (
        eenet_jax.fit(some, costs, [4 * unit], policy=name, confidence=confidence)[0]
        for confidence in (None, 0.95)
    )
    assert 2 * unit < sure.info["validation_cost"] <= 4 * unit
    assert sure.info["validation_accuracy"] >= plain.info["validation_accuracy"] - 0.05


def test_the_fallback_is_the_full_network_even_where_answers_are_combined():
    problem = _problem(np.random.default_rng(8), 60)
    policy = eenet_jax.fit_cheapest(
        problem.predictions, COSTS, max_accuracy_drop=1e-6, confidence=0.999,
        answers="combined", **QUICK,
    )  # fmt: skip
    assert policy.answer_weights is None
    full = problem.correct[-1].mean()
    assert policy.info["validation_accuracy"] == pytest.approx(full)
    assert policy.info["chosen"] == "full network"


def test_where_nothing_can_be_certified_all_go_to_the_last_exit():
    problem = _problem(np.random.default_rng(3), 60)
    policy = within_drop(problem, _fixed_shape, 1e-6, 0.999, 0)
    np.testing.assert_array_equal(policy.thresholds, both_ends(3)[1])
    assert policy.budget == 4.0


def test_a_policy_is_made_cheaper_where_all_samples_together_cost_too_much():
    # The half that sets thresholds is much surer than the half that policies are fitted on.
    problem = _problem(np.random.default_rng(4), 200)
    order = np.random.default_rng(0).permutation(200)
    sure = np.argsort(-problem.measures[0, :, 0])
    places = np.empty(200, int)
    places[order] = np.concatenate([sure[100:], sure[:100]])
    lopsided = dataclasses.replace(problem, predictions=problem.predictions.take(places))
    policy = within_confidence(lopsided, _fixed_shape, 0.95, 0)[0]
    assert policy.info["validation_cost"] <= 2.0


def test_baselines_are_fitted_on_one_half_and_certified_on_the_other():
    problem = _problem(np.random.default_rng(5), 300)
    for fit in (fit_max_prob, fit_entropy):
        policy = within_confidence(problem, fit, 0.95, 0)[0]
        assert policy.info["certified_on"] == 150
        assert 1.5 < policy.info["validation_cost"] <= 2.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"confidence": 0.3}, "confidence is 0.3"),
        ({"confidence": float("nan")}, "confidence is nan"),
    ],
)
def test_bad_confidences_are_named(arguments, words):
    problem = _problem(np.random.default_rng(6), 100)
    with pytest.raises(InputError, match=words):
        eenet_jax.fit(problem.predictions, COSTS, [2.0], policy="max_prob", **arguments)


@pytest.mark.parametrize("drop", [0.0, -0.1, 1.0, float("nan")])
def test_bad_drops_are_named(drop):
    problem = _problem(np.random.default_rng(6), 100)
    with pytest.raises(InputError, match="max_accuracy_drop"):
        eenet_jax.fit_cheapest(
            problem.predictions, COSTS, max_accuracy_drop=drop, policy="max_prob"
        )


def test_too_few_samples_certify_nothing():
    problem = _problem(np.random.default_rng(6), 30)
    with pytest.raises(InputError, match="30 samples are too few"):
        eenet_jax.fit(problem.predictions, COSTS, [2.0], policy="max_prob", confidence=0.95)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["eenet", "max_prob", "vote", "patience"])
def test_promises_on_real_predictions_are_broken_as_seldom_as_stated(policy):
    # What the network of `eenet demo` says of 660 held-out handwritten digits.
    stored = np.load(GOLDEN / "digits_predictions.npz")
    population = ExitPredictions(probs=stored["probs"], labels=stored["labels"])
    costs = tuple(stored["costs"].tolist())
    right = population.correctness()
    budget = 0.4 * costs[0] + 0.6 * costs[1]
    random, dearer, worse = np.random.default_rng(5), [], []
    for seed in range(DRAWS):
        some = population.take(random.integers(0, population.num_samples, 300))
        quick = QUICK if policy == "eenet" else {}
        held = eenet_jax.fit(
            some, costs, [budget], policy=policy, seed=seed, confidence=0.95, **quick
        )[0]
        exits = held.decide(population.probs)
        dearer.append(np.asarray(costs)[exits].mean() > budget)
        cheapest = eenet_jax.fit_cheapest(
            some, costs, max_accuracy_drop=0.02, policy=policy, seed=seed, **quick
        )
        exits = cheapest.decide(population.probs)
        lost = right[-1].mean() - right[exits, np.arange(exits.size)].mean()
        worse.append(lost > 0.02)
    assert np.mean(dearer) <= MOST_VIOLATIONS
    assert np.mean(worse) <= MOST_VIOLATIONS
