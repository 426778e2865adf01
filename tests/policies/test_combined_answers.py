"""Answers of all exits passed: their weights, what counts as right, and the file."""

import numpy as np
import pytest
from synthetic_exits import dense, synthetic

import eenet_jax
from eenet_jax.errors import InputError
from eenet_jax.frontier import fit_frontier
from eenet_jax.scheduler.combination import combined_logits, fit_combination

COSTS = (1.0, 2.5, 4.0)
QUICK = {"folds": 2, "prices": 16, "sweeps": 2}


@pytest.fixture(scope="module")
def fitted():
    return eenet_jax.fit(
        synthetic(samples=400), COSTS, [1.7, 2.5, 4.0], answers="combined", **QUICK
    )


def _log_likelihood(weights, probs, labels):
    logits = np.asarray(combined_logits(weights, probs))
    logits = logits - logits.max(-1, keepdims=True)
    picked = logits[np.arange(len(labels)), labels]
    return (picked - np.log(np.exp(logits).sum(-1))).sum()


def test_weights_are_the_likeliest_and_look_at_no_later_exit():
    some = synthetic(samples=400)
    weights = fit_combination(some.probs, some.labels)
    assert (np.triu(weights, 1) == 0).all()
    best = _log_likelihood(weights[2], some.probs, some.labels)
    for moved in np.vstack([np.eye(3), -np.eye(3)]) * 0.15:
        other = (weights[2] + moved).astype(np.float32)
        assert _log_likelihood(other, some.probs, some.labels) < best
    # Overconfident exits are toned down.
    assert 0 < weights[0, 0] < 1


def test_right_is_what_the_combined_answer_is(fitted):
    fresh = synthetic(samples=300, seed=1)
    policy = fitted[1]
    right = policy.correctness(fresh)
    logs = np.log(np.maximum(fresh.probs, 1e-9))
    for k in range(3):
        total = np.einsum("k,knc->nc", policy.answer_weights[k], logs)
        np.testing.assert_array_equal(right[k], total.argmax(-1) == fresh.labels)
    np.testing.assert_array_equal(right[0], fresh.correctness()[0])
    assert (right[2] != fresh.correctness()[2]).any()


def test_validation_accuracy_is_that_of_the_combined_answers(fitted):
    some = synthetic(samples=400)
    for policy in fitted:
        exits = policy.decide(some.probs)
        right = policy.correctness(some)[exits, np.arange(400)]
        assert policy.info["validation_accuracy"] == pytest.approx(right.mean())


def test_the_file_keeps_the_weights_and_older_files_have_none(fitted, tmp_path):
    fitted[1].save(tmp_path / "policy.json")
    again = eenet_jax.load_policy(tmp_path / "policy.json")
    np.testing.assert_array_equal(again.answer_weights, fitted[1].answer_weights)
    plain = eenet_jax.fit(synthetic(), COSTS, [2.0], policy="max_prob")[0]
    plain.save(tmp_path / "plain.json")
    text = (tmp_path / "plain.json").read_text().replace('"answer_weights"', '"was_not_there"')
    (tmp_path / "older.json").write_text(text)
    for name in ("plain", "older"):
        assert eenet_jax.load_policy(tmp_path / f"{name}.json").answer_weights is None


def test_frontier_rows_and_certificates_are_of_combined_answers(tmp_path):
    for seed, split in enumerate(("val", "test")):
        synthetic(samples=400, seed=seed).save(tmp_path / f"{split}.npz")
    rows = fit_frontier(
        tmp_path / "val.npz", tmp_path / "test.npz", COSTS, ["2.5"], ["eenet"], 0,
        tmp_path / "fit", max_accuracy_drop=0.3, answers="combined", **QUICK,
    )  # fmt: skip
    test = synthetic(samples=400, seed=1)
    for row in rows:
        if row.policy == "eenet" and row.split == "test":
            path = tmp_path / "fit" / "policies" / f"eenet-{row.budget_text}.json"
            policy = eenet_jax.load_policy(path)
            exits = policy.decide(test.probs)
            right = policy.correctness(test)[exits, np.arange(400)]
            assert row.accuracy == pytest.approx(right.mean())
    drops = [
        row
        for row in rows
        if (row.policy, row.split) == ("eenet", "test") and "accuracy_drop" in row.extra
    ]
    assert len(drops) == 1
    full = test.correctness()[-1].mean()
    assert drops[0].extra["accuracy_drop"] == pytest.approx(full - drops[0].accuracy, abs=1e-6)
    assert drops[0].extra["max_accuracy_drop"] == 0.3


def test_labelled_pixels_and_unknown_words_are_refused():
    with pytest.raises(InputError, match="one exit"):
        eenet_jax.fit(dense(), COSTS, [2.0], answers="combined", **QUICK)
    with pytest.raises(InputError, match="'both'"):
        eenet_jax.fit(synthetic(), COSTS, [2.0], answers="both")
