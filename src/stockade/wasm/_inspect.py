"""What a module is, as far as its bytes tell: of any module, also of those that may not run.

`parse` is strict, because what it reads is woven and run. This reader tells of modules with types, memories and
sections of other proposals, too, and of components. What it does not know is named in `unread`, never guessed at.
A false length ends in `InvalidModule`. Names are shortened and escaped as they are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from stockade._text import printable
from stockade.wasm._binary import Reader, TooManyTypes, Unsupported, excess
from stockade.wasm._component import COMPONENT_SECTIONS, read_component_exports, read_component_imports
from stockade.wasm._constants import skip_const_expression
from stockade.wasm._customs import Customs, Producer
from stockade.wasm._formats import CORE_HEADER, MAGIC, is_component, refuse_other_format
from stockade.wasm._reader import (
    MOST_FUNCTIONS,
    MOST_GLOBAL_BYTES,
    MOST_ITEMS,
    MOST_PLACES,
    SECTION_ORDER,
    ExternKind,
    SectionId,
    has_initial_value,
    sections,
)
from stockade.wasm._types import (
    GlobalInfo,
    MemoryInfo,
    TableInfo,
    read_global_type,
    read_memory_type,
    read_table_type,
    read_types,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ExportInfo", "ImportInfo", "Outline", "SectionInfo", "outline"]

_FUNCTION: Final = 0x60
_KINDS: Final = tuple(kind.name.lower() for kind in ExternKind)
_FEW: Final = (SectionId.TABLE, SectionId.MEMORY)
_PLACES: Final = {section: place for place, section in enumerate(SECTION_ORDER)}

_MOST_BYTES: Final = 32 << 20
"""Bytes of a section that is taken apart here: real ones have kilobytes, but a hostile one could fill a file."""

_MOST_VALUES: Final = 1_000_000
"""Parameters, results and fields that all types may have together, to be told."""

_MOST_REMEMBERED: Final = 1_000
"""Names of modules that are imported from."""

_MOST_TEXT: Final = 16 << 20
"""Characters of the types of imports and exports; from there on the index of the type is told. A type may have a
thousand parameters, and a million functions may have it."""


class SectionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A section of a file.

    Attributes:
        kind: What it holds: `type`, `code`, `custom`, …
        name: The name of a custom section; empty otherwise.
        size_bytes: Bytes of its content.
    """

    kind: str
    name: str
    size_bytes: int


class ImportInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a module asks for.

    Attributes:
        module: Where it is asked from; empty in components.
        name: Its name there.
        kind: `func`, `table`, `memory`, `global` or `tag`; in components `func`, `instance` and the like.
        type: Its type in words, such as `(i32) -> (i32)`.
    """

    module: str
    name: str
    kind: str
    type: str


class ExportInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a module offers.

    Attributes:
        name: Its name.
        kind: As of an import.
        type: Its type in words.
    """

    name: str
    kind: str
    type: str


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """What a module is made of. Names and types are safe to show.

    Attributes:
        kind: A `command` has `_start`, a `reactor` has `_initialize`, a `plain` module neither; a `component` is no
            core module; `unknown` is a version of the format that does not exist yet.
        size_bytes: Bytes of the file.
        sections: Its sections, in their order.
        types: Every type, such as `(i32) -> (i32)`.
        imports: What it asks for.
        exports: What it offers.
        functions: How many functions it has, imported ones included.
        imported_functions: How many of them it imports.
        memories: Its memories, imported ones first.
        tables: Its tables, imported ones first.
        globals: Its globals, imported ones first.
        tags: Types of its exception tags, imported ones first.
        start: The function that runs at instantiation, if any.
        element_segments: How many element segments it has.
        element_bytes: Bytes of the element section.
        data_segments: How many data segments it has.
        data_bytes: Bytes of the data section.
        producers: What it says that it was made with.
        module_name: The name that it gives itself, if any.
        target_features: Proposals that its toolchain says it uses (`+`) or must not use (`-`).
        unread: What was not understood, and so is not told.
    """

    kind: Literal["command", "reactor", "plain", "component", "unknown"]
    size_bytes: int
    sections: tuple[SectionInfo, ...] = ()
    types: tuple[str, ...] = ()
    imports: tuple[ImportInfo, ...] = ()
    exports: tuple[ExportInfo, ...] = ()
    functions: int = 0
    imported_functions: int = 0
    memories: tuple[MemoryInfo, ...] = ()
    tables: tuple[TableInfo, ...] = ()
    globals: tuple[GlobalInfo, ...] = ()
    tags: tuple[str, ...] = ()
    start: int | None = None
    element_segments: int = 0
    element_bytes: int = 0
    data_segments: int = 0
    data_bytes: int = 0
    producers: tuple[Producer, ...] = ()
    module_name: str | None = None
    target_features: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def outline(data: bytes, most_types: int = MOST_ITEMS) -> Outline:
    """Tells what a module is made of.

    Args:
        data: The file.
        most_types: How many types it may have, or groups of them. More are not read.

    Raises:
        TooManyTypes: It has more types.
        InvalidModule: It is not WebAssembly, or is damaged.
    """
    if not data.startswith(MAGIC):
        refuse_other_format(data)
    if data.startswith(CORE_HEADER):
        return _Core(data, most_types).read()
    if is_component(data):
        return _component(data)
    return Outline(kind="unknown", size_bytes=len(data))


