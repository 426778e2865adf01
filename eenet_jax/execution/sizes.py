"""How many samples a program that holds a stage in several sizes can run it on."""

SHARES = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
"""Of a batch, that a size holds."""
MULTIPLE = 8
"""Of a size, in large batches: accelerators fill their registers with as many rows."""


def switch_sizes(batch: int) -> tuple[int, ...]:
    """Sizes, rising, that survivors are gathered into; the last holds all that there can be.

    Args:
      batch: Samples that there can be: a batch, or a piece of one.
    """
    # Few samples are worth telling apart, and of many only eights.
    step = min(MULTIPLE, max(1, batch // 8))
    rounded = {min(batch, max(step, -(-int(share * batch) // step) * step)) for share in SHARES}
    return tuple(sorted(rounded | {batch}))
