"""The joint loss and self-distillation against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eenet_jax.training.losses import (
    cross_entropies,
    exit_weights,
    joint_cross_entropy,
    mean_per_sample,
    self_distillation,
)

RANDOM = np.random.default_rng(0)
LOGITS = (3 * RANDOM.normal(size=(3, 5, 4))).astype(np.float32)
LABELS = RANDOM.integers(0, 4, 5).astype(np.int32)
ALL = np.ones(5, bool)


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("kind", "expected"), [("linear", [1 / 6, 2 / 6, 3 / 6]), ("uniform", [1 / 3] * 3)]
)
def test_weights_are_in_proportion_and_sum_to_one(kind, expected):
    np.testing.assert_allclose(exit_weights(kind, 3), expected, rtol=1e-6)
    assert float(exit_weights(kind, 7).sum()) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["linear", "uniform"])
def test_joint_cross_entropy_is_the_weighted_sum_of_mean_cross_entropies(kind):
    weights = np.asarray(exit_weights(kind, 3))
    expected = sum(
        weights[k] * np.mean([-np.log(softmax(LOGITS[k])[n, LABELS[n]]) for n in range(5)])
        for k in range(3)
    )
    assert float(joint_cross_entropy(LOGITS, LABELS, weights)) == pytest.approx(expected, rel=1e-5)


def test_smoothed_labels_are_a_mixture_with_all_classes():
    weights = np.asarray(exit_weights("linear", 3))
    targets = 0.9 * np.eye(4)[LABELS] + 0.1 / 4
    expected = weights @ [-(targets * np.log(softmax(each))).sum(-1).mean() for each in LOGITS]
    found = joint_cross_entropy(LOGITS, LABELS, weights, smoothing=0.1)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_parts_of_a_batch_add_up_to_the_whole_of_it():
    weights = exit_weights("linear", 3)
    labels = np.asarray([0, -1, 2, 3, -1], np.int32)
    count = jnp.asarray(3)
    for loss, extra in (
        (joint_cross_entropy, (weights, 0.1)),
        (lambda logits, labels, *rest: self_distillation(logits, labels >= 0, *rest), (3.0,)),
    ):
        whole = float(loss(LOGITS, labels, *extra))
        parts = [
            loss(LOGITS[:, at], labels[at], *extra, count) for at in np.split(np.arange(5), [2])
        ]
        assert float(sum(parts)) == pytest.approx(whole, rel=1e-5)


def test_equal_logits_cost_log_classes():
    value = joint_cross_entropy(jnp.zeros((2, 3, 10)), jnp.arange(3), exit_weights("linear", 2))
    assert float(value) == pytest.approx(np.log(10))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_sums_over_classes_and_exits_and_averages_over_samples(temperature):
    teacher = softmax(LOGITS[-1] / temperature)
    total = 0.0
    for k in range(2):
        student = softmax(LOGITS[k] / temperature)
        total += np.mean([np.sum(teacher[n] * np.log(teacher[n] / student[n])) for n in range(5)])
    value = float(self_distillation(LOGITS, ALL, temperature))
    assert value == pytest.approx(temperature**2 * total, rel=1e-5)


def test_a_student_that_agrees_with_the_teacher_costs_nothing():
    same = np.repeat(LOGITS[-1:], 3, 0)
    assert float(self_distillation(same, ALL, 3.0)) == pytest.approx(0, abs=1e-6)


def test_no_gradient_reaches_the_teacher_and_the_students_is_the_difference_of_softmaxes():
    temperature = 3.0
    gradient = np.asarray(jax.grad(self_distillation)(jnp.asarray(LOGITS), ALL, temperature))
    np.testing.assert_array_equal(gradient[-1], 0)
    teacher = softmax(LOGITS[-1] / temperature)
    for k in range(2):
        # d/dz of T²·KL at temperature T is T·(student - teacher), over the mean's N.
        expected = temperature * (softmax(LOGITS[k] / temperature) - teacher) / 5
        np.testing.assert_allclose(gradient[k], expected, atol=1e-6)


def test_pixels_without_a_label_count_in_no_loss():
    draw = np.random.default_rng(3)
    logits = draw.normal(size=(2, 2, 3, 4, 5)).astype(np.float32)
    labels = draw.integers(-1, 5, (2, 3, 4)).astype(np.int32)
    kept = labels >= 0
    assert 0 < kept.sum() < kept.size
    flat, weights = logits[:, kept], exit_weights("linear", 2)
    np.testing.assert_allclose(
        joint_cross_entropy(logits, labels, weights),
        joint_cross_entropy(flat, labels[kept], weights),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        self_distillation(logits, kept, 3.0),
        self_distillation(flat, np.ones(kept.sum(), bool), 3.0),
        rtol=1e-5,
    )
    each, labelled = cross_entropies(logits, labels)
    np.testing.assert_array_equal(labelled, kept)
    per_image = mean_per_sample(each, labelled)
    for n in range(2):
        np.testing.assert_allclose(per_image[:, n], each[:, n][:, kept[n]].mean(1), rtol=1e-5)
