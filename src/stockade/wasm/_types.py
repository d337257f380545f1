"""Types, wherever one may stand: the one place that reads them, and writes them.

The engine takes a reference type in two encodings, whatever proposals are on: `70` and `63 70` are both `funcref`. So
nothing else takes a byte of a module for a type. The readers know the types of every proposal that is settled, so that
a module can be inspected that would be refused; those whose names begin with `guest` refuse what guests may not use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from stockade._pages import PAGE_BYTES
from stockade.wasm._binary import sleb, uleb

if TYPE_CHECKING:
    from stockade.wasm._binary import Reader

__all__ = [
    "GUEST_TYPES",
    "FuncType",
    "GlobalInfo",
    "Limits",
    "MemoryInfo",
    "TableInfo",
    "TableType",
    "encode_block_type",
    "encode_func_type",
    "encode_heap_type",
    "encode_limits",
    "encode_value_type",
    "guest_func_type",
    "guest_limits",
    "guest_table_type",
    "guest_value_type",
    "read_block_type",
    "read_global_type",
    "read_heap_type",
    "read_memory_type",
    "read_table_type",
    "read_types",
    "read_value_type",
]


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
_SHORT: Final = {**_NUMBERS, **_REFERENCES}
_NULLABLE: Final = {_HEAPS[code]: name for code, name in _REFERENCES.items()}

GUEST_TYPES: Final = {
    name: code for code, name in _SHORT.items() if name in ("i32", "i64", "f32", "f64", "v128", "funcref", "externref")
}
"""The value types that guests may use, with the byte that is the short encoding of each."""

_GUEST_BYTES: Final = {code: name for name, code in GUEST_TYPES.items()}
_GUEST_HEAPS: Final = {"func": 0x70, "extern": 0x6F}

_MOST_VALUES: Final = 1_000
"""Parameters or results that a function may have: the engine allows no more either."""


class FuncType(NamedTuple):
    """A function's type: the types of its parameters and results."""

    params: tuple[str, ...]
    results: tuple[str, ...]

    def __str__(self) -> str:
        return f"({', '.join(self.params)}) -> ({', '.join(self.results)})"


class Limits(NamedTuple):
    """How large a memory or table is at the beginning, and may become, if it says."""

    minimum: int
    maximum: int | None = None


class TableType(NamedTuple):
    """A table that guests may have: the type of its elements, and its limits."""

    element: str
    minimum: int
    maximum: int | None = None


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


# -- value types -------------------------------------------------------------------------------------------------------


def read_value_type(reader: Reader) -> str:
    """Reads a value type of any proposal, in any of its encodings; a type has one name, however it is encoded."""
    code = reader.byte()
    if code in _SHORT:
        return _SHORT[code]
    if code in (0x63, 0x64):
        heap = read_heap_type(reader)
        if code == 0x63 and heap in _NULLABLE:
            return _NULLABLE[heap]
        return f"(ref {'null ' if code == 0x63 else ''}{heap})"
    reader.position -= 1
    raise reader.forbidden(f"value type {code:#04x}")


def read_heap_type(reader: Reader) -> str:
    """Reads what a reference is to: an abstract type, or the index of a type in digits."""
    start = reader.position
    code = reader.byte()
    if code in _HEAPS:
        return _HEAPS[code]
    # An abstract type is a single byte and no number, though it looks like a negative one. An index may be padded.
    reader.position = start
    index = reader.s33()
    if index < 0:
        reader.position = start
        raise reader.forbidden(f"heap type {code:#04x}")
    return str(index)


def read_block_type(reader: Reader) -> int | str | None:
    """Reads the type of a block: the index of a function's type, the type of the one result, or None for neither."""
    code = reader.byte()
    if code == 0x40:
        return None
    start = reader.position = reader.position - 1
    if code in _SHORT or code in (0x63, 0x64):
        return read_value_type(reader)
    index = reader.s33()
    if index < 0:
        reader.position = start
        raise reader.forbidden(f"block type {code:#04x}")
    return index


def guest_value_type(reader: Reader) -> str:
    """Reads a value type that guests may use."""
    start = reader.position
    name = read_value_type(reader)
    if name not in GUEST_TYPES:
        reader.position = start
        raise reader.forbidden(f"value type {name}")
    return name


def _guest_value_types(reader: Reader) -> tuple[str, ...]:
    count = reader.count(_MOST_VALUES)
    codes = reader.data[reader.position : reader.position + count]
    try:
        types = tuple([_GUEST_BYTES[code] for code in codes])
    except KeyError:
        # Not a byte for each.
        return tuple([guest_value_type(reader) for _ in range(count)])
    reader.position += count
    return types


