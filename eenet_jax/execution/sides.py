"""Programs that run at once on a processor's cores.

XLA spreads each operation over all cores, and the cores wait for one another after each. Two
programs at once fill each other's gaps: on two cores both halves of a batch take 0.82 to 0.93 of
the time of the whole (ResNet-56 with three exits, 8 to 256 images).
"""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from eenet_jax.environment import cores
from eenet_jax.execution.decision import Answers
from eenet_jax.types import PyTree

SIDES = 2
"""Programs at once, where there is more than one core; more have not been measured."""


def number_of_sides() -> int:
    """How many programs at once suit the device: one for an accelerator, and for several devices.

    Of a processor that stands for several devices each is a side already.
    """
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    return min(SIDES, cores()) if alone else 1


def on_side(side: int, program: Callable[..., Any], *operands: Any) -> Future:
    """Begin a compiled program, beside those of other sides and of the thread that asks.

    Args:
      side: From 0; what is begun on one side is run one after the other.
      program: Compiled: what is set for the thread that asks (a precision, say) others don't know,
        should they have to trace it.
      operands: Of it.
    """
    try:
        return _thread(side).submit(program, *operands)
    except RuntimeError:
        # Where the main thread has ended, others of the program that go on begin no more threads.
        return over(program(*operands))


def compiled(function: Callable, *operands: Any, **settings: Any) -> Callable:
    """A function, compiled under what is set for this thread; itself where `jit` is disabled.

    Args:
      function: To compile.
      operands: Arrays, or their shapes.
      settings: Of `jax.jit`.
    """
    if jax.config.jax_disable_jit:  # pyright: ignore
        return function
    return jax.jit(function, **settings).lower(*operands).compile()


def over(result: Any) -> Future:
    """What is there already."""
    known = Future()
    known.set_result(result)
    return known


@functools.cache
def _thread(side: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, f"eenet_jax-side-{side}")


class SideBySide:
    """A function (variables, batch) → `Answers`, jitted; a CPU runs parts of a batch at once.

    Args:
      run: That function. A sample's answer is the same in any batch.
    """

    def __init__(self, run: Callable[[PyTree, PyTree], Answers]):
        self._run, self._whole = run, jax.jit(run)
        self._programs: dict[Any, Callable[..., Answers]] = {}

    def __call__(self, variables: PyTree, x: PyTree) -> Answers:
        """Answers in the batch's order."""
        batch = jax.tree.leaves(x)[0].shape[0]
        sides = min(number_of_sides(), batch)
        if sides < 2:
            return self._whole(variables, x)
        # Leaves, for a list is handed over in half the time that a dict of dicts takes.
        leaves, structure = jax.tree.flatten((variables, x))
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            return self._whole(variables, x)
        return self._in_parts(leaves, structure, batch, sides)

    def _in_parts(self, leaves: list, structure: Any, batch: int, sides: int) -> Answers:
        size = -(-batch // sides)
        # Once for all parts.
        leaves = [jax.device_put(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
        program = self._program(leaves, structure, size)
        # The last part reaches back where the batch doesn't divide.
        firsts = [np.int32(min(first, batch - size)) for first in range(0, batch, size)]
        *others, own = firsts
        begun = [on_side(side, program, leaves, first) for side, first in enumerate(others)]
        last = program(leaves, own)
        return _joined([*(part.result() for part in begun), last], batch)

    def _program(self, leaves: list, structure: Any, size: int) -> Callable[..., Answers]:
        """Compiled for inputs like these, under what is set for this thread."""
        key = (
            structure,
            *((leaf.shape, leaf.dtype) for leaf in leaves),
            # pyright doesn't know settings, which are added as jax is imported.
            jax.config.jax_default_matmul_precision,  # pyright: ignore
            jax.config.jax_enable_x64,  # pyright: ignore
            jax.config.jax_disable_jit,  # pyright: ignore
        )
        if key not in self._programs:

            def part(leaves: list, first: Array | np.int32) -> Answers:
                variables, x = jax.tree.unflatten(structure, leaves)
                cut = functools.partial(
                    jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=size
                )
                return self._run(variables, jax.tree.map(cut, x))

            self._programs[key] = compiled(part, leaves, np.int32(0))
        return self._programs[key]


@functools.partial(jax.jit, static_argnums=1)
def _joined(parts: list[Answers], batch: int) -> Answers:
    """One after the other; the last one's first rows may be some of the one before."""

    def join(*rows: Array) -> Array:
        *before, last = rows
        missing = batch - sum(map(len, before))
        return jnp.concatenate([*before, last[len(last) - missing :]])

    return jax.tree.map(join, *parts)
