"""Labelled pixels: an image leaves as a whole, where the simulation says, with its own logits."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from jaxtyping import Array, Float
from replay import streamed

from eenet_jax import pieces
from eenet_jax.dense import all_image_means
from eenet_jax.execution import sides
from eenet_jax.execution.buckets import default_buckets
from eenet_jax.execution.compacted import compacted
from eenet_jax.execution.host_compacted import HostCompacted
from eenet_jax.execution.masked import masked
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.policies.max_prob import MaxProb
from eenet_jax.policies.patience import Patience
from eenet_jax.policies.vote import Vote

EXITS, CLASSES, HEIGHT, WIDTH, IMAGES = 3, 4, 3, 2, 11
NOTHING = {"params": {}, "batch_stats": {}}
COSTS = (1.0, 2.0, 4.0)


class HandOnMaps(nn.Module):
    """A stage that changes nothing."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool):
        return x


class Slice(nn.Module):
    """A head whose logits are the k-th group of an image's channels."""

    k: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool):
        return x[..., self.k * CLASSES : (self.k + 1) * CLASSES]


NETWORK = MultiExitNetwork(
    family="replay",
    settings={"num_classes": CLASSES},
    stages=tuple(HandOnMaps() for _ in range(EXITS)),
    heads=tuple(Slice(k) for k in range(EXITS)),
    input_shape=(HEIGHT, WIDTH, EXITS * CLASSES),
    dense=True,
)


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    return draw.normal(0, 2, (IMAGES, HEIGHT, WIDTH, EXITS * CLASSES)).astype(np.float32)


@pytest.fixture(scope="module")
def simulated(images):
    """All exits' logits, and what they say of each image."""
    logits = jax.jit(NETWORK.apply)(NOTHING, images)
    probs, measures = all_image_means(logits)
    return np.asarray(logits), np.asarray(probs), np.asarray(measures)


POLICIES = (
    MaxProb(budget=2.0, costs=COSTS, thresholds=np.asarray([0.72, 0.72, -np.inf], np.float32)),
    Vote(budget=2.0, costs=COSTS, thresholds=np.asarray([1.5, 0.7, -np.inf], np.float32)),
    Patience(budget=2.0, costs=COSTS, thresholds=np.asarray([2.0, 1.4, -np.inf], np.float32)),
)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize(
    "strategy",
    [
        "masked",
        "compacted",
        "compacted in halves",
        "in pieces",
        "host_compacted",
        "host_compacted in pieces",
        "streaming",
    ],
)
def test_images_leave_where_the_simulation_says(images, simulated, policy, strategy, monkeypatch):
    logits, probs, measures = simulated
    if strategy == "host_compacted in pieces":
        monkeypatch.setattr(pieces, "CACHE_BYTES", 1)
    if strategy == "compacted in halves":
        monkeypatch.setattr(sides, "number_of_sides", lambda: 2)
    run = {
        "masked": lambda: masked(NETWORK, policy),
        "compacted": lambda: compacted(NETWORK, policy),
        "compacted in halves": lambda: compacted(NETWORK, policy),
        "in pieces": lambda: compacted(NETWORK, policy, piece=4),
        "host_compacted": lambda: HostCompacted(NETWORK, policy, default_buckets(EXITS, IMAGES)),
        "streaming": lambda: streamed(NETWORK, policy, batch_size=8),
    }[strategy.removesuffix(" in pieces") if "host" in strategy else strategy]()
    answers = run(NOTHING, images)
    wanted = policy.decide(probs, measures)
    assert len(np.unique(wanted)) > 1
    np.testing.assert_array_equal(answers.exit_index, wanted)
    np.testing.assert_array_equal(answers.logits, logits[wanted, np.arange(IMAGES)])


def test_an_images_measures_are_the_means_of_its_pixels(simulated):
    logits, probs, measures = simulated
    pixels = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(probs, pixels.mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(measures[..., 0], pixels.max(-1).mean((2, 3)), rtol=1e-5)
    said = pixels.argmax(-1)
    agree = (said[1] == said[0]).mean((1, 2))
    np.testing.assert_allclose(measures[1, :, 3], 0.5 + agree / 2, rtol=1e-5)
    np.testing.assert_allclose(measures[1, :, 4], 1 + agree, rtol=1e-5)
