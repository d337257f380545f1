"""Modules in machine code: in memory, else in the cache on disk, else compiled.

Machine code depends on the module and on the engine's configuration only: the policy itself is data that the guard
reads. So one program serves all policies that share an engine, as long as each allows what the module is made of.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from stockade._wasi import MODULE, WASI
from stockade.engine import (
    MAX_POOLED_MEMORIES,
    MAX_POOLED_TABLE_ELEMENTS,
    MAX_POOLED_TABLES,
    Cache,
    CompiledModule,
    Engine,
    EngineConfig,
    LinkedModule,
    wasmtime_version,
)
from stockade.errors import EngineError
from stockade.execution._aside import compile_aside, validate_aside
from stockade.execution._features import validate
from stockade.execution._prepare import check_figures, is_cheap, prepare
from stockade.execution._state import HOST_CALLS, Counters
from stockade.guard import PROOF_VERSION, StateFormat, Woven, guard
from stockade.policy import Features
from stockade.wasm import ExternKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine import Kept
    from stockade.execution._module import Module
    from stockade.policy import Limits, Policy

__all__ = ["Program", "forget_programs", "programs"]

_MAX_PROGRAMS = 64
"""Programs that are kept in memory; the one unused for longest goes first."""

_MANY_BYTES = 64 << 10
"""Modules from this size on are compiled by several threads, where a policy wants even them in this process."""

_WORTH_KEEPING_SECONDS = 0.003
"""What is compiled faster than this is not kept on disk."""


_PYTHON_STACK_BYTES = 8 << 20
"""Stack for host functions, which are Python, and run on the guest's stack: what a process usually has."""


@dataclass(frozen=True, slots=True)
class Program:
    """A woven, compiled module.

    Attributes:
        compiled: Its machine code.
        linked: The same linked to native WASI; None where it imports more than that.
        parks: Whether the guest imports waits.
        memories: How many memories it has, the guard's included.
        tables: How many tables it has, the guard's included.
        woven: What the weaver tells of it; its bytes are not kept.
        figures: Figures of the original's code.
        calls: The calls that it can make.
        state_format: How to read the guard's state in it.
        valid_under: Sets of proposals under which the original is known to be valid.
    """

    compiled: CompiledModule
    linked: LinkedModule | None
    woven: Woven
    figures: dict[str, int]
    parks: bool
    memories: int
    tables: int
    calls: tuple[str, ...]
    state_format: StateFormat
    valid_under: set[Features] = field(default_factory=set)

    @property
    def lends(self) -> bool:
        """Whether it imports functions of the embedder."""
        return self.linked is None

    def without_slots(self) -> CompiledModule:
        """Returns its machine code for an engine that allocates instances one by one."""
        engine = Engine.shared(self.compiled.engine.config._replace(pooled=False))
        return CompiledModule.load(engine, self.compiled.to_bytes())

    @classmethod
    def of(
        cls, compiled: CompiledModule, woven: Woven, figures: dict[str, int], module: Module, features: Features
    ) -> Program:
        """Puts a program together; the calls that it can make are those that it imports."""
        asked = {
            entry.name.decode() if entry.module == MODULE.encode() else HOST_CALLS for entry in module.parsed.imports
        }
        numbers = {call.name: call.number for call in WASI if call.name in asked}
        if HOST_CALLS in asked:
            numbers[HOST_CALLS] = guard().layout.constants["HOST"]
        format_ = StateFormat(guard().layout, list(numbers.values()))
        assert format_.names == Counters._fields, "Counters and guard.wat tell the same fields in the same order"
        names = tuple(numbers)
        parks = "poll_oneoff" in numbers
        parsed = module.parsed
        export = parsed.exports.get(b"memory")
        # The guard's own, and one for a guest that has none by the name under which native WASI looks for it.
        memories = len(parsed.memories) + (1 if export is not None and export.kind is ExternKind.MEMORY else 2)
        tables = len(parsed.tables) + 1
        linked = None
        if HOST_CALLS not in numbers:
            linked = LinkedModule(compiled, parks=parks, memories=memories, tables=tables)
        woven = replace(woven, wasm=b"")
        return cls(compiled, linked, woven, figures, parks, memories, tables, names, format_, {features})


