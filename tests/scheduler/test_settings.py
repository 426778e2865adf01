"""Settings as they are typed: what is wrong is named."""

from types import SimpleNamespace

import pytest

from eenet_jax.errors import InputError
from eenet_jax.scheduler.settings import check_number, check_whole, check_words, several


@pytest.mark.parametrize("value", [0, 2.5, "many", True, None])
def test_a_whole_number_is_one(value):
    with pytest.raises(InputError, match=r"folds is .*: give a whole number, 1 or more"):
        check_whole(SimpleNamespace(folds=value), 1, "folds")
    check_whole(SimpleNamespace(folds=1), 1, "folds")


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "x", True])
def test_a_number_is_finite_and_above_zero(value):
    with pytest.raises(InputError, match=r"lr is .*: give a number, above 0"):
        check_number(SimpleNamespace(lr=value), "lr")
    check_number(SimpleNamespace(l2=0), "l2", zero=True)
    with pytest.raises(InputError, match="l2 is -1: give a number, 0 or more"):
        check_number(SimpleNamespace(l2=-1), "l2", zero=True)


def test_several_values_may_come_as_typed():
    assert several("max, margin") == ("max", "margin")
    assert several(["max"]) == several("max") == ("max",)
    assert several(0.5) == (0.5,)


def test_words_are_known_and_given_once():
    check_words("measures", ("max",), ("max", "vote"))
    with pytest.raises(InputError, match="measures has 'luck': give some of max, vote"):
        check_words("measures", ("luck",), ("max", "vote"))
    with pytest.raises(InputError, match="twice"):
        check_words("measures", ("max", "max"), ("max", "vote"))
