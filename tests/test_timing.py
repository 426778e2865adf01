"""Calls are warmed up once, and timed as often as is said, in turn."""

import pytest

from eenet_jax.errors import InputError
from eenet_jax.timing import measure, measure_in_turn


def test_nothing_is_measured_no_times():
    with pytest.raises(InputError, match="repeats is 0: give 1 or more"):
        measure(lambda: None, repeats=0)


def test_a_call_is_warmed_up_once_and_then_timed():
    calls = []
    timing = measure(lambda: calls.append(1), repeats=3)
    assert len(calls) == 4
    assert timing.repeats == 3
    assert timing.median_s >= 0
    assert timing.spread_s >= 0


def test_calls_are_timed_turn_by_turn_after_one_that_warms_up():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    found = measure_in_turn(runs, repeats=3)
    assert calls == list("ab") * 4
    for timing in found.values():
        assert timing.repeats == 3
        assert timing.spread_s >= 0
        assert timing.median_s >= 0
    assert found.keys() == {"a", "b"}
    with pytest.raises(InputError, match="repeats is 0: give 1 or more"):
        measure_in_turn(runs, repeats=0)
