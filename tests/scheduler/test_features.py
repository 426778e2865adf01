"""What a score may look at, number by number."""

import numpy as np
import pytest

from eenet_jax.confidence import measures_at
from eenet_jax.scheduler.features import exit_features, feature_names

PROBS = np.asarray(
    [[[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], [[0.2, 0.7, 0.1], [0.05, 0.9, 0.05]]], np.float32
)


def test_features_of_the_second_of_three_exits():
    values, answers = exit_features(PROBS, measures_at(PROBS), 3)
    found = [dict(zip(feature_names(3), row, strict=True)) for row in np.asarray(values)]
    assert answers.tolist() == [1, 1]
    first, second = found
    assert first["bias"] == 1
    assert first["log_odds"] == pytest.approx(np.log(0.7 / 0.3), rel=1e-5)
    assert first["log_margin"] == pytest.approx(np.log(0.7 / 0.2), rel=1e-5)
    assert first["max"] == pytest.approx(0.7)
    assert (first["agrees_with_1"], second["agrees_with_1"]) == (0, 1)
    assert first["log_prob_by_1"] == pytest.approx(np.log(0.3), rel=1e-5)
    assert first["log_odds_of_1"] == pytest.approx(np.log(0.5 / 0.5), abs=1e-6)
    mean = np.sqrt(PROBS[0, 0] * PROBS[1, 0])
    mean /= mean.sum()
    assert first["combined_log_prob"] == pytest.approx(np.log(mean[1]), rel=1e-5)
    assert first["combined_log_odds"] == pytest.approx(np.log(mean[1] / (1 - mean[1])), abs=1e-6)
    unseen = [name for name in feature_names(3) if name.endswith("_2")]
    assert all(first[name] == 0 for name in unseen)


def test_certain_and_impossible_probabilities_give_finite_features():
    probs = np.asarray([[[1, 0, 0]], [[0, 1, 0]]], np.float32)
    values, _ = exit_features(probs, measures_at(probs), 2)
    assert np.isfinite(np.asarray(values)).all()


def test_given_measures_take_the_place_of_computed_ones():
    given = np.full((2, 5), 0.25, np.float32)
    values, _ = exit_features(PROBS, given, 2)
    places = [feature_names(2).index(name) for name in ("max", "entropy", "vote")]
    np.testing.assert_array_equal(np.asarray(values)[:, places], 0.25)
