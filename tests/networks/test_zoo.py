"""Names and settings → networks, and what a wrong one is told."""

import json

import jax
import pytest

from eenet_jax import networks
from eenet_jax.errors import InputError


def _parameters(network) -> int:
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


EXITS_AND_CLASSES = {
    "resnet": (3, 10),
    "cnn": (3, 10),
    "densenet": (4, 100),
    "msdnet": (5, 1000),
    "msdnet12_5": (5, 100),
    "bert": (4, 4),
    "hrnet": (4, 19),
    "hrnet_4_cpu": (4, 11),
}


@pytest.mark.parametrize("name", networks.names())
def test_settings_make_the_network_again(name):
    network = networks.build(name)
    settings = json.loads(json.dumps(network.settings))
    again = networks.build(network.family, **settings)
    assert dict(again.settings) == settings
    assert again.stages == network.stages
    assert again.heads == network.heads
    assert again.input_shape == network.input_shape
    wanted = EXITS_AND_CLASSES.get(name, EXITS_AND_CLASSES[network.family])
    assert (network.num_exits, network.num_classes) == wanted


def test_presets_are_settings_of_their_family():
    presets = {
        "resnet56_3": {"block": "bottleneck", "stage_blocks": (9, 9, 9), "exit_after": (9, 18)},
        "resnet20_3": {"block": "basic", "stage_blocks": (3, 3, 3), "exit_after": (3, 6)},
    }
    for name, settings in presets.items():
        network = networks.build("resnet", num_classes=100, **settings)
        assert dict(networks.build(name, num_classes=100).settings) == dict(network.settings)
    assert dict(networks.build("digits_cnn_3").settings) == dict(networks.build("cnn").settings)


def test_basic_blocks_in_groups_of_nine():
    network = networks.build(
        "resnet", block="basic", stage_blocks=(9, 9, 9), exit_after=(9, 18), num_classes=10
    )
    stem = 3 * 16 * 9 + 2 * 16
    groups = 18 * (16 * 16 * 9 + 2 * 16)
    shortcuts = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    groups += (16 * 32 * 9 + 2 * 32) + 17 * (32 * 32 * 9 + 2 * 32)
    groups += (32 * 64 * 9 + 2 * 64) + 17 * (64 * 64 * 9 + 2 * 64)
    heads = 3 * (16 * 16 * 9 + 2 * 16) + 17 * 10 + 3 * (32 * 32 * 9 + 2 * 32) + 33 * 10 + 65 * 10
    assert _parameters(network) == stem + groups + shortcuts + heads == 891_118
    assert [len(stage.blocks) for stage in network.stages] == [9, 9, 9]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet57", {}, "network 'resnet57' is unknown: choose one of resnet, cnn, "),
        ("resnet", {"blok": "basic"}, "no setting 'blok': it has block, stage_blocks, exit_after"),
        ("resnet20_3", {"depth": 20}, "network 'resnet20_3' has no setting 'depth'"),
        ("resnet", {"exit_after": (18, 9)}, r"exit_after \[18, 9\] must increase strictly"),
        ("resnet", {"exit_after": (9, 9)}, r"exit_after \[9, 9\] must increase strictly"),
        ("resnet", {"exit_after": (9, 27)}, r"within 1..26, for 27 blocks"),
        ("resnet", {"exit_after": (0, 9)}, r"exit_after of network 'resnet' is \(0, 9\): give"),
        ("resnet", {"exit_after": ()}, r"exit_after of network 'resnet' is \(\): give whole"),
        ("resnet", {"stage_blocks": (9, 0, 9)}, r"stage_blocks of .* is \(9, 0, 9\): give whole"),
        ("resnet", {"stage_blocks": ()}, r"stage_blocks of network 'resnet' is \(\): give"),
        ("cnn", {"widths": (4, 4)}, r"widths \[4, 4\], depths \[1, 2, 3\] and strides"),
        ("cnn", {"widths": (4,), "depths": (1,), "strides": (1,)}, "at least 2"),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(InputError, match=message):
        networks.build(name, **settings)
