"""Predictions of strategies against numbers by hand, enumeration and simulation."""

import dataclasses
import json
import math

import numpy as np
import pytest

from eenet_jax.errors import InputError
from eenet_jax.execution import prediction
from eenet_jax.execution.latency import StageLatency, load_stage_latency
from eenet_jax.execution.planning import Device
from eenet_jax.execution.prediction import (
    STRATEGIES,
    Measured,
    ideal_share,
    predict,
    predictions,
    survivor_shares,
    tabulate,
    validate,
)
from eenet_jax.execution.sizes import switch_sizes

FLOPS = (1e6, 2e6, 3e6)
RATES = (0.5, 0.25, 0.25)


def table(sizes=(1, 2, 4, 8, 16, 32, 64), work=FLOPS, **changes) -> StageLatency:
    """Of one GFLOP/s where nothing else costs anything, or what changes say."""
    figures = {"launch_seconds": 0.0, "read_seconds": 0.0, "peak_flops": 1e9, "half_work": 0.0}
    made = Device(**{"name": "d", "source": "s", "predicted": False, **figures, **changes})
    return made.table(work, sizes)


@pytest.fixture(autouse=True)
def work_alone(monkeypatch):
    """What a stream's host does for every sample is left out of sums made by hand."""
    monkeypatch.setattr(prediction, "STREAM_SECONDS", 0.0)


COSTLY = {"launch_seconds": 1e-3, "read_seconds": 5e-4, "half_work": 1e6}


def test_where_only_work_costs_survivors_alone_realise_the_ideal():
    rows = predictions(table(), RATES, [8])
    seconds = {row.strategy: row.seconds_per_sample for row in rows}
    realised = {row.strategy: row.realised_over_ideal for row in rows}
    assert seconds["full"] == pytest.approx(6e-3)
    assert realised["full"] == 0
    for strategy in ("host_compacted", "streaming"):
        assert seconds[strategy] == pytest.approx(2.75e-3)
        assert realised[strategy] == pytest.approx(1)


def test_a_stream_pays_for_every_sample(monkeypatch):
    free = predict(table(), RATES, 8, "streaming")
    monkeypatch.setattr(prediction, "STREAM_SECONDS", 1e-3)
    assert predict(table(), RATES, 8, "streaming") == pytest.approx(free + 1e-3)


def _in_pieces_of_four() -> StageLatency:
    """A table whose program works in pieces of 4, at three quarters of what calls on 4 take."""
    return StageLatency(
        device="d",
        sizes=(1, 2, 4, 8),
        seconds=np.asarray([[2.0, 3.0, 4.0, 6.0], [4.0, 6.0, 8.0, 12.0], [6.0, 9.0, 12.0, 18.0]]),
        full_seconds=np.asarray([12.0, 18.0, 24.0, 36.0]),
        call_seconds=0.0,
        pieces=(4, 4, 4),
    )


def test_halves_of_a_batch_and_batches_of_a_stream_go_through_at_once():
    alone = dataclasses.replace(table(**COSTLY), pieces=(4, 4, 4))
    beside = np.asarray([1.0, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6])
    both = dataclasses.replace(alone, beside=beside)
    for name in ("full", "host_compacted"):
        assert predict(both, RATES, 16, name) == predict(alone, RATES, 16, name)
    assert predict(both, RATES, 16, "streaming") == pytest.approx(
        0.6 * predict(alone, RATES, 16, "streaming")
    )
    for name in ("masked", "compacted"):
        # Two of eight at once, which take 0.7 of what they take one after the other.
        half = predict(alone, RATES, 8, name)
        assert predict(both, RATES, 16, name) == pytest.approx(0.7 * half)
        # Of fifteen one half has eight; and a single sample has no halves.
        assert predict(both, RATES, 15, name) == pytest.approx(0.7 * half * 16 / 15)
        assert predict(both, RATES, 1, name) == predict(alone, RATES, 1, name)


