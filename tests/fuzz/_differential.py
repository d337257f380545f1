"""What is held of a generated module: two decoders and the engine must agree on it, before it is woven and after.

A disagreement is an `AssertionError`, or whatever else is raised: none of these modules may be refused.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import wasmtime

import stockade
from stockade import Outcome, Sandbox
from stockade.compilation import forget_programs
from stockade.engine import RUN_PROPOSALS, validate_with
from stockade.guard import guard, prove, weave
from stockade.wasm import FuncType, code_figures, outline, outline_figures, parse, scan
from tests._bare import bare_engine
from tests._decoder import Decoded, decode
from tests.fuzz._generator import CALLS
from tests.guard._checks import check_woven
from tests.spec._check import everything

if TYPE_CHECKING:
    from stockade.wasm import DataType, Limits, ParsedModule, TableType

__all__ = ["PROPOSALS", "check", "check_mutant", "check_run"]

PROPOSALS = RUN_PROPOSALS
_EBADF = 8


def check(data: bytes) -> None:
    """Checks a module that is valid by its making."""
    validate_with(data, PROPOSALS)
    _weave_and_check(data)


def check_mutant(data: bytes) -> bool:
    """Checks a module with changed bytes, where the engine still takes it for valid.

    Returns:
        Whether it does. What the engine takes must be woven, or refused for what it imports.
    """
    try:
        validate_with(data, PROPOSALS)
    except stockade.InvalidModule:
        return False
    with suppress(stockade.LinkError):
        _weave_and_check(data)
    return True


def _weave_and_check(data: bytes) -> None:
    module, second = parse(data), decode(data)
    _check_readers(module, second)
    woven = weave(module, guard())
    validate_with(woven.wasm, PROPOSALS)
    check_woven(data, woven)
    prove(module, woven)


def _check_readers(module: ParsedModule, second: Decoded) -> None:
    """Stockade's readers and the second decoder tell the same."""
    assert [_shape(type_) for type_ in module.types] == [(type_.form, type_.parts) for type_ in second.types]
    assert module.groups == len(second.groups)
    assert [(entry.module, entry.name, entry.type_index) for entry in module.imports] == second.imports
    assert module.functions[module.imported_functions :] == second.functions
    assert [(_long(table.element), *_limits(table)) for table in module.tables] == [
        (type_, *limits[:3]) for type_, limits, _ in second.tables
    ]
    assert [(*_limits(limits), limits.shared) for limits in module.memory_limits] == second.memories
    assert module.tags == second.tags
    assert module.globals == len(second.globals)
    assert [(name, int(entry.kind), entry.place) for name, entry in module.exports.items()] == second.exports
    assert module.start == second.start
    found = scan(module)
    figures = outline_figures(module) | code_figures(module, found)
    assert figures["locals"] == max((sum(count for count, _ in body.locals) for body in second.code), default=0)
    branches = [len(args[0]) for body in second.code for op, args in body.instrs if op == "br_table"]
    assert figures["br_table"] == max(branches, default=0)
    assert figures["nesting"] == max(map(_nesting, second.code), default=0)
    assert (figures["data_segments"], figures["element_segments"]) == (len(second.data), len(second.elements))
    told = outline(module.data)
    assert [_long(entry.type) for entry in told.globals] == [type_ for type_, _, _ in second.globals]
    assert told.unread == ()


_BOTTOMS = {"nullref": "none", "nullfuncref": "nofunc", "nullexternref": "noextern", "nullexnref": "noexn"}


def _long(name: str) -> str:
    """The long name of a type, as the second decoder has it."""
    if name.endswith("ref"):
        return f"(ref null {_BOTTOMS.get(name, name.removesuffix('ref'))})"
    return name


def _limits(of: Limits | TableType) -> tuple[int, int | None, int]:
    return of.minimum, of.maximum, 64 if of.wide else 32


def _shape(type_: FuncType | DataType) -> tuple[str, tuple[object, ...]]:
    """A type as the second decoder tells it."""
    if isinstance(type_, FuncType):
        return "func", tuple(tuple(map(_long, side)) for side in type_)
    return "array" if type_.is_array else "struct", tuple(
        (_long(field.type), int(field.mutable)) for field in type_.fields
    )


def _nesting(body: object) -> int:
    depth = deepest = 0
    for op, _ in body.instrs:  # type: ignore[attr-defined]
        depth += (op in ("block", "loop", "if", "try_table")) - (op == "end")
        deepest = max(deepest, depth)
    return deepest


# -- runs --------------------------------------------------------------------------------------------------------------


def _natively(data: bytes) -> tuple[int | None, dict[str, int]]:
    """Runs `f` with stand-ins for WASI that count; None where it traps."""
    engine = bare_engine()
    store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
    calls: Counter[str] = Counter()

    def stand_in(name: str) -> object:
        def answer(*_: int) -> int:
            calls[name] += 1
            return 0 if name == "sched_yield" else _EBADF

        return answer

    for name, params in CALLS.items():
        type_ = wasmtime.FuncType([getattr(wasmtime.ValType, param)() for param in params], [wasmtime.ValType.i32()])
        linker.define_func("wasi_snapshot_preview1", name, type_, stand_in(name))  # type: ignore[arg-type]
    try:
        instance = linker.instantiate(store, wasmtime.Module(engine, data))
        value = instance.exports(store)["f"](store)  # type: ignore[operator]
    except (wasmtime.Trap, wasmtime.WasmtimeError):
        value = None
    return value, dict(calls)


_POLICY = everything().replace(compile_process="never", memory=1 << 30, fuel=None)


def check_run(data: bytes) -> None:
    """Runs a module under the guard and with stand-ins: each call of WASI is counted, and all else is as it was."""
    value, calls = _natively(data)

    with Sandbox(_POLICY) as sandbox:
        report = sandbox.call(data, "f")

    assert report.usage.calls == calls
    assert (report.value if report.outcome is Outcome.OK else None) == value, report
    if int(os.environ.get("STOCKADE_FUZZING", "0")):
        # Nothing is run twice: what is kept of it only takes room.
        forget_programs()
