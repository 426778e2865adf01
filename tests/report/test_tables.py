"""Every number in a table equals that of the file it was read from."""

import csv
import json
import shutil
import statistics

import numpy as np
import pytest

from eenet_jax.errors import InputError
from eenet_jax.execution.measure import REFERENCES
from eenet_jax.report import comparison_table as comparison_tables
from eenet_jax.report import tables
from eenet_jax.report.comparison_table import comparison_table
from eenet_jax.report.sources import Comparison, read_sources


def _csv_values(folders, policy, budget, split, column):
    found = []
    for folder in folders:
        with (folder / "frontier.csv").open(newline="") as source:
            for row in csv.DictReader(source):
                if (row["policy"], row["budget"], row["split"]) == (policy, budget, split):
                    found.append(float(row[column]))
    return found


def _rewrite(path, change):
    with path.open(newline="") as source:
        rows = list(csv.DictReader(source))
    rows = change(rows)
    with path.open("w", newline="") as sink:
        writer = csv.DictWriter(sink, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _cell(table, first, column):
    row = next(row for row in table.rows if row[0] == first)
    return row[table.header.index(column)]


def test_mean_and_deviation_by_hand():
    assert tables.mean_sd([1.0, 2.0, 4.0], 2) == "2.33 ± 1.53"
    assert tables.mean_sd([0.5], 1) == "0.5"
    assert tables.mean_sd([], 1) == tables.MISSING
    assert tables.percent([0.91234]) == "91.23"


@pytest.mark.parametrize(
    ("largest", "decimals"), [(155.63, 2), (4.93, 4), (3246.2, 1), (123456.0, 0), (0.5, 5)]
)
def test_costs_show_five_digits(largest, decimals):
    assert tables.cost_decimals(largest) == decimals


def test_frontier_tables_equal_the_csv_over_seeds(report_folders):
    inputs, _ = report_folders
    sources = read_sources(inputs)
    accuracy, test_cost, val_cost = tables.frontier_tables(sources)
    for policy in sources.policies:
        for budget in sources.budgets:
            for table, split, column, scale, decimals in (
                (accuracy, "test", "accuracy", 100, 2),
                (test_cost, "test", "cost", 1, 3),
                (val_cost, "val", "cost", 1, 3),
            ):
                values = [scale * v for v in _csv_values(inputs[1:], policy, budget, split, column)]
                assert len(values) == 3
                mean, deviation = statistics.fmean(values), statistics.stdev(values)
                expected = f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"
                assert _cell(table, policy, budget).removesuffix(" (over)") == expected
    assert "n = 3 fits (seeds 0, 1, 2)" in accuracy.note


def test_one_fit_has_no_deviation_and_says_so(folders):
    table = tables.frontier_tables(read_sources(folders))[0]
    budget = table.header[1]
    (value,) = _csv_values([folders[1]], "eenet", budget, "test", "accuracy")
    assert _cell(table, "eenet", budget) == f"{100 * value:.2f}"
    assert table.note.startswith("n = 1 fit (seed 0)")


def test_a_policy_that_a_seed_lacks_states_its_own_n(report_folders, tmp_path):
    inputs, _ = report_folders
    copy = shutil.copytree(inputs[1], tmp_path / "fit")
    _rewrite(copy / "frontier.csv", lambda rows: [r for r in rows if r["policy"] != "vote"])
    table = tables.frontier_tables(read_sources([copy, inputs[2]]))[0]
    assert _cell(table, "vote", table.header[1]).endswith(" (n = 1)")
    assert "±" in _cell(table, "eenet", table.header[1])


def test_a_cost_above_the_budget_is_marked(folders):
    def overspend(rows):
        for row in rows:
            if row["policy"] == "eenet" and row["split"] == "val":
                row["cost"] = str(float(row["budget"]) * 1.01)
        return rows

    _rewrite(folders[1] / "frontier.csv", overspend)
    table = tables.frontier_tables(read_sources(folders))[2]
    assert all("(over)" in cell for cell in next(r for r in table.rows if r[0] == "eenet")[1:])
    assert not any("(over)" in c for c in next(r for r in table.rows if r[0] == "max_prob"))


def test_exit_table_equals_the_predictions(folders):
    sources = read_sources(folders)
    table = tables.exit_table(sources)
    probs = np.load(folders[0] / "predictions" / "test.npz")
    right = (probs["probs"].argmax(-1) == probs["labels"]).mean(1)
    assert [row[2] for row in table.rows] == [f"{100 * value:.2f}" for value in right]
    costs = json.loads((folders[0] / "costs.json").read_text())["costs"]
    assert [float(row[3]) for row in table.rows] == costs
    assert table.header[4] == "latency (ms)"
    assert "120 val samples and 120 test samples" in table.note


def test_comparison_counts_what_lies_beyond_the_interval(report_folders):
    sources = read_sources(report_folders[0])
    table = comparison_table(sources)
    differences = np.asarray([[0.004 * (i - 1) + 0.001 * s for i in range(5)] for s in range(3)])
    first, third, mean = table.rows[0], table.rows[2], table.rows[-1]
    assert first[1:4] == ("max_prob", "-0.300 ± 0.100", "0.500")
    assert third[1:4] == ("max_prob", "0.500 ± 0.100", "0.500")
    assert first[5] == "3 level"
    overall = 100 * differences.mean(1)
    assert mean[2] == f"{overall.mean():.3f} ± {overall.std(ddof=1):.3f}"
    for row, budget in zip(table.rows, sources.budgets, strict=False):
        ratios = [
            ours.cost / theirs.cost
            for ours, theirs in zip(
                sources.rows("eenet", budget, "test"),
                sources.rows(row[1], budget, "test"),
                strict=True,
            )
        ]
        assert row[4] == tables.mean_sd(ratios, 3)


@pytest.mark.parametrize(
    ("difference", "ratio", "word"),
    [
        (0.006, 1.01, "better"),
        (0.006, 0.90, "better"),
        (0.006, 1.03, "dearer"),
        (0.004, 1.50, "level"),
        (-0.006, 0.97, "cheaper"),
        (-0.006, 1.50, "worse"),
        (0.006, None, "better"),
    ],
)
def test_a_gain_that_was_paid_for_is_no_gain(difference, ratio, word):
    entry = Comparison(
        budget_text="1", baseline="max_prob", difference=difference, half_width=0.005
    )
    assert comparison_tables._word(comparison_tables._Compared(entry, ratio)) == word


def test_what_is_measured_whatever_the_policy_is_known_here():
    assert tables.FIXED_STRATEGIES == REFERENCES


def test_speed_tables_equal_the_measurements(folders):
    sources = read_sources(folders)
    entries = json.loads((folders[1] / "execution.json").read_text())
    table, timings = tables.speed_table(sources), tables.timing_table(sources)
    for entry in entries:
        budget = next(b for b in sources.budgets if float(b) == entry["budget"])
        key = ("eenet", budget, str(entry["batch_size"]))
        fixed = {"full_with_decisions": (4, "1.02"), "last_exit": (5, "1.05")}
        if entry["strategy"] in fixed:
            place, wanted = fixed[entry["strategy"]]
            assert next(row for row in table.rows if row[:3] == key)[place] == wanted
        elif entry["strategy"] != "full":
            row = next(row for row in table.rows if row[:3] == key)
            cell = f"{entry['speedup']:.2f} ({entry['realised_over_ideal']:.2f})"
            assert row[table.header.index(entry["strategy"])] == cell
            assert row[3] == f"{entry['ideal_speedup']:.2f}"
        timing = next(r for r in timings.rows if r[:4] == (*key, entry["strategy"]))
        assert timing[4] == f"{entry['samples_per_second']:.0f}"
        assert timing[5] == f"{1000 * entry['median_seconds']:.3f}"
    assert len(timings.rows) == len(entries)
    assert "n = 20 passes over 120 samples" in table.note


def test_markdown_has_as_many_cells_as_columns(folders):
    table = tables.frontier_tables(read_sources(folders))[0]
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows)
    assert {line.count("|") for line in lines} == {len(table.header) + 1}


