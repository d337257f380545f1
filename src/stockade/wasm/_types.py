"""Types of every proposal, as far as they are settled: read to be told, not to be run.

`parse` knows only the types that guests may use. These readers know those of other proposals, too, so that a module
can be inspected that would be refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from stockade.wasm._reader import FuncType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.wasm._binary import Reader

__all__ = [
    "GlobalInfo",
    "MemoryInfo",
    "TableInfo",
    "read_global_type",
    "read_memory_type",
    "read_table_type",
    "read_types",
    "skip_const_expression",
]

PAGE_BYTES: Final = 65_536

_NUMBERS: Final = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128"}
_PACKED: Final = {0x78: "i8", 0x77: "i16"}
_HEAPS: Final = {
    0x75: "nocont",
    0x74: "noexn",
    0x73: "nofunc",
    0x72: "noextern",
    0x71: "none",
    0x70: "func",
    0x6F: "extern",
    0x6E: "any",
    0x6D: "eq",
    0x6C: "i31",
    0x6B: "struct",
    0x6A: "array",
    0x69: "exn",
    0x68: "cont",
}
_BOTTOMS: Final = {0x75: "nullcontref", 0x74: "nullexnref", 0x73: "nullfuncref", 0x72: "nullexternref", 0x71: "nullref"}
# The byte of a heap type stands for a reference to it that may be null, too.
_REFERENCES: Final = {code: f"{heap}ref" for code, heap in _HEAPS.items()} | _BOTTOMS
_PLAIN_VALUES: Final = {**_NUMBERS, **_REFERENCES}


class MemoryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A memory.

    Attributes:
        minimum: Pages that it begins with.
        maximum: Pages that it may grow to, if it says.
        page_bytes: Bytes of a page: 65,536, but for the custom page sizes proposal.
        shared: Whether threads may share it.
        address_bits: 32 or 64.
        imported: Whether the module imports it.
    """

    minimum: int
    maximum: int | None
    page_bytes: int = PAGE_BYTES
    shared: bool = False
    address_bits: int = 32
    imported: bool = False

    def __str__(self) -> str:
        pages = "pages" if self.page_bytes == PAGE_BYTES else f"pages of {self.page_bytes:,} bytes"
        return f"{_span(self.minimum, self.maximum)} {pages}{_kind(self.shared, self.address_bits)}"


class TableInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A table.

    Attributes:
        element: Type of its elements, such as `funcref`.
        minimum: Elements that it begins with.
        maximum: Elements that it may grow to, if it says.
        shared: Whether threads may share it.
        address_bits: 32 or 64.
        imported: Whether the module imports it.
    """

    element: str
    minimum: int
    maximum: int | None
    shared: bool = False
    address_bits: int = 32
    imported: bool = False

    def __str__(self) -> str:
        return f"{_span(self.minimum, self.maximum)} of {self.element}{_kind(self.shared, self.address_bits)}"


class GlobalInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A global: its type, whether it may change, and whether the module imports it."""

    type: str
    mutable: bool
    imported: bool = False

    def __str__(self) -> str:
        return f"mut {self.type}" if self.mutable else self.type


def _span(minimum: int, maximum: int | None) -> str:
    if minimum == maximum:
        return f"{minimum:,}"
    return f"{minimum:,} or more" if maximum is None else f"{minimum:,} to {maximum:,}"


def _kind(shared: bool, address_bits: int) -> str:
    words = [word for word, told in (("shared", shared), ("64-bit", address_bits == 64)) if told]
    return f", {', '.join(words)}" if words else ""


def _value_type(reader: Reader, also: Mapping[int, str] = _PLAIN_VALUES) -> str:
    code = reader.byte()
    if code in also:
        return also[code]
    if code in (0x63, 0x64):
        return f"(ref {'null ' if code == 0x63 else ''}{_heap_type(reader)})"
    reader.position -= 1
    raise reader.forbidden(f"value type {code:#04x}")


def _heap_type(reader: Reader) -> str:
    code = reader.byte()
    if code in _HEAPS:
        return _HEAPS[code]
    reader.position -= 1
    if code & 0xC0 == 0x40:  # a single byte with a sign: no index
        raise reader.forbidden(f"heap type {code:#04x}")
    return f"{reader.u64():,}"


