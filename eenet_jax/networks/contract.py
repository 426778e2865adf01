"""The network contract: K stages and K exit heads, each a pure function.

Nothing outside this folder knows how a stage is made: everybody else calls
`stage`, `head`, `apply` and `apply_train` with a pytree of variables.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Float

from eenet_jax.errors import InputError
from eenet_jax.networks.layers import folded
from eenet_jax.pieces import cached_samples, in_pieces
from eenet_jax.types import PyTree

Variables = Mapping[str, Any]

Part = Callable[[Variables, PyTree, jax.Array | None], tuple[Any, Mapping[str, Any]]]
"""A stage or a head: of its own variables, what it is given and a PRNG key; its result and
statistics."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MultiExitNetwork:
    """A backbone cut into K stages, with an exit head after each.

    Stage k takes what stage k-1 handed on (stage 0: the network's input) and hands on a
    pytree, the carry; head k turns the carry after stage k into logits. The full pass is
    those calls in a row, so that running it in stages gives the same numbers by construction.

    Variables are `{"params": {"stage_0": …, "head_0": …, …}, "batch_stats": {…}}`.

    Attributes:
      family: The builder's name, e.g. "resnet".
      settings: The builder's arguments, JSON-serialisable; `build(family, **settings)` makes
        this network again.
      stages: K modules called as `module(carry, train=…)`.
      heads: K modules called as `module(carry, train=…)`, returning logits [batch, classes].
      input_shape: Of one sample, without the batch axis; of tokens, (length,).
      inputs: What the network takes: an "image" array, or "tokens", a dict with `input_ids` and
        `attention_mask`.
      dense: Whether heads return logits of every pixel, [batch, height, width, classes].
    """

    family: str
    settings: Mapping[str, Any]
    stages: tuple[nn.Module, ...]
    heads: tuple[nn.Module, ...]
    input_shape: tuple[int, ...]
    inputs: Literal["image", "tokens"] = "image"
    dense: bool = False

    def __post_init__(self):
        if len(self.stages) != len(self.heads) or len(self.stages) < 2:
            raise InputError(
                f"{self.family} has {len(self.stages)} stages and {len(self.heads)} heads:"
                " a multi-exit network needs as many heads as stages, at least 2"
            )

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.stages)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.settings["num_classes"]

    @property
    def max_length(self) -> int | None:
        """Tokens of the longest text that it takes; None for images."""
        return self.settings.get("max_positions", self.input_shape[0]) if self._texts else None

    @property
    def vocab_size(self) -> int | None:
        """One more than the greatest token id; None for images, or where it is not known."""
        return self.settings.get("vocab_size") if self._texts else None

    @property
    def _texts(self) -> bool:
        return self.inputs == "tokens"

    def example(self, batch_size: int = 1) -> PyTree:
        """An input of zeros [batch, …], for tracing and warming up; tokens all count."""
        shape = (batch_size, *self.input_shape)
        if self.inputs == "tokens":
            return {
                "input_ids": jnp.zeros(shape, jnp.int32),
                "attention_mask": jnp.ones(shape, jnp.int32),
            }
        return jnp.zeros(shape, jnp.float32)

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables.

        Args:
          key: PRNG key.

        Returns:
          The variables, float32.
        """
        if _traced():
            return self._init(key)
        return jax.jit(self._init, compiler_options=_quick_compilation())(key)

    def _init(self, key: jax.Array) -> Variables:
        variables = {"params": {}, "batch_stats": {}}
        carry = self.example()
        for k, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True)):
            made = stage.init(jax.random.fold_in(key, 2 * k), carry, train=False)
            _adopt(variables, f"stage_{k}", made)
            carry = stage.apply(made, carry, train=False)
            made = head.init(jax.random.fold_in(key, 2 * k + 1), carry, train=False)
            _adopt(variables, f"head_{k}", made)
        return variables

    def prepared(self, variables: Variables) -> Variables:
        """Variables for evaluation alone, every BatchNorm a factor and a constant; may be traced.

        Args:
          variables: As made by `init`.
        """
        return folded(variables)

    def stage(
        self, k: int, variables: Variables, carry: PyTree, train: bool, key: jax.Array | None
    ) -> tuple[PyTree, Mapping[str, Any]]:
        """Run stage k (0-based).

        Returns:
          The next carry, and the stage's statistics: updated when training, else unchanged.
        """
        return _run(self.stages[k], train, _own(variables, f"stage_{k}"), carry, key)

    def head(
        self, k: int, variables: Variables, carry: PyTree, train: bool, key: jax.Array | None
    ) -> tuple[Float[Array, "batch *dense classes"], Mapping[str, Any]]:
        """Run exit head k (0-based) on the carry after stage k; returns logits and statistics."""
        return _run(self.heads[k], train, _own(variables, f"head_{k}"), carry, key)

    def apply(self, variables: Variables, x: PyTree) -> Float[Array, "exits batch *dense classes"]:
        """Logits of every exit in evaluation mode.

        Args:
          variables: As made by `init`.
          x: The input [batch, …]. On a CPU a large one goes through in pieces that its cache
            holds; elsewhere, and where the batch is symbolic, at once.

        Returns:
          Logits [exits, batch, classes] (dense: [exits, batch, height, width, classes]).
        """

        def whole(variables: Variables, x: PyTree) -> Array:
            return self._forward(variables, x, False, None, _unchanged)[0]

        def pieces(variables: Variables, x: PyTree) -> Array:
            samples_first = in_pieces(lambda *given: jnp.swapaxes(whole(*given), 0, 1), size)
            return jnp.swapaxes(samples_first(variables, x), 0, 1)

        batch = jax.tree.leaves(x)[0].shape[0]
        if not isinstance(batch, int):
            return whole(variables, x)
        size = min(cached_samples(self, variables, x))
        if batch <= size:
            return whole(variables, x)
        return jax.lax.platform_dependent(variables, x, cpu=pieces, default=whole)

    def apply_train(
        self,
        variables: Variables,
        x: PyTree,
        key: jax.Array,
        around: Callable[[Part], Part] | None = None,
    ) -> tuple[Float[Array, "exits batch *dense classes"], Mapping[str, Any]]:
        """Logits of every exit in training mode, and the updated `batch_stats`.

        Args:
          variables: As made by `init`.
          x: The input [batch, …].
          key: PRNG key of dropout.
          around: What every stage and head is wrapped in, such as `jax.checkpoint`.
        """
        return self._forward(variables, x, True, key, around or _unchanged)

    def _forward(
        self,
        variables: Variables,
        carry: PyTree,
        train: bool,
        key: jax.Array | None,
        around: Callable[[Part], Part],
    ):
        logits, statistics = [], {}
        for k in range(self.num_exits):
            stage_key, head_key = _keys(key, k)
            stage, head = f"stage_{k}", f"head_{k}"
            run = around(functools.partial(_run, self.stages[k], train))
            carry, statistics[stage] = run(_own(variables, stage), carry, stage_key)
            run = around(functools.partial(_run, self.heads[k], train))
            out, statistics[head] = run(_own(variables, head), carry, head_key)
            logits.append(out)
        return jnp.stack(logits), {name: stats for name, stats in statistics.items() if stats}


def _unchanged(part: Part) -> Part:
    return part


def _traced() -> bool:
    """Whether all this happens inside somebody's `jit` or `eval_shape`."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def _quick_compilation() -> dict[str, int] | None:
    """For a program that runs once.

    On a CPU the optimiser takes 20 s over the random draws of fifteen convolutions; without it,
    compilation takes 2 s.
    """
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def _keys(key: jax.Array | None, k: int) -> tuple[jax.Array | None, jax.Array | None]:
    if key is None:
        return None, None
    return jax.random.fold_in(key, 2 * k), jax.random.fold_in(key, 2 * k + 1)


def _adopt(variables: dict[str, Any], name: str, made: Variables) -> None:
    for collection, tree in made.items():
        variables[collection][name] = tree


def _own(variables: Variables, name: str) -> Variables:
    """The variables of one stage or head."""
    return {collection: tree[name] for collection, tree in variables.items() if name in tree}


def _run(
    module: nn.Module, train: bool, own: Variables, carry: PyTree, key: jax.Array | None
) -> tuple[Any, Mapping[str, Any]]:
    statistics = own.get("batch_stats", {})
    if not train:
        return module.apply(own, carry, train=False), statistics
    rngs = {} if key is None else {"dropout": key}
    result, updated = module.apply(own, carry, train=True, rngs=rngs, mutable=["batch_stats"])
    return result, dict(updated).get("batch_stats") or statistics
