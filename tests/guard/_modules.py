"""Modules in binary, put together piece by piece: what the text format cannot say (padded numbers) and what it can."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADER = b"\0asm\x01\x00\x00\x00"
FUNC, TABLE, MEMORY, GLOBAL = 0, 1, 2, 3
FUNCREF, EXTERNREF = 0x70, 0x6F
END = b"\x0b"
_CODES = {"i32": 0x7F, "i64": 0x7E, "f32": 0x7D, "f64": 0x7C, "funcref": 0x70, "externref": 0x6F}


def leb(value: int, size: int = 1) -> bytes:
    """An unsigned number in LEB128, padded to at least this many bytes."""
    out = bytearray()
    while True:
        group, value = value & 0x7F, value >> 7
        if value == 0 and len(out) + 1 >= size:
            out.append(group)
            return bytes(out)
        out.append(group | 0x80)


def sleb(value: int) -> bytes:
    """A signed number in LEB128."""
    out = bytearray()
    while True:
        group, value = value & 0x7F, value >> 7
        if (value == 0 and not group & 0x40) or (value == -1 and group & 0x40):
            out.append(group)
            return bytes(out)
        out.append(group | 0x80)


def vec(items: Iterable[bytes], size: int = 1) -> bytes:
    """A vector, its count padded to at least this many bytes."""
    items = list(items)
    return leb(len(items), size) + b"".join(items)


def name(text: str) -> bytes:
    """A name."""
    data = text.encode()
    return leb(len(data)) + data


def section(number: int, content: bytes, size: int = 1) -> bytes:
    """A section, its length padded to at least this many bytes."""
    return bytes([number]) + leb(len(content), size) + content


def custom(title: str, content: bytes = b"") -> bytes:
    """A custom section."""
    return section(0, name(title) + content)


def i32(value: int) -> bytes:
    """The instruction i32.const."""
    return b"\x41" + sleb(value)


def call(index: int, size: int = 1) -> bytes:
    """The instruction call, its index padded."""
    return b"\x10" + leb(index, size)


def ref_func(index: int, size: int = 1) -> bytes:
    """The instruction ref.func, its index padded."""
    return b"\xd2" + leb(index, size)


def constants(params: Iterable[str]) -> bytes:
    """Zeros for a call's parameters."""
    return b"".join((b"\x41" if param == "i32" else b"\x42") + b"\x00" for param in params)


def element(form: int, functions: Iterable[int], *, table: int = 0, size: int = 1) -> bytes:
    """An element segment of one of the eight forms: passive, declared or active; indices or expressions.

    Args:
        form: Its flags, 0 to 7.
        functions: What it lists.
        table: The table of an active segment that names one (forms 2 and 6).
        size: Bytes that each index takes at least.
    """
    out = leb(form)
    if not form & 1:
        if form & 2:
            out += leb(table)
        out += i32(0) + END
    if form & 3:
        out += bytes([FUNCREF]) if form & 4 else b"\x00"
    if form & 4:
        return out + vec((ref_func(index, size) + END for index in functions), size)
    return out + vec((leb(index, size) for index in functions), size)


@dataclass
class Builder:
    """A module in the making. Everything is encoded only when `build` is called.

    Attributes:
        types: Parameters and results of each type.
        imports: Module, name and type of each imported function.
        functions: Type and code (locals left out) of each own function.
        tables: Element type and minimum of each table.
        memories: Minimum and maximum of each memory.
        globals: Type and initial expression of each global; all are immutable.
        exports: Name, kind and index.
        start: The start function.
        elements: Element segments.
        data: Data segments.
        data_count: Whether there is a data count section.
        custom_before: Custom sections before everything else.
        custom_after: Custom sections after it.
        size: Bytes that indices in imports, exports and counts take at least.
    """

    types: list[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    imports: list[tuple[str, str, int]] = field(default_factory=list)
    functions: list[tuple[int, bytes]] = field(default_factory=list)
    tables: list[tuple[int, int]] = field(default_factory=list)
    memories: list[tuple[int, int | None]] = field(default_factory=list)
    globals: list[tuple[str, bytes]] = field(default_factory=list)
    exports: list[tuple[str, int, int]] = field(default_factory=list)
    start: int | None = None
    elements: list[bytes] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    data_count: bool = False
    custom_before: list[bytes] = field(default_factory=list)
    custom_after: list[bytes] = field(default_factory=list)
    size: int = 1

    def type(self, params: tuple[str, ...] = (), results: tuple[str, ...] = ()) -> int:
        """Returns the index of a type, added if it is new."""
        if (params, results) not in self.types:
            self.types.append((params, results))
        return self.types.index((params, results))

    def wasi(self, call_name: str, params: tuple[str, ...], results: tuple[str, ...]) -> int:
        """Imports a function of WASI and returns its index."""
        self.imports.append(("wasi_snapshot_preview1", call_name, self.type(params, results)))
        return len(self.imports) - 1

    def function(self, code: bytes, params: tuple[str, ...] = (), results: tuple[str, ...] = ()) -> int:
        """Adds a function and returns its index; no imports may be added afterwards."""
        self.functions.append((self.type(params, results), code))
        return len(self.imports) + len(self.functions) - 1

    def build(self) -> bytes:
        """The module's bytes."""
        out = [HEADER, *self.custom_before]

        def put(number: int, items: list[bytes]) -> None:
            if items:
                out.append(section(number, vec(items, self.size), self.size))

        put(1, [b"\x60" + vec(_values(params)) + vec(_values(results)) for params, results in self.types])
        put(2, [name(where) + name(what) + b"\x00" + leb(type_, self.size) for where, what, type_ in self.imports])
        put(3, [leb(type_, self.size) for type_, _ in self.functions])
        put(4, [bytes([kind, 0]) + leb(minimum, self.size) for kind, minimum in self.tables])
        put(5, [_limits(minimum, maximum) for minimum, maximum in self.memories])
        put(6, [bytes([_CODES[kind], 0]) + expression + END for kind, expression in self.globals])
        put(7, [name(what) + bytes([kind]) + leb(index, self.size) for what, kind, index in self.exports])
        if self.start is not None:
            out.append(section(8, leb(self.start, self.size)))
        put(9, self.elements)
        if self.data_count:
            out.append(section(12, leb(len(self.data))))
        put(10, [_sized(b"\x00" + code + END, self.size) for _, code in self.functions])
        put(11, self.data)
        return b"".join([*out, *self.custom_after])


def _values(types: tuple[str, ...]) -> list[bytes]:
    return [bytes([_CODES[type_]]) for type_ in types]


def _limits(minimum: int, maximum: int | None) -> bytes:
    return b"\x00" + leb(minimum) if maximum is None else b"\x01" + leb(minimum) + leb(maximum)


def _sized(code: bytes, size: int) -> bytes:
    return leb(len(code), size) + code
