"""Learning rates at given steps, and three steps of SGD by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import tiny_config

from eenet_jax.config import TrainingConfig
from eenet_jax.errors import InputError
from eenet_jax.training.optimizer import learning_rate, optimizer, scaled


def rates(config, steps_per_epoch, steps):
    schedule = learning_rate(config, steps_per_epoch)
    return [float(schedule(jnp.asarray(step))) for step in steps]


def test_the_published_schedule_divides_by_ten_at_epochs_50_and_100():
    spe = 351
    steps = [0, 50 * spe - 1, 50 * spe, 100 * spe - 1, 100 * spe, 150 * spe - 1]
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    np.testing.assert_allclose(rates(TrainingConfig(), spe, steps), expected, rtol=1e-6)


def test_the_rate_grows_with_the_batch_where_it_is_meant_for_another():
    config = tiny_config(learning_rate=0.2, reference_batch_size=26)
    assert config.data.batch_size == 78
    assert scaled(config).learning_rate == pytest.approx(0.6)
    assert scaled(tiny_config(learning_rate=0.2)).learning_rate == 0.2


def test_warm_up_is_linear_and_shifts_no_border():
    config = TrainingConfig(epochs=6, warmup_epochs=1.5, decay_epochs=(3, 5), learning_rate=0.2)
    steps = [0, 5, 14, 15, 29, 30, 49, 50, 59]
    expected = [0, 0.2 * 5 / 15, 0.2 * 14 / 15, 0.2, 0.2, 0.02, 0.02, 0.002, 0.002]
    np.testing.assert_allclose(rates(config, 10, steps), expected, rtol=1e-5)


@pytest.mark.parametrize("warmup_epochs", [0.0, 2.0])
def test_cosine_falls_from_the_peak_to_zero(warmup_epochs):
    config = TrainingConfig(
        epochs=10, schedule="cosine", warmup_epochs=warmup_epochs, learning_rate=0.3
    )
    warm = round(warmup_epochs * 5)
    steps = np.arange(warm, 51)
    expected = 0.15 * (1 + np.cos(np.pi * (steps - warm) / (50 - warm)))
    np.testing.assert_allclose(rates(config, 5, steps), expected, atol=1e-7)
    if warm:
        np.testing.assert_allclose(rates(config, 5, [0, 5]), [0, 0.15], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_puts_the_l2_term_into_the_gradient_before_the_momentum(nesterov):
    config = TrainingConfig(
        learning_rate=0.1, decay_epochs=(2,), momentum=0.9, weight_decay=0.05, nesterov=nesterov
    )
    updater = optimizer(config, 1)
    random = np.random.default_rng(1)
    start, gradients = random.normal(size=3), random.normal(size=(3, 3))
    params = {"w": jnp.asarray(start, jnp.float32)}
    state = updater.init(params)
    expected, momentum = start.copy(), np.zeros(3)
    for gradient, rate in zip(gradients, (0.1, 0.1, 0.01), strict=True):
        updates, state = updater.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        decayed = gradient + 0.05 * expected
        momentum = 0.9 * momentum + decayed
        expected = expected - rate * (decayed + 0.9 * momentum if nesterov else momentum)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-5)


def test_adamw_decays_outside_the_gradient():
    config = TrainingConfig(optimizer="adamw", learning_rate=0.1, weight_decay=0.5, decay_epochs=())
    updater = optimizer(config, 1)
    params = {"w": jnp.asarray([2.0, -3.0])}
    updates, _ = updater.update({"w": jnp.asarray([7.0, -0.1])}, updater.init(params), params)
    # Adam's first step is the gradient's sign; the decay adds 0.5 · w, whatever the gradient.
    np.testing.assert_allclose(updates["w"], [-0.1 * (1 + 1.0), -0.1 * (-1 - 1.5)], rtol=1e-4)


@pytest.mark.parametrize(("schedule", "power"), [("linear", 1.0), ("poly", 0.9)])
def test_a_line_or_its_power_falls_from_the_peak_to_zero(schedule, power):
    config = TrainingConfig(epochs=10, schedule=schedule, warmup_epochs=2.0, learning_rate=0.3)
    steps = np.arange(10, 51)
    expected = 0.3 * (1 - (steps - 10) / 40) ** power
    np.testing.assert_allclose(rates(config, 5, steps), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rates(config, 5, [0, 5]), [0, 0.15], rtol=1e-6)


def test_clipping_keeps_the_direction_and_bounds_the_whole_gradient():
    config = TrainingConfig(
        learning_rate=1.0, momentum=0.0, weight_decay=0.0, clip_norm=2.0, decay_epochs=()
    )
    updater = optimizer(config, 1)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    for factor, expected in ((1.0, [1.2, 1.6]), (0.1, [0.3, 0.4])):
        gradient = {"a": factor * jnp.asarray([3.0, 4.0]), "b": jnp.zeros(1)}
        updates, _ = updater.update(gradient, updater.init(params), params)
        np.testing.assert_allclose(updates["a"], -np.asarray(expected), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["step", "cosine", "linear"])
def test_a_warm_up_that_is_all_of_the_training_is_refused(schedule):
    config = TrainingConfig(epochs=1, schedule=schedule, warmup_epochs=0.97, decay_epochs=())
    with pytest.raises(InputError, match=r"warmup_epochs 0.97 is all of the 10 steps"):
        learning_rate(config, 10)
