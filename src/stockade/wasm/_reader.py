"""A module taken apart: its sections, and what they say about imports, exports, memories and tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from stockade._text import printable
from stockade.errors import InvalidModule
from stockade.wasm._binary import Reader

__all__ = [
    "SECTION_ORDER",
    "Export",
    "ExternKind",
    "FuncType",
    "Import",
    "ParsedModule",
    "SectionId",
    "TableType",
    "parse",
    "read_const_expression",
    "type_name",
]

MAGIC = b"\0asm"
_CORE_VERSION = b"\x01\x00\x00\x00"


class SectionId(IntEnum):
    """Sections by the number that the format gives them."""

    CUSTOM = 0
    TYPE = 1
    IMPORT = 2
    FUNCTION = 3
    TABLE = 4
    MEMORY = 5
    GLOBAL = 6
    EXPORT = 7
    START = 8
    ELEMENT = 9
    CODE = 10
    DATA = 11
    DATA_COUNT = 12
    TAG = 13


SECTION_ORDER = (
    SectionId.TYPE,
    SectionId.IMPORT,
    SectionId.FUNCTION,
    SectionId.TABLE,
    SectionId.MEMORY,
    SectionId.TAG,
    SectionId.GLOBAL,
    SectionId.EXPORT,
    SectionId.START,
    SectionId.ELEMENT,
    SectionId.DATA_COUNT,
    SectionId.CODE,
    SectionId.DATA,
)
"""The order in which sections must stand."""

_MOST_ITEMS = 1_000_000
"""Types, functions, imports, exports and globals that a module may have: the engine allows no more either."""

_MOST_VALUES = 1_000
"""Parameters or results that a function may have: the same."""

_MOST_VALUES_IN_ALL = 1_000_000
"""Parameters and results that all types may name together, each of which takes eight bytes here and one in the file."""

_PLACES = {section: place for place, section in enumerate(SECTION_ORDER)}


class ExternKind(IntEnum):
    """What is imported or exported."""

    FUNC = 0
    TABLE = 1
    MEMORY = 2
    GLOBAL = 3
    TAG = 4


_VALUE_TYPES = {
    0x7F: "i32",
    0x7E: "i64",
    0x7D: "f32",
    0x7C: "f64",
    0x7B: "v128",
    0x70: "funcref",
    0x6F: "externref",
    0x69: "exnref",
}


class FuncType(NamedTuple):
    """A function's type: the types of its parameters and results."""

    params: tuple[str, ...]
    results: tuple[str, ...]

    def __str__(self) -> str:
        return f"({', '.join(self.params)}) -> ({', '.join(self.results)})"


class Import(NamedTuple):
    """Something the module asks for.

    Attributes:
        module: The name it is asked from, as the bytes in the file.
        name: Its name there.
        kind: What it is.
        type_index: For a function: its place in the type section.
    """

    module: bytes
    name: bytes
    kind: ExternKind
    type_index: int


class Export(NamedTuple):
    """Something the module offers: its kind, and its place in the index space of that kind."""

    kind: ExternKind
    place: int


class TableType(NamedTuple):
    """A table: the type of its elements (as its byte), and how many it begins with."""

    element: int
    minimum: int


class Section(NamedTuple):
    """Where a section's content lies in the file."""

    id: int
    start: int
    end: int


@dataclass(slots=True)
class ParsedModule:
    """A core module, taken apart.

    Attributes:
        data: The whole file.
        sections: All sections in order, custom ones included.
        types: The types of functions.
        imports: What it asks for.
        functions: For every function, imported ones first, its type index.
        imported_functions: How many of them are imported.
        tables: Every table, imported ones first.
        memories: For every memory, imported ones first, the pages it begins with.
        imported_memories: How many of them are imported.
        globals: How many globals there are, imported ones included.
        exports: What it offers, by name.
        start: The function that runs at instantiation, if any.
        bodies: For every own function, where its code lies (after the size).
    """

    data: bytes
    sections: list[Section] = field(default_factory=list)
    types: list[FuncType] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    imported_functions: int = 0
    tables: list[TableType] = field(default_factory=list)
    memories: list[int] = field(default_factory=list)
    imported_memories: int = 0
    globals: int = 0
    exports: dict[bytes, Export] = field(default_factory=dict)
    start: int | None = None
    bodies: list[tuple[int, int]] = field(default_factory=list)

    def section(self, wanted: SectionId) -> Section | None:
        """Returns a section by its number, or None."""
        return next((section for section in self.sections if section.id == wanted), None)

    def function_type(self, index: int) -> FuncType:
        """Returns the type of a function."""
        return self.types[self.functions[index]]


