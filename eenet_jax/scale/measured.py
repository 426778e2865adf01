"""What a compiled program takes: memory, arithmetic, bytes, and what it sends."""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from eenet_jax.scale.chips import Chip
from eenet_jax.scale.collectives import Collective, collectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """One program, compiled for one chip of a slice.

    Attributes:
      name: Of the program.
      samples: That it handles, all chips together; 0 where it has none.
      compile_seconds: On the machine that compiled it.
      memory_bytes: Of a device: arguments, results, temporaries and code. Where it doesn't fit,
        what the compiler says that it would take.
      fits: Whether it was compiled.
      flops: Of a device, as the compiler counts them.
      bytes_accessed: In a device's memory, likewise.
      collectives: What it sends to other devices.
      loops: That it has. The compiler counts their bodies once, however often they run: the
        operations, bytes and collectives in them.
      trouble: The compiler's first line where it doesn't fit.
    """

    name: str
    samples: int
    compile_seconds: float
    memory_bytes: float
    fits: bool
    flops: float = math.nan
    bytes_accessed: float = math.nan
    collectives: tuple[Collective, ...] = ()
    loops: int = 0
    trouble: str = ""

    def bound_seconds(self, chip: Chip) -> dict[str, float]:
        """The least time by each of the chip's limits; the greatest of them is the roofline's.

        Links work both ways at once. It is one only where the program is counted `whole`.

        Source: Williams et al. 2009, "Roofline".
        """
        return {
            "arithmetic": self.flops / chip.flops_per_s,
            "memory": self.bytes_accessed / chip.memory_bytes_per_s,
            "links": self.sent / (chip.link_bytes_per_s / 2),
        }

    @property
    def whole(self) -> bool:
        """Whether all is counted as often as it runs: there are no loops."""
        return self.loops == 0

    @property
    def sent(self) -> float:
        """Bytes that a device sends to others."""
        return float(sum(each.sent for each in self.collectives))

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: operations for every byte that memory gives or takes."""
        return self.flops / self.bytes_accessed

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """How many collectives of each kind there are, and their bytes."""
        found: dict[str, tuple[int, int]] = {}
        for each in self.collectives:
            count, total = found.get(each.kind, (0, 0))
            found[each.kind] = (count + 1, total + each.bytes)
        return found


def compile_program(name: str, lowered: jax.stages.Lowered, samples: int = 0) -> Compiled:
    """Compile a program and read off what it takes; too large a one is no error."""
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(
            name=name,
            samples=samples,
            compile_seconds=time.monotonic() - began,
            memory_bytes=_wanted_bytes(str(error)),
            fits=False,
            trouble=" ".join(str(error).split())[:300],
        )
    seconds = time.monotonic() - began
    cost: Any = compiled.cost_analysis()
    text = compiled.as_text() or ""
    return Compiled(
        name=name,
        samples=samples,
        compile_seconds=seconds,
        memory_bytes=_memory_bytes(compiled.memory_analysis()),
        fits=True,
        flops=cost.get("flops", math.nan),
        bytes_accessed=cost.get("bytes accessed", math.nan),
        collectives=tuple(collectives(text)),
        loops=len(_LOOP.findall(text)),
    )


def _memory_bytes(memory: Any) -> float:
    """Arguments, results that don't lie in their place, temporaries and code."""
    return float(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


_LOOP = re.compile(r" while\(")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _wanted_bytes(complaint: str) -> float:
    """Of "Used 24.1G of 15.75G hbm" the first, of "(49.64G) exceeds …" that; else NaN."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of|\(([\d.]+)([KMGT]?)\) exceeds", complaint)
    if not found:
        return math.nan
    number, unit = (part for part in found.groups() if part is not None)
    return float(number) * _UNITS[unit]
