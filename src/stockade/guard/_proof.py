"""The proof that the weaver has missed nothing, made by the engine's own validator.

The weaver patches code where its reader finds a site. Should reader and engine not agree on where instructions begin,
a call of native WASI would stay as it was, or bytes would be patched in the middle of other instructions. So that the
engine itself says that this is not so, it validates a copy of the woven module in which nothing that a guest must not
reach can be reached:

- every function that it must not call (the imports, and all functions of the guard but its entries) has the type
  `(func (param (ref $fresh)))`, where `$fresh` is the type of no function;
- the entries, which the guest may call, are there under their own types, without their code;
- the memories and tables that were appended are not there.

The guest's code is byte for byte that of the woven module. If an instruction of it names something that was appended,
or calls an import, the copy is not valid, and the module is refused. ARCHITECTURE.md says why a guest that passes can
reach neither a native function nor the guard's memory. What it comes to is that no code that runs ever has a
`(ref $fresh)` to call a hidden function with:

- `$fresh` stands behind all types of the woven module, so that no bytes of the guest's name it.
- It is in a group of as many types as no group of the woven module has. Types are equal only where their groups are, so
  none of the guest's types is equal to it. It is final, and declared to be below nothing; so the only types below it
  are itself and the bottom of all functions, `(ref nofunc)`, of which there is no value.
- `ref.func` takes no operand, but names only functions that stand outside of code: in element segments, globals, tables
  and exports. These the weaver wrote anew, and none of them is hidden: that is looked at here.
- In unreachable code any stack is to the validator's liking; it never runs, whatever it names.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

from stockade.engine import RUN_PROPOSALS, validate_with
from stockade.errors import InvalidModule
from stockade.guard import _sections
from stockade.wasm import ExternKind, SectionId, parse, sleb, uleb, vector

if TYPE_CHECKING:
    from stockade.guard._woven import Woven
    from stockade.wasm import ParsedModule

__all__ = ["proof_copy", "prove"]


_STUB: Final = b"\x03\x00\x00\x0b"
"""A function without variables that only traps, with its size."""


def prove(original: ParsedModule, woven: Woven) -> None:
    """Has the engine prove that the guest's code reaches native functions and the guard at its entries only.

    Args:
        original: The guest's module.
        woven: The same with the guard in it, found valid under the proposals that run.

    Raises:
        InvalidModule: It could not be proven; the message says where the engine sees something else.
    """
    if woven.guard_functions or original.imports:
        validate_with(proof_copy(original, woven), RUN_PROPOSALS)
    # Else nothing is hidden: the weaver has written a module that imports nothing.


def proof_copy(original: ParsedModule, woven: Woven) -> bytes:
    """Makes the copy of a woven module that is valid only if the guest's code keeps to the guard's entries.

    Args:
        original: The guest's module.
        woven: The same with the guard in it.

    Raises:
        InvalidModule: Something outside of code names a function that must be hidden.
    """
    module = parse(woven.wasm)
    first, imported = woven.guest_functions, module.imported_functions
    hidden = {*range(imported), *range(first, len(module.functions))} - {*woven.entries}

    def shown(index: int) -> int:
        if index in hidden:
            raise InvalidModule(f"function {index} is named outside of code")
        return index

    # Beyond all types of the woven module, so that nothing in the guest's code can name them.
    fresh = len(module.types)
    unsatisfiable = fresh + 1
    types = [*_sections.types(module), _group_of_fresh(module)]
    module.imports = [entry._replace(type_index=unsatisfiable) for entry in module.imports]
    for index in hidden:
        module.functions[index] = unsatisfiable
    kept = {
        ExternKind.FUNC: len(module.functions),
        ExternKind.TABLE: len(original.tables),
        ExternKind.MEMORY: len(original.memories),
        ExternKind.GLOBAL: original.globals,
        ExternKind.TAG: len(original.tags),
    }
    exports = [
        _sections.encode_export(name, kind, shown(place) if kind is ExternKind.FUNC else place)
        for name, (kind, place) in module.exports.items()
        if place < kept[kind]
    ]
    guests = first - imported
    tables = _sections.tables(module, range(len(module.tables)), shown)[: kept[ExternKind.TABLE]]
    memories = _sections.memories(module, range(len(module.memories)))[: kept[ExternKind.MEMORY]]
    bodies = len(module.bodies)
    return _sections.assembled(
        woven.wasm[:8],
        {
            SectionId.TYPE: [vector(types)],
            SectionId.IMPORT: [vector(_sections.imports(module.imports))],
            SectionId.FUNCTION: [vector(_sections.function_types(module))],
            SectionId.TABLE: [vector(tables)],
            SectionId.MEMORY: [vector(memories)],
            SectionId.TAG: [vector(_sections.tags(module))],
            SectionId.GLOBAL: [vector(_sections.globals_(module, shown)[: kept[ExternKind.GLOBAL]])],
            SectionId.EXPORT: [vector(exports)],
            SectionId.ELEMENT: [vector(_sections.element_segments(module, shown))],
            SectionId.DATA_COUNT: _sections.content(module, SectionId.DATA_COUNT),
            SectionId.CODE: [uleb(bodies), _guest_code(module, guests), _STUB * (bodies - guests)],
            SectionId.DATA: _sections.content(module, SectionId.DATA),
        },
    )


def _group_of_fresh(module: ParsedModule) -> bytes:
    """The group of types that hide: `$fresh`, the type that takes one, and as many more as make its size its own."""
    # Of a plain function there is one in a group; and some size up to the square root of twice the types is free.
    size = next(size for size in count(2) if size not in module.group_sizes)
    fresh = len(module.types)
    types = [
        b"\x60\x01\x64\x70\x00",  # $fresh: (func (param (ref func)))
        b"\x60\x01\x64" + sleb(fresh) + b"\x00",  # (func (param (ref $fresh)))
        *[b"\x60\x00\x00"] * (size - 2),
    ]
    return b"\x4e" + vector(types)


def _guest_code(module: ParsedModule, functions: int) -> memoryview:
    """The bodies of the guest's functions, each with its size, as they stand in the woven module."""
    data = memoryview(module.data)
    section = module.section(SectionId.CODE)
    if section is None or not functions:
        return data[:0]
    start = section.start + len(uleb(len(module.bodies)))
    return data[start : module.bodies[functions - 1][1]]
