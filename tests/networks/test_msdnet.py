"""MSDNet in other settings than the presets', against numbers of the published definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import logits_from_names, statistics_that_training_leaves

from eenet_jax import networks
from eenet_jax.errors import InputError
from eenet_jax.networks.multiscale import Head, Layer, Stage, Stem

TINY = {
    "base": 1,
    "step": 1,
    "step_mode": "lin_grow",
    "num_scales": 3,
    "channels": 2,
    "growth_rate": 2,
    "growth_factor": (1, 2, 3),
    "bottleneck_factor": (2, 1, 1),
    "prune": "min",
    "num_exits": 2,
    "stem": "cifar",
    "num_classes": 3,
}
PRUNED_EARLY = {**TINY, "step": 2, "step_mode": "even", "prune": "max", "reduction": 0.0}
LARGE = {
    **TINY,
    "base": 2,
    "step_mode": "even",
    "num_scales": 2,
    "channels": 3,
    "growth_factor": (2, 1),
    "bottleneck_factor": None,
    "prune": "max",
    "reduction": 0.7,
    "stem": "imagenet",
    "input_shape": (64, 64, 3),
}


@pytest.mark.parametrize(
    ("settings", "parameters", "logits"),
    [
        (TINY, 318_968, [[-0.190876, 0.314671, -0.099296], [0.024527, 0.213327, 0.030950]]),
        (PRUNED_EARLY, 339_594, [[-0.184672, 0.331976, -0.104058], [0.046651, 0.208666, 0.074434]]),
        (LARGE, 3_770, [[0.283507, 0.055636, 0.183955], [0.094071, 0.230284, 0.075545]]),
    ],
    ids=["lin_grow, prune min", "prune max, no transitions", "large images, no bottlenecks"],
)
def test_logits_and_parameters_are_the_published_ones(settings, parameters, logits):
    ours, count = logits_from_names(networks.build("msdnet", **settings))
    assert count == parameters
    np.testing.assert_allclose(ours, logits, atol=2e-6)


def _plan(stage: Stage) -> str:
    """L3: a layer that hands on three scales; T: a transition; S: the stem."""
    return " ".join(
        f"L{len(unit.growth)}"
        if isinstance(unit, Layer)
        else "S"
        if isinstance(unit, Stem)
        else "T"
        for unit in stage.units
    )


@pytest.mark.parametrize(
    ("settings", "plans"),
    [
        # 12 layers and 3 scales: one is dropped every 4 layers.
        ({}, ["S L3 L3 L3 L3", "L2 T L2", "L2 L2", "L1 T L1", "L1 L1"]),
        # As late as possible; transitions after a third and two thirds of the layers.
        ({"prune": "min"}, ["S L3 L3 L3 L3 T", "L3 L3", "L3 L3 T", "L3 L3", "L2 L1"]),
        ({"reduction": 0.0}, ["S L3 L3 L3 L3", "L2 L2", "L2 L2", "L1 L1", "L1 L1"]),
        # 3 + 2 + 3 + 4 + 5 layers: one is dropped every 6.
        (
            {"base": 3, "step": 1, "step_mode": "lin_grow"},
            ["S L3 L3 L3", "L3 L3", "L3 L2 T L2", "L2 L2 L2 L2", "L1 T L1 L1 L1 L1"],
        ),
    ],
)
def test_scales_are_dropped_and_channels_reduced_in_their_places(settings, plans):
    network = networks.build("msdnet12_5", **settings)
    assert [_plan(stage) for stage in network.stages] == plans


def test_widths_of_the_network_for_imagenet():
    network = networks.build("msdnet35_5")
    layers = [unit for stage in network.stages for unit in stage.units if isinstance(unit, Layer)]
    assert len(layers) == 35
    # One scale of four is dropped every ceil(35 / 4) = 9 layers.
    assert [len(layer.growth) for layer in layers] == [4] * 9 + [3] * 9 + [2] * 9 + [1] * 8
    assert layers[9].growth == (32, 64, 64)
    assert layers[9].bottleneck == (1, 2, 4, 4)
    # 32 + 10·16 halves to 96, + 9·16 to 120, + 9·16 to 132.
    transitions = [s.units[i] for s, i in zip(network.stages[1:4], (3, 5, 7), strict=True)]
    assert [t.widths for t in transitions] == [(192, 384, 384), (480, 480), (528,)]


def _carries(network) -> list[list[tuple[int, ...]]]:
    """Shapes that each stage hands on, without the batch axis."""
    variables = jax.eval_shape(network.init, jax.random.key(0))
    carry, shapes = jax.eval_shape(network.example), []
    for k in range(network.num_exits):
        carry, _ = jax.eval_shape(
            lambda v, c, k=k: network.stage(k, v, c, False, None), variables, carry
        )
        shapes.append([scale.shape[1:] for scale in carry])
    return shapes


def test_a_stage_hands_on_what_later_exits_need():
    # 4 layers hand on 3, 3, 2 and 2 scales; a transition halves 2 + 3·2 channels to 4. After the
    # last stage nobody looks at the finer of the two.
    settings = {**TINY, "step_mode": "even", "prune": "max", "num_exits": 4}
    network = networks.build("msdnet", **settings)
    assert [_plan(stage) for stage in network.stages] == ["S L3", "L3", "L2 T", "L2"]
    assert _carries(network) == [
        [(32, 32, 4), (16, 16, 8), (8, 8, 12)],
        [(32, 32, 6), (16, 16, 12), (8, 8, 18)],
        [(16, 16, 8), (8, 8, 12)],
        [(8, 8, 18)],
    ]


def test_training_moves_every_statistic():
    network = networks.build("msdnet", **LARGE)
    assert not statistics_that_training_leaves(network)


@pytest.mark.parametrize("side", [1, 5, 16])
def test_a_head_takes_coarsest_scales_of_any_size(side):
    head = Head(num_classes=3, width=2)
    scale = jnp.ones((1, side, side, 4))
    logits, made = jax.eval_shape(
        lambda: head.init_with_output(jax.random.key(0), (scale,), train=False)
    )
    assert logits.shape == (1, 3)
    assert made["params"]["linear"]["kernel"].shape == (2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_scales": 3}, r"growth_factor \[1, 2, 4, 4\] must hold one number for each of"),
        ({"bottleneck_factor": (1, 2)}, r"bottleneck_factor \[1, 2\] must hold one number"),
        ({"base": 0}, "base of network 'msdnet' is 0: give a whole number from 1 up"),
        ({"step": 1.5}, "step of network 'msdnet' is 1.5: give a whole number from 1 up"),
        ({"num_exits": 1}, "at least 2"),
        ({"step_mode": "odd"}, "step_mode of .* is 'odd': give one of even, lin_grow"),
        ({"prune": "none"}, "prune of network 'msdnet' is 'none': give one of max, min"),
        ({"stem": "tiny"}, "stem of network 'msdnet' is 'tiny': give one of cifar, imagenet"),
        ({"reduction": 1.5}, r"reduction is 1.5: give 0 \(none\) to 1"),
        ({"reduction": True}, "reduction of network 'msdnet' is True: give a number"),
        ({"reduction": 0.001}, "reduction 0.001 leaves no channels"),
        ({"growth_rate": 3, "growth_factor": (1, 2, 4, 5)}, "must be even at every scale but"),
        ({"prune": "min", "base": 1, "step": 1, "num_exits": 2}, "2 layers cannot drop 4 scales"),
        ({"input_shape": (224,)}, r"input_shape \[224\] must be height, width and channels"),
        ({"growth_factor": (1, 2, 0, 4)}, r"growth_factor of .* is \(1, 2, 0, 4\): give whole"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        networks.build("msdnet", **settings)
