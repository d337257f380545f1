"""The functions of the guard, cut where indices stand: what the weaver appends to a module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stockade.wasm import FuncType, Kind, ParsedModule, Reader, all_sites

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Body", "Reference", "read_body"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A place in the guard's code where an index must be put.

    Attributes:
        kind: What the index counts.
        index: The index in the guard's own module.
        alignment: For the memory of a load or store that leaves the index out: the alignment to write before it.
    """

    kind: Kind
    index: int
    alignment: int | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """One guard function.

    Attributes:
        name: Its name, for backtraces.
        type: Its type.
        parts: Its code, cut at the references: bytes to copy, then the reference that follows them, if any.
        calls: The functions that it calls, by index in the guard's own module.
    """

    name: str
    type: FuncType
    parts: tuple[tuple[bytes, Reference | None], ...]
    calls: frozenset[int]


def read_body(module: ParsedModule, index: int, name: str, constants: list[int]) -> Body:
    """Reads a function of the guard.

    Args:
        module: The guard's own module.
        index: The function, by its index there.
        name: Its name, for backtraces.
        constants: The values of the guard's globals.
    """
    start, end = module.bodies[index - module.imported_functions]
    reader = Reader(module.data, start, end, "guard")
    for _ in range(reader.u32()):
        reader.u32()
        reader.byte()
    parts: list[tuple[bytes, Reference | None]] = []
    calls = set()
    copied = start
    for position, after, reference in _references(module.data, reader.position, end):
        before = module.data[copied:position]
        copied = after
        if reference.kind is Kind.GLOBAL_GET:
            parts.append((before + b"\x41" + _sleb(constants[reference.index]), None))
            continue
        if reference.kind is Kind.CALL:
            calls.add(reference.index)
        parts.append((before, reference))
    parts.append((module.data[copied:end], None))
    return Body(name, module.function_type(index), tuple(_joined(parts)), frozenset(calls))


def _references(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, Reference]]:
    for site in all_sites(data, start, end):
        if site.kind is Kind.MEMORY and site.start == site.end:
            # The guest's memory, left out of a memory argument: the alignment byte before it is written anew.
            yield site.start, site.start + 1, Reference(Kind.MEMORY, site.target, data[site.start])
        else:
            yield site.start, site.end, Reference(site.kind, site.target)


def _joined(parts: list[tuple[bytes, Reference | None]]) -> Iterator[tuple[bytes, Reference | None]]:
    """Joins neighbours where no index stands between them."""
    pending = b""
    for code, reference in parts:
        pending += code
        if reference is not None:
            yield pending, reference
            pending = b""
    yield pending, None


def _sleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        if (value == 0 and not byte & 0x40) or (value == -1 and byte & 0x40):
            out.append(byte)
            return bytes(out)
        out.append(byte | 0x80)
