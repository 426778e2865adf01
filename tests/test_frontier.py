"""`fit_frontier`: the files, their columns, and what bad input leaves behind (nothing)."""

import csv
import functools
import json

import jax
import numpy as np
import pytest
from synthetic_exits import dense, synthetic

import eenet_jax
from eenet_jax.comparison import paired_interval
from eenet_jax.errors import InputError
from eenet_jax.frontier import fit_frontier, segmentation_scores
from eenet_jax.frontier_file import read_frontier
from eenet_jax.report.sources import read_sources

QUICK = {"folds": 2, "prices": 16}
BUDGETS = ["1", "1.7", "2.50", "3.9", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier")
    synthetic(seed=0).save(folder / "val.npz")
    synthetic(seed=1).save(folder / "test.npz")
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    # The setting of every test, so that what is compiled here is compiled once.
    with jax.numpy_rank_promotion("raise"):
        return fit_frontier(
            folder / "val.npz", folder / "test.npz", "1,2.5,4", BUDGETS,
            ["eenet", "max_prob", "patience"], 3, folder / "out", **QUICK,
        )  # fmt: skip


def test_the_columns_and_budgets_are_as_fixed(folder, rows):
    with (folder / "out" / "frontier.csv").open() as source:
        lines = list(csv.reader(source))
    assert ",".join(lines[0]) == (
        "policy,budget,split,accuracy,cost,exit_rate_1,exit_rate_2,exit_rate_3,n,accuracy_se,"
        "cost_low_95,cost_high_95,accuracy_low_95,accuracy_high_95"
    )
    names = ["eenet", "max_prob", "patience", "static", "oracle"]
    wanted = [
        [name, text, split] for name in names for text in BUDGETS for split in ("val", "test")
    ]
    assert [line[:3] for line in lines[1:]] == wanted


def test_what_is_written_is_what_is_read(folder, rows):
    assert read_frontier(folder / "out" / "frontier.csv") == rows


def test_each_row_is_what_its_saved_policy_does(folder, rows):
    splits = {"val": synthetic(seed=0), "test": synthetic(seed=1)}
    for row in rows:
        assert sum(row.exit_rates) == pytest.approx(1)
        if row.policy == "oracle":
            continue
        path = folder / "out" / "policies" / f"{row.policy}-{row.budget_text}.json"
        policy = eenet_jax.load_policy(path)
        exits = policy.decide(splits[row.split].probs)
        right = policy.correct_at(splits[row.split], exits)
        assert row.accuracy == pytest.approx(right.mean())
        assert row.cost == pytest.approx(np.asarray([1, 2.5, 4])[exits].mean())
        assert row.extra["n"] == 200


def test_budgets_hold_on_validation_and_the_oracle_is_above_all(rows):
    value = {(row.policy, row.budget_text, row.split): row for row in rows}
    for (policy, text, split), row in value.items():
        if split == "val" or policy == "oracle":
            assert row.cost <= row.budget + 1e-9
        if row.cost <= row.budget:
            assert row.accuracy <= value["oracle", text, split].accuracy + 1e-9


def test_the_record_says_what_was_run(folder, rows):
    record = json.loads((folder / "out" / "fit.json").read_text())
    assert record["budgets"] == BUDGETS
    assert record["seed"] == 3
    assert record["costs"] == [1, 2.5, 4]
    assert record["policies"] == ["eenet", "max_prob", "patience", "static"]
    assert record["settings"]["eenet"]["prices"] == 16
    assert record["device"]


def test_the_comparison_is_with_the_best_baseline_on_validation(folder, rows):
    with (folder / "out" / "comparison.csv").open() as source:
        lines = list(csv.DictReader(source))
    value = {(row.policy, row.budget_text, row.split): row.accuracy for row in rows}
    for line in lines:
        text = line["budget"]
        best = max(("max_prob", "patience", "static"), key=lambda name: value[name, text, "val"])
        assert value[line["baseline"], text, "val"] == value[best, text, "val"]
        gap = value["eenet", text, "test"] - value[line["baseline"], text, "test"]
        assert float(line["difference"]) == pytest.approx(gap)
        assert float(line["difference"]) >= -float(line["half_width_95"]) - 1e-9
    assert [line["budget"] for line in lines] == BUDGETS


def test_without_test_predictions_there_are_no_test_rows(folder, tmp_path):
    rows = fit_frontier(folder / "val.npz", None, "1,2.5,4", "2,3", "vote", 0, tmp_path / "out")
    assert {row.split for row in rows} == {"val"}
    assert {row.policy for row in rows} == {"vote", "static", "oracle"}
    assert not (tmp_path / "out" / "comparison.csv").exists()


def test_dense_prediction_adds_miou_and_pixel_accuracy(tmp_path):
    dense(samples=200).save(tmp_path / "val.npz")
    rows = fit_frontier(
        tmp_path / "val.npz", None, "1,2.5,4", ["2"], ["max_prob", "oracle"], 0, tmp_path / "out"
    )
    for row in rows:
        assert list(row.extra)[:4] == ["n", "accuracy_se", "miou", "pixel_accuracy"]
    header = (tmp_path / "out" / "frontier.csv").read_text().splitlines()[0]
    assert "n,accuracy_se,miou,pixel_accuracy" in header


def test_miou_is_hits_over_union_of_the_summed_confusion():
    some = dense(samples=2, exits=2, classes=2)
    confusion = np.zeros((2, 2, 2, 2), np.int64)
    confusion[0, 0] = [[6, 2], [0, 0]]
    confusion[1, 1] = [[0, 0], [1, 3]]
    object.__setattr__(some, "confusion", confusion)
    scores = segmentation_scores(some, np.asarray([0, 1]))
    assert scores["miou"] == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert scores["pixel_accuracy"] == pytest.approx(9 / 12)


def test_paired_interval_is_that_of_the_differences():
    first = np.asarray([1, 1, 0, 1], np.float32)
    second = np.asarray([1, 0, 0, 0], np.float32)
    gap = paired_interval(first, second)
    assert gap.mean == 0.5
    assert gap.half_width == pytest.approx(1.959964 * np.std([0, 1, 0, 1], ddof=1) / 2)
    assert paired_interval(first, first).half_width == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budgets": ["2", "2.0"]}, "given twice"),
        ({"budgets": ["0.5"]}, r"from 1(\.0)? to 4"),
        ({"budgets": ["2", "9"]}, r"from 1(\.0)? to 4"),
        ({"budgets": ["x"]}, "no number"),
        ({"costs": "1,2"}, "2 costs for 3 exits"),
        ({"costs": "3,2,1"}, "increase strictly"),
        ({"policies": ["max_prob", "maxprob"]}, "known are eenet"),
        ({"policies": ["vote", "vote"]}, "given twice"),
        ({"policies": []}, "no policies"),
        ({"epochs": 3}, "'epochs' is unknown"),
        ({"test_path": "other_exits.npz"}, "2 exits"),
        ({"test_path": "other_classes.npz"}, "5 classes"),
        ({"test_path": "dense.npz"}, "dense"),
        ({"test_path": "none.npz"}, "none.npz"),
        ({"predictions_path": "none.npz"}, "none.npz"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, tmp_path, changes, words):
    synthetic(exits=2).save(folder / "other_exits.npz")
    synthetic(classes=5).save(folder / "other_classes.npz")
    dense(samples=200).save(folder / "dense.npz")
    arguments = {
        "predictions_path": "val.npz", "test_path": "test.npz", "costs": "1,2.5,4",
        "budgets": ["2"], "policies": ["vote"], "seed": 0, "out": tmp_path / "out",
    } | changes  # fmt: skip
    for name in ("predictions_path", "test_path"):
        arguments[name] = folder / arguments[name]
    with pytest.raises(InputError, match=words) as error:
        fit_frontier(**arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["", "policy,budget\n", "policy,budget,split,accuracy,cost,exit_rate_1\na,1,val\n"]
)
def test_a_file_that_is_no_frontier_is_refused(tmp_path, text):
    path = tmp_path / "frontier.csv"
    with pytest.raises(InputError, match="no frontier"):
        read_frontier(path)
    path.write_text(text)
    with pytest.raises(InputError, match=r"frontier\.csv"):
        read_frontier(path)


def test_another_fit_is_not_overwritten(folder, tmp_path):
    given = (folder / "val.npz", None, "1,2.5,4")
    fit_frontier(*given, "2,3", "vote", 0, tmp_path)
    before = (tmp_path / "frontier.csv").read_bytes()
    with pytest.raises(InputError, match=r"holds another fit \(policies: .*give another --out"):
        fit_frontier(*given, "2,3", "patience", 0, tmp_path)
    assert (tmp_path / "frontier.csv").read_bytes() == before
    fit_frontier(*given, "2,3", "vote", 0, tmp_path)
    assert (tmp_path / "frontier.csv").read_bytes() == before


def test_intervals_and_certificates_are_columns(folder):
    rows = fit_frontier(
        folder / "val.npz", folder / "test.npz", "1,2.5,4", ["2"], ["max_prob"], 0,
        folder / "certified", confidence=0.9, max_accuracy_drop=0.2,
    )  # fmt: skip
    assert read_frontier(folder / "certified" / "frontier.csv") == rows
    ours = [row for row in rows if row.policy == "max_prob"]
    assert [row.budget_text for row in ours[:2]] == ["2", "2"]
    for row in ours:
        assert row.extra["confidence"] == 0.9
        assert row.extra["cost_low_95"] < row.extra["cost_high_95"]
        assert row.extra["accuracy_low_95"] < row.extra["accuracy_high_95"]
        path = folder / "certified" / "policies" / f"max_prob-{row.budget_text}.json"
        assert eenet_jax.load_policy(path).budget == pytest.approx(row.budget)
    cheapest = [row for row in ours if "max_accuracy_drop" in row.extra]
    assert [row.split for row in cheapest] == ["val", "test"]
    assert cheapest[0].cost <= cheapest[0].budget
    oracle = [row for row in rows if row.policy == "oracle"]
    assert not any("cost_low_95" in row.extra for row in oracle)


def test_an_accuracy_drop_alone_needs_no_budgets(folder):
    rows = fit_frontier(
        folder / "val.npz", None, "1,2.5,4", (), ["max_prob"], 0, folder / "drop",
        max_accuracy_drop=0.2,
    )  # fmt: skip
    assert [row.policy for row in rows] == ["max_prob", "static", "oracle"]


def test_a_fit_without_a_promise_does_not_replace_one_with_it(folder):
    fit_with = functools.partial(
        fit_frontier, folder / "val.npz", None, "1,2.5,4", ["2"], ["max_prob"], 0
    )
    fit_with(folder / "sure", confidence=0.95)
    with pytest.raises(InputError, match="holds another fit"):
        fit_with(folder / "sure")
    fit_with(folder / "plain")
    with pytest.raises(InputError, match="holds another fit"):
        fit_with(folder / "plain", max_accuracy_drop=0.1)


def test_policies_of_no_fit_are_not_overwritten_and_a_refused_fit_leaves_no_folder(
    folder, tmp_path
):
    (tmp_path / "mine" / "policies").mkdir(parents=True)
    (tmp_path / "mine" / "policies" / "other.json").write_text("{}")
    with pytest.raises(InputError, match="policies of no fit"):
        fit_frontier(folder / "val.npz", None, "1,2.5,4", ["2"], ["vote"], 0, tmp_path / "mine")
    assert (tmp_path / "mine" / "policies" / "other.json").read_text() == "{}"
    synthetic(samples=30).save(tmp_path / "few.npz")
    with pytest.raises(InputError, match="too few"):
        fit_frontier(
            tmp_path / "few.npz", None, "1,2.5,4", ["2"], ["vote"], 0, tmp_path / "new" / "fit",
            confidence=0.95,
        )  # fmt: skip
    assert not (tmp_path / "new").exists()


def test_a_setting_of_another_policy_says_whose_it_is(folder, tmp_path):
    with pytest.raises(InputError, match="add eenet_paper to the policies"):
        fit_frontier(
            folder / "val.npz", None, "1,2.5,4", ["2"], ["eenet"], 0, tmp_path / "fit", restarts=2
        )


def test_predictions_that_changed_since_the_fit_are_another_fit_s(tmp_path):
    synthetic(seed=0).save(tmp_path / "val.npz")
    fit_frontier(tmp_path / "val.npz", None, "1,2.5,4", ["2"], ["vote"], 0, tmp_path / "fit")
    synthetic(seed=1).save(tmp_path / "val.npz")
    with pytest.raises(InputError, match=r"holds another fit .*predictions_sha256"):
        fit_frontier(tmp_path / "val.npz", None, "1,2.5,4", ["2"], ["vote"], 0, tmp_path / "fit")
    with pytest.raises(InputError, match="has changed since"):
        read_sources([tmp_path / "fit"])
