"""Published weights for tests: every tensor follows from its name."""

import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eenet_jax.networks import MultiExitNetwork
from eenet_jax.networks.convert import from_torch, published_tensors

GOLDEN = Path(__file__).parents[1] / "golden"

# For what runs once: optimising it takes longer than running it.
QUICKLY = {"xla_backend_optimization_level": 0}


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name: drawn from a generator seeded by the name's CRC-32."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        value = 0.5 + draw.random(shape)
    elif name.endswith("running_mean"):
        value = 0.1 * draw.standard_normal(shape)
    elif len(shape) >= 2 and "embeddings" in name:
        value = 0.5 * draw.standard_normal(shape)
    elif len(shape) >= 2:
        value = draw.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    elif name.endswith(".weight"):
        value = 0.8 + 0.4 * draw.random(shape)
    else:
        value = 0.1 * draw.standard_normal(shape)
    return np.asarray(value, np.float32)


def state_dict(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """Names and PyTorch shapes → tensors."""
    return {name: tensor(name, tuple(shape)) for name, shape in tensors}


def golden(name: str) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """What the published network of that name computes.

    Returns:
      Its logits [exits, batch, classes], its weights, its input NHWC, and its settings.
    """
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        logits, meta = archive["logits"], json.loads(str(archive["meta"]))
        weights = state_dict(json.loads(str(archive["state_dict"])))
    draw = np.random.default_rng(meta["input_seed"])
    images = draw.standard_normal(meta["input_shape"]).astype(np.float32)
    return logits, weights, images, meta


def logits_from_names(network: MultiExitNetwork) -> tuple[np.ndarray, int]:
    """What a network says to one random image, all weights following from their published names.

    Returns:
      Its logits [exits, classes], and its number of parameters.
    """
    variables = from_torch(network, state_dict(published_tensors(network).items()))
    draw = np.random.default_rng(0)
    image = jnp.asarray(draw.standard_normal((1, *network.input_shape)), jnp.float32)
    run = jax.jit(network.apply, compiler_options=QUICKLY)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return np.asarray(run(variables, image))[:, 0], parameters


def statistics_that_training_leaves(network: MultiExitNetwork) -> list[str]:
    """The running statistics that a training step on random images does not move."""
    draw = np.random.default_rng(1)
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: draw.random(leaf.shape, np.float32), abstract)
    images = jnp.asarray(draw.standard_normal((2, *network.input_shape)), jnp.float32)
    train = jax.jit(network.apply_train, compiler_options=QUICKLY)
    _, updated = train(variables, images, jax.random.key(0))
    changed = jax.tree.map(lambda a, b: (a != b).any(), updated, dict(variables["batch_stats"]))
    leaves, _ = jax.tree.flatten_with_path(changed)
    return [jax.tree_util.keystr(path) for path, moved in leaves if not moved]
