"""What a compiled program sends between devices, read from its text."""

import dataclasses
import re
from collections.abc import Iterator

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One instruction.

    Attributes:
      kind: One of `KINDS`.
      bytes: Of the whole arrays on one device: what is reduced, what has been gathered, what is
        there before it is scattered, or what is sent.
      arrays: How many there are in it.
      source: Of which operation of the program, as JAX names it; empty where XLA doesn't say.
    """

    kind: str
    bytes: int
    arrays: int
    source: str


def collectives(program: str) -> list[Collective]:
    """Every collective of a compiled program's text, asynchronous ones once."""
    return list(_found(program))


def _found(program: str) -> Iterator[Collective]:
    for line in program.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        kind, operands = match["kind"], match["operands"]
        results = _sizes(match["result"])
        if match["start"] and kind in ("all-gather", "collective-permute"):
            # Of operands, results and, for a permutation, two counters.
            results = results[: 2 * (len(results) // 2)]
            results = results[len(results) // 2 :] if kind == "all-gather" else results[:1]
        if kind == "reduce-scatter":
            # Operands are named by their instructions; a part's size times the parts' number.
            results = [size * _group_size(line) for size in results]
        source = _SOURCE.search(operands)
        yield Collective(
            kind=kind,
            bytes=sum(results),
            arrays=len(results),
            source=source[1] if source else "",
        )


def _sizes(shapes: str) -> list[int]:
    return [_BYTES[match["type"]] * _product(match["sides"]) for match in _SHAPE.finditer(shapes)]


def _product(sides: str) -> int:
    total = 1
    for side in filter(None, sides.split(",")):
        total *= int(side)
    return total


def _group_size(line: str) -> int:
    """Devices that take part in one group: of `{{0,1},{2,3}}` 2, of `[4,2]<=[8]` 2."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return listed[1].count(",") + 1
    short = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    return int(short[1]) if short else 1
