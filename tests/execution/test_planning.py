"""A device's table from its figures, and its figures from a table."""

import dataclasses
import math

import numpy as np
import pytest

from eenet_jax import networks
from eenet_jax.costs import count_costs, count_layers
from eenet_jax.errors import InputError
from eenet_jax.execution.latency import StageLatency
from eenet_jax.execution.planning import H100, H100_TF32, TPU_V5E, Device, fit_device
from eenet_jax.execution.prediction import STRATEGIES, predict

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
        device="measured",
        sizes=SIZES,
        seconds=fixed + parts,
        full_seconds=fixed + parts.sum(0),
        call_seconds=fixed,
        pieces=(SIZES[-1],) * 3,
    )


def test_a_table_is_launch_read_and_work_by_hand():
    found = COSTLY.table(FLOPS, (4, 1))
    assert found.sizes == (1, 4)
    # In ms: 1.5 a call, 1 before each stage's 1, 2 and 3 a sample.
    np.testing.assert_allclose(
        found.seconds * 1e3, [[3.5, 6.5], [4.5, 10.5], [5.5, 14.5]], rtol=1e-12
    )
    np.testing.assert_allclose(found.full_seconds * 1e3, [10.5, 28.5], rtol=1e-12)
    assert found.call_seconds == pytest.approx(1.5e-3)


def test_layers_cost_by_themselves_where_each_is_started():
    found = device(layer_seconds=1e-3).table(FLOPS, (4,), (5, 0, 2))
    plain = device().table(FLOPS, (4,))
    np.testing.assert_allclose(found.seconds - plain.seconds, [[5e-3], [0], [2e-3]], atol=1e-12)
    assert found.full_seconds[0] - plain.full_seconds[0] == pytest.approx(7e-3)
    with pytest.raises(InputError, match=r"stage_layers \[5\] are not one count for each of 3"):
        device(layer_seconds=1e-3).table(FLOPS, (4,), (5,))


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
    ours, theirs = fitted.table(FLOPS, SIZES), table(COSTLY, work)
    np.testing.assert_allclose(ours.seconds, theirs.seconds, rtol=1e-6)
    for strategy in STRATEGIES:
        found = predict(ours, RATES, 16, strategy)
        assert found == pytest.approx(predict(theirs, RATES, 16, strategy), rel=1e-6)


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


def test_presets_come_from_data_sheets():
    assert TPU_V5E.predicted
    assert H100.predicted
    assert TPU_V5E.peak_flops == pytest.approx(0.4 * 197e12)
    assert H100.peak_flops == pytest.approx(0.4 * 989e12)
    # 3.5 million weights of two bytes take 8.64 µs to read at 819 GB/s.
    assert TPU_V5E.half_work / TPU_V5E.peak_flops == pytest.approx(8.642e-6, rel=1e-3)
    assert H100.half_work / H100.peak_flops == pytest.approx(2.113e-6, rel=1e-3)


def test_an_h100_takes_about_as_long_as_was_measured():
    network = networks.build("resnet56_3")
    layers = count_layers(network)
    assert layers == [33, 32, 29]
    flops = (2e6 * np.diff([0.0, *count_costs(network).costs])).tolist()
    found = H100_TF32.table(flops, (64, 128), layers).full_seconds
    assert found[0] == pytest.approx(3.55e-3, rel=0.15)
    # Narrow layers gain less by a larger batch than the model says.
    assert found[1] == pytest.approx(4.09e-3, rel=0.25)


@pytest.mark.parametrize(
    "changes", [{"launch_seconds": -1.0}, {"half_work": math.inf}, {"peak_flops": 0.0}]
)
def test_impossible_devices_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        device(**changes)


def test_tables_that_tell_nothing_are_refused():
    exact = table(COSTLY)
    one = COSTLY.table(FLOPS, (1,))
    with pytest.raises(InputError, match="at least 2"):
        fit_device(one, FLOPS)
    flat = dataclasses.replace(exact, seconds=np.ones((3, 4)), full_seconds=np.ones(4))
    with pytest.raises(InputError, match="do not grow"):
        fit_device(flat, FLOPS)
    with pytest.raises(InputError, match="must be 3 positive numbers"):
        fit_device(exact, (1e6, 2e6))
    with pytest.raises(InputError, match="must be 3 positive numbers"):
        COSTLY.table((1e6, 0.0, 2e6), SIZES)
    with pytest.raises(InputError, match=r"must be 2 positive numbers"):
        device(work_factors=(1.0, 1.0)).table(FLOPS, SIZES)
    with pytest.raises(InputError, match="all at least 1"):
        COSTLY.table(FLOPS, (0, 4))
    assert math.isfinite(COSTLY.table(FLOPS, SIZES).seconds.max())
