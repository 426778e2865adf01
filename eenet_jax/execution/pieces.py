"""A batch in small pieces, one after the other inside one program.

On a processor whose cache holds a small batch's feature maps and not a large one's, the pieces
take less time than the whole; an accelerator likes the whole.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from eenet_jax.types import PyTree

Pass = Callable[[PyTree, PyTree], PyTree]
"""Of variables and a batch; every leaf of its result has the batch as its first axis."""


def in_pieces(function: Pass, size: int | None) -> Pass:
    """The same function, run on so many samples at a time.

    Args:
      function: To run.
      size: Samples a piece; the last piece may have fewer. None: everything at once.
    """

    if size is None:
        return function

    def run(variables: PyTree, x: PyTree) -> PyTree:
        batch = jax.tree.leaves(x)[0].shape[0]
        if size >= batch:
            return function(variables, x)
        whole = batch // size * size

        def one(start):
            # A slice each, rather than one large array rearranged beforehand.
            piece = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), x)
            return function(variables, piece)

        done = jax.lax.map(one, jnp.arange(0, whole, size))
        done = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), done)
        if whole == batch:
            return done
        rest = function(variables, jax.tree.map(lambda leaf: leaf[whole:], x))
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), done, rest)

    return run
