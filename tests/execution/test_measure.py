"""The arithmetic of savings, on given numbers; nothing about how fast this machine is."""

import dataclasses
import io
import json
import threading

import flax.linen as nn
import jax
import numpy as np
import pytest
from jaxtyping import Array, Float
from replay import HandOn, exit_probs, replay_network
from rich.console import Console

from eenet_jax import networks, pieces
from eenet_jax.artifacts import read_json
from eenet_jax.data import datasets
from eenet_jax.data.images import ImageSplit
from eenet_jax.errors import InputError
from eenet_jax.execution import adaptive, latency
from eenet_jax.execution.latency import StageLatency, load_stage_latency
from eenet_jax.execution.measure import REFERENCES, STRATEGIES, Bench, Measurement, _Timed, to_json
from eenet_jax.policies.max_prob import MaxProb
from eenet_jax.timing import Timing

EXITS, CLASSES = 3, 2
NOTHING = {"params": {}, "batch_stats": {}}


def _policy(budget: float = 2.0, exits: int = EXITS) -> MaxProb:
    thresholds = np.full(exits, 0.9, np.float32)
    costs = tuple(float(2**k) for k in range(exits))
    return MaxProb(budget=budget, costs=costs, thresholds=thresholds)


def _leaving_at(exits: list[int]) -> np.ndarray:
    logits = np.zeros((len(exits), EXITS, CLASSES), np.float32)
    logits[np.arange(len(exits)), exits, 0] = 9.0
    return logits


LEAVE = [0, 0, 1, 0, 1, 2, 0, 2]


@pytest.fixture(scope="module")
def bench():
    network = replay_network(EXITS, CLASSES)
    logits = _leaving_at(LEAVE)
    return Bench(network, NOTHING, [logits[:3], logits[3:6], logits[6:]], 2, "some device")


def test_no_sample_is_left_out(bench):
    assert bench.samples == 8
    assert [len(batch) for batch in bench.batches] == [3, 3, 2]
    np.testing.assert_allclose(bench.probs, exit_probs(_leaving_at(LEAVE)), rtol=1e-6)


def test_strategies_are_measured_beside_the_full_network(bench):
    measured = bench.measure(_policy(), STRATEGIES)
    assert [row.strategy for row in measured] == [*REFERENCES, *STRATEGIES]
    full = measured[0]
    assert full.speedup == 1.0
    for row in measured:
        assert row.samples_per_second == pytest.approx(8 / row.median_seconds)
        # No pass is further from the median than the spread, of this or of the full network.
        assert row.speedup <= (full.median_seconds + full.spread_seconds) / max(
            row.median_seconds - row.spread_seconds, 1e-9
        )
        assert row.speedup * (row.median_seconds + row.spread_seconds) >= (
            full.median_seconds - full.spread_seconds
        )
        assert row.same_exits == 1.0
        assert (row.policy, row.budget, row.device) == ("max_prob", 2.0, "some device")
        assert (row.samples, row.batch_size) == (8, 3)
        # The full network once more, to be held against what ran last.
        assert row.repeats == (3 if row.strategy == "full" else 2)
        assert row.spread_seconds >= 0
        # Nobody waits longer than a pass takes.
        assert 0 < row.p50_ms <= row.p95_ms
        assert row.p95_ms <= 1e3 * (row.median_seconds + row.spread_seconds)
    for row in measured[: len(REFERENCES)]:
        decided = row.strategy == "full_with_decisions"
        assert row.exit_rates == ((0.5, 0.25, 0.25) if decided else (0.0, 0.0, 1.0))
        assert (row.ideal_speedup, row.realised_over_ideal) == (1.0, None)
    for row in measured[len(REFERENCES) :]:
        assert row.exit_rates == (0.5, 0.25, 0.25)
    assert [bool(row.picked) for row in measured] == [False] * (len(measured) - 1) + [True]


def _with_parts(bench: Bench, parts) -> Bench:
    other = object.__new__(Bench)
    latency = StageLatency(
        device="d",
        sizes=(3,),
        seconds=np.asarray(parts)[:, None],
        full_seconds=np.asarray([1.0]),
        call_seconds=0.0,
        pieces=(3, 3, 3),
    )
    vars(other).update(vars(bench), latency=latency)
    return other


def _timed(seconds, exits, middles=None) -> _Timed:
    waits = [np.linspace(0.001, 0.1, len(exits)) for _ in seconds]
    timed = _Timed(lambda: (exits, waits[0]), exits=np.asarray(exits))
    timed.seconds, timed.waits = list(seconds), waits
    timed.middles = list(range(len(seconds)) if middles is None else middles)
    return timed


def _row(bench: Bench, name: str, seconds, exits, wanted=None, full=(10.0,), middles=None):
    timed = _timed(seconds, exits, middles)
    full = _timed(full, exits)
    wanted = np.asarray(exits if wanted is None else wanted)
    return bench._measurement(_policy(), name, timed, full, wanted)


