"""What explains a policy: tables and curves by their numbers."""

import json

import numpy as np
import pytest
from report.conftest import World, predictions, write_fit, write_run
from synthetic_exits import synthetic

from eenet_jax.errors import InputError
from eenet_jax.frontier import fit_frontier
from eenet_jax.report.explanation import (
    learned_eenet,
    paper_weight_table,
    paper_weights,
    reliability_curve,
    score_weights,
    stated_chances,
    weight_tables,
)
from eenet_jax.report.leavers import leave_shares, leavers_table
from eenet_jax.report.report import write_report
from eenet_jax.report.saved import middle_policies
from eenet_jax.report.sources import read_sources
from eenet_jax.report.tables import cheapest_table


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    return read_sources([write_run(folder / "run"), write_fit(folder / "fit")])


def test_the_leavers_table_compares_those_who_left_with_the_full_network(sources):
    table = leavers_table(sources)
    given = predictions(World(), "test")
    exits = middle_policies(sources)["eenet"].decide(given.probs)
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["policy"] == "eenet"
    shares = [float(row[f"exit {k}: share"]) for k in (1, 2, 3)]
    assert sum(shares) == pytest.approx(100, abs=0.02)
    right, here = given.correctness(), exits == 0
    assert row["exit 1: right"] == f"{100 * right[0, here].mean():.2f}"
    assert row["exit 1: full"] == f"{100 * right[2, here].mean():.2f}"


def test_weights_are_shown_times_the_deviation_of_what_they_weigh(sources):
    given = predictions(World(), "test")
    names, (now, last) = weight_tables(learned_eenet(sources)[1], given)
    top = given.probs.max(-1)
    odds = np.log(top) - np.log(given.probs.sum(-1) - top)
    place = names.index("log odds")
    np.testing.assert_allclose(now[:, place], 0.7 * odds.std(1), rtol=1e-3)
    np.testing.assert_allclose(last, 0.5 * now, rtol=1e-5, atol=1e-7)
    # One of ten intercepts is 0.3, the others 0.
    np.testing.assert_allclose(now[:, -1], 0.3 * np.sqrt(0.1 * 0.9), rtol=1e-5)
    assert not np.delete(now, [place, len(names) - 1], axis=1).any()


def test_the_papers_g_is_shown_by_measure_and_by_earlier_score(sources):
    given = predictions(World(), "test")
    names, table = paper_weight_table(middle_policies(sources)["eenet_paper"], given)
    top = given.probs.max(-1)
    np.testing.assert_allclose(table[:, names.index("max")], 0.5 * top.std(1), rtol=1e-4)
    first = table[:, names.index("score of 1")]
    np.testing.assert_allclose(first, [0, *[0.1 * 0.5 * top[0].std()] * 2], rtol=1e-4)
    assert not table[:, [names.index(name) for name in ("probabilities", "vote")]].any()
    assert "eenet_paper" in paper_weights(sources)[0].get_suptitle()


def test_stated_chances_are_those_of_the_network_and_of_every_learned_score(sources):
    given = predictions(World(), "test")
    stated = stated_chances(sources, given)
    assert list(stated) == ["max_prob", "eenet", "eenet_paper"]
    top = given.probs.max(-1)
    np.testing.assert_array_equal(stated["max_prob"], top)
    np.testing.assert_allclose(stated["eenet_paper"][0], 0.5 * top[0], rtol=1e-6)
    odds = np.log(top[0]) - np.log(given.probs[0].sum(-1) - top[0])
    by_answer = np.where(given.probs[0].argmax(-1) == 0, 0.3, 0.0)
    chance = 1 / (1 + np.exp(-(0.7 * odds + by_answer)))
    np.testing.assert_allclose(stated["eenet"][0], chance, rtol=1e-4)


def test_shares_of_leavers_by_group():
    exits, groups = np.asarray([0, 0, 1, 2, 2]), np.asarray([3, 3, 3, 7, 7])
    shares = leave_shares(exits, groups, [7, 3, 5], 3)
    np.testing.assert_allclose(shares, [[0, 0, 1], [2 / 3, 1 / 3, 0], [0, 0, 0]])


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
    assert "## Figures" not in path.read_text()
