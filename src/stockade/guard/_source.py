"""The guard's source, ready to be woven: its code cut where indices stand, and the layout of its state.

Everything is read from `guard.wat` and the files beside it: function bodies, and the addresses of state fields, which
stand there as constants with typed export names, so that neither the weaver nor the run path repeats a number of it.
The addresses are read from the text; it is assembled where something is woven, and they are held against it then.
"""

from __future__ import annotations

import hashlib
import re
import struct
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stockade._pages import PAGE_BYTES
from stockade.engine import assemble
from stockade.wasm import ExternKind, ParsedModule, Reader, SectionId, parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stockade.guard._bodies import Body

__all__ = ["GUEST_MEMORY", "Guard", "Layout", "StateFormat", "guard"]

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
        memory_bytes: How large the memory with the state is at first.

    Attributes:
        memory_bytes: The same.
        block: Where what the host writes begins in the guard's memory.
        start: Where the block begins in the guard's memory.
        size: How many bytes it has.
        names: The names of the first numbers.
        calls: Where the counters of calls are among the numbers.
        denied: Where those of refused calls are.
        unpack_from: Reads all numbers from a view of the memory, at `start`.
        glance_from: Reads there what most runs come to: the numbers before `exited`; the bytes from there to the counts
            of calls; and those of calls that were made.
        nothing: What those bytes are where they tell nothing.
    """

    def __init__(self, layout: Layout, calls: Sequence[int], memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.block = layout.block
        self.start = layout.report.start
        self.size = layout.report.stop - self.start
        fields = sorted(layout.scalars())
        self.names = tuple(name for _, _, names in fields for name in names)
        first = len(self.names)
        self.calls = slice(first, first + len(calls))
        self.denied = slice(self.calls.stop, self.calls.stop + len(calls))
        made, denied = ([(layout.offsets[array] + 8 * n, "Q") for n in sorted(calls)] for array in ("calls", "denied"))
        numbers = [(address, code) for address, code, _ in fields]
        # `names` pairs with the unpacked numbers from the front, so arrays stand behind everything else.
        self.unpack_from = self._struct([*numbers, *made, *denied]).unpack_from
        seldom = layout.offsets["exited"]
        self.nothing = bytes(layout.offsets["calls"] - seldom)
        often = [(address, code) for address, code in numbers if address < seldom]
        self.glance_from = self._struct([*often, (seldom, f"{len(self.nothing)}s"), *made]).unpack_from
        assert self.start + self.size <= PAGE_BYTES, "a view of the memory's first page has all of it"

    def _struct(self, wanted: Sequence[tuple[int, str]]) -> struct.Struct:
        """What reads some of the stretch, in its order: addresses and formats."""
        pattern, position = "<", self.start
        for address, code in wanted:
            assert address >= position, "each field stands behind the one before it"
            pattern += f"{address - position}x{code}"
            position = address + struct.calcsize("<" + code)
        return struct.Struct(f"{pattern}{self.start + self.size - position}x")


_DECLARATION = re.compile(r'\n\(global \$\S+ +\(export "([^"]+)"\) +i32 \(i32\.const (\S+)\)\)')
"""A constant that the host reads, as it stands in the guard's text: its export name and its value."""

_STATE = re.compile(r'\n\(memory \$state \(export "memory"\) (\d+)\)')
"""The memory with the state: its pages."""


class Guard:
    """The guard, taken apart.

    Args:
        source: Its text.

    Attributes:
        digest: SHA-256 of its source, part of every cache key.
        layout: Its state.
        memory_bytes: How large the memory with its state is at first.
    """

    def __init__(self, source: bytes) -> None:
        self.digest = hashlib.sha256(source).hexdigest()
        self._source = source.decode()
        self._declared = {name: int(value, 0) for name, value in _DECLARATION.findall(self._source)}
        self.layout = Layout(self._declared)
        (pages,) = _STATE.findall(self._source)
        self.memory_bytes = int(pages) * PAGE_BYTES

    @cached_property
    def _module(self) -> ParsedModule:
        module = parse(assemble(self._source))
        constants = _constants(module)
        kinds = {raw.decode(): export for raw, export in module.exports.items()}
        fields = {name: constants[export.place] for name, export in kinds.items() if export.kind is ExternKind.GLOBAL}
        assert fields == self._declared, "each constant of the guard stands in a line of its own, as the others do"
        assert module.memories[GUEST_MEMORY + 1] * PAGE_BYTES == self.memory_bytes
        return module

    @cached_property
    def natives(self) -> dict[int, str]:
        """Native WASI functions by index in its own module."""
        functions = (entry for entry in self._module.imports if entry.kind is ExternKind.FUNC)
        return {index: entry.name.decode() for index, entry in enumerate(functions)}

    @cached_property
    def exports(self) -> dict[str, int]:
        """Its functions by the name they are exported under."""
        exports = self._module.exports.items()
        return {raw.decode(): export.place for raw, export in exports if export.kind is ExternKind.FUNC}

    @cached_property
    def bodies(self) -> dict[int, Body]:
        """Its functions by index in its own module. What is loaded from the cache does without."""
        from stockade.guard._bodies import read_body

        module = self._module
        names = {index: name for name, index in self.exports.items()}
        constants = _constants(module)
        return {
            index: read_body(module, index, names.get(index, "helper"), constants)
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
    "listed",
    "opening",
    "poll",
    "rest",
    "growth",
    "trace",
)
"""The files of the guard's text."""


@cache
def guard() -> Guard:
    """Reads the guard, once in a process."""
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
