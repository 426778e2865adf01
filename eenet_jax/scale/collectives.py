"""What a compiled program sends between devices, read from its text."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<result>.+?) (?P<kind>"
    + "|".join(KINDS)
    + r")(?P<start>-start)?\((?P<operands>.*)$"
)
_SHAPE = re.compile(r"\b(?P<type>" + "|".join(_BYTES) + r")\[(?P<sides>[\d,]*)\]")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_CHAIN = re.compile(r'chain_id="(\d+)"')
"""What the TPU compiler calls a collective that it runs beside other things, in every computation
that names it. Channels are no such names: those in a `shard_map` all have the same."""
_DEVICES = re.compile(r"num_partitions=(\d+)")
_SUMMED_AND_CUT = "%all-reduce-scatter"
"""How the TPU compiler names a computation of an all-reduce of which each device keeps a part: it
runs as a reduce-scatter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One instruction.

    Attributes:
      kind: One of `KINDS`.
      bytes: Of the whole arrays on one device: what is reduced, what has been gathered, what is
        there before it is scattered, or what is sent.
      arrays: How many there are in it.
      group: Devices that take part together.
      source: Of which operation of the program, as JAX names it; empty where XLA doesn't say.
    """

    kind: str
    bytes: int
    arrays: int
    group: int
    source: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends, where every one sends as much: `sent_bytes`."""
        return sent_bytes(self.kind, self.bytes, self.group)


def sent_bytes(kind: str, size: int, group: int) -> float:
    """What each device of a group sends, in a ring, which sends the least.

    Args:
      kind: One of `KINDS`.
      size: `Collective.bytes`.
      group: Devices.

    Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations".
    """
    if kind == "collective-permute":
        return float(size)
    return (2 if kind == "all-reduce" else 1) * size * (group - 1) / group


def collectives(program: str) -> list[Collective]:
    """Every collective of a compiled program's text, once.

    A program that the compiler runs beside others has several computations that name it: its
    beginning, what runs meanwhile and its end. What is in a loop is counted once, however often
    that runs.
    """
    found: dict[Any, Collective] = {}
    for number, (chain, each) in enumerate(_found(program)):
        key = (chain or f"none, {number}", each.kind, each.bytes)
        if key not in found or not found[key].source:
            found[key] = each
    return list(found.values())


def _found(program: str) -> Iterator[tuple[str, Collective]]:
    devices = _DEVICES.search(program)
    everybody = int(devices[1]) if devices else 1
    computation = ""
    for line in program.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            computation = line
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        kind, operands = match["kind"], match["operands"]
        group = _group_size(line) or everybody
        results = _sizes(match["result"])
        if match["start"] and kind in ("all-gather", "collective-permute"):
            # Of operands, results and, for a permutation, two counters.
            results = results[: 2 * (len(results) // 2)]
            results = results[len(results) // 2 :] if kind == "all-gather" else results[:1]
        if kind == "reduce-scatter":
            # Operands are named by their instructions; a part's size times the parts' number.
            results = [size * group for size in results]
        chain, source = _CHAIN.search(operands), _SOURCE.search(operands)
        if kind == "all-reduce" and computation.startswith(_SUMMED_AND_CUT):
            kind = "reduce-scatter"
        yield (
            chain[1] if chain else "",
            Collective(
                kind=kind,
                bytes=sum(results),
                arrays=len(results),
                group=group,
                source=source[1] if source else "",
            ),
        )


def _sizes(shapes: str) -> list[int]:
    return [_BYTES[match["type"]] * _product(match["sides"]) for match in _SHAPE.finditer(shapes)]


def _product(sides: str) -> int:
    total = 1
    for side in filter(None, sides.split(",")):
        total *= int(side)
    return total


def _group_size(line: str) -> int:
    """Devices that take part in one group; 0 where that isn't said.

    `{{0,1},{2,3}}` is 2, `[4,2]<=[8]` 2, and `mesh['a'=4,'b'=2] {'b'}` 2.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return listed[1].count(",") + 1
    short = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if short:
        return int(short[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line)
    if not named:
        return 0
    sides = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
    return math.prod(int(sides[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