class _Programs:
    """The programs of this process, the most recently used ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, EngineConfig], Program] = OrderedDict()
        self._under_way: dict[tuple[str, EngineConfig], threading.Lock] = {}

    def get(self, module: Module, policy: Policy, progress: Callable[[str], None]) -> tuple[Program, bool]:
        """Returns the program for a module, and whether its machine code was at hand, here or on disk.

        Raises:
            ModuleError: The policy does not allow it, or it takes more than it may.
        """
        program, at_hand = self._get(module, policy, progress)
        if policy.features not in program.valid_under:
            progress("checking")
            if _stays_here(module, policy.limits, canonical_nans=False):
                validate(module.name, module.data, policy.features)
            else:
                validate_aside(module.name, module.data, policy.features, policy.limits)
            program.valid_under.add(policy.features)
        check_figures(module.name, program.figures, policy.structure)
        return program, at_hand

    def _get(self, module: Module, policy: Policy, progress: Callable[[str], None]) -> tuple[Program, bool]:
        config = _config(module, policy)
        key = (module.sha256, config)
        with self._lock:
            program = self._kept.get(key)
            if program is not None:
                self._kept.move_to_end(key)
                return program, True
            turn = self._under_way.setdefault(key, threading.Lock())
        # Whoever comes second waits for the first one's result instead of compiling it again.
        with turn:
            with self._lock:
                if key in self._kept:
                    return self._kept[key], True
            try:
                program, at_hand = _load(module, config, policy, progress)
            finally:
                with self._lock:
                    self._under_way.pop(key, None)
            with self._lock:
                self._kept[key] = program
                while len(self._kept) > _MAX_PROGRAMS:
                    self._kept.popitem(last=False)
        return program, at_hand

    def forget(self) -> None:
        """Forgets all programs; what runs keeps its own."""
        with self._lock:
            self._kept.clear()

    def after_fork(self) -> None:
        """Begins anew in a forked child: locks may have been held, compilations under way are the parent's."""
        self._lock = threading.Lock()
        self._under_way.clear()


programs = _Programs()


def forget_programs() -> None:
    """Forgets all machine code that this process has in memory: for measuring what it costs to have none."""
    programs.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=programs.after_fork)


def _config(module: Module, policy: Policy) -> EngineConfig:
    parsed = module.parsed
    # One more memory for the guard, one for a guest that has none, one more table for natives.
    pooled = (
        len(parsed.memories) + 2 <= MAX_POOLED_MEMORIES
        and len(parsed.tables) + 1 <= MAX_POOLED_TABLES
        and max((table.minimum for table in parsed.tables), default=0) <= MAX_POOLED_TABLE_ELEMENTS
        # A table of a pool cannot grow beyond it, whatever the policy allows.
        and (not parsed.tables or policy.limits.table_elements <= MAX_POOLED_TABLE_ELEMENTS)
    )
    lends = any(entry.module != MODULE.encode() for entry in parsed.imports)
    return EngineConfig(
        fuel=policy.limits.metered,
        stack_bytes=policy.limits.stack_bytes,
        canonical_nans=policy.reproducible,
        host_stack_bytes=_PYTHON_STACK_BYTES if lends else EngineConfig._field_defaults["host_stack_bytes"],
        pooled=pooled,
    )


# -- from the cache, or compiled -------------------------------------------------------------------------------------


class _Entry(msgspec.Struct, frozen=True):
    """What is kept beside machine code."""

    woven: Woven
    figures: dict[str, int]
    features: dict[str, bool]


def _load(
    module: Module, config: EngineConfig, policy: Policy, progress: Callable[[str], None]
) -> tuple[Program, bool]:
    store = Cache()
    name = _key(module, config)
    found = store.get(name)
    if found is not None:
        try:
            return _from_entry(found, module, config), True
        except (EngineError, msgspec.MsgspecError):
            pass  # Of another release or machine: compiled again, and replaced.
        finally:
            found.close()
    begun = time.perf_counter()
    limits, features = policy.limits, policy.features
    code = None
    if _stays_here(module, limits, canonical_nans=config.canonical_nans):
        parallel = len(module.data) > _MANY_BYTES and Engine.may_start_threads()
        compiling = config._replace(parallel=parallel, pooled=config.pooled and not parallel)
        woven, figures = prepare(module.name, module.parsed, compiling, features, policy.structure, progress)
        progress("compiling")
        compiled = CompiledModule(Engine.shared(compiling), woven.wasm)
        if parallel:
            code = compiled.to_bytes()
            compiled = CompiledModule.load(Engine.shared(config), code)
    else:
        progress("compiling")
        woven, figures, code = compile_aside(module, config, policy)
        compiled = CompiledModule.load(Engine.shared(config), code)
    program = Program.of(compiled, woven, figures, module, features)
    if time.perf_counter() - begun > _WORTH_KEEPING_SECONDS:
        entry = _Entry(program.woven, figures, msgspec.structs.asdict(features))
        store.put(name, msgspec.msgpack.encode(entry), code or compiled.to_bytes())
    return program, False


def _stays_here(module: Module, limits: Limits, *, canonical_nans: bool) -> bool:
    """Whether a module is validated and compiled in this process."""
    if limits.compile_process == "auto":
        return is_cheap(module.parsed, canonical_nans=canonical_nans)
    return limits.compile_process == "never"


def _from_entry(kept: Kept, module: Module, config: EngineConfig) -> Program:
    """Loads what the cache has authenticated."""
    entry = msgspec.msgpack.decode(kept.told, type=_Entry)
    compiled = CompiledModule.load(Engine.shared(config), kept.code)
    return Program.of(compiled, entry.woven, entry.figures, module, Features(**entry.features))


def _key(module: Module, config: EngineConfig) -> str:
    """Names everything that machine code depends on."""
    code = config._replace(pooled=False, parallel=False)
    parts = (module.sha256, guard().digest, f"proof {PROOF_VERSION}", repr(code), wasmtime_version(), _processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _processor() -> str:
    """What the processor can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    system = os.uname()
    return f"{system.sysname} {system.machine} {flags}"
