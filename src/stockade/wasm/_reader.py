"""A module taken apart: its sections, and what they say about imports, exports, memories and tables."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from enum import IntEnum
from operator import sub
from typing import TYPE_CHECKING, Final, NamedTuple, overload

import msgspec

from stockade._text import printable
from stockade.wasm._binary import NUMBER, NUMBERS, Reader, TooManyTypes, excess
from stockade.wasm._constants import skip_const_expression
from stockade.wasm._formats import refuse_other_format
from stockade.wasm._types import (
    FuncType,
    Limits,
    TableType,
    TypeEntry,
    TypeGroup,
    guest_limits,
    guest_table_type,
    guest_types,
    guest_value_type,
    is_plain,
    type_group_size,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "MOST_FUNCTIONS",
    "MOST_GLOBAL_BYTES",
    "MOST_ITEMS",
    "MOST_PLACES",
    "MOST_RELATED",
    "MOST_SECTIONS",
    "SECTION_ORDER",
    "Export",
    "Exports",
    "ExternKind",
    "Import",
    "ParsedModule",
    "Section",
    "SectionId",
    "Spans",
    "has_initial_value",
    "parse",
    "sections",
]


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

MOST_FUNCTIONS: Final = 1_000_000
"""Functions that a module may have: the engine allows no more either."""

MOST_ITEMS: Final = 400_000
"""Types, imports, globals and exports together. The engine allows a million of each; but each takes time and memory
before anything is known of the module, and real ones have thousands."""

MOST_RELATED: Final = 100_000
"""Types among these that are no plain ones of functions, each of which takes more."""

MOST_PLACES: Final = 100
"""Tables, and memories, that a module may have: the same."""

MOST_SEGMENTS: Final = 100_000
"""Segments of elements, and of data: the same."""

MOST_SECTIONS: Final = 100_000
"""Sections, custom ones included, of which the engine takes any number; real modules have some dozens."""

MOST_BYTES: Final = 32 << 20
"""Bytes of all sections together that are taken apart: real modules have kilobytes, a hostile one could fill a file."""

MOST_GLOBAL_BYTES: Final = 8 << 20
"""Bytes of globals, each with what it begins with."""

_MOST_VALUES_IN_ALL = 1_000_000
"""Parameters and results that all types may name together, each of which takes eight bytes here and one in the file."""

_PLACES = {section: place for place, section in enumerate(SECTION_ORDER)}


_BEGINNINGS: Final = (SectionId.TABLE, SectionId.GLOBAL, SectionId.ELEMENT)

_OBJECT_PREFIX: Final = b"\xfb"


class ExternKind(IntEnum):
    """What is imported or exported."""

    FUNC = 0
    TABLE = 1
    MEMORY = 2
    GLOBAL = 3
    TAG = 4


class Import(NamedTuple):
    """Something the module asks for.

    Attributes:
        module: The name it is asked from, as the bytes in the file.
        name: Its name there.
        kind: What it is.
        type_index: For a function or a tag: its place in the type section.
    """

    module: bytes
    name: bytes
    kind: ExternKind
    type_index: int


class Export(NamedTuple):
    """Something the module offers: its kind, and its place in the index space of that kind."""

    kind: ExternKind
    place: int


class Section(NamedTuple):
    """Where a section's content lies in the file."""

    id: int
    start: int
    end: int


class Spans(Sequence[tuple[int, int]]):
    """Where many things lie: pairs of a start and an end, in little memory. They never change."""

    __slots__ = ("_ends", "_longest", "_starts")

    def __init__(self, starts: Iterable[int] = (), ends: Iterable[int] = ()) -> None:
        self._starts = array("q", starts)
        self._ends = array("q", ends)
        self._longest: int | None = None

    @property
    def longest(self) -> int:
        """How far the two of a pair are apart at most; 0 where there is none. Counted once: each run's policy asks."""
        if self._longest is None:
            self._longest = max(map(sub, self._ends, self._starts), default=0)
        return self._longest

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, place: slice) -> list[tuple[int, int]]: ...
    def __getitem__(self, place: int | slice) -> tuple[int, int] | list[tuple[int, int]]:
        if isinstance(place, slice):
            return list(zip(self._starts[place], self._ends[place], strict=True))
        return self._starts[place], self._ends[place]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)


