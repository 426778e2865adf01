"""Published PyTorch weights → variables, by name."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from eenet_jax.errors import InputError
from eenet_jax.networks import bert, densenet, hrnet, msdnet, resnet
from eenet_jax.networks.contract import MultiExitNetwork, Variables

NAMERS: Mapping[str, Callable[[dict, tuple[str, ...]], str]] = {
    "resnet": resnet.published_name,
    "densenet": densenet.published_name,
    "msdnet": msdnet.published_name,
    "bert": bert.published_name,
    "hrnet": hrnet.published_name,
}

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

# Modules that only wrap a Linen layer; the published names have no such level.
WRAPPERS = ("conv", "norm", "linear")

# Counters that PyTorch stores and that never enter the logits.
IGNORED_SUFFIXES = ("num_batches_tracked",)


def from_torch(network: MultiExitNetwork, state_dict: Mapping[str, Any]) -> Variables:
    """Variables from a published state dict.

    Args:
      network: Of the same architecture.
      state_dict: Published names → arrays (convolutions OIHW, linear layers [out, in]).

    Returns:
      Variables for `network.apply`, float32.

    Raises:
      InputError: tensors are missing, left over, or of another shape; all are named, and
        nothing is converted partly.
    """
    expected = published_tensors(network)
    given = {k: np.asarray(v) for k, v in state_dict.items() if not k.endswith(IGNORED_SUFFIXES)}
    _check_tensors(network, expected, given)
    paths, treedef = jax.tree.flatten_with_path(_abstract(network))
    leaves = [
        _from_torch_layout(_keys(path)[-1], given[_tensor_name(network, _keys(path))])
        for path, _ in paths
    ]
    return jax.tree.unflatten(treedef, leaves)


def published_tensors(network: MultiExitNetwork) -> dict[str, tuple[int, ...]]:
    """Published names → PyTorch shapes of every tensor that the network needs."""
    leaves, _ = jax.tree.flatten_with_path(_abstract(network))
    return {
        _tensor_name(network, _keys(path)): _torch_shape(_keys(path)[-1], leaf.shape)
        for path, leaf in leaves
    }


def _abstract(network: MultiExitNetwork) -> Variables:
    return jax.eval_shape(network.init, jax.random.key(0))


def _keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)


def _tensor_name(network: MultiExitNetwork, path: tuple[str, ...]) -> str:
    if network.family not in NAMERS:
        raise InputError(
            f"there are no published weights for '{network.family}': choose {', '.join(NAMERS)}"
        )
    _collection, *modules, leaf = path
    if modules[-1] in WRAPPERS:
        modules = modules[:-1]
    name = NAMERS[network.family](dict(network.settings), tuple(modules))
    return f"{name}.{LEAVES[leaf]}"


def _torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if leaf == "kernel":
        *size, channels, features = shape
        return (features, channels, *size)
    return shape


def _from_torch_layout(leaf: str, tensor: np.ndarray) -> np.ndarray:
    if leaf == "kernel":
        tensor = np.moveaxis(tensor, (0, 1), (-1, -2))
    return np.ascontiguousarray(tensor, dtype=np.float32)


def _check_tensors(
    network: MultiExitNetwork, expected: dict[str, tuple[int, ...]], given: dict[str, np.ndarray]
) -> None:
    missing = sorted(expected.keys() - given.keys())
    extra = sorted(given.keys() - expected.keys())
    misshapen = [
        f"{name} {given[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    faults = {"missing": missing, "left over": extra, "misshapen": misshapen}
    if any(faults.values()):
        found = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
        raise InputError(f"these weights are not of this {network.family} ({found})")
