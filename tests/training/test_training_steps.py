"""The jitted steps: one update by hand, when distillation starts, donation, padded evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import tiny_config

from eenet_jax.data import augment, datasets, pipeline
from eenet_jax.training import losses
from eenet_jax.training.loop import evaluate
from eenet_jax.training.optimizer import optimizer
from eenet_jax.training.sharding import make_layout
from eenet_jax.training.step import make_eval_step, make_train_step

TOTAL_STEPS = 8


@pytest.fixture(scope="module")
def split():
    return datasets.open_split("digits", "train", val_size=1200)


@pytest.fixture(scope="module")
def batch(split):
    return split.gather(np.arange(40))


def config_of(**training):
    config = tiny_config(decay_epochs=(), learning_rate=0.05, **training)
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, augmentation="none"), seed=4
    )


@pytest.fixture(scope="module")
def network(compiled):
    return compiled.network


@pytest.fixture(scope="module")
def forward(network, split):
    """(variables, images) → logits of all exits in training mode, jitted."""

    @jax.jit
    def run(variables, images):
        normalized = augment.normalize(images, split.spec.mean, split.spec.std)
        return network.apply_train(variables, normalized, jax.random.key(0))[0]

    return run


@pytest.fixture(scope="module")
def start(compiled):
    """A fresh state at some step, its weights the same each time."""

    def make(at=0):
        # A copy, for steps donate what they are given.
        copied = jax.tree.map(jnp.array, compiled.fresh)
        return dataclasses.replace(copied, step=jnp.asarray(at, jnp.int32))

    return make


def stepper(network, split, config):
    made = optimizer(config.training, 1)
    return make_train_step(network, made, config, split.spec, TOTAL_STEPS, make_layout())


@pytest.fixture(scope="module")
def plain(network, split):
    return stepper(network, split, config_of(distillation_weight=0.0))


def host(tree):
    return jax.tree.map(np.array, tree)


def test_the_loss_falls_and_the_old_state_is_donated(start, network, batch, plain):
    state = old = start()
    seen = []
    for _ in range(40):
        state, metrics = plain(state, batch)
        seen.append(float(metrics["loss"]))
    assert seen[-1] < 0.9 * seen[0]
    assert int(state.step) == 40
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))


def test_one_step_is_the_gradient_of_the_joint_loss_and_one_momentum_update(
    start, network, batch, plain, forward
):
    config = config_of(distillation_weight=0.0)
    state = start()
    before = host(state.variables)

    def loss_of(params):
        logits = forward({**before, "params": params}, batch["image"])
        return losses.joint_cross_entropy(logits, batch["label"], jnp.asarray([1 / 3, 2 / 3]))

    value, gradients = jax.jit(jax.value_and_grad(loss_of))(before["params"])
    after, metrics = plain(state, batch)
    expected = jax.tree.map(
        lambda w, g: w - 0.05 * (g + config.training.weight_decay * w), before["params"], gradients
    )
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), host(after.params), host(expected)
    )
    moved = jax.tree.map(
        lambda a, b: np.any(a != b), host(after.batch_stats), before["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))


def test_the_average_forgets_the_first_weights_soon_and_is_what_is_evaluated(
    start, network, split, batch
):
    step = stepper(network, split, config_of(distillation_weight=0.0, ema_decay=0.9))
    state = start()
    state = dataclasses.replace(state, average=jax.tree.map(jnp.array, dict(state.variables)))
    expected = host(state.variables)
    for taken in range(1, 4):
        state, _ = step(state, batch)
        decay = min(0.9, (1 + taken) / (10 + taken))
        newest = host({"params": state.params, "batch_stats": state.batch_stats})
        expected = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, expected, newest)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        host(state.variables),
        expected,
    )


def test_rematerialised_stages_give_the_same_step(start, network, split, batch, plain):
    again = stepper(network, split, config_of(distillation_weight=0.0, rematerialise=True))
    (ours, metrics), (theirs, expected) = again(start(), batch), plain(start(), batch)
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), host(ours), host(theirs))


def test_bfloat16_is_for_activations_alone(start, network, split, batch, plain):
    half = stepper(network, split, config_of(distillation_weight=0.0, compute_dtype="bfloat16"))
    (ours, metrics), (theirs, expected) = half(start(), batch), plain(start(), batch)
    assert metrics["loss"].dtype == jnp.float32
    assert jax.tree.map(lambda a: a.dtype, ours) == jax.tree.map(lambda a: a.dtype, theirs)
    loss, wide = float(metrics["loss"]), float(expected["loss"])
    assert loss == pytest.approx(wide, rel=2e-2)
    assert loss != wide
    # Statistics are summed in float32: as far off as their inputs are, and no further.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-2, atol=3e-3),
        host(ours.batch_stats),
        host(theirs.batch_stats),
    )


def test_distillation_begins_exactly_at_its_share_of_the_steps(
    start, network, split, batch, plain, forward
):
    config = config_of(distillation_weight=0.5, distillation_start=0.75)
    distilling = stepper(network, split, config)
    variables = start().variables
    logits = forward(variables, batch["image"])
    extra = 0.5 * float(losses.self_distillation(logits, np.ones(logits.shape[1], bool), 3.0))
    assert extra > 1e-3
    for at in (0, 5, 6, 7):
        loss = float(distilling(start(at), batch)[1]["loss"])
        without = float(plain(start(at), batch)[1]["loss"])
        assert loss - without == pytest.approx(extra if at >= 0.75 * TOTAL_STEPS else 0, abs=1e-5)


def test_augmentation_is_drawn_anew_each_step_and_again_the_same(start, network, split, batch):
    config = config_of(distillation_weight=0.0)
    shifting = dataclasses.replace(
        config, data=dataclasses.replace(config.data, augmentation="shift")
    )
    step = stepper(network, split, shifting)
    first, again, later = (float(step(start(at), batch)[1]["loss"]) for at in (0, 0, 1))
    assert first == again
    assert first != later


def test_evaluation_counts_every_sample_once(start, network, split):
    config = config_of()
    variables = start().variables
    part = dataclasses.replace(
        split, images=split.images[:50], labels=split.labels[:50], ids=split.ids[:50]
    )
    found = evaluate(
        make_eval_step(network, config, split.spec, make_layout()),
        variables,
        part,
        31,
        make_layout(),
    )
    images = augment.normalize(part.images, split.spec.mean, split.spec.std)
    logits = np.asarray(jax.jit(network.apply)(variables, images))
    accuracy = (logits.argmax(-1) == part.labels[None]).mean(1)
    np.testing.assert_allclose(found["accuracy"], accuracy, rtol=1e-6)
    each = optax.softmax_cross_entropy_with_integer_labels(
        jnp.asarray(logits), jnp.broadcast_to(part.labels, logits.shape[:2])
    )
    expected = np.asarray([1 / 3, 2 / 3]) @ np.asarray(each.mean(1))
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_an_epoch_has_only_full_batches(split):
    assert pipeline.steps_per_epoch(split, 79) == 3