def test_realised_saving_is_held_against_the_ideal_one(bench):
    bench = _with_parts(bench, [0.5, 0.3, 0.2])
    wanted = [0, 0, 1, 0, 1, 2, 0, 2]
    row = _row(bench, "compacted", [9.0, 7.0, 8.0], wanted)
    assert (row.median_seconds, row.spread_seconds) == (8.0, 2.0)
    assert row.samples_per_second == 1.0
    assert row.speedup == pytest.approx(1.25)
    assert row.ideal_speedup == pytest.approx(1 / 0.7)
    assert row.realised_over_ideal == pytest.approx((10 - 8) / (10 - 7))
    assert row.same_exits == 1.0
    assert row.p50_ms == pytest.approx(50.5)
    assert row.p95_ms == pytest.approx(np.percentile(np.linspace(1, 100, 8).tolist() * 3, 95))
    off_by_one = _row(bench, "masked", [12.0], [0, 0, 1, 0, 1, 2, 0, 1], wanted)
    assert off_by_one.same_exits == pytest.approx(7 / 8)
    assert off_by_one.realised_over_ideal < 0
    row = _row(bench, "masked", [9.0], [2] * 8)
    assert (row.ideal_speedup, row.realised_over_ideal) == (1.0, None)


def test_a_pass_is_held_against_the_full_network_of_its_time(bench):
    bench, exits = _with_parts(bench, [0.5, 0.3, 0.2]), [0, 0, 1, 0, 1, 2, 0, 2]
    # The machine slows down to half, and both with it.
    slowing = {"full": [10.0, 12.0, 20.0], "middles": [0.5, 1.5]}
    row = _row(bench, "streaming", [0.8 * 11.0, 0.8 * 16.0], exits, **slowing)
    assert row.speedup == pytest.approx(1.25)
    assert row.realised_over_ideal == pytest.approx((1 - 0.8) / (1 - 0.7))
    assert row.median_seconds == pytest.approx(0.8 * 13.5)
    full = _row(bench, "full", [10.0, 12.0, 20.0], [2] * 8, full=[10.0, 12.0, 20.0])
    assert (full.speedup, full.median_seconds) == (1.0, 12.0)


def test_a_measurement_becomes_json(bench):
    row = _row(_with_parts(bench, [0.5, 0.3, 0.2]), "masked", [1.0], [0] * 8)
    value = json.loads(json.dumps(to_json(row)))
    value["exit_rates"] = tuple(value["exit_rates"])
    assert Measurement(**value) == row


def test_wrong_strategies_are_named(bench):
    with pytest.raises(InputError, match="strategy 'streamed' is unknown: choose masked, compact"):
        bench.measure(_policy(), ("streamed",))


@pytest.fixture
def fit(tmp_path):
    for budget in (3.0, 1.5):
        _policy(budget).save(tmp_path / "policies" / f"max_prob-{budget}.json")
    return tmp_path


def test_fitted_policies_are_found_cheapest_first(fit):
    found = adaptive.find_policies(fit, "max_prob", None)
    assert [policy.budget for policy in found] == [1.5, 3.0]
    (one,) = adaptive.find_policies(fit, "max_prob", ["3.0"])
    assert one.budget == 3.0


def test_missing_policies_and_budgets_are_named(fit):
    with pytest.raises(InputError, match=r"no policy 'vote' \(it has max_prob\): fit it with"):
        adaptive.find_policies(fit, "vote", None)
    with pytest.raises(InputError, match=r"elsewhere' holds no policies: fit some"):
        adaptive.find_policies(fit / "elsewhere", "max_prob", None)
    with pytest.raises(InputError, match=r"for budget 2\.0 \(there are "):
        adaptive.find_policies(fit, "max_prob", ["2.0"])


class Corner(nn.Module):
    """A stage that hands on the corner of an image as if it held logits."""

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 1"], train: bool):
        return images[:, :EXITS, :CLASSES, 0]


def _images() -> ImageSplit:
    """Nine images in the manner of a prepared test split."""
    spec = datasets.get("digits")
    pixels = np.random.default_rng(0).integers(0, 256, (9, *spec.image_shape), np.uint8)
    labels = np.zeros(9, np.int32)
    return ImageSplit(spec=spec, split="test", ids=np.arange(9), images=pixels, labels=labels)


@pytest.fixture
def run(fit, monkeypatch):
    """A run whose network takes pixels for logits, and whose data set is `_images()`."""
    replay = replay_network(EXITS, CLASSES, [Corner(), HandOn(), HandOn()])
    network = dataclasses.replace(replay, input_shape=_images().spec.image_shape)
    monkeypatch.setattr(adaptive, "open_run_split", lambda run, split, data_dir: _images())
    monkeypatch.setattr(adaptive, "load_network", lambda run: (network, NOTHING, {}))
    return fit


