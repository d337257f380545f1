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
reach neither a native function nor the guard's memory.

Typed function references are on for this copy, and for nothing else. That widens nothing:

- Which bytes are which instruction does not depend on them, so the engine reads the guest's code in the copy as it
  does in the woven module.
- The woven module is validated without them, so the guest's code has no instruction and no type of theirs. No bytes of
  it can name `$fresh` or the type of what is hidden, whose indices lie beyond all types of the woven module.
- `$fresh` has a parameter that may not be null, which no type of the woven module can have: so it is equal to none of
  them, and no function has it. What `ref.func` leaves on the stack is a reference to the type of its function, in both.
- So no value that reachable code has on its stack is a `(ref $fresh)`, and no `call` or `return_call` of a hidden
  function is valid there. In unreachable code any stack is to the validator's liking; it never runs, whatever it names.
  `ref.func` takes no operand, but names only functions that stand outside of code: in element segments, globals and
  exports. These the weaver wrote anew, and none of them is hidden: that is looked at here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade.engine import validate_with
from stockade.errors import InvalidModule
from stockade.guard import _sections
from stockade.wasm import ExternKind, SectionId, parse, sleb, uleb, vector

if TYPE_CHECKING:
    from stockade.guard._weave import Woven
    from stockade.wasm import ParsedModule

__all__ = ["PROOF_VERSION", "proof_copy", "prove"]

PROOF_VERSION: Final = 1
"""The version of what is proven: part of every cache key, so that machine code is kept only with this proof."""

_PROPOSALS: Final = frozenset({"simd", "relaxed_simd", "tail_call", "multi_memory"})
"""The proposals under which a woven module is run. With typed function references among them, or with what builds on
them, the argument above would not hold."""

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
        validate_with(proof_copy(original, woven), _PROPOSALS | {"function_references"})
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
    types = [
        *_sections.types(module),
        b"\x60\x01\x64\x70\x00",  # $fresh: (func (param (ref func)))
        b"\x60\x01\x64" + sleb(fresh) + b"\x00",  # (func (param (ref $fresh)))
    ]
    module.imports = [entry._replace(type_index=unsatisfiable) for entry in module.imports]
    for index in hidden:
        module.functions[index] = unsatisfiable
    kept = {
        ExternKind.FUNC: len(module.functions),
        ExternKind.TABLE: len(original.tables),
        ExternKind.MEMORY: len(original.memories),
        ExternKind.GLOBAL: original.globals,
    }
    exports = [
        _sections.encode_export(name, kind, shown(place) if kind is ExternKind.FUNC else place)
        for name, (kind, place) in module.exports.items()
        if place < kept[kind]
    ]
    guests = first - imported
    tables = _sections.tables(module, range(len(module.tables)))[: kept[ExternKind.TABLE]]
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
            SectionId.GLOBAL: [vector(_sections.globals_(module, shown)[: kept[ExternKind.GLOBAL]])],
            SectionId.EXPORT: [vector(exports)],
            SectionId.ELEMENT: [vector(_sections.element_segments(module, shown))],
            SectionId.DATA_COUNT: _sections.content(module, SectionId.DATA_COUNT),
            SectionId.CODE: [uleb(bodies), _guest_code(module, guests), _STUB * (bodies - guests)],
            SectionId.DATA: _sections.content(module, SectionId.DATA),
        },
    )


def _guest_code(module: ParsedModule, functions: int) -> memoryview:
    """The bodies of the guest's functions, each with its size, as they stand in the woven module."""
    data = memoryview(module.data)
    section = module.section(SectionId.CODE)
    if section is None or not functions:
        return data[:0]
    start = section.start + len(uleb(len(module.bodies)))
    return data[start : module.bodies[functions - 1][1]]
