"""Weaving: the guard goes into the guest's module, between its calls and native WASI.

`weave` is a pure function of bytes. It appends types, functions, memories, a table and exports, each at the end of its
index space, so that nothing of the guest is renumbered, and it redirects: every reference to a WASI import (in calls,
`ref.func`, element segments, globals and exports) goes to the guard's function of that name, every `memory.grow` and
`table.grow` to a guard function that asks the policy; every reference to a function of the embedder to one that halts
the guest for it (`_host_calls`). The start function is taken out, for the host to call under the same limits.

Code is patched where its reader finds a site; `_proof` has the engine say that none was missed. Everything else but
the data is written anew from what was read (`_sections`). What cannot be woven is refused with the reason, never run
without a guard.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from stockade._pages import PAGE_BYTES
from stockade._wasi import MODULE, WASI_BY_NAME, WasiCall
from stockade.engine import ASKING, PARKING
from stockade.errors import InvalidModule, LinkError
from stockade.guard import _sections
from stockade.guard._appended import Appended, AtomicWait, Grower, Indices
from stockade.guard._exposed import expose
from stockade.guard._host_calls import HALTING_TYPE, HostCallCode, callable_exports
from stockade.guard._imports import check_imports, wasi_call
from stockade.guard._redirect import WAITS, Targets, redirected
from stockade.guard._source import GUEST_MEMORY
from stockade.guard._trace_code import TRACE_HELPERS, TraceCode, traceable
from stockade.guard._woven import ELEMENT_BYTES, Woven
from stockade.wasm import (
    ExternKind,
    FuncType,
    Import,
    Kind,
    ParsedModule,
    Scan,
    SectionId,
    encode_limits,
    parse,
    scan,
    uleb,
    vector,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stockade.guard._source import Guard


__all__ = ["weave"]

_MOST_TOLD = (1 << 63) - 1
"""Up to what the sizes of memories and tables are told: with addresses of 64 bits they can be said to be any."""

_MEMORY = b"memory"
"""The name by which native WASI finds the memory that it reads and writes."""


def weave(module: ParsedModule | bytes, guard: Guard, scanned: Scan | None = None, *, traced: bool = False) -> Woven:
    """Weaves the guard into a module.

    Args:
        module: The original, validated by the engine under the features that guests may use.
        guard: The guard.
        scanned: What was found in its code, if that is known.
        traced: Whether calls are written into the guard's trace, where one is asked for.

    Raises:
        LinkError: It imports a WASI function under a wrong type, or something that is no function.
        InvalidModule: It contains something that the weaver does not know.
    """
    parsed = parse(module) if isinstance(module, bytes) else module
    return _Weaver(parsed, guard, scanned or scan(parsed), traced=traced).weave()


class _Weaver:
    """The work on one module."""

    def __init__(self, module: ParsedModule, guard: Guard, scan: Scan, *, traced: bool) -> None:
        # Whether somebody lends the other functions is for whoever instantiates the module to see.
        others = (entry for entry in module.imports if entry.kind is ExternKind.FUNC and wasi_call(entry) is None)
        check_imports(
            module, {(entry.module, entry.name): module.type_of_function(entry.type_index) for entry in others}
        )
        self.module = module
        self.guard = guard
        self._scan = scan
        self._traced = traced
        # Index of a WASI import in the guest -> the guard's function for it.
        self.wasi: dict[int, int] = {}
        self.native_index: dict[str, int] = {}
        # Indices of other imports: functions of the embedder.
        self.lent: dict[int, FuncType] = {}
        functions = (entry for entry in module.imports if entry.kind is ExternKind.FUNC)
        for index, entry in enumerate(functions):
            call = wasi_call(entry)
            if call is None:
                self.lent[index] = module.type_of_function(entry.type_index)
                continue
            self.wasi[index] = guard.exports[call.name]
            self.native_index.setdefault(call.name, index)
        # The import by which the guard asks for what halts the guest; None where there is none.
        self._asking = next((self.native_index[name] for name in ASKING if name in self.native_index), None)
        self._appended = Appended(len(module.types))
        self.entries: list[int] = []
        self.renamed: dict[bytes, bytes] = {}
        self.host_exports: dict[bytes, int] = {}

    def weave(self) -> Woven:
        module, guard = self.module, self.guard
        grown = self._scan.grown
        memories = {index for kind, index in grown if kind is Kind.MEMORY_GROW}
        tables = {index for kind, index in grown if kind is Kind.TABLE_GROW}
        for what, named, there in (("memory", memories, module.memories), ("table", tables, module.tables)):
            if missing := [index for index in named if index >= len(there)]:
                # The engine found the module valid, so it reads the code in another way.
                raise InvalidModule(f"the code grows {what} {missing[0]:,}, and there are {len(there):,}")
        waits = sorted(
            {
                AtomicWait(site.target, module.memory_limits[site.target].wide, site.kind is Kind.WAIT_64)
                for sites in self._scan.sites.values()
                for site in sites
                if site.kind in WAITS
            }
        )
        if not (self.wasi or self.lent or grown or waits):
            # Nothing to guard: its start function is taken out.
            return self._assemble(self._code(Targets({}, {}, {}, {})), {})

        # Which functions of the guard are needed, and where each will stand.
        by_name = guard.exports
        growers = [Grower(index, module.memory_limits[index].wide) for index in sorted(memories)]
        table_growers = [
            Grower(index, module.tables[index].wide, module.tables[index].element) for index in sorted(tables)
        ]
        enter, park = by_name["host_call"], by_name["host_park"]
        roots = [
            *self.wasi.values(),
            *(by_name[name] for name in ("reserve_pages", "settle_pages") if growers),
            *(by_name[name] for name in ("reserve_elements", "settle_elements") if table_growers),
            *((enter, park) if self.lent else ()),
            *(by_name[name] for name in ("atomic_wait",) if waits),
            *(by_name[name] for name in TRACE_HELPERS if self._traced and (self.wasi or self.lent)),
        ]
        needed = self._closure(roots)
        if self.lent:
            # Their imports are of the function that halts the guest.
            self.native_index.setdefault(PARKING.decode(), min(self.lent))
        first = len(module.functions)
        place: dict[int, int] = {}
        for index in sorted(needed):
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
        memory_place = {grower.place: after + slot for slot, grower in enumerate(growers)}
        after += len(growers)
        table_place = {grower.place: after + slot for slot, grower in enumerate(table_growers)}
        after += len(table_growers)
        wait_place = {wait: after + slot for slot, wait in enumerate(waits)}
        after += len(waits)
        lent_place = {index: after + slot for slot, index in enumerate(sorted(self.lent))}
        ask = after + len(self.lent)

        # The memories: the guest's as native WASI would find it, or its first, or an empty one; then the guard's state.
        export = module.exports.get(_MEMORY)
        appended = []
        guest_memory = 0
        if export is not None and export.kind is ExternKind.MEMORY:
            guest_memory = export.place
        elif not module.memories or module.memory_limits[0].wide:
            guest_memory = len(module.memories)
            appended.append(b"\x01\x00\x00")
        if guest_memory < len(module.memories) and module.memory_limits[guest_memory].wide:
            self._check_narrow(self._closure(self.wasi.values()))
            # For functions of the embedder, which are told of no memory then.
            guest_memory = len(module.memories)
            appended.append(b"\x01\x00\x00")
        state_memory = len(module.memories) + len(appended)
        appended.append(b"\x00" + uleb(guard.memory_bytes // PAGE_BYTES))

        called = {index: self.native_index[name] for index, name in guard.natives.items() if name in self.native_index}
        called |= place
        indices = Indices(called, guest_memory, state_memory)
        for index in sorted(needed):
            self._appended.add(guard.bodies[index], indices)
        natives_table = len(module.tables)
        for slot, call in enumerate(natives):
            self._appended.add_thunk(call, slot, natives_table, self._asking if call.name == PARKING.decode() else None)
        for grower in growers:
            self._appended.add_grower(grower, place[by_name["reserve_pages"]], place[by_name["settle_pages"]])
        for grower in table_growers:
            self._appended.add_grower(grower, place[by_name["reserve_elements"]], place[by_name["settle_elements"]])
        for wait in waits:
            self._appended.add_wait(wait, place[by_name["atomic_wait"]])

        # Where references of the guest go.
        served = {index: place[target] for index, target in self.wasi.items()} | lent_place
        traced = traceable(module, served) if self._traced else {}
        behind = ask + bool(self.lent)
        redirect = served | {index: behind + slot for slot, index in enumerate(traced)}
        if self.lent:
            self._add_host_calls(HostCallCode(guard.layout, state_memory), place[enter], place[park], ask, redirect)
        if traced:
            helpers = {name: place[by_name[name]] for name in TRACE_HELPERS}
            TraceCode(guard, state_memory, helpers).add(self._appended, traced, served, self.wasi)
        self.entries = sorted({*redirect.values(), *memory_place.values(), *table_place.values(), *wait_place.values()})

        exports = [_sections.encode_export(_MEMORY, ExternKind.MEMORY, state_memory)]
        # Also where the guest exports nothing of that name: nobody must find the guard's memory in its place.
        self.renamed[_MEMORY] = self._free(b"stockade.memory")
        natives_export = None
        new_tables = []
        if natives:
            natives_export = self._free(b"stockade.natives")
            exports.append(_sections.encode_export(natives_export, ExternKind.TABLE, natives_table))
            new_tables.append(b"\x70" + encode_limits(len(natives), len(natives)))
        return self._assemble(
            self._code(Targets(redirect, memory_place, table_place, wait_place)),
            redirect,
            state=_MEMORY,
            natives=tuple(natives),
            natives_export=natives_export,
            exports=exports,
            tables=new_tables,
            memories=appended,
            grown=(memories, tables),
        )

    def _add_host_calls(
        self, write: HostCallCode, enter: int, park: int, ask: int, redirect: Mapping[int, int]
    ) -> None:
        """The functions in the place of the embedder's, in the order of their imports, and what they ask."""
        for number, (_, type_) in enumerate(sorted(self.lent.items()), 1):
            self._appended.add_code("host_call", type_, write.stand_in(number, type_, enter, ask))
        module = self.module
        exported = {name: entry.place for name, entry in module.exports.items() if entry.kind is ExternKind.FUNC}
        found = callable_exports(
            ((index, module.function_type(index)) for index in exported.values()),
            self.guard.layout.constants["MAILBOX_VALUES"],
        )
        numbers = {index: number for number, (index, _) in enumerate(found)}
        self.host_exports = {name: numbers[index] for name, index in exported.items() if index in numbers}
        calls = [(redirect.get(index, index), type_) for index, type_ in found]
        self._appended.add_code("host_ask", FuncType(("i32",), ()), write.ask(park, calls))

    def _imports(self) -> list[Import]:
        """The imports: those of the embedder's functions are of the one that halts the guest."""
        if not self.lent:
            return self.module.imports
        halting = self._appended.type_index(FuncType(*HALTING_TYPE))
        halts = Import(MODULE.encode(), PARKING, ExternKind.FUNC, halting)
        # All are functions: anything else is refused before.
        return [halts if index in self.lent else entry for index, entry in enumerate(self.module.imports)]

    def _check_narrow(self, needed: Iterable[int]) -> None:
        """Checks that no function of the guard's has to reach into the guest's memory, whose addresses have 64 bits.

        Raises:
            LinkError: One has.
        """
        for index in sorted(needed):
            if any(
                reference is not None and reference.kind is Kind.MEMORY and reference.index == GUEST_MEMORY
                for _, reference in self.guard.bodies[index].parts
            ):
                raise LinkError(
                    "the module's memory has 64-bit addresses, and those of WASI preview 1, which it imports, have 32 "
                    "bits: build it for wasm32, or without calls that pass addresses"
                )

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

    def _code(self, targets: Targets) -> list[bytes | memoryview]:
        """The bodies of all functions, each with its size: the guest's, then what is appended."""
        return [*redirected(self.module, self._scan, targets), *self._appended.code]

    def _free(self, name: bytes) -> bytes:
        """A name for an export that the guest does not use."""
        while name in self.module.exports:
            name += b"'"
        return name

    # -- the whole ------------------------------------------------------------------------------------------------

    def _assemble(
        self,
        code: list[bytes | memoryview],
        redirect: dict[int, int],
        *,
        state: bytes | None = None,
        natives: tuple[WasiCall, ...] = (),
        natives_export: bytes | None = None,
        exports: Iterable[bytes] = (),
        tables: Iterable[bytes] = (),
        memories: Iterable[bytes] = (),
        grown: tuple[set[int], set[int]] = (set(), set()),
    ) -> Woven:
        """Puts the module together.

        Args:
            code: All bodies.
            redirect: Where references to functions go.
            state: Name of the guard's memory.
            natives: What the guard calls through a table.
            natives_export: Name of that table.
            exports: What is exported of the guard.
            tables: Tables that are appended.
            memories: Memories that are appended.
            grown: The memories and the tables that the guest grows.
        """
        module = self.module
        imports = self._imports()

        def to(index: int) -> int:
            return redirect.get(index, index)

        exports = list(exports)
        start_export = None
        if module.start is not None:
            start_export = self._free(b"stockade.start")
            exports.append(_sections.encode_export(start_export, ExternKind.FUNC, to(module.start)))
        more, exposed = expose(module, self._scan, self.renamed, self._free)
        exports += more
        known = {entry.place: name for name, entry in module.exports.items() if entry.kind is ExternKind.TABLE}
        for index in sorted(grown[1] - known.keys()):
            known[index] = self._free(b"stockade.table.%d" % index)
            exports.append(_sections.encode_export(known[index], ExternKind.TABLE, index))
        contents: dict[SectionId, list[bytes | memoryview]] = {
            SectionId.TYPE: _filled([*_sections.types(module), *self._appended.types]),
            SectionId.IMPORT: _filled(_sections.imports(imports)),
            SectionId.FUNCTION: _filled([*_sections.function_types(module), *map(uleb, self._appended.function_types)]),
            SectionId.TABLE: _filled([*_sections.tables(module, grown[1], to), *tables]),
            SectionId.MEMORY: _filled([*_sections.memories(module, grown[0]), *memories]),
            SectionId.TAG: _filled(_sections.tags(module)),
            SectionId.GLOBAL: _filled(_sections.globals_(module, to)),
            SectionId.EXPORT: _filled([*_sections.exports(module, to, self.renamed), *exports]),
            SectionId.ELEMENT: _filled(_sections.element_segments(module, to)),
            SectionId.DATA_COUNT: _sections.data_count(module),
            SectionId.CODE: [uleb(len(code) // 2), *code] if code else [],
            # As it was: the engine has found its memories and offsets valid, and nothing in it is renumbered.
            SectionId.DATA: [*_sections.content(module, SectionId.DATA)],
        }
        elements = sum(table.minimum for table in module.tables)
        initial = min(sum(module.memories) * PAGE_BYTES + elements * ELEMENT_BYTES, _MOST_TOLD)
        growing = sum(module.memories[index] for index in grown[0]) * PAGE_BYTES
        growing += sum(module.tables[index].minimum for index in grown[1]) * ELEMENT_BYTES
        return Woven(
            wasm=_sections.assembled(module.data[:8], contents, _sections.names(module)),
            state_export=state,
            renamed=self.renamed,
            start_export=start_export,
            natives_export=natives_export,
            natives=natives,
            guest_functions=len(module.functions),
            guard_functions=tuple(self._appended.names),
            initial_memory_bytes=initial,
            initial_table_elements=min(elements, _MOST_TOLD),
            entries=tuple(self.entries),
            fixed_memory_bytes=max(0, initial - growing),
            grown_memories=tuple(exposed.memories[index] for index in sorted(grown[0])),
            grown_tables=tuple(self.renamed.get(known[index], known[index]) for index in sorted(grown[1])),
            exposed=exposed,
            host_exports=self.host_exports,
            traced=self._traced,
            waits=any(site.kind in WAITS for sites in self._scan.sites.values() for site in sites),
            collects=module.collects,
            throws_only=module.throws_only,
            asks=self._asking is not None and any(call.name == PARKING.decode() for call in natives),
            redirected=dict(Counter(site.kind.value for sites in self._scan.sites.values() for site in sites)),
        )


def _filled(items: list[bytes]) -> list[bytes | memoryview]:
    """A vector, or nothing where it would be empty."""
    return [vector(items)] if items else []