def test_a_run_is_measured_and_its_measurements_kept(run):
    options = {"policy": "max_prob", "strategies": ("masked",), "batch_size": 4, "repeats": 1}
    measured = adaptive.run_adaptive(run, budgets=["1.5"], **options)
    assert [row.strategy for row in measured] == [*REFERENCES, "masked"]
    assert {row.samples for row in measured} == {9}
    kept = read_json(run / "execution.json")
    assert kept == [json.loads(json.dumps(to_json(row))) for row in measured]
    adaptive.run_adaptive(run, budgets=["3.0"], samples=2, **options)
    rows = read_json(run / "execution.json")
    assert rows[: len(kept)] == kept
    later = rows[len(kept) :]
    assert [(row["budget"], row["batch_size"]) for row in later] == [(3.0, 2)] * len(kept)


def test_latencies_of_stages_are_measured_once_for_a_device(run):
    options = {"policy": "max_prob", "strategies": ("host_compacted",), "repeats": 1}
    adaptive.run_adaptive(run, budgets=["1.5"], batch_size=4, **options)
    path = run / "stage_latency.json"
    kept = load_stage_latency(path)
    assert kept.sizes == (1, 2, 4)
    assert kept.sample_shape == (8, 8, 1)
    adaptive.run_adaptive(run, budgets=["1.5"], batch_size=2, **options)
    np.testing.assert_array_equal(load_stage_latency(path).seconds, kept.seconds)
    # Of another device it says nothing; and a larger batch asks for more.
    dataclasses.replace(kept, device="another").save(path)
    adaptive.run_adaptive(run, budgets=["1.5"], batch_size=4, **options)
    assert load_stage_latency(path).device == kept.device
    adaptive.run_adaptive(run, budgets=["1.5"], batch_size=9, **options)
    assert load_stage_latency(path).sizes == (1, 2, 4, 8, 9)
    # Who chooses nothing by them asks for no more than the ideal needs, and keeps what there is.
    options["strategies"] = ("masked",)
    adaptive.run_adaptive(run, budgets=["1.5"], batch_size=7, **options)
    assert load_stage_latency(path).sizes == (1, 2, 4, 7, 8, 9)
    path.unlink()
    adaptive.run_adaptive(run, budgets=["1.5"], batch_size=9, **options)
    assert load_stage_latency(path).sizes == (9,)


def test_what_two_programs_at_once_take_is_measured_where_they_run_so(bench, monkeypatch):
    asked = (bench.network, _policy(), NOTHING, bench.batches[0], (1, 3), 2)
    assert latency.measure_stage_latency(*asked).beside is None
    monkeypatch.setattr(latency, "number_of_sides", lambda: 2)
    assert latency.measure_stage_latency(*asked).beside.shape == (2,)
    threads = []

    def timed(calls, repeats, limit_s):
        for call in calls.values():
            call()
        assert (repeats, limit_s) == (3, 10.0)
        return {
            "alone": Timing(seconds=(2.0, 4.0, 2.0)),
            "at once": Timing(seconds=(3.0, 6.4, 3.2)),
        }

    monkeypatch.setattr(latency, "measure_in_turn", timed)
    share = latency._share_beside(lambda: threads.append(threading.get_ident()), 3, 10.0)
    assert share == 0.8
    assert len(threads) == 3
    assert len(set(threads)) == 2


def test_what_cannot_be_measured_is_named(run):
    for name in ("batch_size", "samples", "repeats"):
        with pytest.raises(InputError, match=f"{name} is 0: give 1 or more"):
            adaptive.run_adaptive(run, policy="max_prob", **{name: 0})
    _policy(exits=2).save(run / "policies" / "max_prob-2.0.json")
    with pytest.raises(InputError, match=r"is for 2 exits, the network of .* has 3"):
        adaptive.run_adaptive(run, policy="max_prob")


def test_measurements_are_printed_as_a_table(bench):
    bench = _with_parts(bench, [0.5, 0.3, 0.2])
    rows = [
        _row(bench, "full", [10.0], [2] * 8),
        _row(bench, "masked", [8.0], [0, 0, 0, 0, 1, 1, 2, 2]),
    ]
    sink = io.StringIO()
    adaptive.print_measurements(rows, Console(file=sink))
    printed = sink.getvalue()
    assert "max_prob, batch 3, 8 samples" in printed
    assert "1.25" in printed
    assert "50.0 25.0 25.0" in printed
    assert "100.00 %" in printed


def test_the_last_exit_runs_no_other_head(monkeypatch):
    network = networks.build(
        "cnn", widths=(4, 4, 4), depths=(1, 1, 1), num_classes=3, input_shape=(8, 8, 1)
    )
    variables = network.init(jax.random.key(0))
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
    monkeypatch.setattr(pieces, "CACHE_BYTES", 4 * 8 * 8 * 4 * 4)  # Four images.
    bench = Bench(network, variables, [images], 1, "some device")
    wanted = network.apply(variables, images)[-1]
    # Without their weights no other head can be computed, and nobody misses them.
    for tree in variables.values():
        for name in ("head_0", "head_1"):
            tree.pop(name, None)
    np.testing.assert_allclose(bench._last(variables, images), wanted, rtol=1e-5, atol=1e-6)