def parse(data: bytes) -> ParsedModule:
    """Takes a module apart, down to where each function's code lies.

    Args:
        data: The file.

    Raises:
        InvalidModule: It is not a core module, or is damaged.
    """
    if data[:4] != MAGIC:
        raise InvalidModule(
            "not WebAssembly: the file does not begin with \\0asm. "
            "Text format is read from files that end in .wat; source code must be compiled first"
        )
    if data[4:8] != _CORE_VERSION:
        if len(data) >= 8 and data[6:8] == b"\x01\x00":
            raise InvalidModule(
                "this is a WebAssembly component; Stockade runs core modules. "
                "Build for the target wasm32-wasip1 instead of wasm32-wasip2"
            )
        raise InvalidModule(f"WebAssembly version {data[4:8].hex()} is not known; core modules are version 1")
    module = ParsedModule(data)
    reader = Reader(data, 8, len(data), "file")
    last = -1
    while reader.position < reader.end:
        id_ = reader.byte()
        size = reader.u32()
        start = reader.position
        if size > reader.end - start:
            raise reader.damaged(f"section {id_} announces {size:,} bytes, {reader.end - start:,} are left")
        reader.position = start + size
        module.sections.append(Section(id_, start, start + size))
        if id_ == SectionId.CUSTOM:
            continue
        if id_ not in _PLACES:
            raise reader.damaged(f"section number {id_} is not known")
        if _PLACES[SectionId(id_)] <= last:
            raise reader.damaged(f"section {SectionId(id_).name.lower()} is out of order")
        last = _PLACES[SectionId(id_)]
        parser = _PARSERS.get(SectionId(id_))
        if parser is not None:
            name = SectionId(id_).name.lower().replace("_", " ")
            inner = Reader(data, start, start + size, f"{name} section")
            parser(module, inner)
            inner.finish()
    if len(module.bodies) != len(module.functions) - module.imported_functions:
        raise reader.damaged("functions and their code differ in number")
    return module


def _read_types(module: ParsedModule, reader: Reader) -> None:
    values = 0
    for _ in range(reader.count(_MOST_ITEMS)):
        form = reader.byte()
        if form != 0x60:
            raise reader.forbidden(f"type form {form:#04x}")
        type_ = FuncType(_value_types(reader), _value_types(reader))
        values += len(type_.params) + len(type_.results)
        if values > _MOST_VALUES_IN_ALL:
            raise InvalidModule(
                f"the types of the module name more than {_MOST_VALUES_IN_ALL:,} parameters and results in all"
            )
        module.types.append(type_)


def type_name(code: int) -> str:
    """Returns the name of a value type by its byte."""
    return _VALUE_TYPES.get(code, f"{code:#04x}")


def _value_type(reader: Reader) -> str:
    code = reader.byte()
    if code not in _VALUE_TYPES:
        raise reader.forbidden(f"value type {code:#04x}")
    return _VALUE_TYPES[code]


def _value_types(reader: Reader) -> tuple[str, ...]:
    codes = reader.take(reader.count(_MOST_VALUES))
    try:
        return tuple([_VALUE_TYPES[code] for code in codes])
    except KeyError as unknown:
        raise reader.forbidden(f"value type {unknown.args[0]:#04x}") from None


_COMPACT = (0x7E, 0x7F)
"""What stands in the place of an import's kind where several imports share a module's name."""