def test_masked_skips_what_a_whole_piece_has_no_need_of():
    found = predict(_in_pieces_of_four(), RATES, 8, "masked")
    # Everybody of four has left before stage 1 with 1/2^4, before stage 2 with (3/4)^4.
    assert found == pytest.approx(0.75 * (4 + 8 * (1 - 0.5**4) + 12 * (1 - 0.75**4)) / 4)
    assert predict(_in_pieces_of_four(), RATES, 8, "full") == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("rates", "share"),
    [((1.0, 0.0, 0.0), 1 / 6), ((0.0, 1.0, 0.0), 1 / 2), ((0.5, 0.25, 0.25), 11 / 24)],
)
def test_the_ideal_is_each_stage_for_those_who_reach_it(rates, share):
    # On batches of 8 stages take 6, 12 and 18, on one sample 2, 4 and 6.
    assert ideal_share(_in_pieces_of_four(), rates, 8) == pytest.approx(share)
    assert ideal_share(_in_pieces_of_four(), (1.0, 0.0, 0.0), 1) == pytest.approx(2 / 12)


def test_streaming_fills_its_pieces():
    found = predict(_in_pieces_of_four(), RATES, 8, "streaming")
    assert found == pytest.approx(0.75 * (4 + 0.5 * 8 + 0.25 * 12) / 4)


def test_launches_reads_and_half_work_by_hand():
    latency = table((4,), **COSTLY)
    seconds = {s: predict(latency, RATES, 4, s) for s in ("full", "streaming")}
    # In ms: one launch and read (1.5), and 4, 8, 12 of work with 1 before each.
    assert seconds["full"] == pytest.approx((1.5 + 5 + 9 + 13) * 1e-3 / 4)
    streaming = 1.5 + 5 + 0.5 * 9 + 0.25 * 13
    assert seconds["streaming"] == pytest.approx(streaming * 1e-3 / 4)
    (row,) = predictions(latency, RATES, [4], ["streaming"])
    # Of the summed stage times the stages have 6.5, 10.5 and 14.5.
    ideal = 28.5 * (6.5 + 0.5 * 10.5 + 0.25 * 14.5) / 31.5
    assert row.realised_over_ideal == pytest.approx((28.5 - streaming) / (28.5 - ideal))


@pytest.mark.parametrize("strategy", ["masked", "host_compacted", "compacted", "streaming"])
def test_who_leaves_at_the_first_exit_costs_one_stage(strategy):
    found = predict(table((8,), **COSTLY), (1.0, 0.0, 0.0), 8, strategy)
    assert found == pytest.approx((1.5 + 8 + 1) * 1e-3 / 8)


def test_where_nobody_leaves_early_nothing_can_be_saved():
    latency = table((8,), **COSTLY)
    rows = predictions(latency, (0.0, 0.0, 1.0), [8])
    assert [row.realised_over_ideal for row in rows] == [None] * len(STRATEGIES)
    seconds = {row.strategy: row.seconds_per_sample for row in rows}
    assert seconds["masked"] == pytest.approx(seconds["full"])
    assert seconds["host_compacted"] == pytest.approx(seconds["full"] + 2 * 1.5e-3 / 8)


def _enumerated(batch: int, cost) -> float:
    """The mean of `cost(stage, samples that reach it)` over every way in which a batch may leave.

    Per sample, summed over stages.
    """
    total = 0.0
    for first in range(batch + 1):
        for second in range(batch + 1 - first):
            left = (first, second, batch - first - second)
            ways = math.factorial(batch) / math.prod(math.factorial(n) for n in left)
            chance = ways * math.prod(r**n for r, n in zip(RATES, left, strict=True))
            reaching = (batch, batch - first, left[2])
            total += chance * sum(cost(k, n) for k, n in enumerate(reaching) if n > 0)
    return total / batch


