"""Every instruction of the specification's index runs under the guard, and does what it does without one.

`instructions.txt` has a small function for each; here they run woven, and on the bare engine. Calls of WASI and growth
stand before, behind and among them, so that weaving moves what is around.

Holds P-LOAD-4 and P-NATIVE-1.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
import wasmtime

import stockade
from stockade import Outcome, Sandbox
from stockade.engine import TRAP_CODES
from stockade.guard import guard, prove, weave
from stockade.wasm import parse
from stockade.wasm._opcodes import INSTRUCTIONS
from tests._bare import bare_engine
from tests._decoder import decode
from tests.guard._checks import check_woven
from tests.guard._instructions import groups, opcode_at
from tests.spec._check import everything

if TYPE_CHECKING:
    from tests.guard._instructions import Group

_THROWN = "uncaught_exception"

_NO_VECTORS = {0x9A, 0xA2, 0xA5, 0xA6, 0xAF, 0xB0, 0xB2, 0xB3, 0xB4, 0xBB, 0xC2, 0xC5, 0xC6, 0xCF, 0xD0, 0xD2, 0xD3}
_NO_VECTORS |= {0xD4, 0xE2, 0xEE}
_SPECIFICATION = {
    # unreachable to else, throw, throw_ref, end to return_call_ref, drop and select, try_table, variables and tables
    None: {*range(0x06), 0x08, *range(0x0A, 0x16), *range(0x1A, 0x1D), 0x1F, *range(0x20, 0x27)}
    # loads, stores and constants, numeric instructions, references
    | {*range(0x28, 0x45), *range(0x45, 0xC5), *range(0xD0, 0xD7)},
    0xFB: {*range(31)},
    0xFC: {*range(18)},
    0xFD: {*range(0x114)} - _NO_VECTORS,
    # the proposal of threads: notify, wait and fence, then loads, stores and what reads and writes
    0xFE: {*range(4), *range(0x10, 0x4F)},
}
"""The specification's index of instructions, by prefix, and the atomic instructions beside it."""

_ALL = {(prefix, number) for prefix, numbers in _SPECIFICATION.items() for number in numbers}


@cache
def _wasm(name: str) -> bytes:
    return groups()[name].wasm


def _natively(group: Group) -> dict[str, int | str]:
    """What each function returns on the bare engine, in 64 bits, or how it traps."""
    module = wasmtime.Module(bare_engine(), _wasm(group.name))
    linker = wasmtime.Linker(bare_engine())
    linker.define_wasi()
    found: dict[str, int | str] = {}
    for row in group.rows:
        store = wasmtime.Store(bare_engine())
        store.set_wasi(wasmtime.WasiConfig())
        function = linker.instantiate(store, module).exports(store)[row.export]
        assert isinstance(function, wasmtime.Func)
        try:
            found[row.export] = function(store) % (1 << 64)
        except wasmtime.Trap as trap:
            # An exception that is not caught has no code.
            found[row.export] = TRAP_CODES[trap.trap_code.value][0] if trap.trap_code else _THROWN
    return found


@pytest.mark.parametrize("name", groups())
def test_every_instruction_does_under_the_guard_what_it_does_without(name: str) -> None:
    """The attack: none; the positive twin of all that is refused."""
    group = groups()[name]
    guarded: dict[str, int | str] = {}
    with Sandbox(everything()) as sandbox:
        module = stockade.Module.load(_wasm(name))
        for row in group.rows:
            report = sandbox.call(module, row.export)
            assert report.usage.calls["sched_yield"] >= 1, report
            if report.outcome is Outcome.OK:
                assert isinstance(report.value, int)
                guarded[row.export] = report.value % (1 << 64)
            else:
                assert (report.outcome, report.trap is None) == (Outcome.TRAP, False), report
                guarded[row.export] = report.trap.code if report.trap else ""

    assert guarded == _natively(group)


@pytest.mark.parametrize("name", groups())
def test_every_instruction_is_woven_and_proven(name: str) -> None:
    """A second decoder finds everything of the guest where it was, and each of its sites redirected."""
    woven = weave(_wasm(name), guard())

    check_woven(_wasm(name), woven)
    prove(parse(_wasm(name)), woven)


def _opcodes(name: str) -> set[tuple[int | None, int]]:
    data = _wasm(name)
    return {opcode_at(data, start) for body in decode(data).code for start, _ in body.places}


def test_the_table_has_every_instruction() -> None:
    """By the specification's index, by the engine's translation of the text, and by the table of our own readers."""
    listed = {row.opcode for group in groups().values() for row in group.rows}

    assert listed == _ALL
    assert set.union(*map(_opcodes, groups())) == _ALL
    assert {*INSTRUCTIONS} == _ALL


@pytest.mark.parametrize("name", groups())
def test_each_line_of_the_table_has_the_opcode_that_it_names(name: str) -> None:
    """The number is the specification's, the name is the engine's: they are those of one instruction."""
    assert {row.opcode for row in groups()[name].rows} <= _opcodes(name)