class Exports(Mapping[bytes, Export]):
    """What a module offers, by name, in little memory."""

    __slots__ = ("_packed",)

    def __init__(self) -> None:
        # The kind in the lowest bits, the index above them.
        self._packed: dict[bytes, int] = {}

    def add(self, name: bytes, kind: int, index: int) -> None:
        """Adds one."""
        self._packed[name] = index << _KIND_BITS | kind

    def __getitem__(self, name: bytes) -> Export:
        return _unpacked(self._packed[name])

    def __contains__(self, name: object) -> bool:
        return name in self._packed

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


_KIND_BITS: Final = 3


def _unpacked(packed: int) -> Export:
    return Export(ExternKind(packed & 7), packed >> _KIND_BITS)


class ParsedModule(msgspec.Struct):
    """A core module, taken apart.

    Attributes:
        data: The whole file.
        sections: All sections in order, custom ones included.
        types: Its types, in their order, whatever groups they are in.
        groups: How many groups of types it has, which is what its type section counts.
        group_sizes: The sizes of groups that have another number of types than one.
        related: The types that are in such a group, or that are related to others: no function of the host has them.
        imports: What it asks for.
        functions: For every function, imported ones first, its type index.
        imported_functions: How many of them are imported.
        tables: Every table, imported ones first.
        memories: For every memory, imported ones first, the pages it begins with.
        memory_limits: For every memory, imported ones first, these and the pages that it may have at most, if it says.
        imported_memories: How many of them are imported.
        tags: For every tag of exceptions, imported ones first, its type index.
        globals: How many globals there are, imported ones included.
        exports: What it offers, by name.
        start: The function that runs at instantiation, if any.
        bodies: For every own function, where its code lies (after the size).
        has_objects: What `may_begin_with_objects` says, once the file is dropped.
    """

    data: bytes
    sections: list[Section] = msgspec.field(default_factory=list)
    types: list[TypeEntry] = msgspec.field(default_factory=list)
    groups: int = 0
    group_sizes: set[int] = msgspec.field(default_factory=set)
    related: set[int] = msgspec.field(default_factory=set)
    imports: list[Import] = msgspec.field(default_factory=list)
    functions: list[int] = msgspec.field(default_factory=list)
    imported_functions: int = 0
    tables: list[TableType] = msgspec.field(default_factory=list)
    memories: list[int] = msgspec.field(default_factory=list)
    memory_limits: list[Limits] = msgspec.field(default_factory=list)
    imported_memories: int = 0
    tags: list[int] = msgspec.field(default_factory=list)
    globals: int = 0
    exports: Exports = msgspec.field(default_factory=Exports)
    start: int | None = None
    bodies: Spans = msgspec.field(default_factory=Spans)
    has_objects: bool | None = None

    def drop_data(self) -> None:
        """Lets go of the file, and keeps what a run comes to ask of it: whoever asks for more raises."""
        self.has_objects = self.may_begin_with_objects
        del self.data

    def section(self, wanted: SectionId) -> Section | None:
        """Returns a section by its number, or None."""
        return next((section for section in self.sections if section.id == wanted), None)

    def function_type(self, index: int) -> FuncType:
        """Returns the type of a function."""
        return self.type_of_function(self.functions[index])

    def type_of_function(self, type_index: int) -> FuncType:
        """Returns a type that is a function's, by its place in the type section."""
        type_ = self.types[type_index]
        assert isinstance(type_, FuncType), "looked at when it was read"
        return type_

    @property
    def collects(self) -> bool:
        """Whether its code can make objects that the engine collects: structures, arrays and exceptions."""
        return bool(self.tags) or not self._only_functions

    @property
    def throws_only(self) -> bool:
        """Whether such objects are exceptions, and nothing else."""
        return bool(self.tags) and self._only_functions

    @property
    def may_begin_with_objects(self) -> bool:
        """Whether what its globals, tables and elements begin with may be objects, which are made with an instance.

        Where it is not, they are not: there is no byte that the instructions which make them begin with.
        """
        if self.has_objects is not None:
            return self.has_objects
        begins = [section for section in self.sections if section.id in _BEGINNINGS]
        return not self._only_functions and any(
            self.data.find(_OBJECT_PREFIX, section.start, section.end) >= 0 for section in begins
        )

    @property
    def _only_functions(self) -> bool:
        return all(isinstance(type_, FuncType) for type_ in self.types)


