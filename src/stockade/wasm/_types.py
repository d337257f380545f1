"""Types, wherever one may stand: the one place that reads them, and writes them.

The engine takes a reference type in two encodings, whatever proposals are on: `70` and `63 70` are both `funcref`. So
nothing else takes a byte of a module for a type. The readers know the types of every proposal that is settled, so that
a module can be inspected that would be refused; those whose names begin with `guest` refuse what guests may not use.

A type is known by its name, as the text format has it: `i32`, `funcref`, `(ref null 3)`. Each has one name, however it
is encoded, and `encode_value_type` writes its shortest encoding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from stockade._pages import PAGE_BYTES
from stockade.wasm._binary import TooManyTypes, sleb, uleb

if TYPE_CHECKING:
    from stockade.wasm._binary import Reader

__all__ = [
    "DataType",
    "FuncType",
    "GlobalInfo",
    "Limits",
    "MemoryInfo",
    "TableInfo",
    "TableType",
    "TypeEntry",
    "TypeGroup",
    "encode_block_type",
    "encode_func_type",
    "encode_heap_type",
    "encode_limits",
    "encode_type_group",
    "encode_value_type",
    "guest_limits",
    "guest_table_type",
    "guest_type_group",
    "guest_types",
    "guest_value_type",
    "is_plain",
    "read_block_type",
    "read_global_type",
    "read_heap_type",
    "read_memory_type",
    "read_table_type",
    "read_types",
    "read_value_type",
    "type_group_size",
]


_NUMBERS: Final = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128"}
_PACKED: Final = {0x78: "i8", 0x77: "i16"}
_PACKED_CODES: Final = {name: code for code, name in _PACKED.items()}
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

_HEAP_CODES: Final = {heap: code for code, heap in _HEAPS.items()}
_SHORT_CODES: Final = {name: code for code, name in _SHORT.items()}
_OF_SWITCHING: Final = (_HEAPS[0x75], _HEAPS[0x68])
"""What references of stack switching are to, which guests may not use."""

_MOST_VALUES: Final = 1_000
"""Parameters or results that a function may have: the engine allows no more either."""


class FuncType(NamedTuple):
    """A function's type: the types of its parameters and results."""

    params: tuple[str, ...]
    results: tuple[str, ...]

    def __str__(self) -> str:
        return f"({', '.join(self.params)}) -> ({', '.join(self.results)})"


class Field(NamedTuple):
    """A field of a structure, or the element of an array: its type, also `i8` or `i16`, and whether it may change."""

    type: str
    mutable: bool

    def __str__(self) -> str:
        return f"mut {self.type}" if self.mutable else self.type


class DataType(NamedTuple):
    """The type of a structure or an array.

    Attributes:
        is_array: Whether it is that of an array, which has one field, its element.
        fields: Its fields.
    """

    is_array: bool
    fields: tuple[Field, ...]

    def __str__(self) -> str:
        return f"{'array' if self.is_array else 'struct'} ({', '.join(map(str, self.fields))})"


TypeEntry: TypeAlias = FuncType | DataType
"""What stands at an index of the type section."""


class SubType(NamedTuple):
    """An entry of a group of types: what it is, and how it is related to others.

    Attributes:
        final: Whether no type may be declared to be below it.
        supertypes: The types that it is declared to be below.
        type: What it is.
    """

    final: bool
    supertypes: tuple[int, ...]
    type: TypeEntry


TypeGroup: TypeAlias = tuple[SubType, ...]
"""Types that are declared together, and may refer to each other. Two types are equal only if their groups are."""


def is_plain(group: TypeGroup) -> bool:
    """Whether a group is the type of one function and knows no sub types, as all that the host's functions have."""
    return len(group) == 1 and group[0].final and not group[0].supertypes and isinstance(group[0].type, FuncType)


class Limits(NamedTuple):
    """How large a memory or table is at the beginning, and may become, if it says.

    Attributes:
        minimum: How large it is at the beginning.
        maximum: How large it may become.
        wide: Whether its addresses have 64 bits.
        shared: Whether it is shared between threads.
    """

    minimum: int
    maximum: int | None = None
    wide: bool = False
    shared: bool = False


