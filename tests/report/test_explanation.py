"""What explains a policy: tables and curves by their numbers."""

import json

import numpy as np
import pytest
from report.conftest import World, predictions, write_fit, write_run
from synthetic_exits import synthetic

from eenet_jax.errors import InputError
from eenet_jax.frontier import fit_frontier
from eenet_jax.report.explanation import (
    explained,
    leavers_table,
    reliability_curve,
    score_weights,
)
from eenet_jax.report.report import write_report
from eenet_jax.report.sources import read_sources
from eenet_jax.report.tables import cheapest_table


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    return read_sources([write_run(folder / "run"), write_fit(folder / "fit")])


def test_the_leavers_table_compares_those_who_left_with_the_full_network(sources):
    table = leavers_table(sources)
    shown = explained(sources)
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["policy"] == "eenet"
    shares = [float(row[f"exit {k}: share"]) for k in (1, 2, 3)]
    assert sum(shares) == pytest.approx(100, abs=0.02)
    right = predictions(World(), "test").correctness()
    here = shown.exits == 0
    assert row["exit 1: right"] == f"{100 * right[0, here].mean():.2f}"
    assert row["exit 1: full"] == f"{100 * right[2, here].mean():.2f}"


def test_a_calibrated_chance_has_hardly_an_error_and_a_shifted_one_has_its_shift():
    random = np.random.default_rng(0)
    stated = random.uniform(0.2, 0.8, 60_000)
    right = (random.random(60_000) < stated).astype(np.float32)
    assert reliability_curve(stated, right)[2] < 0.01
    assert reliability_curve(stated + 0.1, right)[2] == pytest.approx(0.1, abs=0.01)


def test_without_a_learned_score_there_are_no_weights_to_show(tmp_path):
    write_fit(tmp_path / "fit", World(policies=("max_prob",)))
    write_run(tmp_path / "run")
    with pytest.raises(InputError, match="no saved policy 'eenet'"):
        score_weights(read_sources([tmp_path / "run", tmp_path / "fit"]))


def test_policies_within_a_loss_have_a_table_of_their_own(tmp_path):
    synthetic(samples=300, seed=0).save(tmp_path / "val.npz")
    synthetic(samples=300, seed=1).save(tmp_path / "test.npz")
    for budgets in (["2"], []):
        out = tmp_path / f"fit{len(budgets)}"
        rows = fit_frontier(
            tmp_path / "val.npz", tmp_path / "test.npz", "1,2.5,4", budgets, ["max_prob"], 0, out,
            max_accuracy_drop=0.15,
        )  # fmt: skip
        sources = read_sources([out])
        assert sources.budgets == tuple(budgets)
        table = cheapest_table(sources)
        ours = next(r for r in rows if "accuracy_drop" in r.extra and r.split == "test")
        assert table.rows[0][0] == "max_prob"
        assert table.rows[0][1:4] == ("15.00", "95", f"{100 * ours.extra['accuracy_drop']:.2f}")
        assert json.loads((out / "fit.json").read_text())["max_accuracy_drop"] == 0.15
    write_report([tmp_path / "fit1"], tmp_path / "report")
    assert "within a loss of accuracy" in (tmp_path / "report" / "report.md").read_text()


def test_a_report_of_no_budgets_says_what_it_lacks(tmp_path):
    synthetic(samples=300, seed=0).save(tmp_path / "val.npz")
    fit_frontier(
        tmp_path / "val.npz", None, "1,2.5,4", (), ["max_prob"], 0, tmp_path / "fit",
        max_accuracy_drop=0.15,
    )  # fmt: skip
    path = write_report([tmp_path / "fit"], tmp_path / "report")
    assert "within a loss of accuracy" in path.read_text()