def parse(data: bytes, most_types: int = MOST_ITEMS) -> ParsedModule:
    """Takes a module apart, down to where each function's code lies.

    Args:
        data: The file.
        most_types: How many types it may have, or groups of them. More are not read.

    Raises:
        TooManyTypes: It has more types.
        InvalidModule: It is not a core module, or is damaged.
    """
    refuse_other_format(data)
    module = ParsedModule(data)
    last = -1
    items = taken = 0
    for found in sections(data):
        module.sections.append(found)
        id_, start, end = found
        if id_ == SectionId.CUSTOM:
            continue
        if id_ not in _PLACES:
            raise Reader(data, end, end, "file").damaged(f"section number {id_} is not known")
        section = SectionId(id_)
        name = section.name.lower()
        if _PLACES[section] <= last:
            raise Reader(data, end, end, "file").damaged(f"section {name} is out of order")
        last = _PLACES[section]
        reader = Reader(data, start, end, f"{name.replace('_', ' ')} section")
        read = _PARSERS.get(section)
        if read is None:
            # For the engine, and for the weaver: only how many segments there are is told before.
            if section in (SectionId.ELEMENT, SectionId.DATA):
                reader.count(MOST_SEGMENTS)
            continue
        if section not in (SectionId.CODE, SectionId.FUNCTION):
            taken += end - start
            if taken > MOST_BYTES:
                raise excess(f"{taken:,} bytes of types, imports, globals and exports", MOST_BYTES)
        items += _read_types(module, reader, most_types) if section is SectionId.TYPE else read(module, reader)
        if items > MOST_ITEMS:
            raise excess(f"{items:,} types, imports, globals and exports", MOST_ITEMS)
        reader.finish()
    if len(module.bodies) != len(module.functions) - module.imported_functions:
        raise Reader(data, len(data), len(data), "file").damaged("functions and their code differ in number")
    return module


def sections(data: bytes) -> Iterator[Section]:
    """Tells where the sections of a file lie, custom ones included.

    Args:
        data: The file, a module or a component.

    Raises:
        InvalidModule: A section is longer than the file, or there are too many.
    """
    reader = Reader(data, 8, len(data), "file")
    for _ in range(MOST_SECTIONS):
        if reader.position == reader.end:
            return
        id_, size = reader.byte(), reader.u32()
        start = reader.position
        if size > reader.end - start:
            raise reader.damaged(f"section {id_} announces {size:,} bytes, {reader.end - start:,} are left")
        reader.position = start + size
        yield Section(id_, start, start + size)
    if reader.position != reader.end:
        raise excess(f"sections that go on at byte {reader.position:,} of the file", MOST_SECTIONS)


# -- what is in a section: each returns how many items it made ---------------------------------------------------------


