"""The planning model against numbers by hand, enumeration and simulation."""

import dataclasses
import math

import numpy as np
import pytest

from eenet_jax.errors import InputError
from eenet_jax.execution.device_compacted import bucket_sizes
from eenet_jax.execution.latency import StageLatency
from eenet_jax.execution.planning import (
    H100,
    STRATEGIES,
    TPU_V5E,
    Device,
    Measured,
    best,
    fit_device,
    predict,
    predictions,
    survivor_shares,
    tabulate,
    validate,
)

FLOPS = (1e6, 2e6, 3e6)
RATES = (0.5, 0.25, 0.25)
SIZES = (1, 4, 32, 256)


def device(**changes) -> Device:
    """One GFLOP/s, and nothing else costs anything."""
    figures = {"launch_seconds": 0.0, "read_seconds": 0.0, "peak_flops": 1e9, "half_work": 0.0}
    return Device(**{"name": "d", "source": "s", "predicted": False, **figures, **changes})


COSTLY = device(launch_seconds=1e-3, read_seconds=5e-4, half_work=1e6)


def table(costs: Device, work=FLOPS) -> StageLatency:
    """What measuring that device would give, exactly."""
    fixed = costs.launch_seconds + costs.read_seconds
    parts = (np.outer(work, SIZES) + costs.half_work) / costs.peak_flops
    return StageLatency(
        device="measured", sizes=SIZES, seconds=fixed + parts, full_seconds=fixed + parts.sum(0)
    )


def test_where_only_work_costs_survivors_alone_realise_the_ideal():
    rows = predictions(device(), FLOPS, RATES, [8], sizes=range(1, 9))
    seconds = {row.strategy: row.seconds_per_sample for row in rows}
    realised = {row.strategy: row.realised_over_ideal for row in rows}
    assert seconds["full"] == pytest.approx(6e-3)
    assert realised["full"] == 0
    for strategy in ("compacted", "streaming"):
        assert seconds[strategy] == pytest.approx(2.75e-3)
        assert realised[strategy] == pytest.approx(1)
    # Everybody has left before stage 1 with 1/2^8, before stage 2 with (3/4)^8.
    masked = 1e-3 * (1 + 2 * (1 - 0.5**8) + 3 * (1 - 0.75**8))
    assert seconds["masked"] == pytest.approx(masked)
    assert realised["masked"] == pytest.approx((6e-3 - masked) / 3.25e-3)


@pytest.mark.parametrize("half_work", [0.0, 5e6])
def test_streaming_without_launches_realises_the_ideal(half_work):
    (row,) = predictions(device(half_work=half_work), FLOPS, RATES, [4], ["streaming"])
    assert row.realised_over_ideal == pytest.approx(1)


def test_launches_reads_and_half_work_by_hand():
    seconds = {s: predict(COSTLY, FLOPS, RATES, 4, s) for s in ("full", "streaming")}
    # In ms: one launch and read (1.5), and 4, 8, 12 of work with 1 before each.
    assert seconds["full"] == pytest.approx((1.5 + 5 + 9 + 13) * 1e-3 / 4)
    streaming = (1.5 + 5) + 0.5 * (1.5 + 9) + 0.25 * (1.5 + 13)
    assert seconds["streaming"] == pytest.approx(streaming * 1e-3 / 4)
    (row,) = predictions(COSTLY, FLOPS, RATES, [4], ["streaming"])
    # Of the summed stage times the stages have 6.5, 10.5 and 14.5.
    ideal = 28.5 * (6.5 + 0.5 * 10.5 + 0.25 * 14.5) / 31.5
    assert row.realised_over_ideal == pytest.approx((28.5 - streaming) / (28.5 - ideal))


@pytest.mark.parametrize("strategy", ["masked", "compacted", "device_compacted", "streaming"])
def test_who_leaves_at_the_first_exit_costs_one_stage(strategy):
    assert predict(COSTLY, FLOPS, (1.0, 0.0, 0.0), 8, strategy) == pytest.approx(
        (1.5 + 8 + 1) * 1e-3 / 8
    )


def test_where_nobody_leaves_early_nothing_can_be_saved():
    rows = predictions(COSTLY, FLOPS, (0.0, 0.0, 1.0), [8])
    assert [row.realised_over_ideal for row in rows] == [None] * len(STRATEGIES)
    seconds = {row.strategy: row.seconds_per_sample for row in rows}
    assert seconds["masked"] == pytest.approx(seconds["full"])
    assert seconds["compacted"] == pytest.approx(seconds["full"] + 2 * 1.5e-3 / 8)