def test_host_compacted_is_the_mean_over_everything_that_may_happen():
    latency = table((3, 10), launch_seconds=1e-3, half_work=1e6)

    def cheapest(k: int, n: int) -> float:
        # In seconds, of calls on 3 and on 10: whichever way to hold n costs least.
        three, ten = (1e-3 + (FLOPS[k] * size + 1e6) / 1e9 for size in (3, 10))
        return min(a * three + b * ten for a in range(5) for b in range(2) if 3 * a + 10 * b >= n)

    found = predict(latency, RATES, 10, "host_compacted")
    assert found == pytest.approx(_enumerated(10, cheapest), rel=1e-10)


def test_compacted_is_the_mean_over_everything_that_may_happen():
    sizes = switch_sizes(20)
    assert len(sizes) > 1

    def held(k: int, n: int) -> float:
        return (FLOPS[k] * min(size for size in sizes if size >= n) + 1e6) / 1e9

    found = predict(table(sizes, **COSTLY), RATES, 20, "compacted")
    # One launch and read for all of them.
    assert found == pytest.approx(1.5e-3 / 20 + _enumerated(20, held), rel=1e-10)


def test_compacted_in_pieces_runs_whole_ones_and_a_smaller_last():
    seconds = ((2.0, 3.0, 4.0), (4.0, 6.0, 8.0), (6.0, 9.0, 12.0))

    def cost(k: int, n: int) -> float:
        # Pieces of 4, and a last one; the first stage runs on whole pieces alone. What 3 take was
        # not measured: as much as halfway between 2 and 4.
        between = (seconds[k][1] + seconds[k][2]) / 2
        last = {0: 0.0, 1: seconds[k][0], 2: seconds[k][1], 3: between}[n % 4]
        return 0.75 * (n // 4 * seconds[k][2] + last)

    found = predict(_in_pieces_of_four(), RATES, 8, "compacted")
    assert found == pytest.approx(_enumerated(8, cost), rel=1e-10)
    found = predict(_in_pieces_of_four(), (1.0, 0.0, 0.0), 6, "compacted")
    assert found == pytest.approx(0.75 * 2 * 4.0 / 6)


def test_stages_run_on_pieces_of_their_own():
    latency = dataclasses.replace(_in_pieces_of_four(), pieces=(4, 8, 2))
    # Within programs: 4 take the first stage 3 s, 8 the second 12, 2 the third 4.5 as 8 take 18.
    assert predict(latency, (0.0, 0.0, 1.0), 8, "streaming") == pytest.approx((6 + 12 + 18) / 8)
    assert predict(latency, (0.0, 0.5, 0.5), 8, "streaming") == pytest.approx((6 + 12 + 9) / 8)
    assert predict(latency, (0.0, 0.0, 1.0), 8, "compacted") == pytest.approx((6 + 12 + 18) / 8)
    # Everybody goes through the second stage at once.
    assert predict(latency, (0.0, 1.0, 0.0), 8, "compacted") == pytest.approx((6 + 12) / 8)
    assert latency.piece == 2
    for wrong in ((4, 8), (4, 8, 0)):
        with pytest.raises(InputError, match="are not one for each of 3 stages: measure again"):
            dataclasses.replace(latency, pieces=wrong)


def test_masked_agrees_with_simulation():
    batch, runs = 6, 40_000
    exits = np.random.default_rng(0).choice(3, size=(runs, batch), p=RATES)
    deepest = exits.max(1)
    stages = (np.asarray(FLOPS) * batch + 1e6) / 1e9
    simulated = 1.5e-3 + np.cumsum(stages)[deepest].mean()
    found = predict(table((6,), **COSTLY), RATES, batch, "masked")
    assert found == pytest.approx(simulated / batch, rel=5e-3)


def test_survivors_of_large_batches_still_have_probabilities():
    shares = survivor_shares(np.array([1.0, 0.3, 0.0]), 5000)
    assert shares.sum(1) == pytest.approx(1, rel=1e-9)
    assert shares @ np.arange(5001) == pytest.approx([5000, 1500, 0], rel=1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dearer_launches_never_help(strategy):
    costs = [
        predict(table((16,), **(COSTLY | {"launch_seconds": launch})), RATES, 16, strategy)
        for launch in (0.0, 1e-4, 1e-2)
    ]
    assert costs == sorted(set(costs))
    # One launch a batch, or as many as stages run.
    expected = {"host_compacted": 3 - 0.5**16 - 0.75**16}.get(strategy, 1)
    assert (costs[2] - costs[0]) / 1e-2 * 16 == pytest.approx(expected)


def test_validation_puts_predictions_beside_measurements():
    latency = table((4,), **COSTLY)
    measured = predict(latency, RATES, 4, "streaming") / 2
    row = Measured(
        strategy="streaming", batch_size=4, exit_rates=RATES, seconds_per_sample=measured
    )
    (found,) = validate(latency, [row])
    assert found.predicted == pytest.approx(14.25e-3 / 4)
    assert found.relative_error == pytest.approx(1)
    assert tabulate([found])[-1] == "| streaming | 4 | 0.00178 | 0.00356 | 1 |"
    with pytest.raises(InputError, match="measure again"):
        validate(latency, [dataclasses.replace(row, seconds_per_sample=0.0)])


def test_sizes_between_and_beyond_those_measured():
    latency = table((2, 8), **COSTLY)
    np.testing.assert_allclose(
        latency.stage_seconds(0, [1, 2, 5, 8, 16]), [4.5e-3, 4.5e-3, 7.5e-3, 10.5e-3, 21e-3]
    )


def _json(folder):
    return json.loads((folder / "latency.json").read_text())


def test_a_table_is_kept_as_json(tmp_path):
    latency = dataclasses.replace(table((2, 8), **COSTLY), pieces=(2, 8, 4))
    latency.save(tmp_path / "latency.json")
    found = load_stage_latency(tmp_path / "latency.json")
    np.testing.assert_array_equal(found.seconds, latency.seconds)
    np.testing.assert_array_equal(found.full_seconds, latency.full_seconds)
    assert (found.device, found.sizes, found.pieces) == ("d", (2, 8), (2, 8, 4))
    assert found.call_seconds == latency.call_seconds
    assert found.beside is None
    dataclasses.replace(latency, beside=np.asarray([0.9, 0.8])).save(tmp_path / "latency.json")
    found = load_stage_latency(tmp_path / "latency.json")
    np.testing.assert_array_equal(found.beside, [0.9, 0.8])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"other.json' is no table of stage latencies"):
        load_stage_latency(tmp_path / "other.json")
    for broken in (
        {"format": "eenet_jax.stage_latency.2"},
        {**_json(tmp_path), "sizes": [1]},
        {**_json(tmp_path), "beside": [0.9]},
    ):
        (tmp_path / "other.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match="measure again"):
            load_stage_latency(tmp_path / "other.json")
    with pytest.raises(InputError, match="seconds of 'd' are not all positive"):
        dataclasses.replace(latency, seconds=-latency.seconds)


def test_tables_are_markdown():
    rows = predictions(table((8,)), (0.0, 0.0, 1.0), [8], ["full"])
    assert tabulate(rows) == [
        "| strategy | batch size | seconds per sample | realised over ideal |",
        "| :-- | --: | --: | --: |",
        "| full | 8 | 0.006 | - |",
    ]
    assert tabulate([]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "magic"}, "strategy 'magic' is unknown"),
        ({"batch_size": 0}, "batch_size is 0, the latencies are of batches of 1 to 64"),
        ({"batch_size": 65}, "batch_size is 65, the latencies are of batches of 1 to 64"),
        ({"exit_rates": (0.5, 0.25, 0.2)}, "sum to 1"),
        ({"exit_rates": (1.5, -0.25, -0.25)}, "sum to 1"),
        ({"exit_rates": (math.nan, 0.5, 0.5)}, "sum to 1"),
        ({"exit_rates": (0.5, 0.5)}, "are of 2 exits, the stages measured are 3"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, words):
    arguments = {
        "latency": table(),
        "exit_rates": RATES,
        "batch_size": 8,
        "strategy": "host_compacted",
    }
    with pytest.raises(InputError, match=words):
        predict(**{**arguments, **changes})
