"""Weaving: the guard goes into the guest's module, between its calls and native WASI.

`weave` is a pure function of bytes. It appends types, functions, memories, a table and exports, each at the end of its
index space, so that nothing of the guest is renumbered, and it redirects: every reference to a WASI import (in calls,
`ref.func`, element segments, globals and exports) goes to the guard's function of that name, every `memory.grow` and
`table.grow` to a guard function that asks the policy. The start function is taken out, for the host to call under the
same limits.

The original is valid with its own indices, so no instruction of it can name what is appended: the guard cannot be
reached or skipped. What cannot be woven is refused with the reason, never run without a guard.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from stockade._text import printable
from stockade._wasi import MODULE, WASI_BY_NAME, WasiCall
from stockade.errors import LinkError
from stockade.guard._source import GUEST_MEMORY, Body, Guard, Reference
from stockade.wasm import (
    SECTION_ORDER,
    ExternKind,
    FuncType,
    Kind,
    ParsedModule,
    Reader,
    Scan,
    SectionId,
    parse,
    read_const_expression,
    scan,
    uleb,
    vector,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from stockade.wasm import Import

__all__ = ["Woven", "check_imports", "weave"]

NOTHING: Mapping[tuple[bytes, bytes], FuncType] = MappingProxyType({})
"""No functions beside those of WASI."""

_VALUE_CODES = {
    "i32": 0x7F,
    "i64": 0x7E,
    "f32": 0x7D,
    "f64": 0x7C,
    "v128": 0x7B,
    "funcref": 0x70,
    "externref": 0x6F,
}
_TABLE_GROWERS = {0x70: "funcref_table_grow", 0x6F: "externref_table_grow"}
_MEMORY = b"memory"
"""The name by which native WASI finds the memory that it reads and writes."""

_OPCODES = {Kind.CALL: b"\x10", Kind.RETURN_CALL: b"\x12", Kind.REF_FUNC: b"\xd2"}


@dataclass(frozen=True, slots=True)
class Woven:
    """A module with the guard in it.

    Attributes:
        wasm: Its bytes. Equal to the original where there was nothing to guard.
        state_export: Name of the exported memory that holds the guard's state, which is also the one that native WASI
            finds; None where there is no guard.
        renamed: What the guest exports under that name -> the name under which it is found instead.
        start_export: Name under which the original's start function is exported; None where it had none.
        natives_export: Name of the table for native functions that the guest does not import; None where not needed.
        natives: Those functions, in the order of the table's slots.
        guest_functions: Functions of the original; those from here on are the guard's.
        guard_functions: Names of the guard's functions, in order.
        initial_memory_bytes: What the guest's memories and tables take at the beginning, 8 bytes an element.
        initial_table_elements: How many elements its tables begin with.
    """

    wasm: bytes
    state_export: bytes | None
    renamed: dict[bytes, bytes]
    start_export: bytes | None
    natives_export: bytes | None
    natives: tuple[WasiCall, ...]
    guest_functions: int
    guard_functions: tuple[str, ...]
    initial_memory_bytes: int
    initial_table_elements: int


def weave(module: ParsedModule | bytes, guard: Guard, scanned: Scan | None = None) -> Woven:
    """Weaves the guard into a module.

    Args:
        module: The original, validated by the engine under the features that guests may use.
        guard: The guard.
        scanned: What was found in its code, if that is known.

    Raises:
        LinkError: It imports a WASI function under a wrong type, or something that is no function.
        InvalidModule: It contains something that the weaver does not know.
    """
    parsed = parse(module) if isinstance(module, bytes) else module
    return _Weaver(parsed, guard, scanned or scan(parsed)).weave()


def check_imports(module: ParsedModule, lent: Mapping[tuple[bytes, bytes], FuncType] = NOTHING) -> None:
    """Checks that everything the module imports is there, under its right type.

    Args:
        module: The module.
        lent: Functions beside those of WASI preview 1, by import module and name.

    Raises:
        LinkError: Something is not; the message names it and what would be needed.
    """
    unknown = []
    for entry in module.imports:
        name = f"{printable(entry.module)}.{printable(entry.name)}"
        if entry.kind is not ExternKind.FUNC:
            unknown.append(f"{name} ({entry.kind.name.lower()})")
            continue
        actual = module.types[entry.type_index]
        call = _wasi_call(entry)
        if call is not None:
            expected, where = FuncType(call.params, call.results), "in WASI preview 1"
        elif (entry.module, entry.name) in lent:
            expected, where = lent[entry.module, entry.name], "as a host function"
        else:
            unknown.append(f"{name} (function {actual})")
            continue
        if actual != expected:
            raise LinkError(f"the module imports {name} as {actual}, but {where} it is {expected}: {_mend(call)}")
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise LinkError(f"nothing provides what the module imports: {shown}. {_hint(module)}")


def _wasi_call(entry: Import) -> WasiCall | None:
    return WASI_BY_NAME.get(entry.name.decode("utf-8", "replace")) if entry.module == MODULE.encode() else None


def _mend(call: WasiCall | None) -> str:
    if call is not None:
        return "rebuild it with a current toolchain"
    return "change the annotations of the function, or rebuild the module"


def _hint(module: ParsedModule) -> str:
    modules = {entry.module for entry in module.imports}
    if b"wasi_unstable" in modules:
        return "wasi_unstable is an outdated preview: rebuild the module for wasm32-wasip1"
    if any(name.startswith(b"wasi:") for name in modules):
        return "It was built for WASI 0.2: rebuild it for wasm32-wasip1"
    if any(name in (b"__wbindgen_placeholder__", b"wbg", b"go", b"gojs") for name in modules):
        return "It was built for a JavaScript host: rebuild it for WASI (wasm32-wasip1, GOOS=wasip1)"
    return (
        f"Guests get WASI preview 1 ({MODULE}) and what Sandbox.host_function lends: lend these, or rebuild the module "
        "without them"
    )


def _export_entry(name: bytes, kind: ExternKind, index: int) -> bytes:
    return uleb(len(name)) + name + bytes([kind]) + uleb(index)


class _Indices(NamedTuple):
    """What the guard's own indices are in the module that it is woven into."""

    functions: dict[int, int]
    guest_memory: int
    state_memory: int
    table: int

    def encode(self, reference: Reference) -> bytes:
        """The code of a reference, with its index in place."""
        if reference.kind is Kind.CALL:
            return b"\x10" + uleb(self.functions[reference.index])
        if reference.kind is Kind.TABLE_GROW:
            return b"\xfc\x0f" + uleb(self.table)
        memory = self.guest_memory if reference.index == GUEST_MEMORY else self.state_memory
        if reference.kind is Kind.MEMORY_GROW:
            return b"\x40" + uleb(memory)
        assert reference.kind is Kind.MEMORY, reference
        if reference.alignment is None:
            return uleb(memory)
        # Bit 6 of the alignment says that the index of the memory follows.
        return bytes([reference.alignment | 0x40]) + uleb(memory) if memory else bytes([reference.alignment])