def _read_types(module: ParsedModule, reader: Reader, most: int = MOST_ITEMS) -> int:
    count = reader.count(MOST_ITEMS)
    if count > most:
        raise TooManyTypes(count, most)
    values = 0
    known: dict[bytes, FuncType] = {}
    data, end, types = reader.data, reader.end, module.types
    module.groups = count
    for _ in range(count):
        start = reader.position
        # What has a byte for each number and type is looked up by its bytes, for the same few occur again and again.
        # Every key was read as a whole before, so bytes that are equal to one are the same type.
        after = start + 2 + data[start + 1] if start + 1 < end else end
        after = after + 1 + data[after] if after < end else end
        encoded = data[start : min(after, end)]
        type_ = known.get(encoded)
        if type_ is not None:
            reader.position = after
            types.append(type_)
            values += len(type_.params) + len(type_.results)
        else:
            size = type_group_size(reader, MOST_RELATED)
            if len(types) + size > most:
                raise TooManyTypes(len(types) + size, most)
            group = guest_types(reader, size)
            if is_plain(group) and reader.position == after:
                (entry,) = group
                assert isinstance(entry.type, FuncType)
                known[encoded] = entry.type
            values += _add_group(module, group)
        if values > _MOST_VALUES_IN_ALL:
            raise excess(f"{values:,} parameters, results and fields of types", _MOST_VALUES_IN_ALL)
        if len(module.related) > MOST_RELATED:
            raise excess(f"{len(module.related):,} types of objects, in groups or with sub types", MOST_RELATED)
    return max(count, len(types))


def _add_group(module: ParsedModule, group: TypeGroup) -> int:
    """Adds the types of a group; returns how many values they name."""
    if not is_plain(group):
        module.related.update(range(len(module.types), len(module.types) + len(group)))
        module.group_sizes.add(len(group))
    values = 0
    for entry in group:
        type_ = entry.type
        module.types.append(type_)
        values += len(entry.supertypes)
        values += len(type_.params) + len(type_.results) if isinstance(type_, FuncType) else len(type_.fields)
    return values


def _function_type(module: ParsedModule, reader: Reader, index: int) -> None:
    """Checks that an index is that of a function's type."""
    if index >= len(module.types):
        raise reader.damaged(f"type {index} does not exist")
    if not isinstance(module.types[index], FuncType):
        raise reader.damaged(f"type {index} is no function's")


_COMPACT = (0x7E, 0x7F)
"""What stands in the place of an import's kind where several imports share a module's name."""


def _read_imports(module: ParsedModule, reader: Reader) -> int:
    count = reader.count(MOST_ITEMS)
    for _ in range(count):
        where, name = reader.name(), reader.name()
        code = reader.byte()
        type_index = 0
        if code == ExternKind.FUNC:
            type_index = reader.u32()
            _function_type(module, reader, type_index)
            module.functions.append(type_index)
            module.imported_functions += 1
        elif code == ExternKind.TABLE:
            module.tables.append(guest_table_type(reader))
        elif code == ExternKind.MEMORY:
            _add_memory(module, reader)
            module.imported_memories += 1
        elif code == ExternKind.GLOBAL:
            _global_type(reader)
            module.globals += 1
        elif code == ExternKind.TAG:
            type_index = _read_tag(module, reader)
        elif code in _COMPACT and not name:
            raise reader.forbidden("imports in a compact form")
        else:
            raise reader.damaged(f"import {printable(name)} is of the unknown kind {code}")
        module.imports.append(Import(where, name, _KINDS[code], type_index))
    _check_places(module)
    return count


_KINDS: Final = tuple(ExternKind)


def _check_places(module: ParsedModule) -> None:
    for what, found in (("tables", module.tables), ("memories", module.memories)):
        if len(found) > MOST_PLACES:
            raise excess(f"{len(found):,} {what}, imported ones included", MOST_PLACES)


def _read_functions(module: ParsedModule, reader: Reader) -> int:
    count = reader.count(MOST_FUNCTIONS)
    types = reader.u32s(count)
    if len(module.functions) + count > MOST_FUNCTIONS:
        raise excess(f"{len(module.functions) + count:,} functions, imported ones included", MOST_FUNCTIONS)
    for index in {*types}:
        _function_type(module, reader, index)
    module.functions += types
    return 0


def _read_tables(module: ParsedModule, reader: Reader) -> int:
    for _ in range(reader.count(MOST_PLACES)):
        begins = has_initial_value(reader)
        module.tables.append(guest_table_type(reader))
        if begins:
            skip_const_expression(reader)
    _check_places(module)
    return 0


