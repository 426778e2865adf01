"""ReLU that a CPU writes to memory: the same values and gradients, and no sum twice."""

import jax
import jax.numpy as jnp
import numpy as np

from eenet_jax.networks import materialise
from eenet_jax.networks.materialise import materialised_relu

DRAW = np.random.default_rng(0)


def test_values_and_gradients_are_those_of_relu(monkeypatch):
    x = jnp.asarray([[-jnp.inf, -1.0, 0.0], [2.0, jnp.inf, jnp.nan]])
    gradient = jnp.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    wanted, back = jax.vjp(jax.nn.relu, x)
    for devices in (2, 1):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        jax.clear_caches()
        found, own = jax.vjp(jax.jit(materialised_relu), x)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(own(gradient)[0], back(gradient)[0])


def additions_of_a_chain(blocks, monkeypatch, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    jax.clear_caches()

    def chain(x, kernel):
        for _ in range(blocks):
            x = materialised_relu(x + x @ kernel)
        return x.sum()

    x, kernel = jnp.ones((64, 32)), jnp.ones((32, 32))
    compiled = jax.jit(chain).lower(x, kernel)
    options = {"xla_backend_optimization_level": 3}
    return compiled.compile(options).as_text().count(" add(")


def test_a_chain_of_sums_is_added_up_once_each(monkeypatch):
    twice = [additions_of_a_chain(blocks, monkeypatch, devices=2) for blocks in (4, 8)]
    once = [additions_of_a_chain(blocks, monkeypatch, devices=1) for blocks in (4, 8)]
    # What the compiler does by itself, which is why this is here.
    assert twice[1] > 2.5 * twice[0]
    assert once[1] <= 2.1 * once[0]
    assert once[1] < twice[1]


def test_the_loop_never_runs():
    for value in (-np.inf, np.nan, np.inf, 0.0):
        x = jnp.full((2, 3), value, jnp.float32)
        np.testing.assert_array_equal(jax.jit(materialise.behind_a_loop)(x), x)
