"""The scheduler's losses by hand, and the traps of the published code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eenet_jax.scheduler.losses import budget_loss, clip_with_way_back, score_loss, score_target
from eenet_jax.scheduler.network import (
    exit_log_assignment,
    exit_scores,
    hidden_units,
    log_stick_breaking,
    random_params,
    trainable_weights,
)

EXITS, SAMPLES, CLASSES = 3, 6, 4
BUDGET = jnp.float32(2.0)
everyone = np.ones(SAMPLES, bool)
alphas = {"alpha_kl": 1e-3, "alpha_budget": 1e-2, "beta": 1.0}


def _inputs(seed=0):
    random = np.random.default_rng(seed)
    probs = random.dirichlet(np.ones(CLASSES), (EXITS, SAMPLES)).astype(np.float32)
    measures = random.uniform(size=(EXITS, SAMPLES, 5)).astype(np.float32)
    weights = random.normal(size=(EXITS, CLASSES + 5 + EXITS)).astype(np.float32)
    return probs, measures, weights


def test_g_is_linear_with_earlier_scores_clipped_and_its_output_not():
    probs, measures, weights = _inputs()
    scores = np.asarray(exit_scores(weights, probs, measures))
    wanted = np.zeros((EXITS, SAMPLES))
    for k in range(EXITS):
        wanted[k] = probs[k] @ weights[k, :CLASSES] + measures[k] @ weights[k, CLASSES:-EXITS]
        for j in range(k):
            wanted[k] += weights[k, CLASSES + 5 + j] * np.clip(wanted[j], 0, 1)
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-5)
    assert (scores > 1).any()
    assert (scores < 0).any()


def test_no_gradient_flows_through_earlier_scores():
    probs, measures, weights = _inputs()
    gradient = jax.grad(lambda w: exit_scores(w, probs, measures)[2].sum())(weights)
    assert (np.asarray(gradient)[:2] == 0).all()
    assert (np.asarray(gradient)[2] != 0).any()


def test_trainable_weights_leave_out_margin_patience_and_later_exits():
    mask = trainable_weights(EXITS, CLASSES, ("max", "entropy", "vote"))
    assert mask[1].tolist() == [1] * 4 + [1, 1, 0, 1, 0] + [1, 0, 0]
    assert hidden_units(EXITS, CLASSES, 0.5) == [3, 4, 4]


@pytest.mark.parametrize("kind", ["stick_breaking", "softmax"])
def test_an_assignment_sums_to_one(kind):
    probs, measures, weights = _inputs()
    params = random_params(np.random.default_rng(0), 1, EXITS, CLASSES, 0.5)
    one = jax.tree.map(lambda leaf: leaf[0], params.assignment)
    scores = exit_scores(weights, probs, measures)
    shares = jnp.exp(exit_log_assignment(one, probs, measures, scores, kind, 0.5))
    np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-5)


def test_stick_breaking_takes_shares_of_what_is_left():
    leave = np.asarray([0.2, 0.5, 0.9], np.float32)
    logits = np.log(leave / (1 - leave))[:, None]
    shares = np.exp(np.asarray(log_stick_breaking(logits)))[:, 0]
    np.testing.assert_allclose(shares, [0.2, 0.4, 0.4], rtol=1e-5)


def test_score_loss_weighs_each_exit_by_its_samples():
    scores = np.full((2, 2), 0.5, np.float32)
    scores[0] = [0.9, 0.2]
    correct = np.asarray([[1, 0], [1, 0]], np.float32)
    shares = np.asarray([[0.75, 0.25], [0.25, 0.75]], np.float32)
    loss = score_loss(scores, correct, np.log(shares), np.ones(2, bool))
    first = -(0.75 * np.log(0.9) + 0.25 * np.log(0.8))
    assert float(loss) == pytest.approx((first - np.log(0.5)) / 2, rel=1e-5)


def test_budget_loss_is_the_distance_from_the_budget_plus_the_divergence():
    scores = np.asarray([[0.5], [0.5]], np.float32)
    shares = np.asarray([[0.25], [0.75]], np.float32)
    loss = budget_loss(
        scores, np.log(shares), np.asarray([1.0, 3.0]), BUDGET, np.ones(1, bool), **alphas
    )  # fmt: skip
    kl = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert float(loss) == pytest.approx(1e-3 * kl / 2 + 1e-2 * 0.5 / 2, rel=1e-4)


def test_scores_at_and_beyond_the_ends_give_finite_losses_and_gradients():
    correct = np.tile(np.asarray([0, 1], np.float32), (EXITS, SAMPLES // 2))
    log_shares = np.full((EXITS, SAMPLES), -200.0, np.float32)
    log_shares[-1] = 0
    costs = np.asarray([1.0, 2.0, 4.0], np.float32)

    @jax.jit
    def both(scores, log_shares):
        first = score_loss(scores, correct, log_shares, everyone)
        return first + budget_loss(scores, log_shares, costs, BUDGET, everyone, **alphas)

    slopes = jax.jit(jax.grad(both, argnums=(0, 1)))
    for value in (0.0, 1.0, -3.0, 5.0):
        scores = np.full((EXITS, SAMPLES), value, np.float32)
        assert np.isfinite(both(scores, log_shares))
        assert all(np.isfinite(slope).all() for slope in slopes(scores, log_shares))


def test_the_target_is_uniform_where_all_scores_are_zero():
    target = score_target(np.zeros((EXITS, SAMPLES), np.float32), 1.0)
    np.testing.assert_allclose(target, 1 / EXITS, rtol=1e-5)


def test_the_clip_keeps_the_gradient_that_leads_back_and_only_that():
    scores = np.asarray([[-2.0, -2.0, 0.5, 3.0, 3.0]], np.float32)
    correct = np.asarray([[1.0, 0.0, 1.0, 0.0, 1.0]], np.float32)
    gradient = jax.grad(lambda q: clip_with_way_back(q, correct).sum())(scores)
    np.testing.assert_array_equal(gradient[0], [1, 0, 1, 1, 0])


def test_absent_samples_change_no_loss():
    random = np.random.default_rng(0)
    scores = random.uniform(size=(EXITS, SAMPLES)).astype(np.float32)
    correct = random.integers(0, 2, (EXITS, SAMPLES)).astype(np.float32)
    log_shares = np.log(random.dirichlet(np.ones(EXITS), SAMPLES).T.astype(np.float32))
    costs = np.asarray([1.0, 2.0, 4.0], np.float32)
    some = np.arange(SAMPLES) < 4
    cut, full = slice(0, 4), np.ones(4, bool)
    assert float(score_loss(scores, correct, log_shares, some)) == pytest.approx(
        float(score_loss(scores[:, cut], correct[:, cut], log_shares[:, cut], full)), rel=1e-5
    )
    assert float(budget_loss(scores, log_shares, costs, BUDGET, some, **alphas)) == pytest.approx(
        float(budget_loss(scores[:, cut], log_shares[:, cut], costs, BUDGET, full, **alphas)),
        rel=1e-5,
    )
