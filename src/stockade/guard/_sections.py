"""Sections of the guest's module, written anew from what was read of them.

Where types prove nothing, a section is not patched: the engine is to read what the weaver wrote and not what the guest
wrote. So each number is as short as it gets, each type is in its short form, and what the readers do not know is
refused, whatever the engine would have made of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.wasm import (
    SECTION_ORDER,
    ExternKind,
    Limits,
    ParsedModule,
    Reader,
    SectionId,
    encode_limits,
    encode_type_group,
    encode_value_type,
    guest_table_type,
    guest_type_group,
    guest_value_type,
    has_initial_value,
    rewrite_const_expression,
    uleb,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from stockade.wasm import Import

__all__ = [
    "assembled",
    "content",
    "data_count",
    "element_segments",
    "encode_export",
    "exports",
    "fixed",
    "function_types",
    "globals_",
    "imports",
    "items",
    "memories",
    "names",
    "tables",
    "tags",
    "types",
]

_MOST_PAGES = 65_536
"""Pages that a memory can begin with: the engine compiles no module with more, and no policy grants more. One that
begins with more is written with as many, and never runs: its true size is held against the policy before."""

_FUNCTIONS = 0
"""The byte that says of an element segment that it lists functions by their indices."""


def assembled(
    header: bytes, contents: Mapping[SectionId, Sequence[bytes | memoryview]], behind: Iterable[bytes | memoryview] = ()
) -> bytes:
    """Puts a module together. What is large is given as views, and copied once.

    Args:
        header: What a module begins with.
        contents: For each section that there is: the parts of its content, one after the other.
        behind: What follows the sections.
    """
    out: list[bytes | memoryview] = [header]
    for id_ in SECTION_ORDER:
        if parts := contents.get(id_):
            out += [bytes([id_]), uleb(sum(map(len, parts))), *parts]
    return b"".join([*out, *behind])


def content(module: ParsedModule, id_: SectionId) -> list[memoryview]:
    """What is in a section, as it stands in the module; nothing where it has no such section."""
    section = module.section(id_)
    return [] if section is None else [memoryview(module.data)[section.start : section.end]]


def types(module: ParsedModule) -> list[bytes]:
    """Writes the groups of types."""
    reader, count = items(module, SectionId.TYPE)
    known: dict[bytes, bytes] = {}
    out = []
    for _ in range(count):
        start = reader.position
        # As they are read: the same few occur again and again, in a byte for each number and type.
        data = reader.data
        after = start + 2 + data[start + 1] if start + 1 < reader.end else reader.end
        after = after + 1 + data[after] if after < reader.end else reader.end
        if (written := known.get(data[start : min(after, reader.end)])) is not None:
            reader.position = after
        else:
            written = encode_type_group(guest_type_group(reader))
            if reader.position == after and written == data[start:after]:
                known[written] = written
        out.append(written)
    reader.finish()
    return out


def imports(entries: Iterable[Import]) -> list[bytes]:
    """Writes imports, which are functions: nothing provides anything else."""
    out = []
    for entry in entries:
        assert entry.kind is ExternKind.FUNC, "other imports are refused before"
        names = (uleb(len(name)) + name for name in (entry.module, entry.name))
        out.append(b"".join(names) + bytes([ExternKind.FUNC]) + uleb(entry.type_index))
    return out


def function_types(module: ParsedModule) -> list[bytes]:
    """Writes the type indices of the guest's own functions."""
    return [uleb(index) for index in module.functions[module.imported_functions :]]


def fixed(limits: Limits, index: int, grown: Collection[int]) -> Limits:
    """Returns the limits that a memory or table has when it is woven.

    What no instruction grows is as large as it begins: should one have been missed, the engine does not let it grow.
    """
    return limits if index in grown else Limits(limits.minimum, limits.minimum)


def tables(module: ParsedModule, grown: Collection[int], redirect: Callable[[int], int]) -> list[bytes]:
    """Writes the tables.

    Args:
        module: The guest's module.
        grown: The tables that an instruction grows.
        redirect: Tells the function to refer to in the place of another.
    """
    reader, count = items(module, SectionId.TABLE)
    out = []
    for index in range(count):
        begins = has_initial_value(reader)
        table = guest_table_type(reader)
        limits = fixed(Limits(table.minimum, table.maximum), index, grown)
        written = encode_value_type(table.element) + encode_limits(limits.minimum, limits.maximum, wide=table.wide)
        if begins:
            written = b"\x40\x00" + written + rewrite_const_expression(reader, redirect)
        out.append(written)
    reader.finish()
    return out