def test_no_frontier_is_an_input_error(folders):
    with pytest.raises(InputError, match=r"no frontier.csv in .*run.*eenet fit"):
        read_sources(folders[:1])
    with pytest.raises(InputError, match="no folder"):
        read_sources([folders[0] / "nowhere"])


def test_fits_of_other_budgets_do_not_mix(report_folders, tmp_path):
    inputs, _ = report_folders
    copy = shutil.copytree(inputs[1], tmp_path / "fit")
    _rewrite(copy / "frontier.csv", lambda rows: [r for r in rows if r["budget"] != "12.8"])
    with pytest.raises(InputError, match="differ in their budgets"):
        read_sources([inputs[2], copy])


def test_a_folder_given_twice_counts_once(folders):
    assert len(read_sources([*folders, folders[1]]).fits) == 1


@pytest.mark.parametrize("name", ["comparison.csv", "execution.json", "fit.json"])
def test_a_damaged_file_is_an_input_error(folders, name):
    (folders[1] / name).write_text("nonsense\n1\n")
    with pytest.raises(InputError, match=name):
        read_sources(folders)


def test_a_metrics_file_damaged_in_the_middle_is_an_input_error(folders):
    path = folders[0] / "metrics.jsonl"
    assert len(read_sources(folders).runs[0].metrics) == 120
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(InputError, match="line 1 is not JSON"):
        read_sources(folders)


