"""Published PyTorch weights → variables, by name."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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

# Tensors that published files hold and that never enter the logits, by family.
UNUSED: Mapping[str, str] = {
    "msdnet": r"switcher\..*",
    "bert": r"bert\.embeddings\.(position_ids|token_type_ids)",
}
COUNTERS = r"(.*\.)?num_batches_tracked"

# What DataParallel puts before every name.
PARALLEL_PREFIX = "module."

# LayerNorm's tensors as the first BERT checkpoints named them.
LEGACY_ENDS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class _Leaf(NamedTuple):
    """A tensor that the network needs: its published name and shape, and Linen's name of it."""

    name: str
    shape: tuple[int, ...]
    kind: str


def from_torch(network: MultiExitNetwork, state_dict: Mapping[str, Any]) -> Variables:
    """Variables from a published state dict.

    DataParallel's `module.` before every name is dropped, LayerNorm's old names (gamma, beta)
    are read as the new ones, and `skipped_tensors` are left out.

    Args:
      network: Of the same architecture.
      state_dict: Published names → arrays (convolutions OIHW, linear layers [out, in]).

    Returns:
      Variables for `network.apply`, float32.

    Raises:
      InputError: tensors are missing, left over, or of another shape; all are named, and
        nothing is converted partly.
    """
    leaves, treedef = _leaves(network)
    skipped = set(skipped_tensors(network, state_dict))
    given = {
        name: np.asarray(state_dict[original])
        for original, name in published_names(state_dict).items()
        if original not in skipped
    }
    check_tensors(given, {leaf.name: leaf.shape for leaf in leaves}, f"of this {network.family}")
    converted = [_from_torch_layout(leaf.kind, given[leaf.name]) for leaf in leaves]
    return jax.tree.unflatten(treedef, converted)


def skipped_tensors(network: MultiExitNetwork, state_dict: Iterable[str]) -> list[str]:
    """Names in a published state dict that `from_torch` leaves out: they never enter the logits.

    Args:
      network: Of the same architecture.
      state_dict: Published names, or a mapping from them.

    Returns:
      BatchNorm's counters, position ids and what else the family's publishers store, as named in
      the state dict.
    """
    return unused_names(network.family, state_dict)


def unused_names(family: str, names: Iterable[str]) -> list[str]:
    """Those of the published names that never enter the logits of the family's networks."""
    unused = "|".join([COUNTERS, *filter(None, [UNUSED.get(family)])])
    published = published_names(names)
    return [original for original, name in published.items() if re.fullmatch(unused, name)]


def replace_tensors(
    network: MultiExitNetwork, variables: Variables, tensors: Mapping[str, np.ndarray]
) -> Variables:
    """Variables with some tensors replaced by published ones.

    Args:
      network: Whose variables they are.
      variables: What stays where no tensor is given.
      tensors: Published names → arrays, of the shapes in `published_tensors`.
    """
    leaves, treedef = _leaves(network)
    kept = treedef.flatten_up_to(variables)
    replaced = [
        jnp.asarray(_from_torch_layout(leaf.kind, tensors[leaf.name]))
        if leaf.name in tensors
        else value
        for leaf, value in zip(leaves, kept, strict=True)
    ]
    return jax.tree.unflatten(treedef, replaced)


def published_tensors(network: MultiExitNetwork) -> dict[str, tuple[int, ...]]:
    """Published names → PyTorch shapes of every tensor that the network needs."""
    return {leaf.name: leaf.shape for leaf in _leaves(network)[0]}


def check_tensors(
    given: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], whose: str
) -> None:
    """Raise InputError where tensors are missing, left over, of another shape, or not finite.

    Args:
      given: By name.
      expected: Names → shapes.
      whose: They should be, for the message.
    """
    missing = sorted(expected.keys() - given.keys())
    extra = sorted(given.keys() - expected.keys())
    misshapen = [
        f"{name} {given[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    broken = [
        name
        for name, value in given.items()
        if name in expected and not np.isfinite(np.asarray(value, np.float32)).all()
    ]
    faults = {"missing": missing, "left over": extra, "misshapen": misshapen, "not finite": broken}
    if any(faults.values()):
        found = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
        raise InputError(f"these weights are not {whose} ({found})")


def published_names(given: Iterable[str]) -> dict[str, str]:
    """Names as given → as published, without what wrappers and old versions made of them."""
    names = list(given)
    if all(name.startswith(PARALLEL_PREFIX) for name in names):
        published = {name: name.removeprefix(PARALLEL_PREFIX) for name in names}
    else:
        published = {name: name for name in names}
    taken = set(published.values())
    modern = {original: _without_legacy_end(name) for original, name in published.items()}
    return {
        original: name if modern[original] in taken else modern[original]
        for original, name in published.items()
    }


def _without_legacy_end(name: str) -> str:
    for old, new in LEGACY_ENDS.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _leaves(network: MultiExitNetwork) -> tuple[list[_Leaf], Any]:
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    paths, treedef = jax.tree.flatten_with_path(abstract)
    leaves = []
    for path, leaf in paths:
        keys = tuple(entry.key for entry in path)
        shape = _torch_shape(keys[-1], leaf.shape)
        leaves.append(_Leaf(_tensor_name(network, keys), shape, keys[-1]))
    return leaves, treedef


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
