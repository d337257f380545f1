"""The guard's source, ready to be woven: its code cut where indices stand, and the layout of its state.

Everything is read from `guard.wat` and the files beside it: function bodies, and the addresses of state fields, which
stand there as constants with typed export names, so that neither the weaver nor the run path repeats a number of it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stockade.engine import assemble
from stockade.wasm import ExternKind, FuncType, Kind, ParsedModule, Reader, SectionId, all_sites, parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["GUEST_MEMORY", "Body", "Guard", "Layout", "Reference", "StateFormat", "guard"]

GUEST_MEMORY = 0
"""Index of the guest's memory in the guard's own module; its own memory is the next."""


_COUNTED = {
    "memory": "memory_used",
    "memory_growth": "growth_tokens",
    "table_elements": "table_used",
    "stdout": "stdout",
    "stderr": "stderr",
    "open_files": "open_now",
    "files_created": "created_left",
    "read_bytes": "read_left",
    "write_bytes": "write_left",
    "read_rate": "read_tokens",
    "write_rate": "write_tokens",
    "random_bytes": "random_left",
    "calls": "calls_left",
    "call_rate": "call_tokens",
}
"""Limits that the guard holds, each with the field that tells what is used or left."""


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


class Layout:
    """Where the fields of the guard's state lie, how they are packed, and how long each is kept.

    The host writes and reads one stretch, from the field `block` up to the field `room`.

    Args:
        fields: The constants that the guard exports: name, type and lifetime -> address.

    Attributes:
        constants: The guard's constants that are no addresses.
        offsets: The address of each field.
        lifetimes: `policy`, `session`, `call` or `note`, for each field.
        block: The address where the stretch begins.
        size: How many bytes it has.
        report: The stretch that reports are made of.
        call: The stretch that begins anew with each call of a session.
    """

    _CODES = {"u8": "B", "u32": "I", "u64": "Q", "stream": "IIIxxxxQ"}  # noqa: RUF012 - a constant
    _PARTS = {"stream": ("_base", "_head", "_cap", "_total")}  # noqa: RUF012 - a constant

    def __init__(self, fields: Mapping[str, int]) -> None:
        self.constants: dict[str, int] = {}
        self.offsets: dict[str, int] = {}
        self.lifetimes: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        for declaration, address in fields.items():
            name, kind, *lifetime = declaration.split(":")
            if kind == "const":
                self.constants[name] = address
            else:
                self.offsets[name] = address
                self._kinds[name] = kind
                (self.lifetimes[name],) = lifetime
        self.block = self.offsets["block"]
        self.size = self.offsets["room"] - self.block
        # What a report is made of: the last of what is kept for a session, and all that is kept for a call.
        self.report = slice(self.offsets["memory_used"], self.offsets["notes"])
        self.call = slice(self.offsets["stdout"], self.offsets["notes"])

    def kept(self) -> dict[str, str]:
        """Tells for limits by their names whether a count is kept for a `session` or for a `call`."""
        return {limit: self.lifetimes[field] for limit, field in _COUNTED.items()}

    def write(self, block: bytearray, name: str, *numbers: int) -> None:
        """Puts a field into a block that begins at `self.block`."""
        struct.pack_into("<" + self._CODES[self._kinds[name]], block, self.offsets[name] - self.block, *numbers)

    def scalars(self) -> Iterator[tuple[int, str, tuple[str, ...]]]:
        """Yields what the host reads, arrays left out: address, format and the names of its numbers.

        A stream is four numbers: `stdout_base`, `stdout_head`, `stdout_cap` and `stdout_total`.
        """
        for name, kind in self._kinds.items():
            if kind in self._CODES and kind != "u8" and self.report.start <= self.offsets[name] < self.report.stop:
                yield self.offsets[name], self._CODES[kind], tuple(name + part for part in self._PARTS.get(kind, ("",)))


class StateFormat:
    """Unpacks a block of state at once: what a report needs, and of the arrays only the calls that can occur.

    Args:
        layout: Where everything is.
        calls: Numbers of the WASI calls that the guest imports.

    Attributes:
        start: Where the block begins in the guard's memory.
        size: How many bytes it has.
        names: The names of the first numbers.
        calls: Where the counters of calls are among the numbers.
        denied: Where those of refused calls are.
        unpack: Reads all numbers from the block.
    """

    def __init__(self, layout: Layout, calls: Sequence[int]) -> None:
        self.start = layout.report.start
        self.size = layout.report.stop - self.start
        fields = sorted(layout.scalars())
        self.names = tuple(name for _, _, names in fields for name in names)
        wanted = [(address, code) for address, code, _ in fields]
        first = len(self.names)
        self.calls = slice(first, first + len(calls))
        self.denied = slice(self.calls.stop, self.calls.stop + len(calls))
        wanted += [(layout.offsets[array] + 8 * n, "Q") for array in ("calls", "denied") for n in sorted(calls)]
        pattern, position = "<", self.start
        for address, code in wanted:
            # `names` pairs with the unpacked numbers from the front, so arrays stand behind everything else.
            assert address >= position, "the arrays of the guard's state come last"
            pattern += f"{address - position}x{code}"
            position = address + struct.calcsize("<" + code)
        self.unpack = struct.Struct(f"{pattern}{self.start + self.size - position}x").unpack


class Guard:
    """The guard, taken apart.

    Args:
        source: Its text.

    Attributes:
        digest: SHA-256 of its source, part of every cache key.
        layout: Its state.
        natives: Native WASI functions by index in its own module.
        exports: Its functions by the name they are exported under.
        memory_pages: Pages that its state begins with.
    """

    def __init__(self, source: bytes) -> None:
        self.digest = hashlib.sha256(source).hexdigest()
        module = self._module = parse(assemble(source.decode()))
        functions = (entry for entry in module.imports if entry.kind is ExternKind.FUNC)
        self.natives = {index: entry.name.decode() for index, entry in enumerate(functions)}
        self._constants = _constants(module)
        self.exports: dict[str, int] = {}
        fields: dict[str, int] = {}
        for raw, export in module.exports.items():
            if export.kind is ExternKind.FUNC:
                self.exports[raw.decode()] = export.place
            elif export.kind is ExternKind.GLOBAL:
                fields[raw.decode()] = self._constants[export.place]
        self.layout = Layout(fields)
        self.memory_pages = module.memories[GUEST_MEMORY + 1]

    @cached_property
    def bodies(self) -> dict[int, Body]:
        """Its functions by index in its own module. What is loaded from the cache does without."""
        module = self._module
        names = {index: name for name, index in self.exports.items()}
        return {
            index: _body(module, index, names.get(index, "helper"), self._constants)
            for index in range(module.imported_functions, len(module.functions))
        }


_PARTS = (
    "guard",
    "constants",
    "calls",
    "violations",
    "streams",
    "files",
    "descriptors",
    "paths",
    "opening",
    "poll",
    "rest",
    "growth",
)
"""The files of the guard's text."""


@cache
def guard() -> Guard:
    """Reads and assembles the guard, once in a process."""
    # The first begins the module; together they are its inside, in any order.
    parts = [Path(__file__).with_name(f"{name}.wat").read_bytes() for name in _PARTS]
    return Guard(b"\n".join([*parts, b")"]))


def _constants(module: ParsedModule) -> list[int]:
    """The values of the guard's globals: all are immutable i32 constants."""
    section = module.section(SectionId.GLOBAL)
    assert section is not None
    reader = Reader(module.data, section.start, section.end, "guard")
    values = []
    for _ in range(reader.u32()):
        assert reader.take(3) == b"\x7f\x00\x41", "globals of the guard are constants of type i32"
        start = reader.position
        reader.leb()
        values.append(_signed(module.data[start : reader.position]))
        assert reader.byte() == 0x0B
    return values


def _signed(encoded: bytes) -> int:
    value = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded))
    return value - (1 << 7 * len(encoded)) if encoded[-1] & 0x40 else value


def _body(module: ParsedModule, index: int, name: str, constants: list[int]) -> Body:
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