def memories(module: ParsedModule, grown: Collection[int]) -> list[bytes]:
    """Writes the memories. None is shared: there is nobody whom a guest could share it with, for it starts no thread.

    Args:
        module: The guest's module.
        grown: The memories that an instruction grows.
    """
    out = []
    for index, limits in enumerate(module.memory_limits):
        minimum, maximum = fixed(limits, index, grown)[:2]
        out.append(encode_limits(min(minimum, _MOST_PAGES), maximum, wide=limits.wide))
    return out


def tags(module: ParsedModule) -> list[bytes]:
    """Writes the tags of exceptions."""
    return [b"\x00" + uleb(type_index) for type_index in module.tags]


def globals_(module: ParsedModule, redirect: Callable[[int], int]) -> list[bytes]:
    """Writes the globals.

    Args:
        module: The guest's module.
        redirect: Tells the function to refer to in the place of another.
    """
    reader, count = items(module, SectionId.GLOBAL)
    out = []
    for _ in range(count):
        type_, mutable = guest_value_type(reader), reader.byte()
        out.append(encode_value_type(type_) + bytes([mutable]) + rewrite_const_expression(reader, redirect))
    reader.finish()
    return out


def exports(module: ParsedModule, redirect: Callable[[int], int], renamed: Mapping[bytes, bytes]) -> list[bytes]:
    """Writes the exports.

    Args:
        module: The guest's module.
        redirect: Tells the function to refer to in the place of another.
        renamed: The names that are given to others.
    """
    return [
        encode_export(
            renamed.get(name, name), entry.kind, redirect(entry.place) if entry.kind is ExternKind.FUNC else entry.place
        )
        for name, entry in module.exports.items()
    ]


def encode_export(name: bytes, kind: ExternKind, index: int) -> bytes:
    """Writes an export."""
    return uleb(len(name)) + name + bytes([kind]) + uleb(index)


def element_segments(module: ParsedModule, redirect: Callable[[int], int]) -> list[bytes]:
    """Writes the element segments, each in the form that it has.

    Args:
        module: The guest's module.
        redirect: Tells the function to refer to in the place of another.

    Raises:
        InvalidModule: A segment is in a form that is not known here.
    """
    reader, count = items(module, SectionId.ELEMENT)
    out = [_element_segment(reader, redirect) for _ in range(count)]
    reader.finish()
    return out


def _element_segment(reader: Reader, redirect: Callable[[int], int]) -> bytes:
    form = reader.u32()
    if form > 7:
        raise reader.damaged(f"element segment of the unknown form {form}")
    out = [uleb(form)]
    if not form & 1:  # active: a table and an offset
        if form & 2:
            out.append(uleb(reader.u32()))
        out.append(rewrite_const_expression(reader, redirect))
    if form & 3:
        if form & 4:
            out.append(encode_value_type(guest_value_type(reader)))
        elif (kind := reader.byte()) == _FUNCTIONS:
            out.append(bytes([kind]))
        else:
            reader.position -= 1
            raise reader.forbidden(f"element segment of the kind {kind:#04x}")
    count = reader.count()
    out.append(uleb(count))
    if form & 4:
        out += [rewrite_const_expression(reader, redirect) for _ in range(count)]
    else:
        out += _encoded(map(redirect, reader.u32s(count)))
    return b"".join(out)


def _encoded(indices: Iterable[int]) -> list[bytes]:
    known: dict[int, bytes] = {}
    out = []
    for index in indices:
        encoded = known.get(index)
        if encoded is None:
            encoded = known[index] = uleb(index)
        out.append(encoded)
    return out


def data_count(module: ParsedModule) -> list[bytes | memoryview]:
    """Writes the number of data segments, where the module announces it."""
    section = module.section(SectionId.DATA_COUNT)
    if section is None:
        return []
    return [uleb(Reader(module.data, section.start, section.end, "data count section").u32())]


def names(module: ParsedModule) -> list[bytes | memoryview]:
    """Copies the custom sections that hold names.

    Others are left out: they hold offsets into code that has moved (debug information, hints to the compiler).
    """
    data = module.data
    out: list[bytes | memoryview] = []
    for section in module.sections:
        if section.id == SectionId.CUSTOM:
            reader = Reader(data, section.start, section.end, "custom section")
            if reader.name() == b"name":
                size = section.end - section.start
                out += [bytes([SectionId.CUSTOM]), uleb(size), memoryview(data)[section.start : section.end]]
    return out


def items(module: ParsedModule, id_: SectionId) -> tuple[Reader, int]:
    """Where the items of a section begin, and how many it has."""
    section = module.section(id_)
    if section is None:
        return Reader(b"", 0, 0, "module"), 0
    reader = Reader(module.data, section.start, section.end, f"{id_.name.lower()} section")
    return reader, reader.count()
