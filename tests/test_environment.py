"""Two machines that are not alike have not the same name."""

import jax
import pytest

from eenet_jax import environment

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: {model}
model name\t: {name}
stepping\t: 1

processor\t: 1
model name\t: another
"""


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("AMD EPYC 7763 64-Core Processor", 1, "AMD EPYC 7763 64-Core Processor"),
        ("AMD EPYC", 17, "AMD EPYC (family 25, model 17)"),
        ("AMD EPYC", 1, "AMD EPYC (family 25, model 1)"),
    ],
)
def test_a_name_without_a_number_is_told_apart_by_family_and_model(name, model, expected):
    assert environment._named(CPUINFO.format(name=name, model=model)) == expected


def test_where_the_system_says_nothing_there_is_still_a_name():
    assert environment._named("") == ""
    assert environment._named("processor : 0\nmodel name : Cortex\n") == "Cortex"
    if jax.default_backend() == "cpu":
        assert environment.device_name().split(",")[0].strip()
