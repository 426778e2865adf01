"""Public figures of TPU chips."""

import dataclasses

from eenet_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip, as its maker describes it.

    Attributes:
      name: Of the generation.
      memory_bytes: High-bandwidth memory.
      memory_bytes_per_s: Its bandwidth.
      flops_per_s: Peak in bfloat16.
      link_bytes_per_s: Of all links to other chips together, both directions.
    """

    name: str
    memory_bytes: float
    memory_bytes_per_s: float
    flops_per_s: float
    link_bytes_per_s: float


# Google Cloud's documentation of each generation, "key chip specifications".
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v5e",
            memory_bytes=16e9,
            memory_bytes_per_s=819e9,
            flops_per_s=197e12,
            link_bytes_per_s=400e9,
        ),
        Chip(
            name="v5p",
            memory_bytes=95e9,
            memory_bytes_per_s=2.765e12,
            flops_per_s=459e12,
            link_bytes_per_s=1.2e12,
        ),
        Chip(
            name="v6e",
            memory_bytes=32e9,
            memory_bytes_per_s=1.64e12,
            flops_per_s=918e12,
            link_bytes_per_s=800e9,
        ),
    )
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:4x4".

    Raises:
      InputError: it is written otherwise, or of a chip that is not known.
    """
    name, colon, shape = topology.partition(":")
    sides = shape.split("x")
    if not colon or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise InputError(f"topology '{topology}' is none: give a chip and a slice, such as v5e:4x4")
    if name not in CHIPS:
        raise InputError(f"chip '{name}' is not known: choose one of {', '.join(CHIPS)}")
    return CHIPS[name]
