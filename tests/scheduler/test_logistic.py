"""Ridge logistic regression with class intercepts, against a general-purpose optimiser."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from eenet_jax.scheduler.logistic import fit_logistic


def _case(seed=0, samples=300):
    random = np.random.default_rng(seed)
    features = random.normal(size=(samples, 4)).astype(np.float32) * [1, 3, 0.2, 1] + [0, 2, 0, 0]
    features[:, 0] = 1
    features[:, 3] = 7.0
    classes = random.integers(0, 5, samples)
    odds = 0.8 * features[:, 1] - 2 + np.asarray([0, 1, -1, 2, 0.5])[classes]
    target = (random.random(samples) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    return features.astype(np.float32), classes.astype(np.int32), target


def _objective(weights, features, classes, target, l2, class_l2):
    linear, by_class = (np.asarray(each, np.float64) for each in weights)
    odds = features @ linear + by_class[classes]
    scale = features.std(0)
    scale[0] = 0
    penalty = l2 * ((linear * scale) ** 2).sum() + class_l2 * (by_class**2).sum()
    return np.logaddexp(0, np.where(target > 0, -odds, odds)).sum() + penalty / 2


def test_the_optimum_is_that_of_a_general_purpose_optimiser():
    features, classes, target = _case()
    found = fit_logistic(features, classes, target, np.ones(300, np.float32), 5, 3.0, 1.0)
    # The same penalties by scaling columns: a unit of l2 on each.
    standard = (features[:, 1:3] - features[:, 1:3].mean(0)) / features[:, 1:3].std(0)
    columns = np.concatenate([standard / np.sqrt(3.0), np.eye(5)[classes]], axis=1)
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(columns, target)
    odds = features @ np.asarray(found.linear) + np.asarray(found.by_class)[classes]
    np.testing.assert_allclose(odds, theirs.decision_function(columns), atol=5e-3)
    assert found.linear[3] == pytest.approx(0, abs=1e-6)


def test_samples_without_weight_don_t_count():
    features, classes, target = _case()
    weight = (np.arange(300) < 200).astype(np.float32)
    masked = fit_logistic(features, classes, target, weight, 5, 3.0, 1.0)
    alone = fit_logistic(
        features[:200], classes[:200], target[:200], np.ones(200, np.float32), 5, 3.0, 1.0
    )
    np.testing.assert_allclose(masked.linear, alone.linear, atol=2e-4)
    np.testing.assert_allclose(masked.by_class, alone.by_class, atol=2e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_targets_all_alike_give_finite_weights(value):
    features, classes, _ = _case()
    target = np.full(300, value, np.float32)
    found = fit_logistic(features, classes, target, np.ones(300, np.float32), 5, 3.0, 1.0)
    odds = features @ np.asarray(found.linear) + np.asarray(found.by_class)[classes]
    assert np.isfinite(odds).all()
    assert ((odds > 3) == (value > 0)).all()


def test_separable_samples_are_separated_with_finite_weights():
    features, classes, _ = _case()
    target = (features[:, 1] > 2).astype(np.float32)
    found = fit_logistic(features, classes, target, np.ones(300, np.float32), 5, 1e-3, 1.0)
    odds = features @ np.asarray(found.linear) + np.asarray(found.by_class)[classes]
    assert np.isfinite(odds).all()
    assert (((odds > 0) == (target > 0)).mean()) > 0.98
    before = _objective(
        (np.zeros(4), np.zeros(5)), features.astype(np.float64), classes, target, 1e-3, 1.0
    )
    after = _objective(found, features.astype(np.float64), classes, target, 1e-3, 1.0)
    assert after < before / 4
