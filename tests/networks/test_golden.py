"""The published networks for images, number by number."""

import dataclasses

import jax
import numpy as np
import pytest
from published import QUICKLY, golden

from eenet_jax import networks
from eenet_jax.costs import count_costs, count_macs
from eenet_jax.networks.convert import from_torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A preset and what is published about it: MACs (in millions) to each exit, where known."""

    preset: str
    golden: str
    parameters: int
    mmacs: tuple[float, ...] | None


RESNET56_3 = Published(
    preset="resnet56_3",
    golden="resnet56_3_cifar10",
    parameters=939_438,
    mmacs=(54.97, 112.38, 155.63),
)
DENSENET121_4 = Published(
    preset="densenet121_4",
    golden="densenet121_4_cifar100",
    parameters=1_207_768,
    mmacs=(55.15, 94.60, 126.53, 131.36),
)
MSDNET12_5 = Published(
    preset="msdnet12_5", golden="msdnet12_5_cifar100", parameters=1_951_040, mmacs=None
)
MSDNET35_5 = Published(
    preset="msdnet35_5",
    golden="msdnet35_5_imagenet",
    parameters=62_314_472,
    mmacs=(612.03, 1430.81, 2276.39, 2959.94, 3246.18),
)


def _ours(network, variables, images):
    """Logits of every exit, and MACs of an image to each in millions; every stage runs once."""
    carry, logits, macs = images, [], []

    def run(piece, k):
        traced = jax.jit(lambda v, c: piece(k, v, c, False, None)[0]).trace(variables, carry)
        macs.append(count_macs(traced.jaxpr.jaxpr) / len(images) / 1e6)
        return traced.lower().compile(compiler_options=QUICKLY)(variables, carry)

    for k in range(network.num_exits):
        carry = run(network.stage, k)
        logits.append(np.asarray(run(network.head, k)))
    return np.stack(logits), np.cumsum(macs)[1::2]


@pytest.mark.parametrize(
    "published",
    [
        RESNET56_3,
        DENSENET121_4,
        MSDNET12_5,
        # Tracing and compiling its convolutions takes a minute.
        pytest.param(MSDNET35_5, marks=pytest.mark.slow),
    ],
    ids=lambda published: published.preset,
)
def test_logits_and_macs_and_the_number_of_parameters_are_the_published_ones(published):
    logits, weights, images, meta = golden(published.golden)
    network = networks.build(published.preset)
    assert (network.num_exits, network.num_classes) == (len(logits), meta["num_classes"])
    variables = from_torch(network, weights)
    counts = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
    assert sum(counts) == published.parameters
    ours, mmacs = _ours(network, variables, images)
    assert ours.shape == logits.shape
    assert np.abs(ours - logits).max() <= 1e-4 * np.abs(logits).max()
    # The comparison has something to compare: the exits and the images differ.
    assert np.abs(logits - logits.mean(0)).max() > 0.01
    assert np.abs(logits - logits.mean(1, keepdims=True)).max() > 0.01
    if published.mmacs is not None:
        np.testing.assert_allclose(mmacs, published.mmacs, rtol=1e-3)


def test_a_table_of_costs_has_the_published_macs():
    table = count_costs(networks.build("resnet56_3"))
    assert table.unit == "MMACs"
    np.testing.assert_allclose(table.costs, RESNET56_3.mmacs, rtol=1e-3)
    mflops = table.extra["compiler_mflops"]
    # The compiler counts a multiply and an add for each MAC, and element-wise work on top.
    ratios = np.divide(mflops, table.costs)
    assert ratios.min() > 1.9
    assert ratios.max() < 2.6