class TableType(NamedTuple):
    """A table that guests may have: the type of its elements, and its limits.

    Attributes:
        element: Type of its elements.
        minimum: How many elements it begins with.
        maximum: How many it may have.
        wide: Whether its addresses have 64 bits.
    """

    element: str
    minimum: int
    maximum: int | None = None
    wide: bool = False


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
    if name in _SWITCHING:
        reader.position = start
        raise reader.forbidden(f"value type {name}")
    return name


_SWITCHING: Final = frozenset(
    name for heap in _OF_SWITCHING for name in (_NULLABLE[heap], f"(ref null {heap})", f"(ref {heap})")
)


def encode_value_type(name: str) -> bytes:
    """Encodes a value type, in its short form where it has one."""
    if name in _SHORT_CODES:
        return bytes([_SHORT_CODES[name]])
    return _encode_reference(name)


@lru_cache(maxsize=1024)
def _encode_reference(name: str) -> bytes:
    words = name.removeprefix("(ref ").removesuffix(")").split()
    return (b"\x63" if words[0] == "null" else b"\x64") + encode_heap_type(words[-1])


def encode_heap_type(name: str) -> bytes:
    """Encodes what a reference is to: the index of a type, or an abstract type."""
    return sleb(int(name)) if name.isdecimal() else bytes([_HEAP_CODES[name]])


def encode_block_type(type_: int | str | None) -> bytes:
    """Encodes the type of a block."""
    if type_ is None:
        return b"\x40"
    return sleb(type_) if isinstance(type_, int) else encode_value_type(type_)


def encode_func_type(type_: FuncType) -> bytes:
    """Encodes the type of a function."""
    sides = (uleb(len(side)) + b"".join(map(encode_value_type, side)) for side in type_)
    return b"\x60" + b"".join(sides)


# -- groups of types ---------------------------------------------------------------------------------------------------

_GROUP: Final = 0x4E
_OPEN: Final = 0x50
_FINAL: Final = 0x4F
_FUNCTION: Final = 0x60
_STRUCT: Final = 0x5F
_ARRAY: Final = 0x5E
_CONTINUATION: Final = 0x5D
_MOST_IN_GROUP: Final = 1_000_000
_MOST_FIELDS: Final = 10_000
_MOST_SUPERTYPES: Final = 100


def type_group_size(reader: Reader, most: int = _MOST_IN_GROUP) -> int:
    """Reads how many types an entry of the type section has, which follow.

    Args:
        reader: Stands at its beginning.
        most: More types than these are refused.
    """
    if reader.data[reader.position : reader.position + 1] != bytes([_GROUP]):
        return 1
    reader.byte()
    return reader.count(most)


def guest_type_group(reader: Reader) -> TypeGroup:
    """Reads an entry of the type section: a group of types."""
    return guest_types(reader, type_group_size(reader))


def guest_types(reader: Reader, size: int) -> TypeGroup:
    """Reads the types of a group.

    Args:
        reader: Stands behind its size.
        size: How many they are.
    """
    return tuple([_sub_type(reader) for _ in range(size)])


def _sub_type(reader: Reader) -> SubType:
    form = reader.byte()
    final = True
    supertypes: tuple[int, ...] = ()
    if form in (_FINAL, _OPEN):
        final = form == _FINAL
        supertypes = tuple(reader.u32s(reader.count(_MOST_SUPERTYPES)))
        form = reader.byte()
    if form == _FUNCTION:
        return SubType(final, supertypes, FuncType(_value_types(reader), _value_types(reader)))
    if form == _STRUCT:
        return SubType(
            final, supertypes, DataType(False, tuple([_field(reader) for _ in range(reader.count(_MOST_FIELDS))]))
        )
    if form == _ARRAY:
        return SubType(final, supertypes, DataType(True, (_field(reader),)))
    reader.position -= 1
    raise reader.forbidden(f"type form {form:#04x}")