def _enumerated(costs: Device, batch: int, sizes, launches_each: bool) -> float:
    """Seconds per sample over every way in which a batch may leave."""
    total, fixed = 0.0, costs.launch_seconds + costs.read_seconds
    for first in range(batch + 1):
        for second in range(batch + 1 - first):
            left = (first, second, batch - first - second)
            ways = math.factorial(batch) / math.prod(math.factorial(n) for n in left)
            chance = ways * math.prod(r**n for r, n in zip(RATES, left, strict=True))
            reaching = (batch, batch - first, left[2])
            runs = [
                fixed * launches_each
                + (m * min(size for size in sizes if size >= n) + costs.half_work)
                / costs.peak_flops
                for m, n in zip(FLOPS, reaching, strict=True)
                if n > 0
            ]
            total += chance * (sum(runs) + fixed * (not launches_each))
    return total / batch


def test_compacted_is_the_mean_over_everything_that_may_happen():
    expected = _enumerated(COSTLY, 10, (2, 3, 7, 10), launches_each=True)
    found = predict(COSTLY, FLOPS, RATES, 10, "compacted", sizes=(2, 3, 7, 10))
    assert found == pytest.approx(expected, rel=1e-10)
    expected = _enumerated(COSTLY, 20, (8, 16, 20), launches_each=True)
    assert predict(COSTLY, FLOPS, RATES, 20, "compacted") == pytest.approx(expected, rel=1e-10)


def test_device_compacted_is_the_mean_over_everything_that_may_happen():
    assert len(bucket_sizes(20)) > 1
    expected = _enumerated(COSTLY, 20, bucket_sizes(20), launches_each=False)
    found = predict(COSTLY, FLOPS, RATES, 20, "device_compacted")
    assert found == pytest.approx(expected, rel=1e-10)


def test_masked_agrees_with_simulation():
    batch, runs = 6, 40_000
    exits = np.random.default_rng(0).choice(3, size=(runs, batch), p=RATES)
    deepest = exits.max(1)
    stages = (np.asarray(FLOPS) * batch + 1e6) / 1e9
    simulated = 1.5e-3 + np.cumsum(stages)[deepest].mean()
    assert predict(COSTLY, FLOPS, RATES, batch, "masked") == pytest.approx(
        simulated / batch, rel=5e-3
    )


