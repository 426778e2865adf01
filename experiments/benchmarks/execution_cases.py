"""What execution.py runs: networks with their weights, samples and policies."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from eenet_jax import networks
from eenet_jax.execution.adaptive import batches_of, find_policies
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.policies.max_prob import MaxProb
from eenet_jax.policies.policy import Policy
from eenet_jax.predictions import load_network, open_run_split
from eenet_jax.types import PyTree

MIXES = {"easy": (0.8, 0.15, 0.05), "even": (1 / 3, 1 / 3, 1 / 3), "hard": (0.2, 0.3, 0.5)}
BERTS = {
    "minilm": {
        "layers": 6, "width": 384, "heads": 12, "mlp_width": 1536, "exit_after": (2, 4),
        "pooling": "mean", "sequence_length": 64, "num_classes": 2,
    },
    "bert_base": {
        "layers": 12, "width": 768, "heads": 12, "mlp_width": 3072, "exit_after": (4, 8),
        "pooling": "first", "sequence_length": 128, "num_classes": 2,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its weights, samples, and the policies to run it by, by their names."""

    name: str
    network: MultiExitNetwork
    variables: PyTree
    samples: PyTree
    policies: Mapping[str, Policy]


def network_of(name: str) -> MultiExitNetwork:
    """A network of the zoo, or one of `BERTS`.

    Raises:
      InputError: there is none of that name.
    """
    return networks.build("bert", **BERTS[name]) if name in BERTS else networks.build(name)


def fresh(name: str, count: int) -> Case:
    """Random weights, so many random inputs, and a policy for every mix."""
    draw, network = np.random.default_rng(0), network_of(name)
    if name in BERTS:
        length = BERTS[name]["sequence_length"]
        ids = draw.integers(1, 30_000, (count, length)).astype(np.int32)
        samples: PyTree = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    else:
        samples = draw.normal(size=(count, *network.input_shape)).astype(np.float32)
    variables = _calmed(network, network.init(jax.random.key(0)), rows_of(samples, 0, 64))
    probs = np.concatenate(
        [
            np.asarray(jax.nn.softmax(jax.jit(network.apply)(variables, rows_of(samples, i, 64))))
            for i in range(0, count, 64)
        ],
        axis=1,
    )
    policies = {mix: _leaving(probs, shares) for mix, shares in MIXES.items()}
    return Case(name=name, network=network, variables=variables, samples=samples, policies=policies)


def rows_of(x: PyTree, first: int, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[first : first + count], x)


def _calmed(network: MultiExitNetwork, variables: PyTree, x: PyTree) -> PyTree:
    """Fresh weights whose logits have a deviation of 1: else every exit is sure of everything."""
    spread = np.asarray(jax.jit(network.apply)(variables, x)).std((1, 2))

    def calm(path: tuple, leaf: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        head = names[1].removeprefix("head_")
        last = head.isdigit() and "kernel" in names and leaf.shape[-1] == network.num_classes
        return leaf / float(spread[int(head)]) if last else leaf

    return jax.tree_util.tree_map_with_path(calm, variables)


def _leaving(probs: np.ndarray, shares: Sequence[float]) -> Policy:
    """A policy by which these shares of the samples leave, no score being near its threshold."""
    scores, thresholds = probs.max(-1), []
    here = np.arange(scores.shape[1])
    for row, share in zip(scores, shares[:-1], strict=False):
        falling = np.sort(row[here])[::-1]
        leave = round(share * scores.shape[1])
        thresholds.append((falling[leave - 1] + falling[leave]) / 2)
        here = here[row[here] < thresholds[-1]]
    costs = tuple(float(k + 1) for k in range(len(shares)))
    return MaxProb(
        budget=2.0, costs=costs, thresholds=np.asarray([*thresholds, -np.inf], np.float32)
    )


def trained(folder: str, most: int) -> Case:
    """A run's network and its first test samples, with two of its fitted `eenet` policies."""
    run = Path(folder)
    network, variables, _ = load_network(run)
    fits = [run, run / "fit", run / "fit-0"]
    fit = next(each for each in fits if (each / "policies").is_dir())
    found = find_policies(fit, "eenet", None)
    split = open_run_split(run, "test")
    count = min(len(split), most)
    (samples,) = batches_of(split.take(np.arange(count), "test"), count)
    chosen = {
        f"eenet at {policy.budget:g}": policy for policy in (found[0], found[len(found) // 2])
    }
    return Case(
        name=run.name, network=network, variables=variables, samples=samples, policies=chosen
    )