def has_initial_value(reader: Reader) -> bool:
    """Whether a table is followed by what its elements begin with; steps over the bytes that say so."""
    if reader.data[reader.position : reader.position + 1] != b"\x40":
        return False
    reader.byte()
    if reserved := reader.byte():
        reader.position -= 1
        raise reader.forbidden(f"a table of the form {reserved:#04x}")
    return True


def _add_memory(module: ParsedModule, reader: Reader) -> None:
    limits = guest_limits(reader)
    module.memory_limits.append(limits)
    module.memories.append(limits.minimum)


def _read_memories(module: ParsedModule, reader: Reader) -> int:
    for _ in range(reader.count(MOST_PLACES)):
        _add_memory(module, reader)
    _check_places(module)
    return 0


def _read_tags(module: ParsedModule, reader: Reader) -> int:
    count = reader.count(MOST_ITEMS)
    for _ in range(count):
        _read_tag(module, reader)
    return count


def _read_tag(module: ParsedModule, reader: Reader) -> int:
    if reader.byte():
        reader.position -= 1
        raise reader.forbidden("a tag that is no exception's")
    index = reader.u32()
    _function_type(module, reader, index)
    module.tags.append(index)
    return index


def _global_type(reader: Reader) -> None:
    guest_value_type(reader)
    if reader.byte() > 1:
        reader.position -= 1
        raise reader.damaged("a global that is neither constant nor variable")


def _read_globals(module: ParsedModule, reader: Reader) -> int:
    if reader.end - reader.position > MOST_GLOBAL_BYTES:
        raise excess(f"{reader.end - reader.position:,} bytes of globals", MOST_GLOBAL_BYTES)
    count = reader.count(MOST_ITEMS)
    for _ in range(count):
        _global_type(reader)
        skip_const_expression(reader)
    module.globals += count
    return count


def _read_exports(module: ParsedModule, reader: Reader) -> int:
    count = reader.count(MOST_ITEMS)
    functions = len(module.functions)
    add = module.exports.add
    for _ in range(count):
        name = reader.name()
        code = reader.byte()
        if code > ExternKind.TAG:
            raise reader.damaged(f"export {printable(name)} is of the unknown kind {code}")
        index = reader.u32()
        if code == ExternKind.FUNC and index >= functions:
            raise reader.damaged(f"function {index} does not exist")
        add(name, code, index)
    return count


def _read_start(module: ParsedModule, reader: Reader) -> int:
    module.start = reader.u32()
    if module.start >= len(module.functions):
        raise reader.damaged(f"function {module.start} does not exist")
    return 0


def _read_data_count(module: ParsedModule, reader: Reader) -> int:  # noqa: ARG001 - as all others
    if (count := reader.u32()) > MOST_SEGMENTS:
        raise excess(f"{count:,} segments of data", MOST_SEGMENTS)
    return 0


def _read_code(module: ParsedModule, reader: Reader) -> int:
    count = reader.count(MOST_FUNCTIONS)
    data, end, start = reader.data, reader.end, reader.position
    starts, ends = array("q"), array("q")
    begins, ends_at, number = starts.append, ends.append, NUMBER.match
    for _ in range(count):
        if (encoded := number(data, start, end)) is None:
            reader.position = start
            reader.u32()
            raise AssertionError("what is not a number is refused")
        size, start = NUMBERS[encoded[0]], encoded.end()
        begins(start)
        start += size
        if start > end:
            reader.position = start - size
            raise reader.damaged("unexpected end")
        ends_at(start)
    reader.position = start
    module.bodies = Spans(starts, ends)
    return 0


_PARSERS: Final[dict[SectionId, Callable[[ParsedModule, Reader], int]]] = {
    SectionId.TYPE: _read_types,
    SectionId.IMPORT: _read_imports,
    SectionId.FUNCTION: _read_functions,
    SectionId.TABLE: _read_tables,
    SectionId.MEMORY: _read_memories,
    SectionId.TAG: _read_tags,
    SectionId.GLOBAL: _read_globals,
    SectionId.EXPORT: _read_exports,
    SectionId.START: _read_start,
    SectionId.DATA_COUNT: _read_data_count,
    SectionId.CODE: _read_code,
}
