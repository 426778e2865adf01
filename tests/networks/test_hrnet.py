"""HRNet against numbers of the published definition, at odd sizes; bilinear resizing alone.

The numbers in `hrnet_tiny.npz` are PyTorch 2.13's, in float32 on a CPU: an independent rendition
of the official segmentation network (HRNetV2), under the official names and with a head of the
official kind after every stage, filled by the rule in `published.py`. Its parameters at widths 48
and 18, without the early heads, are counted below. Of the logits every fourth row and every fifth
column are kept, and the means over all pixels. Resizing is `torch.nn.functional.interpolate`, its
gradient autograd's.
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


def _jit(function):
    # What runs once is compiled quickly rather than well.
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _golden():
    with np.load(GOLDEN / "hrnet_tiny.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _images(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def _published(number: int):
    """The network, its variables, its images, and its settings in the file, of one case."""
    golden = _golden()
    meta = json.loads(str(golden["meta"]))
    case = meta["cases"][number]
    names = json.loads(str(golden[f"state_dict_{number}"]))
    network = networks.build("hrnet", **case["settings"])
    assert published_tensors(network) == {name: tuple(shape) for name, shape in names}
    variables = from_torch(network, state_dict(names))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == case["parameters"]
    images = _images(meta["input_seed"], (3, *network.input_shape))
    return network, variables, jnp.asarray(images)


def _check(logits, number: int, exits=(0, 1, 2, 3), rows=(0, 1, 2)) -> None:
    """Hold logits [exits, batch, height, width, classes] against the published ones."""
    golden = _golden()
    chosen = np.ix_(exits, rows)
    expected = golden[f"logits_{number}"][chosen]
    kept = np.asarray(logits)[:, :, ::4, ::5]
    assert kept.shape == expected.shape
    assert np.abs(kept - expected).max() <= 1e-5 * np.abs(expected).max()
    means = golden[f"mean_{number}"][chosen]
    np.testing.assert_allclose(np.mean(logits, (2, 3)), means, atol=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_logits_of_every_exit_are_the_published_ones(number):
    network, variables, images = _published(number)
    logits = _jit(network.apply)(variables, images)
    assert logits.shape == (4, 3, *network.input_shape[:2], network.num_classes)
    _check(logits, number)


def test_stages_run_alone_on_gathered_samples_are_the_network():
    network, variables, carry = _published(1)
    rows, stayed = (0, 1, 2), (2, 0)
    for k in range(network.num_exits):
        stage = _jit(lambda v, c, k=k: network.stage(k, v, c, False, None)[0])
        head = _jit(lambda v, c, k=k: network.head(k, v, c, False, None)[0])
        carry = stage(variables, carry)
        _check(head(variables, carry)[None], 1, (k,), rows)
        if k == 0:
            rows = stayed
            carry = jax.tree.map(lambda leaf: leaf[jnp.array(stayed)], carry)
    sizes = [branch.shape[1:] for branch in carry["branches"]]
    assert sizes == [(12, 9, 5), (6, 5, 10), (3, 3, 20), (2, 2, 40)]


def _official(tensors) -> int:
    """Parameters of the published network, which has the last head alone."""
    official = {name: shape for name, shape in tensors.items() if not name.startswith("exits.")}
    return sum(math.prod(shape) for name, shape in official.items() if "running" not in name)


def test_width_18_has_the_official_number_of_parameters():
    assert _official(published_tensors(networks.build("hrnet", width=18))) == 9_641_119


def test_width_48_has_the_official_names_and_number_of_parameters():
    tensors = published_tensors(networks.build("hrnet_4"))
    assert _official(tensors) == 65_859_379
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
    assert {name: tensors[name] for name in shapes} == shapes


def test_other_image_sizes_than_the_networks_own():
    network, variables, _ = _published(1)
    for height, width in ((32, 64), (33, 31)):
        images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
        logits = jax.eval_shape(network.apply, variables, images)
        assert logits.shape == (4, 2, height, width, 4)


def test_every_kernel_learns_and_every_statistic_moves():
    network, variables, images = _published(1)

    def loss(params):
        # Two stages have every kind of layer; all four would take long to compile.
        moved = {"params": params, "batch_stats": variables["batch_stats"]}
        carry, first = network.stage(0, moved, images, True, None)
        carry, second = network.stage(1, moved, carry, True, None)
        logits, head = network.head(1, moved, carry, True, None)
        statistics = {"stage_0": first, "stage_1": second, "head_1": head}
        return -jax.nn.log_softmax(logits)[..., 0].mean(), statistics

    params = {name: variables["params"][name] for name in ("stage_0", "stage_1", "head_1")}
    (value, moved), gradients = _jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    # A bias before a norm has no effect, and so no gradient.
    paths = jax.tree.leaves_with_path(gradients)
    kernels = [leaf for path, leaf in paths if path[-1].key == "kernel"]
    assert min(np.abs(leaf).max() for leaf in kernels) > 0
    before = {name: variables["batch_stats"][name] for name in moved}
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, moved, before)
    assert all(jax.tree.leaves(changed))


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
