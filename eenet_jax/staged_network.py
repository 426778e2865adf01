"""What running a network stage by stage asks of it, whatever it is made of."""

from typing import Any, Protocol, runtime_checkable

import jax

from eenet_jax.types import PyTree


@runtime_checkable
class StagedNetwork(Protocol):
    """A network cut into stages, with an exit head after each.

    `networks.MultiExitNetwork` is one, and so is a bundle, which has no network's code.
    Variables are whatever pytree the network's own weights are.
    """

    @property
    def num_exits(self) -> int:
        """K."""
        ...

    @property
    def num_classes(self) -> int:
        """C."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample, without the batch axis; of tokens, (length,) of an example."""
        ...

    @property
    def inputs(self) -> str:
        """An "image" array, or "tokens", a dict with `input_ids` and `attention_mask`."""
        ...

    @property
    def dense(self) -> bool:
        """Whether heads return logits of every pixel."""
        ...

    @property
    def max_length(self) -> int | None:
        """Tokens of the longest text that it takes; None for images."""
        ...

    @property
    def vocab_size(self) -> int | None:
        """One more than the greatest token id; None for images, or where it is not known."""
        ...

    def example(self, batch_size: int = 1) -> PyTree:
        """An input [batch, …] to trace and warm up with."""
        ...

    def prepared(self, variables: PyTree) -> PyTree:
        """Variables for evaluation alone, computed on as far as they depend on nothing else.

        Stages and heads answer the same with them; may be traced. Whatever runs stages in loops
        calls it once before, for XLA takes nothing out of a loop of one round.
        """
        ...

    def stage(
        self, k: int, variables: PyTree, carry: PyTree, train: bool, key: jax.Array | None
    ) -> tuple[PyTree, Any]:
        """Stage k (0-based) on what stage k-1 handed on: the next carry, and statistics."""
        ...

    def head(
        self, k: int, variables: PyTree, carry: PyTree, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """Exit head k on the carry after stage k: logits, and statistics."""
        ...

    def apply(self, variables: PyTree, x: PyTree) -> jax.Array:
        """Logits of every exit [exits, batch, …] in evaluation mode."""
        ...
