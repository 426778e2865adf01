"""Published weights land where they belong: names and numbers of a ResNet worked out by hand.

Basic blocks in groups of one and two, an exit at the border of the groups and one inside the
second: segment 0 of the second group is empty, segments 1 and 2 hold a block each.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import state_dict

from eenet_jax import networks
from eenet_jax.errors import InputError
from eenet_jax.networks.convert import (
    from_torch,
    published_tensors,
    skipped_tensors,
    unused_names,
)

# Published name → (place among the variables, input channels, output channels).
CONVOLUTIONS = {
    "conv1": ("stage_0/conv1", 3, 2),
    "layer1.0.0.conv1": ("stage_0/group0_block0/conv1", 2, 2),
    "layer1.0.0.conv2": ("stage_0/group0_block0/conv2", 2, 2),
    "ee2.0.0": ("head_0/conv0", 2, 2),
    "ee2.0.3": ("head_0/conv1", 2, 2),
    "ee2.0.6": ("head_0/conv2", 2, 2),
    "layer2.1.0.conv1": ("stage_1/group1_block0/conv1", 2, 4),
    "layer2.1.0.conv2": ("stage_1/group1_block0/conv2", 4, 4),
    "layer2.1.0.shortcut.0": ("stage_1/group1_block0/shortcut_conv", 2, 4),
    "ee2.1.0": ("head_1/conv0", 4, 4),
    "ee2.1.3": ("head_1/conv1", 4, 4),
    "ee2.1.6": ("head_1/conv2", 4, 4),
    "layer2.2.0.conv1": ("stage_2/group1_block1/conv1", 4, 4),
    "layer2.2.0.conv2": ("stage_2/group1_block1/conv2", 4, 4),
}
NORMS = {
    "bn1": ("stage_0/bn1", 2),
    "layer1.0.0.bn1": ("stage_0/group0_block0/bn1", 2),
    "layer1.0.0.bn2": ("stage_0/group0_block0/bn2", 2),
    "ee2.0.1": ("head_0/norm0", 2),
    "ee2.0.4": ("head_0/norm1", 2),
    "ee2.0.7": ("head_0/norm2", 2),
    "layer2.1.0.bn1": ("stage_1/group1_block0/bn1", 4),
    "layer2.1.0.bn2": ("stage_1/group1_block0/bn2", 4),
    "layer2.1.0.shortcut.1": ("stage_1/group1_block0/shortcut_bn", 4),
    "ee2.1.1": ("head_1/norm0", 4),
    "ee2.1.4": ("head_1/norm1", 4),
    "ee2.1.7": ("head_1/norm2", 4),
    "layer2.2.0.bn1": ("stage_2/group1_block1/bn1", 4),
    "layer2.2.0.bn2": ("stage_2/group1_block1/bn2", 4),
}
LINEARS = {
    "ee2.0.11": ("head_0/classifier", 2),
    "ee2.1.11": ("head_1/classifier", 4),
    "linear": ("head_2", 4),
}
CLASSES = 3
SIDE = 8


def _tiny():
    return networks.build(
        "resnet",
        block="basic",
        stage_blocks=(1, 2),
        exit_after=(1, 2),
        num_classes=CLASSES,
        width=2,
        input_shape=(SIDE, SIDE, 3),
    )


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, (_, inputs, outputs) in CONVOLUTIONS.items():
        size = 1 if "shortcut" in name else 3
        shapes[f"{name}.weight"] = (outputs, inputs, size, size)
    for name, (_, channels) in NORMS.items():
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{tensor}"] = (channels,)
    for name, (_, inputs) in LINEARS.items():
        shapes |= {f"{name}.weight": (CLASSES, inputs), f"{name}.bias": (CLASSES,)}
    return shapes


@pytest.fixture(scope="module")
def weights():
    return state_dict(_shapes().items())


@pytest.fixture(scope="module")
def variables(weights):
    return from_torch(_tiny(), weights)


def test_names_and_shapes_are_the_published_ones():
    assert published_tensors(_tiny()) == _shapes()


@pytest.mark.parametrize(
    ("stage_blocks", "exit_after", "blocks", "heads"),
    [
        (
            (3, 3),
            (2, 4),
            {"layer1.0.0", "layer1.0.1", "layer1.1.0", "layer2.0.0", "layer2.1.0", "layer2.1.1"},
            {"ee1.0", "ee2.0"},
        ),
        (
            (2, 2, 2),
            (2, 4),
            {"layer1.0.0", "layer1.0.1", "layer2.1.0", "layer2.1.1", "layer3.1.0", "layer3.1.1"},
            {"ee2.0", "ee3.0"},
        ),
        (
            (4, 1),
            (1, 3),
            {"layer1.0.0", "layer1.1.0", "layer1.1.1", "layer1.2.0", "layer2.0.0"},
            {"ee1.0", "ee1.1"},
        ),
    ],
)
def test_groups_are_cut_into_segments_at_their_exits(stage_blocks, exit_after, blocks, heads):
    network = networks.build(
        "resnet", block="basic", stage_blocks=stage_blocks, exit_after=exit_after, width=2
    )
    names = published_tensors(network)
    assert {n.rsplit(".", 2)[0] for n in names if n.endswith("conv1.weight") and n[0] == "l"} == (
        blocks
    )
    assert {n.removesuffix(".11.bias") for n in names if n.endswith(".11.bias")} == heads


def _at(tree, place: str):
    for name in place.split("/"):
        tree = tree[name]
    return tree


def test_every_tensor_is_where_it_must_be(variables, weights):
    params, statistics = variables["params"], variables["batch_stats"]
    for name, (place, inputs, outputs) in CONVOLUTIONS.items():
        kernel, weight = _at(params, place)["conv"]["kernel"], weights[f"{name}.weight"]
        for i in range(inputs):
            for o in range(outputs):
                np.testing.assert_array_equal(kernel[:, :, i, o], weight[o, i])
    for name, (place, _) in NORMS.items():
        norm, running = _at(params, place)["norm"], _at(statistics, place)["norm"]
        np.testing.assert_array_equal(norm["scale"], weights[f"{name}.weight"])
        np.testing.assert_array_equal(norm["bias"], weights[f"{name}.bias"])
        np.testing.assert_array_equal(running["mean"], weights[f"{name}.running_mean"])
        np.testing.assert_array_equal(running["var"], weights[f"{name}.running_var"])
    for name, (place, _) in LINEARS.items():
        linear = _at(params, place)["linear"]
        np.testing.assert_array_equal(linear["kernel"].T, weights[f"{name}.weight"])
        np.testing.assert_array_equal(linear["bias"], weights[f"{name}.bias"])
    assert len(jax.tree.leaves(variables)) == len(weights)


def _convolve(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """A padded convolution of NHWC images by an OIHW kernel, written out."""
    size = weight.shape[2]
    half = size // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (half, half), (half, half), (0, 0)))
    out = 0.0
    for row in range(size):
        for column in range(size):
            window = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
            out = out + window[:, ::stride, ::stride] @ weight[:, :, row, column].T
    return out


class _Reference:
    """The tiny network in NumPy, in double precision, from weights in PyTorch's layout."""

    def __init__(self, weights):
        self._weights = weights

    def conv_norm(self, x, conv: str, norm: str, stride: int = 1):
        w = self._weights
        y = _convolve(x, w[f"{conv}.weight"], stride) - w[f"{norm}.running_mean"]
        y = y / np.sqrt(w[f"{norm}.running_var"] + 1e-5)
        return y * w[f"{norm}.weight"] + w[f"{norm}.bias"]

    def block(self, x, name: str, stride: int = 1):
        y = np.maximum(self.conv_norm(x, f"{name}.conv1", f"{name}.bn1", stride), 0)
        y = self.conv_norm(y, f"{name}.conv2", f"{name}.bn2")
        if f"{name}.shortcut.0.weight" in self._weights:
            x = self.conv_norm(x, f"{name}.shortcut.0", f"{name}.shortcut.1", stride)
        return np.maximum(x + y, 0)

    def linear(self, x, name: str):
        return x.mean((1, 2)) @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def head(self, x, name: str):
        for place in (0, 3, 6):
            x = np.maximum(self.conv_norm(x, f"{name}.{place}", f"{name}.{place + 1}"), 0)
        return self.linear(x, f"{name}.11")


