"""Confidence measures against their definitions, written out sample by sample."""

import math
from collections import Counter

import jax
import numpy as np

from eenet_jax.confidence import confidence_measures, measure_score
from eenet_jax.types import MEASURES


def _random_probs(exits=4, samples=50, classes=3, seed=0):
    random = np.random.default_rng(seed)
    return random.dirichlet(np.ones(classes), (exits, samples)).astype(np.float32)


def _by_definition(probs):
    exits, samples, classes = probs.shape
    out = np.zeros((exits, samples, 5))
    for k in range(exits):
        for n in range(samples):
            row = probs[k, n].astype(np.float64)
            named = [int(probs[j, n].argmax()) for j in range(k + 1)]
            run = 0
            for name in reversed(named):
                if name != named[-1]:
                    break
                run += 1
            top = np.sort(row)[::-1]
            entropy = 1 + sum(p * math.log(p) for p in row if p > 0) / math.log(classes)
            majority = Counter(named).most_common(1)[0][1] / (k + 1)
            out[k, n] = (top[0], entropy, top[0] - top[1], majority, run)
    return out


def test_every_measure_is_its_definition():
    probs = _random_probs()
    np.testing.assert_allclose(confidence_measures(probs), _by_definition(probs), atol=2e-6)


def test_vote_counts_the_majority_and_not_the_largest_class_id():
    named = np.asarray([0, 0, 2, 0])
    probs = np.eye(3, dtype=np.float32)[named][:, None]
    vote = confidence_measures(probs)[:, 0, MEASURES.index("vote")]
    np.testing.assert_allclose(vote, [1, 1, 2 / 3, 3 / 4])


def test_patience_counts_the_exits_in_a_row_that_agree():
    named = np.asarray([1, 1, 0, 0, 0, 1])
    probs = np.eye(2, dtype=np.float32)[named][:, None]
    patience = confidence_measures(probs)[:, 0, MEASURES.index("patience")]
    np.testing.assert_array_equal(patience, [1, 2, 1, 2, 3, 1])


def test_certain_and_uniform_outputs_have_the_measures_of_the_ends():
    certain = np.tile(np.eye(4, dtype=np.float32)[:1], (2, 1, 1))
    uniform = np.full((2, 1, 4), 0.25, np.float32)
    np.testing.assert_allclose(confidence_measures(certain)[1, 0], [1, 1, 1, 1, 2])
    np.testing.assert_allclose(confidence_measures(uniform)[1, 0], [0.25, 0, 0, 1, 2], atol=1e-6)


def test_entropy_has_a_finite_gradient_at_zero_probability():
    certain = np.tile(np.eye(4, dtype=np.float32)[:1], (2, 1, 1))
    gradient = jax.grad(lambda p: measure_score("entropy", p).sum())(certain)
    assert np.isfinite(gradient).all()


def test_a_row_depends_on_no_later_exit():
    probs = _random_probs(seed=1)
    changed = probs.copy()
    changed[2:] = _random_probs(seed=2)[2:]
    before, after = confidence_measures(probs), confidence_measures(changed)
    np.testing.assert_array_equal(before[:2], after[:2])
    assert not np.array_equal(before[2:], after[2:])


def test_given_measures_are_used_instead_of_computed_ones():
    probs = _random_probs()
    given = np.arange(4 * 50 * 5, dtype=np.float32).reshape(4, 50, 5)
    score = measure_score("margin", probs[:2], given[:2])
    np.testing.assert_array_equal(score, given[1, :, 2])