class _Core:
    """The reading of one core module."""

    def __init__(self, data: bytes, most_types: int) -> None:
        self.data = data
        self.most_types = most_types
        self.sections: list[SectionInfo] = []
        self.customs = Customs()
        self.types: list[str] = []
        self.known_types: dict[bytes, tuple[str, int]] = {}
        self.values = self.text = 0
        self.imports: list[ImportInfo] = []
        self.exports: list[ExportInfo] = []
        # The type index of every function as far as it must be known, and where those of own functions lie.
        self.imported: list[int] = []
        self.own = b""
        self.own_types: list[int] | None = None
        self.items = 0
        self.memories: list[MemoryInfo] = []
        self.tables: list[TableInfo] = []
        self.globals: list[GlobalInfo] = []
        self.tags: list[str] = []
        self.start: int | None = None
        self.counts: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.unread: list[str] = []
        self.kind: Literal["command", "reactor", "plain"] = "plain"
        # The same few are told again and again: one object for all that are equal.
        self.known_globals: dict[tuple[str, bool, bool], tuple[GlobalInfo, str]] = {}
        self.known_names: dict[bytes, str] = {}

    def read(self) -> Outline:
        last = -1
        for number, start, end in sections(self.data):
            if number == SectionId.CUSTOM:
                name = self.customs.take(self.data, start, end)
                self.sections.append(SectionInfo(kind="custom", name=name, size_bytes=end - start))
                continue
            if number not in _PLACES:
                self.sections.append(SectionInfo(kind=f"section {number}", name="", size_bytes=end - start))
                self.unread.append(f"section {number}, which belongs to no proposal that is known here")
                continue
            section = SectionId(number)
            kind = section.name.lower().replace("_", " ")
            self.sections.append(SectionInfo(kind=kind, name="", size_bytes=end - start))
            reader = Reader(self.data, start, end, f"{kind} section")
            if _PLACES[section] <= last:
                raise reader.damaged(f"section {kind} is out of order")
            last = _PLACES[section]
            try:
                self._read(section, reader)
            except Unsupported as problem:
                self.unread.append(f"the rest of the {kind} section, from byte {reader.position:,} on: {problem.what}")
        return self._told()

    def _read(self, section: SectionId, reader: Reader) -> None:
        self.sizes[section] = reader.end - reader.position
        read = _PARTS.get(section)
        if section is SectionId.START:
            self.start = reader.u32()
        elif section is SectionId.DATA_COUNT:
            reader.u32()
        elif section is SectionId.FUNCTION:
            self.counts[section] = reader.count(MOST_FUNCTIONS)
            self.own = self.data[reader.position : reader.end]
            return
        elif read is not None:
            for _ in range(self._count(section, reader)):
                read(self, reader)
            self._check_places(reader)
        else:
            # Only counted: what is in them is for the engine to read.
            self.counts[section] = reader.count()
            return
        reader.finish()

    def _check_places(self, reader: Reader) -> None:
        for found in (self.tables, self.memories):
            if len(found) > MOST_PLACES:
                raise excess(f"{len(found):,} items in the {reader.what}, imported ones included", MOST_PLACES)

    def _count(self, section: SectionId, reader: Reader) -> int:
        """Reads how many items a section has, each of which takes work and memory here."""
        size, bound = reader.end - reader.position, MOST_GLOBAL_BYTES if section is SectionId.GLOBAL else _MOST_BYTES
        if size > bound:
            raise reader.forbidden(f"{size:,} bytes of it, where {bound:,} are read")
        if section in _FEW:
            return reader.count(MOST_PLACES)
        count = reader.count()
        self.items += count
        if self.items > MOST_ITEMS:
            raise excess(f"{self.items:,} items up to the {reader.what}", MOST_ITEMS)
        if section is SectionId.TYPE and count > self.most_types:
            raise TooManyTypes(count, self.most_types)
        return count

    def _read_type(self, reader: Reader) -> None:
        start = reader.position
        data = reader.data
        # As `parse` does: what was read before is known by its bytes.
        after = start + 2 + data[start + 1] if start + 1 < reader.end else reader.end
        after = after + 1 + data[after] if after < reader.end else reader.end
        encoded = data[start : min(after, reader.end)]
        found = self.known_types.get(encoded)
        if found is not None:
            reader.position = after
            self.types.append(found[0])
            self.values += found[1]
        else:
            values = read_types(reader, self.types, self.most_types)
            self.values += values
            if reader.position == after and encoded[0] == _FUNCTION:
                self.known_types[encoded] = self.types[-1], values
        if self.values > _MOST_VALUES:
            raise reader.forbidden(f"more than {_MOST_VALUES:,} parameters, results and fields")

    def _read_import(self, reader: Reader) -> None:
        module, raw = reader.name(), reader.name()
        code = reader.byte()
        if code == ExternKind.FUNC:
            index = reader.u32()
            self.imported.append(index)
            type_ = self._type(index)
        elif code == ExternKind.TABLE:
            self.tables.append(read_table_type(reader, imported=True))
            type_ = str(self.tables[-1])
        elif code == ExternKind.MEMORY:
            self.memories.append(read_memory_type(reader, imported=True))
            type_ = str(self.memories[-1])
        elif code == ExternKind.GLOBAL:
            type_ = self._add_global(reader, imported=True)
        elif code == ExternKind.TAG:
            self._read_tag(reader)
            type_ = self.tags[-1]
        else:
            raise reader.forbidden(f"an import of the kind {code:#04x}")
        kind = _KINDS[code]
        # Imports come from a few modules only, but for hostile ones.
        shown = self.known_names.get(module)
        if shown is None:
            shown = printable(module)
            if len(self.known_names) < _MOST_REMEMBERED:
                self.known_names[module] = shown
        self.imports.append(ImportInfo(module=shown, name=printable(raw), kind=kind, type=type_))

    def _read_table(self, reader: Reader) -> None:
        initialised = has_initial_value(reader)
        self.tables.append(read_table_type(reader, imported=False))
        if initialised:
            skip_const_expression(reader)

    def _read_memory(self, reader: Reader) -> None:
        self.memories.append(read_memory_type(reader, imported=False))

    def _read_global(self, reader: Reader) -> None:
        self._add_global(reader, imported=False)
        skip_const_expression(reader)

    def _add_global(self, reader: Reader, *, imported: bool) -> str:
        key = (*read_global_type(reader), imported)
        known = self.known_globals.get(key)
        if known is None:
            type_, mutable, _ = key
            found = GlobalInfo(type=type_, mutable=mutable, imported=imported)
            known = self.known_globals[key] = found, str(found)
        self.globals.append(known[0])
        return known[1]

    def _read_tag(self, reader: Reader) -> None:
        if reader.byte():
            raise reader.forbidden("a tag that is no exception's")
        self.tags.append(self._type(reader.u32()))

    def _read_export(self, reader: Reader) -> None:
        name = reader.name()
        code = reader.byte()
        if code > ExternKind.TAG:
            raise reader.forbidden(f"an export of the kind {code:#04x}")
        type_ = self._type_of(code, reader.u32())
        self.exports.append(ExportInfo(name=printable(name), kind=_KINDS[code], type=type_))
        if code == ExternKind.FUNC:
            if name == b"_start":
                self.kind = "command"
            elif name == b"_initialize" and self.kind != "command":
                self.kind = "reactor"

    def _type(self, index: int) -> str:
        if index >= len(self.types) or self.text > _MOST_TEXT:
            return f"type {index:,}"
        told = self.types[index]
        self.text += len(told)
        return told

    def _type_of(self, kind: int, index: int) -> str:
        if kind == ExternKind.FUNC:
            if index < len(self.imported):
                return self._type(self.imported[index])
            found = self._own_type(index - len(self.imported))
            return f"function {index:,}" if found is None else self._type(found)
        items = _SPACES[ExternKind(kind)](self)
        return str(items[index]) if index < len(items) else f"{_KINDS[kind]} {index:,}"

    def _own_type(self, place: int) -> int | None:
        """The type index of an own function, read when it is asked for: most modules export a few of thousands."""
        count = self.counts.get(SectionId.FUNCTION, 0)
        if place >= count:
            return None
        if self.own_types is None:
            if len(self.own) == count and self.own.isascii():  # a byte for each
                return self.own[place]
            self.own_types = Reader(self.own, 0, len(self.own), "function section").u32s(count)
        return self.own_types[place]

    def _told(self) -> Outline:
        own = self.counts.get(SectionId.FUNCTION, 0)
        if own != self.counts.get(SectionId.CODE, 0):
            end = Reader(self.data, len(self.data), len(self.data), "file")
            raise end.damaged("functions and their code differ in number")
        return Outline(
            kind=self.kind,
            size_bytes=len(self.data),
            sections=tuple(self.sections),
            types=tuple(self.types),
            imports=tuple(self.imports),
            exports=tuple(self.exports),
            functions=len(self.imported) + own,
            imported_functions=len(self.imported),
            memories=tuple(self.memories),
            tables=tuple(self.tables),
            globals=tuple(self.globals),
            tags=tuple(self.tags),
            start=self.start,
            element_segments=self.counts.get(SectionId.ELEMENT, 0),
            element_bytes=self.sizes.get(SectionId.ELEMENT, 0),
            data_segments=self.counts.get(SectionId.DATA, 0),
            data_bytes=self.sizes.get(SectionId.DATA, 0),
            producers=self.customs.producers,
            module_name=self.customs.module_name,
            target_features=self.customs.target_features,
            unread=tuple(self.unread),
        )


