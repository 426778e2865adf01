"""Predictions of an imaginary multi-exit network: deeper exits are better, all overconfident."""

import numpy as np

from eenet_jax.types import ExitPredictions


def synthetic(samples=200, exits=3, classes=4, seed=0) -> ExitPredictions:
    """Labels shifted by a difficulty and noise that the exits of a sample share."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, samples)
    difficulty = random.normal(size=samples)
    shared = random.normal(size=(samples, classes))
    skill = np.linspace(1.0, 3.0, exits)[:, None] - difficulty
    noise = 0.7 * shared + 0.7 * random.normal(size=(exits, samples, classes))
    logits = 2 * (skill[:, :, None] * np.eye(classes)[labels] + noise)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return ExitPredictions(probs=probs / probs.sum(-1, keepdims=True), labels=labels)


def dense(samples=30, exits=3, classes=4, seed=0) -> ExitPredictions:
    """Image means of a dense network: soft correctness, given measures, confusion matrices."""
    plain = synthetic(samples, exits, classes, seed)
    random = np.random.default_rng(seed)
    correct = np.clip(0.5 * plain.correctness() + random.uniform(0, 0.5, (exits, samples)), 0, 1)
    measures = random.uniform(size=(exits, samples, 5)).astype(np.float32)
    measures[..., 0] = plain.probs.max(-1)
    confusion = random.integers(0, 9, (exits, samples, classes, classes))
    return ExitPredictions(
        probs=plain.probs,
        labels=np.full(samples, -1),
        correct=correct,
        measures=measures,
        confusion=confusion,
    )
