"""The solver as a whole: held-out judgement, memory, devices, and repeatability."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from synthetic_exits import synthetic

from eenet_jax.errors import InputError
from eenet_jax.policies.choice import fold_parts
from eenet_jax.policies.eenet import solver_samples
from eenet_jax.policies.problem import Problem
from eenet_jax.scheduler.solver import SolverSettings, gain_score, solve
from eenet_jax.types import CostTable

COSTS = (1.0, 2.0, 4.0)
BUDGETS = (1.0, 1.5, 2.5, 4.0)
QUICK = {"folds": 3, "prices": 12, "sweeps": 2}


def _solve(samples=150, devices=None, seed=0, **changed):
    predictions = synthetic(samples=samples)
    problem = Problem(predictions=predictions, costs=CostTable(costs=COSTS), budgets=BUDGETS)
    held_out = fold_parts(samples, 3, seed)
    settings = SolverSettings(**(QUICK | changed))
    return solve(
        solver_samples(problem),
        4,
        COSTS,
        BUDGETS,
        held_out,
        settings,
        devices,
    )


def test_distributions_cost_no_more_than_their_budgets():
    solved = _solve()
    assert solved.distributions.shape == (5, 4, 3)
    np.testing.assert_allclose(solved.distributions.sum(-1), 1, atol=1e-5)
    spent = np.asarray(solved.distributions) @ np.asarray(COSTS)
    assert (spent <= np.asarray(BUDGETS)[None] + 1e-4).all()


def test_held_out_accuracy_rises_with_the_budget_and_starts_at_the_first_exit():
    right = np.asarray(_solve(samples=600).held_out_correct).mean(-1)
    first = synthetic(samples=600).correctness()[0].mean()
    np.testing.assert_allclose(right[:, 0], first, atol=1e-6)
    assert (right[:, 2] > right[:, 0] + 0.1).all()


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, again, other = _solve(), _solve(), _solve(seed=1)
    for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(first.held_out_correct, other.held_out_correct)


def test_a_memory_limit_changes_no_result():
    whole, cut = _solve(), _solve(memory_limit_gb=1e-4)
    np.testing.assert_allclose(whole.distributions, cut.distributions, atol=1e-6)
    np.testing.assert_array_equal(whole.held_out_correct, cut.held_out_correct)
    for ours, theirs in zip(
        jax.tree.leaves(whole.chances), jax.tree.leaves(cut.chances), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


ON_DEVICES = """
import json, sys
sys.path[:0] = [{tests!r}]
import jax, numpy as np
from scheduler.test_solver import _solve
from scheduler.test_paper_solver import _solve as solve_paper
devices = tuple(jax.local_devices())
solved = _solve(samples=700, devices=devices)
_, paper = solve_paper(epochs=20, lr=2e-2, restarts=3, devices=devices)
print(json.dumps({{"devices": jax.device_count(),
    "distributions": np.asarray(solved.distributions).tolist(),
    "right": np.asarray(solved.held_out_correct).tolist(),
    "paper": np.asarray(paper.distribution).tolist()}}))
"""


def test_eight_devices_give_what_one_gives():
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = []
    for count in (1, 8):
        # Fake devices share XLA's threads, which are as many as NPROC says, else as there are
        # cores: with fewer than devices they would wait for one another.
        flags = f"--xla_force_host_platform_device_count={count}"
        done = subprocess.run(
            [sys.executable, "-c", ON_DEVICES.format(tests=tests)],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "16"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    one, eight = found
    assert (one["devices"], eight["devices"]) == (1, 8)
    np.testing.assert_allclose(eight["distributions"], one["distributions"], atol=1e-6)
    np.testing.assert_array_equal(eight["right"], one["right"])
    np.testing.assert_allclose(eight["paper"], one["paper"], rtol=1e-4, atol=1e-5)


def test_a_gain_keeps_its_order_where_all_are_nearly_sure():
    odds = np.linspace(18, 25, 50, dtype=np.float32)
    for share in (0.0, 0.8):
        score = np.asarray(gain_score(odds, np.full(50, 30.0, np.float32), share))
        assert (np.diff(score) > 0).all()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("folds", 1),
        ("sweeps", 0),
        ("prices", 2),
        ("ridge", 0.0),
        ("memory_limit_gb", -1.0),
        ("gain_shares", (0.5, 1.5)),
        ("score_measures", ("max", "luck")),
        ("score_measures", ("max", "max")),
        ("gain_shares", (0.8, 0.8)),
        ("sweeps", True),
        ("ridge", float("inf")),
    ],
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises(InputError, match=setting):
        SolverSettings(**{setting: value})
