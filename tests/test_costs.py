"""Multiply-accumulates against numbers worked out by hand; measured latency has its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eenet_jax import networks
from eenet_jax.costs import (
    count_costs,
    count_layers,
    count_macs,
    measure_latency,
)
from eenet_jax.errors import InputError
from eenet_jax.types import CostTable


def test_layers_are_convolutions_and_matrix_products():
    # As many convolutions as a stage is deep, and each head a product.
    network = networks.build(
        "cnn", widths=(4, 4, 4), depths=(1, 2, 1), num_classes=3, input_shape=(8, 8, 1)
    )
    assert count_layers(network) == [2, 3, 2]


def _macs(run, *shapes: tuple[int, ...]) -> int:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_macs(jax.make_jaxpr(run)(*arguments).jaxpr)


def _convolution(stride: int, groups: int = 1):
    return lambda x, kernel: jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize(
    ("stride", "groups", "image", "kernel", "macs"),
    [
        (1, 1, (1, 8, 8, 3), (3, 3, 3, 5), 8 * 8 * 5 * 27),
        (2, 1, (1, 8, 8, 3), (3, 3, 3, 5), 4 * 4 * 5 * 27),
        (2, 1, (2, 7, 8, 3), (1, 1, 3, 5), 2 * 4 * 4 * 5 * 3),
        (1, 3, (1, 8, 8, 3), (3, 3, 1, 6), 8 * 8 * 6 * 9),
    ],
)
def test_convolutions(stride, groups, image, kernel, macs):
    assert _macs(_convolution(stride, groups), image, kernel) == macs


def test_matrix_products():
    assert _macs(jnp.dot, (2, 7), (7, 5)) == 2 * 7 * 5
    attention = _macs(lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), (2, 3, 4, 5), (2, 6, 4, 5))
    assert attention == 2 * 4 * 3 * 6 * 5
    assert _macs(lambda x: jnp.tanh(x) + x.mean(), (9, 9)) == 0


def test_nested_programs():
    product = 4 * 4 * 4

    def branches(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x)

    def steps(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=5)[0]

    def rounds(x):
        return jax.lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y @ y, x)

    assert _macs(jax.jit(lambda x: jax.jit(jnp.dot)(x, x) @ x), (4, 4)) == 2 * product
    assert _macs(jax.checkpoint(lambda x: x @ x), (4, 4)) == product
    assert _macs(branches, (4, 4)) == 2 * product
    assert _macs(steps, (4, 4)) == 5 * product
    assert _macs(rounds, (4, 4)) == product


@pytest.fixture(scope="module")
def cnn():
    return networks.build(
        "cnn",
        widths=(4, 6, 8),
        depths=(1, 2, 1),
        strides=(1, 2, 1),
        num_classes=5,
        input_shape=(8, 8, 1),
    )


def test_costs_of_a_network_add_up_from_exit_to_exit(cnn):
    table = count_costs(cnn)
    # Every head pools to a grid of 2 x 2 cells.
    first = 64 * 4 * 9 + 4 * 4 * 5
    second = 16 * 6 * 4 * 9 + 16 * 6 * 6 * 9 + 4 * 6 * 5
    third = 16 * 8 * 6 * 9 + 4 * 8 * 5
    expected = np.cumsum([first, second, third]) / 1e6
    np.testing.assert_allclose(table.costs, expected, rtol=1e-12)
    assert table.unit == "MMACs"
    mflops = table.extra["compiler_mflops"]
    assert len(mflops) == 3
    assert 0 < mflops[0] < mflops[1] < mflops[2]


def test_latency_has_its_parts(cnn, tmp_path):
    variables = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(cnn.init, jax.random.key(0))
    )
    table = measure_latency(cnn, variables, batch_size=3, repeats=2, device="some device")
    assert table.unit == "ms"
    parts = np.add(table.extra["stage_ms"], table.extra["head_ms"])
    assert (parts > 0).all()
    # The parts are a batch's, the costs a sample's.
    np.testing.assert_allclose(table.costs, np.cumsum(parts) / 3)
    assert len(table.extra["spread_ms"]) == 3
    assert min(table.extra["spread_ms"]) >= 0
    assert table.extra["batch_size"] == 3
    assert table.extra["repeats"] == 2
    assert table.extra["device"] == "some device"
    table.save(tmp_path / "latency.json")
    assert CostTable.load(tmp_path / "latency.json") == table


def test_nothing_is_measured_on_no_samples(cnn):
    with pytest.raises(InputError, match="batch_size is 0: give 1 or more"):
        measure_latency(cnn, {}, batch_size=0)