def read_types(reader: Reader, types: list[FuncType | str]) -> None:
    """Reads an entry of the type section: a type, or several that refer to each other.

    Args:
        reader: Stands at the beginning of the entry.
        types: Gets what there is at each index: the type of a function, or what else it is in words.
    """
    if reader.data[reader.position : reader.position + 1] == b"\x4e":
        reader.byte()
        for _ in range(reader.count()):
            types.append(_composite(reader))  # noqa: PERF401 - what was read is kept should the next one fail
    else:
        types.append(_composite(reader))


def _composite(reader: Reader) -> FuncType | str:
    form = reader.byte()
    if form in (0x4F, 0x50):
        for _ in range(reader.count()):
            reader.u32()
        form = reader.byte()
    if form == 0x60:
        params = tuple([_value_type(reader) for _ in range(reader.count())])
        return FuncType(params, tuple([_value_type(reader) for _ in range(reader.count())]))
    if form == 0x5F:
        return f"struct ({', '.join([_field(reader) for _ in range(reader.count())])})"
    if form == 0x5E:
        return f"array ({_field(reader)})"
    if form == 0x5D:
        return f"continuation of {_heap_type(reader)}"
    reader.position -= 1
    raise reader.forbidden(f"type form {form:#04x}")


_FIELDS: Final = {**_PLAIN_VALUES, **_PACKED}


def _field(reader: Reader) -> str:
    type_ = _value_type(reader, _FIELDS)
    return f"mut {type_}" if reader.byte() else type_


def _limits(reader: Reader, flags: int) -> tuple[int, int | None]:
    read = reader.u64 if flags & 4 else reader.u32
    return read(), read() if flags & 1 else None


def read_memory_type(reader: Reader, *, imported: bool) -> MemoryInfo:
    """Reads the type of a memory."""
    flags = reader.byte()
    if flags > 15:
        raise reader.forbidden(f"a memory of the form {flags:#04x}")
    minimum, maximum = _limits(reader, flags)
    page_bytes = PAGE_BYTES
    if flags & 8:
        power = reader.u32()
        if power > 16:
            raise reader.damaged(f"pages of 2^{power} bytes")
        page_bytes = 1 << power
    return MemoryInfo(
        minimum=minimum,
        maximum=maximum,
        page_bytes=page_bytes,
        shared=bool(flags & 2),
        address_bits=64 if flags & 4 else 32,
        imported=imported,
    )


def read_table_type(reader: Reader, *, imported: bool) -> TableInfo:
    """Reads the type of a table."""
    element = _value_type(reader, _REFERENCES)
    flags = reader.byte()
    if flags > 7:
        raise reader.forbidden(f"a table of the form {flags:#04x}")
    minimum, maximum = _limits(reader, flags)
    return TableInfo(
        element=element,
        minimum=minimum,
        maximum=maximum,
        shared=bool(flags & 2),
        address_bits=64 if flags & 4 else 32,
        imported=imported,
    )


def read_global_type(reader: Reader, *, imported: bool) -> GlobalInfo:
    """Reads the type of a global."""
    type_ = _value_type(reader)
    return GlobalInfo(type=type_, mutable=bool(reader.byte()), imported=imported)


_LEBS: Final = frozenset([0x41, 0x42, 0x23, 0xD0, 0xD2])
_SIMPLE: Final = frozenset([0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E])
# Immediates of the instructions after 0xfb that a constant expression may have.
_COLLECTED: Final = {0x00: 1, 0x01: 1, 0x06: 1, 0x07: 1, 0x08: 2, 0x1A: 0, 0x1B: 0, 0x1C: 0}


def skip_const_expression(reader: Reader) -> None:
    """Steps over a constant expression."""
    while (opcode := reader.byte()) != 0x0B:
        if opcode in _LEBS:
            reader.leb()
        elif opcode == 0x43:
            reader.take(4)
        elif opcode == 0x44:
            reader.take(8)
        elif opcode == 0xFD and reader.u32() == 12:
            reader.take(16)
        elif opcode == 0xFB and (sub := reader.u32()) in _COLLECTED:
            for _ in range(_COLLECTED[sub]):
                reader.u32()
        elif opcode not in _SIMPLE:
            raise reader.forbidden(f"instruction {opcode:#04x} in a constant expression")
