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
        whole, structures = batch // size * size, []

        def leaves_of(piece: PyTree) -> list:
            # Leaves, for a result with an axis of pieces need be no result of its kind.
            leaves, structure = jax.tree.flatten(function(variables, piece))
            structures.append(structure)
            return leaves

        def one(start):
            # A slice each, rather than one large array rearranged beforehand.
            return leaves_of(
                jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), x)
            )

        done = jax.lax.map(one, jnp.arange(0, whole, size))
        done = [leaf.reshape(whole, *leaf.shape[2:]) for leaf in done]
        if whole < batch:
            rest = leaves_of(jax.tree.map(lambda leaf: leaf[whole:], x))
            done = [jnp.concatenate(both) for both in zip(done, rest, strict=True)]
        return jax.tree.unflatten(structures[0], done)

    return run