def test_survivors_of_large_batches_still_have_probabilities():
    shares = survivor_shares(np.array([1.0, 0.3, 0.0]), 5000)
    assert shares.sum(1) == pytest.approx(1, rel=1e-9)
    assert shares @ np.arange(5001) == pytest.approx([5000, 1500, 0], rel=1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dearer_launches_never_help(strategy):
    costs = [
        predict(dataclasses.replace(COSTLY, launch_seconds=launch), FLOPS, RATES, 16, strategy)
        for launch in (0.0, 1e-4, 1e-2)
    ]
    assert costs == sorted(set(costs))
    # One launch a batch, or as many as stages run.
    expected = {"streaming": 1.75, "compacted": 3 - 0.5**16 - 0.75**16}.get(strategy, 1)
    assert (costs[2] - costs[0]) / 1e-2 * 16 == pytest.approx(expected)


def test_a_device_is_recovered_from_its_own_table():
    fitted = fit_device(table(COSTLY), FLOPS, read_seconds=5e-4)
    for name in ("launch_seconds", "read_seconds", "peak_flops", "half_work"):
        assert getattr(fitted, name) == pytest.approx(getattr(COSTLY, name), rel=1e-6)
    assert fitted.work_factors == pytest.approx((1, 1, 1), rel=1e-6)
    assert (fitted.name, fitted.predicted) == ("measured", False)


def test_stages_keep_the_proportions_that_were_measured():
    # The first stage is three times as dear as its FLOPs say; all take 10/6 as long together.
    work = (3e6, 2e6, 5e6)
    fitted = fit_device(table(COSTLY, work), FLOPS, read_seconds=5e-4)
    assert fitted.peak_flops == pytest.approx(0.6e9, rel=1e-6)
    assert fitted.work_factors == pytest.approx((1.8, 0.6, 1.0), rel=1e-6)
    for strategy in STRATEGIES:
        found = predict(fitted, FLOPS, RATES, 16, strategy)
        assert found == pytest.approx(predict(COSTLY, work, RATES, 16, strategy), rel=1e-6)


def test_the_fit_has_the_least_relative_errors():
    exact = table(COSTLY)
    noise = np.random.default_rng(1).uniform(0.8, 1.2, exact.seconds.shape)
    noisy = dataclasses.replace(exact, seconds=exact.seconds * noise)
    fitted = fit_device(noisy, FLOPS)

    def error(**changes) -> float:
        changed = dataclasses.replace(fitted, **changes)
        found = table(changed, np.asarray(FLOPS) * changed.work_factors)
        ours = np.vstack([found.seconds, found.full_seconds])
        return ((ours / np.vstack([noisy.seconds, noisy.full_seconds]) - 1) ** 2).sum()

    for share in (0.98, 1.02):
        for name in ("launch_seconds", "peak_flops", "half_work"):
            assert error(**{name: share * getattr(fitted, name)}) > error()
        for k in range(3):
            factors = np.asarray(fitted.work_factors) * np.where(np.arange(3) == k, share, 1)
            assert error(work_factors=tuple(factors.tolist())) > error()


def test_validation_puts_predictions_beside_measurements():
    row = Measured(
        strategy="streaming", batch_size=4, exit_rates=RATES, seconds_per_sample=3.84375e-3 / 2
    )
    (found,) = validate(table(COSTLY), FLOPS, [row])
    assert found.predicted == pytest.approx(3.84375e-3, rel=1e-6)
    assert found.relative_error == pytest.approx(1, rel=1e-6)
    assert tabulate([found])[-1] == "| streaming | 4 | 0.00192 | 0.00384 | 1 |"


def test_the_best_row_is_the_fastest():
    rows = predictions(COSTLY, FLOPS, RATES, [1, 64])
    assert best(rows).strategy == "streaming"
    assert best(rows).batch_size == 64
    # Where a launch costs more than a batch's work, one program is best.
    slow_launch = dataclasses.replace(COSTLY, launch_seconds=10.0)
    assert best(predictions(slow_launch, FLOPS, RATES, [64])).strategy == "device_compacted"


def test_tables_are_markdown():
    rows = predictions(device(), FLOPS, (0.0, 0.0, 1.0), [8], ["full"])
    assert tabulate(rows) == [
        "| strategy | batch size | seconds per sample | realised over ideal |",
        "| :-- | --: | --: | --: |",
        "| full | 8 | 0.006 | - |",
    ]
    assert tabulate([]) == []


def test_presets_come_from_data_sheets():
    assert TPU_V5E.predicted
    assert H100.predicted
    assert TPU_V5E.peak_flops == pytest.approx(0.4 * 197e12)
    assert H100.peak_flops == pytest.approx(0.4 * 989e12)
    # 3.5 million weights of two bytes take 8.64 µs to read at 819 GB/s.
    assert TPU_V5E.half_work / TPU_V5E.peak_flops == pytest.approx(8.642e-6, rel=1e-3)
    assert H100.half_work / H100.peak_flops == pytest.approx(2.113e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "magic"}, "strategy 'magic' is unknown"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"exit_rates": (0.5, 0.25, 0.2)}, "sum to 1"),
        ({"exit_rates": (1.5, -0.25, -0.25)}, "sum to 1"),
        ({"exit_rates": (math.nan, 0.5, 0.5)}, "sum to 1"),
        ({"stage_flops": (1e6, 2e6)}, "must be 3 positive numbers"),
        ({"stage_flops": (1e6, 0.0, 2e6)}, "must be 3 positive numbers"),
        ({"sizes": (1, 2, 4)}, "hold the batch of 8"),
        ({"sizes": (0, 8)}, "must be positive"),
        ({"device": device(work_factors=(1.0, 1.0))}, "fitted to 2 stages, not to 3"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, words):
    arguments = {
        "device": COSTLY,
        "stage_flops": FLOPS,
        "exit_rates": RATES,
        "batch_size": 8,
        "strategy": "compacted",
    }
    with pytest.raises(InputError, match=words):
        predict(**{**arguments, **changes})


@pytest.mark.parametrize(
    "changes", [{"launch_seconds": -1.0}, {"half_work": math.inf}, {"peak_flops": 0.0}]
)
def test_impossible_devices_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        device(**changes)


def test_tables_that_tell_nothing_are_refused():
    exact = table(COSTLY)
    one = dataclasses.replace(
        exact, sizes=(1,), seconds=exact.seconds[:, :1], full_seconds=exact.full_seconds[:1]
    )
    with pytest.raises(InputError, match="at least 2"):
        fit_device(one, FLOPS)
    with pytest.raises(InputError, match="not positive"):
        fit_device(dataclasses.replace(exact, seconds=0 * exact.seconds), FLOPS)
    flat = dataclasses.replace(exact, seconds=np.ones((3, 4)), full_seconds=np.ones(4))
    with pytest.raises(InputError, match="do not grow"):
        fit_device(flat, FLOPS)
    row = Measured(strategy="full", batch_size=4, exit_rates=RATES, seconds_per_sample=0.0)
    with pytest.raises(InputError, match="measure again"):
        validate(exact, FLOPS, [row])
    with pytest.raises(InputError, match="nothing to choose"):
        best([])