def encode_type_group(group: TypeGroup) -> bytes:
    """Encodes a group of types, each as short as it gets."""
    entries = b"".join(map(_encode_sub_type, group))
    return entries if len(group) == 1 else bytes([_GROUP]) + uleb(len(group)) + entries


def _encode_sub_type(entry: SubType) -> bytes:
    final, supertypes, type_ = entry
    head = b""
    if supertypes or not final:
        head = bytes([_FINAL if final else _OPEN]) + uleb(len(supertypes)) + b"".join(map(uleb, supertypes))
    if isinstance(type_, FuncType):
        return head + encode_func_type(type_)
    if type_.is_array:
        return head + bytes([_ARRAY]) + _encode_field(type_.fields[0])
    return head + bytes([_STRUCT]) + uleb(len(type_.fields)) + b"".join(map(_encode_field, type_.fields))


def _encode_field(field: Field) -> bytes:
    packed = _PACKED_CODES.get(field.type)
    type_ = encode_value_type(field.type) if packed is None else bytes([packed])
    return type_ + bytes([field.mutable])


# -- tables and memories that guests may have --------------------------------------------------------------------------

_HAS_MAXIMUM, _SHARED, _WIDE = 1, 2, 4


def guest_limits(reader: Reader) -> Limits:
    """Reads the limits of a memory or table that guests may have."""
    flags = reader.byte()
    if flags > (_HAS_MAXIMUM | _SHARED | _WIDE):
        raise reader.forbidden("a memory with pages of another size")
    return Limits(*_limits(reader, flags), bool(flags & _WIDE), bool(flags & _SHARED))


def guest_table_type(reader: Reader) -> TableType:
    """Reads the type of a table that guests may have."""
    start = reader.position
    element = guest_value_type(reader)
    if element in _NUMBERS.values():
        reader.position = start
        raise reader.damaged(f"a table of {element} values")
    limits = guest_limits(reader)
    if limits.shared:
        raise reader.forbidden("a shared table")
    return TableType(element, *limits[:3])


def encode_limits(minimum: int, maximum: int | None, *, wide: bool = False) -> bytes:
    """Encodes the limits of a memory or table that no threads share."""
    flags = (0 if maximum is None else _HAS_MAXIMUM) | (_WIDE if wide else 0)
    return bytes([flags]) + uleb(minimum) + (b"" if maximum is None else uleb(maximum))


# -- entries of sections, of every proposal ----------------------------------------------------------------------------


def read_types(reader: Reader, types: list[str], most: int) -> int:
    """Reads an entry of the type section: a type, or several that refer to each other.

    Args:
        reader: Stands at the beginning of the entry.
        types: Gets what there is at each index, in words. What was read is there, too, should the rest be unreadable.
        most: How many there may be then.

    Returns:
        How many parameters, results and fields the types have.

    Raises:
        TooManyTypes: There would be more.
    """
    values = 0
    size = type_group_size(reader)
    if len(types) + size > most:
        raise TooManyTypes(len(types) + size, most)
    for _ in range(size):
        if reader.data[reader.position : reader.position + 1] == bytes([_CONTINUATION]):
            # Of stack switching, which no guest may use: told, and no more.
            reader.byte()
            types.append(f"continuation of {read_heap_type(reader)}")
            values += 1
            continue
        type_ = _sub_type(reader).type
        types.append(str(type_))
        values += len(type_.fields) if isinstance(type_, DataType) else len(type_.params) + len(type_.results)
    return values


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


def _field(reader: Reader) -> Field:
    code = reader.byte()
    if code in _PACKED:
        type_ = _PACKED[code]
    else:
        reader.position -= 1
        type_ = read_value_type(reader)
    flags = reader.byte()
    if flags > 1:
        reader.position -= 1
        raise reader.damaged("a field that is neither constant nor variable")
    return Field(type_, bool(flags))


def _limits(reader: Reader, flags: int) -> tuple[int, int | None]:
    # The format has 64 bits for either size of addresses, and leaves it to validation what is too large.
    return reader.u64(), reader.u64() if flags & 1 else None


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
