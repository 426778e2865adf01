"""The vectorised fit: it learns, keeps the best by value, and repeats itself."""

import jax
import numpy as np
import pytest
from synthetic_exits import synthetic

from eenet_jax.confidence import confidence_measures
from eenet_jax.errors import InputError
from eenet_jax.scheduler import paper_solver
from eenet_jax.scheduler.network import random_params
from eenet_jax.scheduler.paper_solver import Samples, SolverSettings, _epoch, solve

COSTS = (1.0, 2.0, 4.0)


def _solve(epochs, lr, restarts=2, devices=None, **changed):
    predictions = synthetic(samples=120, exits=3, classes=4)
    samples = Samples(
        predictions.probs,
        np.asarray(confidence_measures(predictions.probs)),
        predictions.correctness(),
    )
    start = random_params(np.random.default_rng(0), restarts, 3, 4, 0.5)
    settings = SolverSettings(
        epochs=epochs, lr=lr, l2=0.0, batch_size=50, phase_epochs=5, **changed
    )
    budgets = np.full(restarts, 2.5)
    return start, solve(samples, COSTS, budgets, start, settings, jax.random.key(0), devices)


def test_the_best_is_kept_by_value_start_included():
    start, fitted = _solve(epochs=100, lr=1e-9)
    for ours, origin in zip(jax.tree.leaves(fitted.params), jax.tree.leaves(start), strict=True):
        np.testing.assert_allclose(ours, origin, atol=1e-5)


def test_fitting_improves_on_the_start_and_spends_about_the_budget():
    _, before = _solve(epochs=100, lr=1e-9)
    _, after = _solve(epochs=100, lr=2e-2)
    assert (np.asarray(after.value) >= np.asarray(before.value)).all()
    assert np.asarray(after.value).max() > 0.5
    np.testing.assert_allclose(np.asarray(after.distribution).sum(1), 1, rtol=1e-5)


def test_a_memory_limit_changes_no_result():
    _, whole = _solve(epochs=40, lr=2e-2, restarts=3)
    _, cut = _solve(epochs=40, lr=2e-2, restarts=3, memory_limit_gb=1e-9)
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_judging_a_block_of_samples_at_a_time_changes_no_result(monkeypatch):
    _, whole = _solve(epochs=20, lr=2e-2)
    monkeypatch.setattr(paper_solver, "SAMPLES_JUDGED_AT_ONCE", 50)
    paper_solver._program.cache_clear()
    _, cut = _solve(epochs=20, lr=2e-2)
    paper_solver._program.cache_clear()
    np.testing.assert_allclose(cut.distribution, whole.distribution, rtol=1e-5)
    np.testing.assert_allclose(cut.value, whole.value, atol=1e-6)


def test_an_epoch_visits_every_sample_once_and_each_epoch_in_its_own_order():
    def order(key):
        batches = []

        def step(carry, batch):
            batches.append(batch)
            return carry, None

        with jax.disable_jit():
            _epoch(step, 11, 4, None, key)
        flat = np.concatenate([np.asarray(batch) for batch in batches])
        return flat[flat >= 0]

    first, second = (order(jax.random.key(seed)) for seed in (0, 1))
    assert sorted(first.tolist()) == list(range(11))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("exit_distribution", "sofmax"),
        ("lr", 0.0),
        ("epochs", 0),
        ("l2", -1.0),
        ("beta", float("nan")),
        ("lr", float("inf")),
        ("measures", ("max", "luck")),
    ],
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises(InputError, match=setting):
        SolverSettings(**{setting: value})
