"""A network that replays given logits, to put the strategies of execution to the test."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from eenet_jax.execution.decision import Answers
from eenet_jax.execution.streaming import Stream
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.policies.policy import Policy


class HandOn(nn.Module):
    """A stage that changes nothing."""

    @nn.compact
    def __call__(self, logits: Float[Array, "batch exits classes"], train: bool):
        return logits


class Pick(nn.Module):
    """An exit head whose logits are row k of the carry."""

    k: int

    @nn.compact
    def __call__(self, logits: Float[Array, "batch exits classes"], train: bool):
        return logits[:, self.k]


def replay_network(
    exits: int, classes: int, stages: Sequence[nn.Module] | None = None
) -> MultiExitNetwork:
    """A network without weights: its input [batch, exits, classes] holds every exit's logits."""
    return MultiExitNetwork(
        family="replay",
        settings={"num_classes": classes},
        stages=tuple(stages or (HandOn() for _ in range(exits))),
        heads=tuple(Pick(k) for k in range(exits)),
        input_shape=(exits, classes),
    )


def exit_probs(logits: Float[np.ndarray, "batch exits classes"]) -> np.ndarray:
    """Softmax outputs in the order of predictions, [exits, batch, classes]."""
    return np.asarray(jax.nn.softmax(np.swapaxes(logits, 0, 1)))


def streamed(network: MultiExitNetwork, policy: Policy, **settings):
    """A stream as a function (variables, batch) → `Answers`, to compare it with the others."""

    @functools.cache
    def stream() -> Stream:
        return Stream(network, made["variables"], policy, **settings)

    made = {}

    def run(variables, x: np.ndarray) -> Answers:
        made.setdefault("variables", variables)
        results = stream().answers(x)
        logits = np.stack([result.logits for result in results])
        return Answers(logits, np.asarray([result.exit_index for result in results], np.int32))

    return run