class _Weaver:
    """The work on one module."""

    def __init__(self, module: ParsedModule, guard: Guard, scan: Scan) -> None:
        # Whether somebody lends the other functions is for whoever instantiates the module to see.
        others = (entry for entry in module.imports if entry.kind is ExternKind.FUNC and _wasi_call(entry) is None)
        check_imports(module, {(entry.module, entry.name): module.types[entry.type_index] for entry in others})
        self.module = module
        self.guard = guard
        self._scan = scan
        # Index of a WASI import in the guest -> the guard's function for it.
        self.wasi: dict[int, int] = {}
        self.native_index: dict[str, int] = {}
        # Indices of other imports: functions of the embedder.
        self.lent: dict[int, FuncType] = {}
        functions = (entry for entry in module.imports if entry.kind is ExternKind.FUNC)
        for index, entry in enumerate(functions):
            call = _wasi_call(entry)
            if call is None:
                self.lent[index] = module.types[entry.type_index]
                continue
            self.wasi[index] = guard.exports[call.name]
            self.native_index.setdefault(call.name, index)
        self.types: list[bytes] = []
        self.type_index: dict[FuncType, int] = {}
        self.names: list[str] = []
        self.function_types: list[int] = []
        self.code: list[bytes] = []

    def weave(self) -> Woven:
        module, guard = self.module, self.guard
        grown = self._scan.grown
        memories = {index for kind, index in grown if kind is Kind.MEMORY_GROW}
        tables = {index for kind, index in grown if kind is Kind.TABLE_GROW}
        if not (self.wasi or self.lent or grown):
            return self._without_guard()

        # Which functions of the guard are needed, and where each will stand.
        growers = dict.fromkeys(memories, guard.exports["memory_grow"])
        table_growers = {index: guard.exports[_TABLE_GROWERS[module.tables[index].element]] for index in tables}
        counter = guard.exports["host_call"]
        roots = [*self.wasi.values(), *growers.values(), *table_growers.values()]
        needed = self._closure([*roots, counter] if self.lent else roots)
        copied = set(growers.values()) | set(table_growers.values())
        first = len(module.functions)
        place: dict[int, int] = {}
        for index in sorted(needed - copied):
            place[index] = first + len(place)
        natives = [
            WASI_BY_NAME[name]
            for name in dict.fromkeys(
                guard.natives[called]
                for index in sorted(needed)
                for called in sorted(guard.bodies[index].calls)
                if called in guard.natives
            )
            if name not in self.native_index
        ]
        after = first + len(place)
        for slot, call in enumerate(natives):
            self.native_index[call.name] = after + slot
        after += len(natives)
        memory_place = {memory: after + slot for slot, memory in enumerate(sorted(memories))}
        after += len(memories)
        table_place = {table: after + slot for slot, table in enumerate(sorted(tables))}
        after += len(tables)
        lent_place = {index: after + slot for slot, index in enumerate(sorted(self.lent))}

        # The memories: the guest's as native WASI would find it, or its first, or an empty one; then the guard's state.
        export = module.exports.get(_MEMORY)
        appended = []
        guest_memory = 0
        if export is not None and export.kind is ExternKind.MEMORY:
            guest_memory = export.place
        elif not module.memories:
            appended.append(b"\x01\x00\x00")
        state_memory = len(module.memories) + len(appended)
        appended.append(b"\x00" + uleb(guard.memory_pages))

        called = {index: self.native_index[name] for index, name in guard.natives.items() if name in self.native_index}
        called |= place
        indices = _Indices(called, guest_memory, state_memory, 0)
        for index in sorted(needed - copied):
            self._append(guard.bodies[index], indices)
        natives_table = len(module.tables)
        for slot, call in enumerate(natives):
            self._append_thunk(call, slot, natives_table)
        for memory, index in sorted(growers.items()):
            self._append(guard.bodies[index], indices._replace(guest_memory=memory))
        for table, index in sorted(table_growers.items()):
            self._append(guard.bodies[index], indices._replace(table=table))

        for index, type_ in sorted(self.lent.items()):
            self._append_counted(index, type_, place[counter])

        # Where references of the guest go.
        redirect = {index: place[target] for index, target in self.wasi.items()} | lent_place
        code = self._rewrite_code(redirect, memory_place, table_place)

        exports = [(_MEMORY, _export_entry(_MEMORY, ExternKind.MEMORY, state_memory))]
        renamed = {_MEMORY: self._free_name(b"stockade.memory")} if export is not None else {}
        start_export = natives_export = None
        if module.start is not None:
            exports.append(self._export(b"stockade.start", ExternKind.FUNC, redirect.get(module.start, module.start)))
            start_export = exports[-1][0]
        new_tables = []
        if natives:
            exports.append(self._export(b"stockade.natives", ExternKind.TABLE, natives_table))
            natives_export = exports[-1][0]
            size = uleb(len(natives))
            new_tables.append(b"\x70\x01" + size + size)

        wasm = self._assemble(
            {
                SectionId.TYPE: self._extended(SectionId.TYPE, self.types),
                SectionId.FUNCTION: self._extended(SectionId.FUNCTION, map(uleb, self.function_types)),
                SectionId.TABLE: self._extended(SectionId.TABLE, new_tables),
                SectionId.MEMORY: self._extended(SectionId.MEMORY, appended),
                SectionId.GLOBAL: self._redirected(SectionId.GLOBAL, self._global_references(), redirect),
                SectionId.EXPORT: self._extended(
                    SectionId.EXPORT, (entry for _, entry in exports), self._export_edits(redirect, renamed)
                ),
                SectionId.START: None,
                SectionId.ELEMENT: self._redirected(SectionId.ELEMENT, self._element_references(), redirect),
                SectionId.CODE: code,
            }
        )
        return self._woven(wasm, _MEMORY, start_export, natives_export, tuple(natives), renamed)

    def _woven(
        self,
        wasm: bytes,
        state: bytes | None,
        start: bytes | None,
        natives_export: bytes | None,
        natives: tuple[WasiCall, ...],
        renamed: dict[bytes, bytes] | None = None,
    ) -> Woven:
        elements = sum(table.minimum for table in self.module.tables)
        return Woven(
            wasm,
            state,
            renamed or {},
            start,
            natives_export,
            natives,
            len(self.module.functions),
            tuple(self.names),
            sum(self.module.memories) * 65_536 + elements * 8,
            elements,
        )

    def _without_guard(self) -> Woven:
        module = self.module
        if module.start is None:
            return self._woven(module.data, None, None, None, ())
        name, entry = self._export(b"stockade.start", ExternKind.FUNC, module.start)
        wasm = self._assemble({SectionId.EXPORT: self._extended(SectionId.EXPORT, [entry]), SectionId.START: None})
        return self._woven(wasm, None, name, None, ())

    def _closure(self, roots: Iterable[int]) -> set[int]:
        """The guard functions that these need, themselves included."""
        needed: set[int] = set()
        waiting = list(roots)
        while waiting:
            index = waiting.pop()
            if index not in needed and index in self.guard.bodies:
                needed.add(index)
                waiting += self.guard.bodies[index].calls
        return needed

    # -- appended functions ---------------------------------------------------------------------------------------

    def _type(self, type_: FuncType) -> int:
        if type_ not in self.type_index:
            self.type_index[type_] = len(self.module.types) + len(self.types)
            self.types.append(
                b"\x60"
                + vector(bytes([_VALUE_CODES[name]]) for name in type_.params)
                + vector(bytes([_VALUE_CODES[name]]) for name in type_.results)
            )
        return self.type_index[type_]

    def _append(self, body: Body, indices: _Indices) -> None:
        self.names.append(body.name)
        self.function_types.append(self._type(body.type))
        code = b"".join(
            part + (indices.encode(reference) if reference is not None else b"") for part, reference in body.parts
        )
        self.code.append(uleb(len(code)) + code)

    def _append_thunk(self, call: WasiCall, slot: int, table: int) -> None:
        """A function that passes its arguments to a native function in the table."""
        type_index = self._type(FuncType(call.params, call.results))
        self.names.append(call.name)
        self.function_types.append(type_index)
        arguments = b"".join(b"\x20" + uleb(index) for index in range(len(call.params)))
        slot_code = b"\x41" + uleb(slot)  # fewer than 64 natives: signed and unsigned encodings agree
        code = b"\x00" + arguments + slot_code + b"\x11" + uleb(type_index) + uleb(table) + b"\x0b"
        self.code.append(uleb(len(code)) + code)

    def _append_counted(self, index: int, type_: FuncType, counter: int) -> None:
        """A function that has a call counted before it makes it: for functions of the embedder."""
        self.names.append("host_call")
        self.function_types.append(self._type(type_))
        arguments = b"".join(b"\x20" + uleb(place) for place in range(len(type_.params)))
        code = b"\x00\x10" + uleb(counter) + arguments + b"\x10" + uleb(index) + b"\x0b"
        self.code.append(uleb(len(code)) + code)

    # -- the guest's own parts ------------------------------------------------------------------------------------

    def _rewrite_code(self, redirect: dict[int, int], memories: dict[int, int], tables: dict[int, int]) -> bytes:
        data, bodies = self.module.data, self.module.bodies
        parts = [uleb(len(bodies) + len(self.code))]
        copied = None
        for number in sorted(self._scan.sites):
            start, end = bodies[number]
            code = bytearray()
            done = start
            for site in self._scan.sites[number]:
                code += data[done : site.start]
                if site.kind is Kind.MEMORY_GROW:
                    code += b"\x10" + uleb(memories[site.target])
                elif site.kind is Kind.TABLE_GROW:
                    code += b"\x10" + uleb(tables[site.target])
                else:
                    code += _OPCODES[site.kind] + uleb(redirect[site.target])
                done = site.end
            code += data[done:end]
            # Everything since the last changed body is copied in one piece, sizes included.
            parts.append(data[self._after(copied) : self._after(number - 1)])
            parts += [uleb(len(code)), bytes(code)]
            copied = number
        parts.append(data[self._after(copied) : self._after(len(bodies) - 1)])
        return b"".join([*parts, *self.code])

    def _after(self, number: int | None) -> int:
        """Where the body of this number ends; for the one before the first: where the first one's size begins."""
        if number is not None and number >= 0:
            return self.module.bodies[number][1]
        section = self.module.section(SectionId.CODE)
        if section is None:
            return 0
        reader = Reader(self.module.data, section.start, section.end, "code section")
        reader.u32()
        return reader.position

    def _content(self, id_: SectionId) -> tuple[int, int, int]:
        """How many items a section has, and where they lie; nothing where it is missing."""
        section = self.module.section(id_)
        if section is None:
            return 0, 0, 0
        reader = Reader(self.module.data, section.start, section.end, "section")
        return reader.u32(), reader.position, section.end

    def _extended(
        self, id_: SectionId, items: Iterable[bytes], edits: Iterable[tuple[int, int, bytes]] = ()
    ) -> bytes | None:
        """A section with items appended to its vector; None where it stays missing."""
        items = list(items)
        count, start, end = self._content(id_)
        if not count and not items:
            section = self.module.section(id_)
            return None if section is None else self.module.data[section.start : section.end]
        return uleb(count + len(items)) + self._spliced(start, end, edits) + b"".join(items)

    def _redirected(
        self, id_: SectionId, references: Iterator[tuple[int, int, int]], redirect: dict[int, int]
    ) -> bytes | None:
        section = self.module.section(id_)
        if section is None:
            return None
        edits = [(start, end, uleb(redirect[index])) for start, end, index in references if index in redirect]
        return self._spliced(section.start, section.end, edits)

    def _spliced(self, start: int, end: int, edits: Iterable[tuple[int, int, bytes]]) -> bytes:
        parts = []
        for first, last, replacement in edits:
            parts += [self.module.data[start:first], replacement]
            start = last
        parts.append(self.module.data[start:end])
        return b"".join(parts)

    def _global_references(self) -> Iterator[tuple[int, int, int]]:
        count, start, end = self._content(SectionId.GLOBAL)
        reader = Reader(self.module.data, start, end, "global section")
        for _ in range(count):
            reader.take(2)
            yield from read_const_expression(reader)

    def _element_references(self) -> Iterator[tuple[int, int, int]]:
        count, start, end = self._content(SectionId.ELEMENT)
        reader = Reader(self.module.data, start, end, "element section")
        for _ in range(count):
            flags = reader.u32()
            if flags > 7:
                raise reader.damaged(f"element segment of the unknown form {flags}")
            if not flags & 1:  # active: a table and an offset
                if flags & 2:
                    reader.u32()
                yield from read_const_expression(reader)
            if flags & 3:
                reader.byte()
            for _ in range(reader.count()):
                if flags & 4:
                    yield from read_const_expression(reader)
                else:
                    begin = reader.position
                    index = reader.u32()
                    yield begin, reader.position, index

    def _export_edits(self, redirect: dict[int, int], renamed: dict[bytes, bytes]) -> Iterator[tuple[int, int, bytes]]:
        exports = self.module.exports.values()
        if not renamed and not any(export.kind is ExternKind.FUNC and export.place in redirect for export in exports):
            return
        count, start, end = self._content(SectionId.EXPORT)
        reader = Reader(self.module.data, start, end, "export section")
        for _ in range(count):
            begin = reader.position
            name = reader.name()
            if name in renamed:
                yield begin, reader.position, uleb(len(renamed[name])) + renamed[name]
            kind = reader.byte()
            begin = reader.position
            index = reader.u32()
            if kind == ExternKind.FUNC and index in redirect:
                yield begin, reader.position, uleb(redirect[index])

    def _export(self, name: bytes, kind: ExternKind, index: int) -> tuple[bytes, bytes]:
        """A new export under a name that the guest does not use."""
        name = self._free_name(name)
        return name, _export_entry(name, kind, index)

    def _free_name(self, name: bytes) -> bytes:
        while name in self.module.exports:
            name += b"'"
        return name

    # -- the whole ------------------------------------------------------------------------------------------------

    def _assemble(self, changed: dict[SectionId, bytes | None]) -> bytes:
        """Puts the module together: changed sections, kept ones, and of the custom ones only the names.

        Other custom sections hold offsets into code that has moved (debug information, hints to the compiler).
        """
        data = self.module.data
        out = [data[:8]]
        for id_ in SECTION_ORDER:
            if id_ in changed:
                content = changed[id_]
            else:
                section = self.module.section(id_)
                content = None if section is None else data[section.start : section.end]
            if content is not None:
                out += [bytes([id_]), uleb(len(content)), content]
        for section in self.module.sections:
            if section.id == SectionId.CUSTOM:
                reader = Reader(data, section.start, section.end, "custom section")
                if reader.name() == b"name":
                    size = section.end - section.start
                    out += [bytes([SectionId.CUSTOM]), uleb(size), data[section.start : section.end]]
        return b"".join(out)