def test_a_fit_alone_finds_the_predictions_that_it_names(folders):
    settings = json.loads((folders[1] / "fit.json").read_text())
    settings |= {"test": str(folders[0] / "predictions" / "test.npz")}
    (folders[1] / "fit.json").write_text(json.dumps(settings))
    sources = read_sources(folders[1:])
    assert list(sources.runs[0].predictions) == ["test"]
    assert tables.exit_table(sources).header == (
        "exit",
        "test accuracy (%)",
        "cost (MMACs)",
    )


def test_dense_prediction_shows_its_own_measures(folders):
    def with_miou(rows):
        return [row | {"miou": "0.625"} for row in rows]

    _rewrite(folders[1] / "frontier.csv", with_miou)
    table = tables.frontier_tables(read_sources(folders))[-1]
    assert table.title == "Mean IoU on test (%)"
    assert {cell for row in table.rows for cell in row[1:]} == {"62.50"}


def test_a_frontier_without_rows_is_an_input_error(folders):
    path = folders[1] / "frontier.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match="has no rows"):
        read_sources(folders)


def test_runs_of_other_networks_do_not_mix(folders, tmp_path):
    copy = shutil.copytree(folders[0], tmp_path / "other")
    config = json.loads((copy / "config.json").read_text())
    config["network"]["name"] = "resnet"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"differ in their network \(cnn and resnet\)"):
        read_sources([*folders, copy])


def test_exits_of_labelled_pixels_have_mean_iou_beside_accuracy(folders):
    path = folders[0] / "predictions" / "test.npz"
    with np.load(path) as stored:
        members = {name: stored[name] for name in stored.files}
    exits, samples, classes = members["probs"].shape
    draw = np.random.default_rng(0)
    confusion = draw.integers(0, 9, (exits, samples, classes, classes))
    right = np.trace(confusion, axis1=2, axis2=3) / confusion.sum((2, 3))
    members |= {"labels": np.full(samples, -1), "correct": right.astype(np.float32)}
    members |= {"measures": np.zeros((exits, samples, 5), np.float32), "confusion": confusion}
    np.savez(path, **members)
    table = tables.exit_table(read_sources(folders))
    assert table.header[2:5] == ("test accuracy (%)", "test mIoU (%)", "test pixel accuracy (%)")
    for k, row in enumerate(table.rows):
        total = confusion[k].sum(0)
        hits = np.diag(total)
        iou = (hits / (total.sum(0) + total.sum(1) - hits)).mean()
        expected = (right[k].mean(), iou, hits.sum() / total.sum())
        assert row[2:5] == tuple(f"{100 * value:.2f}" for value in expected)


def test_several_trainings_are_one_table_with_deviations(folders, tmp_path):
    copy = shutil.copytree(folders[0], tmp_path / "second")
    with np.load(copy / "predictions" / "test.npz") as stored:
        members = {name: stored[name] for name in stored.files}
    members["labels"] = np.roll(members["labels"], 1)
    np.savez(copy / "predictions" / "test.npz", **members)
    table = tables.exit_table(read_sources([*folders, copy]))
    shares = []
    for folder in (folders[0], copy):
        with np.load(folder / "predictions" / "test.npz") as stored:
            shares.append(100 * (stored["probs"].argmax(-1) == stored["labels"]).mean(1))
    means, deviations = np.mean(shares, 0), np.std(shares, 0, ddof=1)
    expected = [f"{m:.2f} ± {s:.2f}" for m, s in zip(means, deviations, strict=True)]
    assert [row[2] for row in table.rows] == expected
    assert "n = 2 trainings" in table.note
