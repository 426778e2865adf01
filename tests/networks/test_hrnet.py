"""HRNet against numbers of the published definition, at odd sizes; bilinear resizing alone.

The numbers in `hrnet_tiny.npz` are PyTorch 2.13's, in float32 on a CPU: an independent rendition
of the official segmentation network (HRNetV2), under the official names and with a head of the
official kind after every stage, filled by the rule in `published.py`; its parameters at widths 48
and 18 are counted below. Kept of the logits are every fourth row and every fifth column, and
the mean over all pixels. Resizing is `torch.nn.functional.interpolate`, its gradient autograd's.
"""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import GOLDEN, state_dict

from eenet_jax import networks
from eenet_jax.errors import InputError
from eenet_jax.networks.bilinear import interpolation_matrix, resize_bilinear
from eenet_jax.networks.convert import from_torch, published_tensors

TINY = {
    "width": 4,
    "stage_modules": (1, 1, 1, 1),
    "stage_blocks": (1, 1, 1, 1),
    "stem_channels": 4,
    "bottleneck_width": 2,
    "head_channels": 4,
    "num_classes": 3,
    "input_shape": (17, 22, 3),
}


def _jit(function):
    # What runs once is compiled quickly rather than well.
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _golden():
    with np.load(GOLDEN / "hrnet_tiny.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _images(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("number", range(3))
def test_logits_of_every_exit_are_the_published_ones(number):
    golden = _golden()
    meta = json.loads(str(golden["meta"]))
    case = meta["cases"][number]
    names = json.loads(str(golden[f"state_dict_{number}"]))
    network = networks.build("hrnet", **case["settings"])
    assert published_tensors(network) == {name: tuple(shape) for name, shape in names}
    variables = from_torch(network, state_dict(names))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == case["parameters"]
    images = _images(meta["input_seed"], (2, *network.input_shape))
    ours = np.asarray(_jit(network.apply)(variables, images))
    assert ours.shape == (4, 2, *network.input_shape[:2], network.num_classes)
    kept = ours[:, :, :: meta["rows"], :: meta["columns"]]
    expected = golden[f"logits_{number}"]
    assert np.abs(kept - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(ours.mean((2, 3)), golden[f"mean_{number}"], atol=1e-5)


@pytest.mark.parametrize(("width", "parameters"), [(48, 65_859_379), (18, 9_641_119)])
def test_official_networks_have_as_many_parameters(width, parameters):
    tensors = published_tensors(networks.build("hrnet", width=width)).items()
    official = {name: shape for name, shape in tensors if not name.startswith("exits.")}
    counted = [math.prod(shape) for name, shape in official.items() if "running" not in name]
    assert sum(counted) == parameters


def test_official_names():
    names = published_tensors(networks.build("hrnet_4"))
    shapes = {
        "conv2.weight": (64, 64, 3, 3),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.3.bn3.running_var": (256,),
        "transition1.0.0.weight": (48, 256, 3, 3),
        "transition1.1.0.0.weight": (96, 256, 3, 3),
        "transition3.3.0.1.bias": (384,),
        "stage3.3.branches.2.3.conv2.weight": (192, 192, 3, 3),
        "stage4.2.fuse_layers.0.3.0.weight": (48, 384, 1, 1),
        "stage4.2.fuse_layers.3.0.1.0.weight": (48, 48, 3, 3),
        "stage4.2.fuse_layers.3.0.2.0.weight": (384, 48, 3, 3),
        "last_layer.0.weight": (720, 720, 1, 1),
        "last_layer.3.bias": (19,),
        "exits.0.0.bias": (256,),
        "exits.2.3.weight": (19, 336, 1, 1),
    }
    assert {name: names[name] for name in shapes} == shapes


@functools.cache
def _tiny():
    network = networks.build("hrnet", **TINY)
    return network, network.init(jax.random.key(0))


def test_stages_run_alone_on_gathered_samples_are_the_network():
    network, variables = _tiny()
    images = _images(1, (3, *network.input_shape))
    whole = _jit(network.apply)(variables, images)
    stages = [lambda v, c, k=k: network.stage(k, v, c, False, None)[0] for k in range(4)]
    heads = [lambda v, c, k=k: network.head(k, v, c, False, None)[0] for k in range(4)]
    carry = _jit(stages[0])(variables, images)
    np.testing.assert_allclose(_jit(heads[0])(variables, carry), whole[0], atol=1e-5)
    carry = jax.tree.map(lambda leaf: leaf[jnp.array([2, 0])], carry)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(carry)} == {2}
    for k in (1, 2, 3):
        carry = _jit(stages[k])(variables, carry)
        assert len(carry["branches"]) == k + 1
        np.testing.assert_allclose(
            _jit(heads[k])(variables, carry), whole[k][np.array([2, 0])], atol=1e-5
        )
    assert [branch.shape[1:] for branch in carry["branches"]] == [
        (5, 6, 4),
        (3, 3, 8),
        (2, 2, 16),
        (1, 1, 32),
    ]


def test_other_image_sizes_than_the_networks_own():
    network, variables = _tiny()
    for height, width in ((32, 64), (33, 31)):
        images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
        logits = jax.eval_shape(network.apply, variables, images)
        assert logits.shape == (4, 2, height, width, 3)


def test_every_parameter_learns_and_every_statistic_moves():
    network, variables = _tiny()
    images = jnp.asarray(_images(2, (2, *network.input_shape)))

    def loss(params):
        moved = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, statistics = network.apply_train(moved, images, jax.random.key(0))
        return -jax.nn.log_softmax(logits)[..., 0].mean(), statistics

    (value, statistics), gradients = _jit(jax.value_and_grad(loss, has_aux=True))(
        variables["params"]
    )
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    # A convolution's bias has no effect where a norm follows, and a ReLU may be closed.
    kernels = [
        leaf for path, leaf in jax.tree.leaves_with_path(gradients) if path[-1].key == "kernel"
    ]
    assert np.mean([np.abs(leaf).max() > 0 for leaf in kernels]) == 1.0
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, statistics, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def _tensordot_resized(x: np.ndarray, align_corners: bool) -> np.ndarray:
    rows = interpolation_matrix(3, 7, align_corners)
    columns = interpolation_matrix(5, 4, align_corners)
    return np.einsum("oh,pw,bhwc->bopc", rows, columns, x)


@pytest.mark.parametrize("align_corners", [False, True])
def test_resizing_and_its_gradient_are_pytorchs(align_corners):
    golden = _golden()
    x = _images(5, (1, 3, 5, 2))
    weights = np.arange(56, dtype=np.float32).reshape(1, 7, 4, 2) / 10

    def weighted(x):
        resized = resize_bilinear(x, (7, 4), align_corners)
        return (resized * weights).sum(), resized

    gradient, resized = _jit(jax.grad(weighted, has_aux=True))(x)
    np.testing.assert_allclose(resized, golden[f"resized_{align_corners}"], atol=2e-6)
    np.testing.assert_allclose(resized, _tensordot_resized(x, align_corners), atol=2e-6)
    np.testing.assert_allclose(gradient, golden[f"resized_gradient_{align_corners}"], rtol=1e-5)


def test_interpolation_matrices_by_hand():
    borders = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(interpolation_matrix(2, 4, False), borders)
    corners = [[1, 0], [2 / 3, 1 / 3], [1 / 3, 2 / 3], [0, 1]]
    np.testing.assert_allclose(interpolation_matrix(2, 4, True), corners)
    np.testing.assert_array_equal(interpolation_matrix(3, 3, False), np.eye(3))
    np.testing.assert_array_equal(interpolation_matrix(1, 3, True), np.ones((3, 1)))
    np.testing.assert_array_equal(interpolation_matrix(3, 1, True), [[1, 0, 0]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_blocks": (4, 4, 4)}, r"stage_blocks \[4, 4, 4\] must hold a number for each of 4"),
        ({"stage_modules": (2, 1, 1, 1)}, r"stage_modules \[2, 1, 1, 1\] must begin with 1"),
        ({"head_channels": -1}, "head_channels of network 'hrnet' is -1"),
        ({"align_corners": 1}, "align_corners of network 'hrnet' is 1"),
    ],
)
def test_settings_that_make_no_hrnet(settings, message):
    with pytest.raises(InputError, match=message):
        networks.build("hrnet", **settings)