def test_blocks_and_logits_equal_a_reference_written_out(variables, weights):
    network, reference = _tiny(), _Reference(weights)
    images = np.random.default_rng(0).standard_normal((2, SIDE, SIDE, 3)).astype(np.float32)
    first = reference.block(
        np.maximum(reference.conv_norm(images, "conv1", "bn1"), 0), "layer1.0.0"
    )
    second = reference.block(first, "layer2.1.0", stride=2)
    third = reference.block(second, "layer2.2.0")
    assert second.shape == (2, SIDE // 2, SIDE // 2, 4)
    ours, _ = network.stage(1, variables, jnp.asarray(first, jnp.float32), False, None)
    np.testing.assert_allclose(ours, second, atol=1e-5)
    expected = [
        reference.head(first, "ee2.0"),
        reference.head(second, "ee2.1"),
        reference.linear(third, "linear"),
    ]
    logits = jax.jit(network.apply)(variables, images)
    np.testing.assert_allclose(logits, np.stack(expected), atol=1e-5)


def test_counters_are_ignored_and_other_types_converted(weights):
    given = {name: value.astype(np.float64) for name, value in weights.items()}
    given["bn1.num_batches_tracked"] = np.asarray(7)
    variables = from_torch(_tiny(), given)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def test_all_missing_extra_and_misshapen_tensors_are_named_at_once(weights):
    given = dict(weights)
    del given["conv1.weight"], given["ee2.1.7.running_var"]
    given["fc.weight"] = np.zeros((3, 4), np.float32)
    given["module.bn1.bias"] = np.zeros(2, np.float32)
    given["linear.weight"] = np.zeros((10, 4), np.float32)
    given["layer2.1.0.conv1.weight"] = np.zeros((3, 3, 2, 4), np.float32)
    with pytest.raises(InputError) as error:
        from_torch(_tiny(), given)
    message = str(error.value)
    assert "missing: conv1.weight, ee2.1.7.running_var" in message
    assert "left over: fc.weight, module.bn1.bias" in message
    assert "linear.weight (10, 4) instead of (3, 4)" in message
    assert "layer2.1.0.conv1.weight (3, 3, 2, 4) instead of (4, 2, 3, 3)" in message


def test_the_prefix_of_data_parallel_is_dropped_where_all_have_it(weights, variables):
    given = {f"module.{name}": value for name, value in weights.items()}
    given["module.bn1.num_batches_tracked"] = np.asarray(7)
    assert skipped_tensors(_tiny(), given) == ["module.bn1.num_batches_tracked"]
    converted = from_torch(_tiny(), given)
    for ours, theirs in zip(jax.tree.leaves(converted), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _bert():
    return networks.build(
        "bert", layers=2, width=4, heads=2, mlp_width=6, vocab_size=7, max_positions=5,
        exit_after=(1,), num_classes=3, sequence_length=5,
    )  # fmt: skip


def _leaf_of_bert(name: str) -> str:
    """Where a published tensor of the tiny BERT must be."""
    if name.startswith(("classifiers.", "bert.poolers.")):
        k = name.removeprefix("bert.").split(".")[1]
        return f"head_{k}/{'pooler' if 'pooler' in name else 'classifier'}"
    if name.startswith("bert.embeddings."):
        return f"stage_0/embeddings/{name.split('.')[2]}"
    i, *inner = name.removeprefix("bert.encoder.layer.").split(".")[:-1]
    place = {
        "attention.output.dense": "attention_dense",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "intermediate_dense",
        "output.dense": "output_dense",
        "output.LayerNorm": "output_norm",
    }.get(".".join(inner), f"attention/{inner[-1]}")
    return f"stage_{i}/layer{i}/{place}"


def test_a_bert_is_read_with_its_embeddings_as_they_are_and_old_names_of_layer_norm():
    shapes = published_tensors(_bert())
    assert shapes["bert.embeddings.word_embeddings.weight"] == (7, 4)
    assert shapes["bert.encoder.layer.1.intermediate.dense.weight"] == (6, 4)
    weights = state_dict(shapes.items())
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in weights.items()
    }
    old["bert.embeddings.position_ids"] = np.arange(5)[None]
    assert len(set(old) - set(weights)) == 11
    assert skipped_tensors(_bert(), old) == ["bert.embeddings.position_ids"]
    params = from_torch(_bert(), old)["params"]
    for name, value in weights.items():
        leaves = _at(params, _leaf_of_bert(name))
        if name.endswith(".bias"):
            np.testing.assert_array_equal(leaves["bias"], value)
        elif "LayerNorm" in name:
            np.testing.assert_array_equal(leaves["scale"], value)
        elif "embeddings" in name:
            np.testing.assert_array_equal(leaves["embedding"], value)
        else:
            np.testing.assert_array_equal(leaves["kernel"], value.T)
    assert len(jax.tree.leaves(params)) == len(weights)


def test_a_tensor_under_both_its_names_is_left_over():
    weights = state_dict(published_tensors(_bert()).items())
    weights["bert.embeddings.LayerNorm.gamma"] = np.ones(4, np.float32)
    with pytest.raises(InputError, match=r"left over: bert.embeddings.LayerNorm.gamma"):
        from_torch(_bert(), weights)


def test_only_what_never_enters_the_logits_is_skipped():
    names = ["bn1.num_batches_tracked", "switcher.linear.weight", "bert.embeddings.position_ids"]
    for family, skipped in (("resnet", names[:1]), ("msdnet", names[:2]), ("bert", names[::2])):
        assert unused_names(family, names) == skipped


def test_a_family_without_published_weights_says_so():
    with pytest.raises(InputError, match="no published weights for 'cnn': choose resnet"):
        from_torch(networks.build("cnn"), {})
