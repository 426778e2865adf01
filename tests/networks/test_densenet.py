"""DenseNet in other settings than the preset's, against numbers of the published definition."""

import numpy as np
import pytest
from published import logits_from_names, statistics_that_training_leaves

from eenet_jax import networks
from eenet_jax.errors import InputError

TINY = {
    "stage_layers": (1, 2, 1, 1),
    "growth_rate": 4,
    "exit_after": (1, 3),
    "num_classes": 3,
    "input_shape": (8, 8, 3),
}
LARGE = {
    **TINY,
    "stage_layers": (1, 1, 1, 1),
    "growth_rate": 5,
    "reduction": 0.75,
    "exit_after": (2,),
    "num_classes": 1000,
    "input_shape": (32, 32, 3),
}


@pytest.mark.parametrize(
    ("settings", "parameters", "logits"),
    [
        (
            TINY,
            4_410,
            [
                [0.122087, 0.035623, 0.171284],
                [0.078762, -0.031110, 0.034635],
                [0.119350, -0.270719, -0.300786],
            ],
        ),
        # With 1,000 classes comes the stem for large images. The first three logits:
        (LARGE, 29_435, [[0.113071, 0.013034, 0.121496], [0.360019, -0.178148, 0.594320]]),
    ],
    ids=["tiny", "1000 classes"],
)
def test_logits_and_parameters_are_the_published_ones(settings, parameters, logits):
    network = networks.build("densenet", **settings)
    ours, count = logits_from_names(network)
    assert count == parameters
    np.testing.assert_allclose(ours[:, :3], logits, atol=2e-6)


def test_groups_and_exits_lie_in_their_stages():
    network = networks.build("densenet", exit_after=(2,))
    # 24 channels of the stem; each group adds 12 a layer, each transition leaves half.
    assert [stage.groups for stage in network.stages] == [
        ((1, 6, 48), (2, 12, 96)),
        ((3, 24, 192), (4, 16, None)),
    ]
    assert [stage.stem for stage in network.stages] == ["cifar", None]
    assert network.input_shape == (32, 32, 3)


def test_a_thousand_classes_are_of_large_images_unless_said_otherwise():
    network = networks.build("densenet", num_classes=1000)
    assert (network.stages[0].stem, network.input_shape) == ("imagenet", (224, 224, 3))
    network = networks.build("densenet", num_classes=1000, stem="cifar")
    assert (network.stages[0].stem, network.input_shape) == ("cifar", (32, 32, 3))


def test_training_moves_every_statistic():
    network = networks.build("densenet", **{**TINY, "stage_layers": (1, 1), "exit_after": (1,)})
    assert not statistics_that_training_leaves(network)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit_after": (3, 1)}, r"exit_after \[3, 1\] must increase strictly within 1..3"),
        ({"exit_after": (1, 4)}, r"exit_after \[1, 4\] must increase strictly within 1..3"),
        ({"exit_after": ()}, r"exit_after of network 'densenet' is \(\): give whole numbers"),
        ({"stage_layers": (6,)}, r"stage_layers \[6\] has one group: give 2 or more"),
        ({"reduction": 0.0}, "reduction is 0.0: give more than 0 and at most 1"),
        ({"reduction": "half"}, "reduction of network 'densenet' is 'half': give a number"),
        ({"reduction": 0.01}, "reduction 0.01 leaves 0 channels after transition 1"),
        ({"growth_rate": True}, "growth_rate of network 'densenet' is True: give a whole number"),
        ({"stem": "tiny"}, "stem of network 'densenet' is 'tiny': give one of cifar, imagenet"),
        ({"input_shape": (32, 32)}, r"input_shape \[32, 32\] must be height, width and channels"),
        ({"input_shape": (32, 7, 3)}, r"input_shape \[32, 7, 3\] is too small for 3 transitions"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        networks.build("densenet", **settings)
