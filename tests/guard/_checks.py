"""What holds of every woven module, looked at by a decoder that shares no code with the weaver's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._wasi import MODULE, WASI_BY_NAME
from stockade.engine import assemble
from tests._decoder import Decoded, Instr, Limits, decode
from tests.guard._modules import FUNC, GLOBAL, MEMORY, TABLE

if TYPE_CHECKING:
    from stockade.guard import Woven

__all__ = ["GROWTH", "check_woven"]

_FUNCTIONS = ("call", "return_call", "ref.func")
GROWTH = ("memory.grow", "table.grow")
_WAITS = ("memory.atomic.wait32", "memory.atomic.wait64")


def check_woven(data: bytes, woven: Woven) -> None:
    """Checks it: everything of the guest is there, and each of its sites leads to the guard.

    Args:
        data: The original.
        woven: What was made of it.
    """
    original, result = decode(data), decode(woven.wasm)
    halting = decode(assemble("(module (type (func (param i32 i32 i32 i32) (result i32))))"))
    imported = original.imported_functions
    functions = imported + len(original.functions)
    assert woven.guest_functions == functions
    assert result.start is None
    assert len(result.functions) == len(original.functions) + len(woven.guard_functions)

    names = [name.decode() for _, name, _ in original.imports]
    # Functions of an embedder: each is now the function that halts the guest, and has one in its place, in their order
    # at the end, before the one that they ask.
    known = {(MODULE.encode(), name.encode()) for name in WASI_BY_NAME}
    lent = [place for place, entry in enumerate(original.imports) if entry[:2] not in known]
    for place, (before, after) in enumerate(zip(original.imports, result.imports, strict=True)):
        if place in lent:
            assert after[:2] == (MODULE.encode(), b"poll_oneoff")
            assert result.types[after[2]] == halting.types[0]
        else:
            assert after == before

    def redirected(index: int) -> int:
        """Where a reference of the guest must go."""
        if index >= imported:
            return index
        if index in lent:
            return functions + len(woven.guard_functions) - 1 - len(lent) + lent.index(index)
        return functions + woven.guard_functions.index(names[index])

    def elsewhere(expression: tuple[Instr, ...]) -> tuple[Instr, ...]:
        return tuple(
            Instr(op, (redirected(*args),)) if op == "ref.func" else Instr(op, args) for op, args in expression
        )

    # Nothing of the guest is renumbered: each index space begins as it was.
    assert result.groups[: len(original.groups)] == original.groups
    assert result.functions[: len(original.functions)] == original.functions
    grown = {
        what: {instr.args[0] for body in original.code for instr in body.instrs if instr.op == what} for what in GROWTH
    }
    assert result.tags == original.tags
    for index, limits in enumerate(original.memories):
        assert result.memories[index] == _fixed(limits, index in grown["memory.grow"])
    for index, (type_, limits, value) in enumerate(original.tables):
        assert result.tables[index] == (type_, _fixed(limits, index in grown["table.grow"]), elsewhere(value))

    # The guest's code names what it named, but for the sites, which now name the guard's function for it.
    entries = set()
    for before, after in zip(original.code, result.code, strict=False):
        assert after.locals == before.locals
        there = iter(after.instrs)
        for instr in before.instrs:
            instr_after = next(there)
            if instr.op in _WAITS and original.memories[instr.args[1]].shared:
                # Its offset is passed to a function of the guard's.
                bits = original.memories[instr.args[1]].bits
                assert instr_after.op == f"i{bits}.const"
                assert instr_after.args[0] % (1 << bits) == instr.args[2]
                instr_after = next(there)
                assert instr_after.op == "call"
                assert woven.guard_functions[instr_after.args[0] - woven.guest_functions] == "atomic_wait"
            elif instr.op in _FUNCTIONS:
                assert instr_after == Instr(instr.op, (redirected(*instr.args),))
            elif instr.op in GROWTH:
                assert instr_after.op == "call"
                _check_grower(result, woven, instr, *instr_after.args)
            else:
                assert instr_after == instr
                continue
            entries |= {*instr_after.args} - {*range(imported, functions)}
        assert next(there, None) is None
    assert entries <= {*woven.entries}

    # So does everything outside of code.
    assert [(type_, mutable, elsewhere(value)) for type_, mutable, value in original.globals] == result.globals
    assert [
        segment._replace(items=tuple(map(elsewhere, segment.items))) for segment in original.elements
    ] == result.elements
    exports = [
        (woven.renamed.get(name, name), kind, redirected(index) if kind == FUNC else index)
        for name, kind, index in original.exports
    ]
    assert woven.renamed.keys() <= {b"memory"}
    assert result.exports[: len(exports)] == exports
    assert (result.data, result.data_count) == (original.data, original.data_count)

    # What was appended is reached by the guard alone, under names that were free.
    added = {name: (kind, index) for name, kind, index in result.exports[len(exports) :]}
    assert not added.keys() & {name for name, _, _ in exports}
    # Native WASI finds the guard's memory, and never the guest's.
    assert woven.state_export in (None, b"memory")
    if woven.state_export is not None:
        assert added.pop(woven.state_export) == (MEMORY, len(result.memories) - 1)
        assert len(result.memories) - 1 >= len(original.memories)
    assert (woven.start_export is None) == (original.start is None)
    if woven.start_export is not None:
        assert original.start is not None
        assert added.pop(woven.start_export) == (FUNC, redirected(original.start))
    assert (woven.natives_export is None) == (not woven.natives)
    if woven.natives_export is not None:
        assert added.pop(woven.natives_export) == (TABLE, len(original.tables))
    # And what grows can be looked at from outside, and what a snapshot is made of.
    exported = {name: (kind, index) for name, kind, index in result.exports}
    for kind, what, told in ((MEMORY, "memory.grow", woven.grown_memories), (TABLE, "table.grow", woven.grown_tables)):
        assert [exported[name] for name in told] == [(kind, index) for index in sorted(grown[what])]
    numbers = {"i32", "i64", "f32", "f64", "v128"}
    mutable = [
        index for index, (type_, is_mutable, _) in enumerate(original.globals) if is_mutable and type_ in numbers
    ]
    assert [exported[name] for name in woven.exposed.memories] == [(MEMORY, at) for at in range(len(original.memories))]
    assert [exported[name] for name in woven.exposed.globals] == [(GLOBAL, at) for at in mutable]
    assert added.keys() <= {*woven.exposed.memories, *woven.exposed.globals, *woven.grown_tables}


def _fixed(limits: Limits, grown: bool) -> Limits:
    """What no instruction grows has its minimum for a maximum, and nothing is shared."""
    return limits._replace(maximum=limits.maximum if grown else limits.minimum, shared=False)


def _check_grower(result: Decoded, woven: Woven, instr: Instr, function: int) -> None:
    """A function of the guard that grows this memory or table, and nothing else of the guest."""
    place = function - woven.guest_functions
    assert woven.guard_functions[place] == ("memory_grow" if instr.op == "memory.grow" else "table_grow")
    body = result.code[function - result.imported_functions]
    assert [found for found in body.instrs if found.op in GROWTH] == [instr]
