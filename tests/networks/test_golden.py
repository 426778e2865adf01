"""The published networks, number by number."""

import jax
import numpy as np
from published import golden

from eenet_jax import networks
from eenet_jax.costs import count_costs
from eenet_jax.networks.convert import from_torch

RESNET56_3_MMACS = (54.97, 112.38, 155.63)


def test_resnet56_3_computes_what_the_published_network_does():
    logits, weights, images, meta = golden("resnet56_3_cifar10")
    network = networks.build("resnet56_3")
    assert list(network.settings["stage_blocks"]) == meta["layers"]
    assert list(network.settings["exit_after"]) == meta["exit_after_blocks"]
    variables = from_torch(network, weights)
    ours = np.asarray(jax.jit(network.apply)(variables, images))
    assert ours.shape == logits.shape == (3, 4, 10)
    assert np.abs(ours - logits).max() <= 1e-4 * np.abs(logits).max()
    # The comparison has something to compare: the exits and the images differ.
    assert np.abs(logits - logits.mean(0)).max() > 0.1
    assert np.abs(logits - logits.mean(1, keepdims=True)).max() > 0.1


def test_resnet56_3_has_the_published_number_of_parameters():
    shapes = jax.eval_shape(networks.build("resnet56_3").init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 939_438


def test_resnet56_3_costs_the_published_macs_to_each_exit():
    table = count_costs(networks.build("resnet56_3"))
    assert table.unit == "MMACs"
    np.testing.assert_allclose(table.costs, RESNET56_3_MMACS, rtol=1e-3)
    mflops = table.extra["compiler_mflops"]
    # The compiler counts a multiply and an add for each MAC, and element-wise work on top.
    ratios = np.divide(mflops, table.costs)
    assert ratios.min() > 1.9
    assert ratios.max() < 2.6