def guest_func_type(reader: Reader) -> FuncType:
    """Reads an entry of the type section that guests may have: the type of a function."""
    form = reader.byte()
    if form != 0x60:
        raise reader.forbidden(f"type form {form:#04x}")
    return FuncType(_guest_value_types(reader), _guest_value_types(reader))


def encode_value_type(name: str) -> bytes:
    """Encodes a value type that guests may use, in its short form."""
    return bytes([GUEST_TYPES[name]])


def encode_heap_type(name: str) -> bytes:
    """Encodes what a null reference that guests may use is to."""
    return bytes([_GUEST_HEAPS[name]])


def encode_block_type(type_: int | str | None) -> bytes:
    """Encodes the type of a block."""
    if type_ is None:
        return b"\x40"
    return sleb(type_) if isinstance(type_, int) else encode_value_type(type_)


def encode_func_type(type_: FuncType) -> bytes:
    """Encodes the type of a function."""
    sides = (uleb(len(side)) + bytes([GUEST_TYPES[name] for name in side]) for side in type_)
    return b"\x60" + b"".join(sides)


# -- tables and memories that guests may have --------------------------------------------------------------------------


def guest_limits(reader: Reader) -> Limits:
    """Reads the limits of a memory or table that guests may have."""
    flags = reader.byte()
    if flags > 1:
        raise reader.forbidden("a shared or 64-bit memory or table, or pages of another size")
    return Limits(reader.u32(), reader.u32() if flags else None)


def guest_table_type(reader: Reader) -> TableType:
    """Reads the type of a table that guests may have."""
    start = reader.position
    if reader.data[start : start + 1] == b"\x40":
        raise reader.forbidden("a table with an initial value")
    element = guest_value_type(reader)
    if element not in ("funcref", "externref"):
        reader.position = start
        raise reader.damaged(f"a table of {element} values")
    return TableType(element, *guest_limits(reader))


def encode_limits(minimum: int, maximum: int | None) -> bytes:
    """Encodes the limits of a memory or table."""
    return b"\x00" + uleb(minimum) if maximum is None else b"\x01" + uleb(minimum) + uleb(maximum)


# -- entries of sections, of every proposal ----------------------------------------------------------------------------


def read_types(reader: Reader, types: list[str]) -> int:
    """Reads an entry of the type section: a type, or several that refer to each other.

    Args:
        reader: Stands at the beginning of the entry.
        types: Gets what there is at each index, in words. What was read is there, too, should the rest be unreadable.

    Returns:
        How many parameters, results and fields the types have.
    """
    if reader.data[reader.position : reader.position + 1] == b"\x4e":
        reader.byte()
        return sum(_composite(reader, types) for _ in range(reader.count(_MOST_IN_GROUP)))
    return _composite(reader, types)


_MOST_IN_GROUP: Final = 1_000_000
_MOST_FIELDS: Final = 10_000
_MOST_SUPERTYPES: Final = 100


def _composite(reader: Reader, types: list[str]) -> int:
    form = reader.byte()
    if form in (0x4F, 0x50):
        if supertypes := reader.count(_MOST_SUPERTYPES):
            reader.skip_u32s(supertypes)
        form = reader.byte()
    if form == 0x60:
        params, results = _value_types(reader), _value_types(reader)
        types.append(str(FuncType(params, results)))
        return len(params) + len(results)
    if form == 0x5F:
        fields = [_field(reader) for _ in range(reader.count(_MOST_FIELDS))]
        types.append(f"struct ({', '.join(fields)})")
        return len(fields)
    if form == 0x5E:
        types.append(f"array ({_field(reader)})")
        return 1
    if form == 0x5D:
        types.append(f"continuation of {read_heap_type(reader)}")
        return 1
    reader.position -= 1
    raise reader.forbidden(f"type form {form:#04x}")


def _value_types(reader: Reader) -> tuple[str, ...]:
    count = reader.count(_MOST_VALUES)
    if not count:
        return ()
    codes = reader.data[reader.position : reader.position + count]
    try:
        types = tuple([_SHORT[code] for code in codes])
    except KeyError:
        # Not a byte for each.
        return tuple([read_value_type(reader) for _ in range(count)])
    reader.position += count
    return types


def _field(reader: Reader) -> str:
    code = reader.byte()
    if code in _PACKED:
        type_ = _PACKED[code]
    else:
        reader.position -= 1
        type_ = read_value_type(reader)
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
    start = reader.position
    element = read_value_type(reader)
    if element in _NUMBERS.values():
        reader.position = start
        raise reader.damaged(f"a table of {element} values")
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


def read_global_type(reader: Reader) -> tuple[str, bool]:
    """Reads the type of a global, and whether it may change."""
    type_ = read_value_type(reader)
    flags = reader.byte()
    if flags > 1:
        raise reader.forbidden(f"a global of the form {flags:#04x}")
    return type_, bool(flags)
