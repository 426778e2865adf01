"""The same training on 1, 2 and 8 devices and on 2 processes of 4: cut, accumulated, restored."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from eenet_jax.errors import InputError
from eenet_jax.training.sharding import make_layout

TESTS = Path(__file__).resolve().parent.parent
PARTS = {"micro_batches": 3}
REMATERIALISED = {"rematerialise": True}


def start(variants, devices, wide, *others):
    """The program of `curve.py`."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = {
        "XLA_FLAGS": flags,
        "JAX_ENABLE_X64": str(int(wide)),
        "PYTHONPATH": str(TESTS),
        # XLA waits for ever where it has fewer threads than there are devices.
        "NPROC": "16",
    }
    program = Path(__file__).with_name("curve.py")
    return subprocess.Popen(
        [sys.executable, str(program), json.dumps(variants), *others],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    return output


def alone(variants, wide=True):
    """The curves of one process with 8 devices."""
    return json.loads(finish(start(variants, 8, wide)).splitlines()[-1])


def together(variants, wide=True):
    """The curves of two processes with 4 devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    second, first = (start(variants, 4, wide, address, "2", number) for number in ("1", "0"))
    found = json.loads(finish(first).splitlines()[-1])
    assert "[[" not in finish(second)  # Only the first process prints.
    return found


def assert_same(curves, expected, relative):
    for curve in curves:
        np.testing.assert_allclose(curve, expected, rtol=relative, atol=0)


def test_one_curve_on_any_devices_cut_or_whole_rematerialised_or_not():
    one, *others = alone(
        [
            {"devices": 1},
            {"devices": 2, "fsdp": 2},
            {},
            {"fsdp": 4, "training": REMATERIALISED},
        ]
    )
    assert len(one) == 20
    assert one[-1] < 0.95 * one[0]
    assert_same(others, one, 1e-9)
    assert_same(together([{}, {"fsdp": 4, "training": REMATERIALISED}]), one, 1e-9)


@pytest.mark.slow
def test_one_curve_in_float32_where_rounding_does_not_grow():
    rate = {"learning_rate": 0.001}
    one, *others = alone(
        [
            {"devices": 1, **rate},
            {"devices": 2, **rate},
            {"devices": 2, "fsdp": 2, "training": REMATERIALISED, **rate},
            {**rate},
            {"fsdp": 8, **rate},
        ],
        wide=False,
    )
    assert_same(others, one, 1e-5)
    assert_same(together([rate, {"fsdp": 8, **rate}], wide=False), one, 1e-5)


@pytest.mark.slow
def test_accumulated_parts_give_the_curve_of_the_whole_batch_without_batchnorm():
    bert = {"network": "bert"}
    whole, *others = alone(
        [
            {"devices": 1, **bert},
            {"devices": 1, "training": PARTS, **bert},
            {"devices": 2, "fsdp": 2, "training": PARTS, **bert},
            {"devices": 8, "training": {"micro_batches": 2, **REMATERIALISED}, **bert},
        ]
    )
    assert whole[-1] != whole[0]
    assert_same(others, whole, 1e-9)


def test_gradients_of_parts_are_added_up_over_devices():
    few = {"training": PARTS, "steps": 4}
    one, *others = alone(
        [{"devices": 1, **few}, {"devices": 2, **few}, {"devices": 2, "fsdp": 2, **few}]
    )
    assert_same(others, one, 1e-9)
    assert one[-1] != one[0]


@pytest.mark.slow
def test_samples_drop_the_same_on_whatever_device_they_lie():
    dropping = {"network": "dropping", "training": {**PARTS, **REMATERIALISED}}
    one, *others, kept = alone(
        [
            {"devices": 1, **dropping},
            {"devices": 2, **dropping},
            {"devices": 8, "fsdp": 4, **dropping},
            {**dropping, "network": "bert"},
        ]
    )
    assert_same(others, one, 1e-9)
    assert abs(kept[0] - one[0]) > 1e-6


@pytest.mark.slow
def test_accumulated_parts_give_one_devices_curve_with_batchnorm():
    one, *others, whole = alone(
        [
            {"devices": 1, "training": PARTS},
            {"devices": 2, "training": PARTS},
            {"devices": 8, "fsdp": 4, "training": PARTS},
            {"devices": 1},
        ]
    )
    assert_same(others, one, 1e-9)
    assert_same(together([{"training": PARTS}]), one, 1e-9)
    assert abs(whole[0] - one[0]) > 1e-6  # Each part is normalised by itself.


def test_a_checkpoint_goes_on_with_other_devices_and_processes(tmp_path):
    kept = str(tmp_path / "kept")
    begun, whole = alone([{"fsdp": 4, "steps": 8, "save": kept}, {"devices": 1, "evaluate": True}])
    assert_same([begun], whole[:8], 1e-9)
    rest = {"restore": kept, "steps": 12, "evaluate": True}
    assert_same(alone([{"devices": 1, **rest}]), whole[8:], 1e-9)
    assert_same(together([rest, {"fsdp": 8, **rest}]), whole[8:], 1e-9)


def test_weights_are_cut_along_their_longest_axis_that_divides():
    layout = make_layout(2, jax.devices()[:2])
    shapes = {"kernel": (3, 3, 64, 64), "odd": (3, 1025), "small": (8, 64), "table": (3000, 50)}
    found = {
        name: layout.weights(jax.ShapeDtypeStruct(shape, np.float32)).spec
        for name, shape in shapes.items()
    }
    assert found == {
        "kernel": PartitionSpec(None, None, None, "fsdp"),
        "odd": PartitionSpec(),
        "small": PartitionSpec(),
        "table": PartitionSpec("fsdp"),
    }


def test_a_number_of_devices_or_a_batch_that_does_not_divide_is_named():
    with pytest.raises(InputError, match=r"fsdp is 3, of 2 devices: give one of 1, 2"):
        make_layout(3)
    layout = make_layout()
    with pytest.raises(InputError, match=r"batch_size is 79, .* 2 devices: give 78, or another"):
        layout.check_batch(79)
    with pytest.raises(InputError, match=r"micro_batches 3: give 78, or another multiple of 6"):
        layout.check_batch(80, 3)
    layout.check_batch(78, 3)
    assert layout.padded(79) == 80
    np.testing.assert_array_equal(layout.rows(6), np.arange(6))
