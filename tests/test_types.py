"""Predictions and cost tables: what is accepted, and what is said of the rest."""

import json

import numpy as np
import pytest
from synthetic_exits import dense, synthetic

from eenet_jax.errors import InputError
from eenet_jax.types import CostTable, ExitPredictions

PROBS = np.full((2, 3, 4), 0.25, np.float32)
LABELS = np.asarray([0, 1, 3])


def _with(value, where=(0, 0, 0)):
    probs = PROBS.copy()
    probs[where] = value
    return probs


@pytest.mark.parametrize("make", [synthetic, dense])
def test_predictions_come_back_from_their_file(make, tmp_path):
    some = make()
    some.save(tmp_path / "val.npz")
    again = ExitPredictions.load(tmp_path / "val.npz")
    for name in ("probs", "labels", "correct", "measures", "confusion"):
        np.testing.assert_array_equal(getattr(again, name), getattr(some, name))
    assert again.probs.dtype == np.float32
    assert again.labels.dtype == np.int32


def test_correctness_is_the_argmax_against_the_label():
    probs = np.eye(4, dtype=np.float32)[[[0, 1, 2], [1, 1, 3]]]
    some = ExitPredictions(probs=probs, labels=LABELS)
    np.testing.assert_array_equal(some.correctness(), [[1, 1, 0], [0, 1, 1]])


def test_half_precision_is_renormalised():
    probs = np.random.default_rng(0).dirichlet(np.ones(50), (2, 30)).astype(np.float16)
    some = ExitPredictions(probs=probs, labels=np.zeros(30, int))
    np.testing.assert_allclose(some.probs.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("probs", "labels", "words"),
    [
        (PROBS[0], LABELS, "exits, samples, classes"),
        (PROBS[:1], LABELS, "1 exit"),
        (PROBS[..., :1] * 4, LABELS, "1 class"),
        (PROBS[:, :0], LABELS[:0], "no samples"),
        (_with(np.nan), LABELS, "NaN"),
        (_with(-0.1), LABELS, "negative"),
        (_with(0.3), LABELS, "sums to 1.05"),
        (PROBS.astype(int), LABELS, "dtype"),
        (PROBS, LABELS[:2], "labels has shape"),
        (PROBS, LABELS + 1, "labels holds 4"),
        (PROBS, LABELS - 1, "labels holds -1"),
        (PROBS, LABELS / 2, "labels has dtype"),
    ],
)
def test_bad_predictions_are_named(probs, labels, words):
    with pytest.raises(InputError, match=words):
        ExitPredictions(probs=probs, labels=labels)


def test_rows_may_miss_one_by_a_thousandth():
    kept = ExitPredictions(probs=_with(0.2509), labels=LABELS)
    np.testing.assert_array_equal(kept.probs, _with(0.2509).astype(np.float32))


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "val.npz"
    with pytest.raises(InputError, match="check the path"):
        ExitPredictions.load(path)
    np.savez(path, probs=PROBS)
    with pytest.raises(InputError, match="no array 'labels'"):
        ExitPredictions.load(path)
    synthetic().save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="not a readable"):
        ExitPredictions.load(path)


def test_wrong_optional_shapes_are_named():
    with pytest.raises(InputError, match="measures has shape"):
        ExitPredictions(probs=PROBS, labels=LABELS, measures=np.zeros((2, 3, 4)))


def test_cost_tables_come_from_numbers_text_and_files(tmp_path):
    table = CostTable(costs=(1.0, 2.5), unit="ms", extra={"compiler_mflops": [1, 2]})
    table.save(tmp_path / "costs.json")
    assert CostTable.parse(tmp_path / "costs.json") == table
    assert CostTable.parse(str(tmp_path / "costs.json")) == table
    assert CostTable.parse("1, 2.5").costs == CostTable.parse([1.0, 2.5]).costs == table.costs


@pytest.mark.parametrize("text", ["1", "2,1", "1,1", "0,1", "1,inf"])
def test_bad_costs_are_named(text):
    with pytest.raises(InputError, match="costs"):
        CostTable.parse(text)


@pytest.mark.parametrize("value", [[1, 2], {"unit": "ms"}, {"costs": ["a", 2]}, {"costs": [2, 1]}])
def test_bad_cost_files_are_named(tmp_path, value):
    (tmp_path / "costs.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"costs\.json"):
        CostTable.load(tmp_path / "costs.json")
