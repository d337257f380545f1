"""Every call that the scripts make, under the guard and on the bare engine: both must say the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import wasmtime

from stockade import Module, Outcome, Sandbox
from stockade.errors import GuestError, ModuleError
from stockade.host import F32, F64, I32, I64  # noqa: TC001 - annotations are read
from tests._bare import bare_engine
from tests.spec._check import everything
from tests.spec._wast import Invocation, commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from stockade import Session
    from stockade.wasm import FuncType

__all__ = ["Ran", "compare"]

_NUMBERS = frozenset({"i32", "i64", "f32", "f64"})
_TRAP = "a trap"


@dataclass
class Ran:
    """What the calls of some scripts came to.

    Attributes:
        modules: How many modules were instantiated in both ways.
        calls: How many calls were made of each.
        different: Those that did not end alike: the place, what the bare engine said, and what Stockade did.
    """

    modules: int = 0
    calls: int = 0
    different: list[tuple[str, object, object]] = field(default_factory=list)


class _Twins:
    """An instance under the guard, and one on the bare engine."""

    def __init__(self, sandbox: Sandbox, linker: wasmtime.Linker, wasm: bytes) -> None:
        self.module = Module.load(wasm)
        self._sandbox, self._linker, self._bare = sandbox, linker, wasmtime.Module(bare_engine(), wasm)
        self.session: Session | None = None
        self.open()

    def open(self) -> None:
        """Makes both anew."""
        self.close()
        self.session = self._sandbox.open(self.module)
        self.store = wasmtime.Store(bare_engine())
        self.exports = self._linker.instantiate(self.store, self._bare).exports(self.store)

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
        self.session = None

    def type_of(self, export: bytes) -> FuncType | None:
        """The type of a function, where it has numbers only: no others are passed."""
        found = self.module.parsed.exports.get(export)
        if found is None or found.kind != 0:
            return None
        type_ = self.module.parsed.function_type(found.place)
        return type_ if _NUMBERS.issuperset({*type_.params, *type_.results}) else None

    def call(self, call: Invocation, type_: FuncType) -> tuple[object, object]:
        """What the bare engine says of a call, and what Stockade does."""
        assert call.arguments is not None
        assert self.session is not None
        name = call.export.decode()
        function = self.exports[name]
        assert isinstance(function, wasmtime.Func)
        try:
            bare = _values(function(self.store, *call.arguments), type_)
        except (wasmtime.Trap, wasmtime.WasmtimeError):
            bare = _TRAP
        report = self.session.call(name, *call.arguments)
        guarded = _values(report.value, type_) if report.outcome is Outcome.OK else _TRAP
        if _TRAP in (bare, guarded):
            self.open()
        return bare, guarded


def _values(result: object, type_: FuncType) -> object:
    """Results as they can be compared: integers without a sign, one NaN."""
    many = result if isinstance(result, list | tuple) else [result] * len(type_.results)
    return [
        value % (1 << int(kind[1:]))
        if kind[0] == "i"
        else "nan"
        if math.isnan(value)
        else (value, math.copysign(1, value))
        for value, kind in zip(many, type_.results, strict=True)
    ]


def _none() -> None:
    pass


def _i32(value: I32) -> None:
    pass


def _i64(value: I64) -> None:
    pass


def _f32(value: F32) -> None:
    pass


def _f64(value: F64) -> None:
    pass


def _i32_f32(first: I32, second: F32) -> None:
    pass


def _f64_f64(first: F64, second: F64) -> None:
    pass


def _lend(sandbox: Sandbox) -> wasmtime.Linker:
    """Gives both the functions that the scripts' modules import: they print, or would."""
    linker = wasmtime.Linker(bare_engine())
    linker.define_wasi()
    for function in (_none, _i32, _i64, _f32, _f64, _i32_f32, _f64_f64):
        kinds = [] if function is _none else function.__name__[1:].split("_")
        name = "_".join(["print", *kinds])
        types = [getattr(wasmtime.ValType, kind)() for kind in kinds]
        linker.define_func("spectest", name, wasmtime.FuncType(types, []), lambda *_: None)
        sandbox.host_function("spectest", name)(function)
    return linker


def compare(scripts: Iterable[Path]) -> Ran:
    """Makes every call of some scripts in both ways.

    Args:
        scripts: The scripts.
    """
    ran = Ran()
    with Sandbox(everything().replace(compile_process="never", wall_time=60.0)) as sandbox:
        linker = _lend(sandbox)
        for script in scripts:
            _run(ran, script, lambda wasm: _Twins(sandbox, linker, wasm))
    return ran


def _run(ran: Ran, script: Path, twins: Callable[[bytes], _Twins]) -> None:
    named: dict[str, _Twins | None] = {}
    try:
        for command in commands(script.read_text()):
            if isinstance(command, Invocation):
                both = named.get(command.module)
                type_ = None if both is None else both.type_of(command.export)
                if both is None or type_ is None or command.arguments is None:
                    continue
                ran.calls += 1
                bare, guarded = both.call(command, type_)
                if bare != guarded:
                    ran.different.append((f"{script.name}:{command.line}", bare, guarded))
            elif command.runs:
                made = _made(twins, command.wasm)
                ran.modules += made is not None
                if (last := named.get("")) is not None and last not in list(named.values())[1:]:
                    last.close()
                named |= {"": made} | ({command.name: made} if command.name else {})
    finally:
        for both in named.values():
            if both is not None:
                both.close()


def _made(twins: Callable[[bytes], _Twins], wasm: bytes) -> _Twins | None:
    """Both instances of a module, where it can have some: it is not refused, and its start returns."""
    try:
        return twins(wasm)
    except (ModuleError, GuestError, wasmtime.WasmtimeError, wasmtime.Trap):
        return None