_SPACES: Final[dict[ExternKind, Callable[[_Core], Sequence[object]]]] = {
    ExternKind.TABLE: lambda core: core.tables,
    ExternKind.MEMORY: lambda core: core.memories,
    ExternKind.GLOBAL: lambda core: core.globals,
    ExternKind.TAG: lambda core: core.tags,
}

_PARTS: dict[SectionId, Callable[[_Core, Reader], None]] = {
    SectionId.TYPE: _Core._read_type,  # noqa: SLF001 - its own table
    SectionId.IMPORT: _Core._read_import,  # noqa: SLF001
    SectionId.TABLE: _Core._read_table,  # noqa: SLF001
    SectionId.MEMORY: _Core._read_memory,  # noqa: SLF001
    SectionId.TAG: _Core._read_tag,  # noqa: SLF001
    SectionId.GLOBAL: _Core._read_global,  # noqa: SLF001
    SectionId.EXPORT: _Core._read_export,  # noqa: SLF001
}


def _component(data: bytes) -> Outline:
    infos: list[SectionInfo] = []
    imports: list[ImportInfo] = []
    exports: list[ExportInfo] = []
    customs = Customs()
    unread = []
    items = 0
    for number, start, end in sections(data):
        kind = COMPONENT_SECTIONS[number] if number < len(COMPONENT_SECTIONS) else f"section {number}"
        name = ""
        reader = Reader(data, start, end, f"{kind} section")
        try:
            if kind == "custom":
                name = customs.take(data, start, end)
            elif kind in ("import", "export"):
                items += _announced(reader)
                if items > MOST_ITEMS:
                    raise excess(f"{items:,} imports and exports", MOST_ITEMS)
            if kind == "import":
                found = read_component_imports(reader)
                imports += [ImportInfo(module="", name=name, kind=sort, type="") for name, sort in found]
            elif kind == "export":
                found = read_component_exports(reader)
                exports += [ExportInfo(name=name, kind=sort, type="") for name, sort in found]
        except Unsupported as problem:
            unread.append(f"the rest of the {kind} section, from byte {reader.position:,} on: {problem.what}")
        infos.append(SectionInfo(kind=kind, name=name, size_bytes=end - start))
    return Outline(
        kind="component",
        size_bytes=len(data),
        sections=tuple(infos),
        imports=tuple(imports),
        exports=tuple(exports),
        producers=customs.producers,
        unread=tuple(unread),
    )


def _announced(reader: Reader) -> int:
    """How many items follow, without stepping over that number."""
    start = reader.position
    count = reader.count()
    reader.position = start
    return count