def _read_imports(module: ParsedModule, reader: Reader) -> None:
    for _ in range(reader.count(_MOST_ITEMS)):
        where, name = reader.name(), reader.name()
        code = reader.byte()
        type_index = 0
        if code == ExternKind.FUNC:
            type_index = reader.u32()
            if type_index >= len(module.types):
                raise reader.damaged(f"type {type_index} does not exist")
            module.functions.append(type_index)
            module.imported_functions += 1
        elif code == ExternKind.TABLE:
            module.tables.append(_table_type(reader))
        elif code == ExternKind.MEMORY:
            module.memories.append(_limits(reader))
            module.imported_memories += 1
        elif code == ExternKind.GLOBAL:
            _value_type(reader)
            reader.byte()
            module.globals += 1
        elif code == ExternKind.TAG:
            reader.byte()
            reader.u32()
        elif code in _COMPACT and not name:
            raise reader.forbidden("imports in a compact form")
        else:
            raise reader.damaged(f"import {printable(name)} is of the unknown kind {code}")
        module.imports.append(Import(where, name, ExternKind(code), type_index))


def _read_functions(module: ParsedModule, reader: Reader) -> None:
    for _ in range(reader.count(_MOST_ITEMS)):
        type_index = reader.u32()
        if type_index >= len(module.types):
            raise reader.damaged(f"type {type_index} does not exist")
        module.functions.append(type_index)


def _limits(reader: Reader) -> int:
    flags = reader.byte()
    if flags > 1:
        raise reader.forbidden("a shared or 64-bit memory or table, or pages of another size")
    minimum = reader.u32()
    if flags:
        reader.u32()
    return minimum


def _table_type(reader: Reader) -> TableType:
    element = reader.byte()
    if element not in (0x70, 0x6F):
        raise reader.forbidden(f"a table of {type_name(element)} where guests may have funcref and externref tables")
    return TableType(element, _limits(reader))


def _read_tables(module: ParsedModule, reader: Reader) -> None:
    module.tables += [_table_type(reader) for _ in range(reader.count())]


def _read_memories(module: ParsedModule, reader: Reader) -> None:
    module.memories += [_limits(reader) for _ in range(reader.count())]


def _read_globals(module: ParsedModule, reader: Reader) -> None:
    for _ in range(reader.count(_MOST_ITEMS)):
        _value_type(reader)
        reader.byte()
        read_const_expression(reader)
        module.globals += 1


def read_const_expression(reader: Reader) -> list[tuple[int, int, int]]:
    """Steps over a constant expression.

    Args:
        reader: Stands at its beginning; stands after its end afterwards.

    Returns:
        The start, end and index of every function reference in it.
    """
    references: list[tuple[int, int, int]] = []
    while True:
        opcode = reader.byte()
        if opcode == 0x0B:
            return references
        if opcode in (0x41, 0x42, 0x23, 0xD0):
            reader.leb()
        elif opcode == 0x43:
            reader.take(4)
        elif opcode == 0x44:
            reader.take(8)
        elif opcode == 0xD2:
            start = reader.position
            index = reader.u32()
            references.append((start, reader.position, index))
        elif opcode == 0xFD and reader.u32() == 12:
            reader.take(16)
        elif opcode not in (0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E):
            raise reader.damaged(f"instruction {opcode:#04x} cannot stand in a constant expression")


def _read_exports(module: ParsedModule, reader: Reader) -> None:
    for _ in range(reader.count(_MOST_ITEMS)):
        name = reader.name()
        code = reader.byte()
        if code > ExternKind.TAG:
            raise reader.damaged(f"export {printable(name)} is of the unknown kind {code}")
        index = reader.u32()
        if code == ExternKind.FUNC and index >= len(module.functions):
            raise reader.damaged(f"function {index} does not exist")
        module.exports[name] = Export(ExternKind(code), index)


def _read_start(module: ParsedModule, reader: Reader) -> None:
    module.start = reader.u32()
    if module.start >= len(module.functions):
        raise reader.damaged(f"function {module.start} does not exist")


def _read_code(module: ParsedModule, reader: Reader) -> None:
    for _ in range(reader.count(_MOST_ITEMS)):
        size = reader.u32()
        start = reader.position
        if size > reader.end - start:
            raise reader.damaged("unexpected end")
        reader.position = start + size
        module.bodies.append((start, start + size))


_PARSERS = {
    SectionId.TYPE: _read_types,
    SectionId.IMPORT: _read_imports,
    SectionId.FUNCTION: _read_functions,
    SectionId.TABLE: _read_tables,
    SectionId.MEMORY: _read_memories,
    SectionId.GLOBAL: _read_globals,
    SectionId.EXPORT: _read_exports,
    SectionId.START: _read_start,
    SectionId.CODE: _read_code,
}
