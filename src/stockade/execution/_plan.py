"""From a module and a policy to machine code that is ready to run: inspect, weave, compile.

Machine code depends on the module and on the engine's configuration only: the policy itself is data that the guard
reads. So one compiled module serves all policies that share an engine.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stockade._wasi import ENOTCAPABLE, WASI
from stockade.engine import (
    MAX_POOLED_MEMORIES,
    MAX_POOLED_TABLE_ELEMENTS,
    MAX_POOLED_TABLES,
    CompiledModule,
    Engine,
    EngineConfig,
)
from stockade.errors import InvalidModule
from stockade.execution._mounts import check_mounts
from stockade.execution._state import PROGRAM_NAME, place_inputs
from stockade.guard import StateFormat, Woven, check_imports, guard, weave
from stockade.report import ModuleInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine import Directory
    from stockade.execution._module import Module
    from stockade.policy import Limits, Policy

__all__ = ["Plan", "Program", "make_plan"]

_MAX_PROGRAMS = 64
"""Programs that are kept compiled; the one unused for longest goes first."""

WAIT_SLICE_NANOSECONDS = 10_000_000
"""A sleeping guest looks up this often, so that deadlines hold while it sleeps."""


@dataclass(frozen=True, slots=True)
class Program:
    """A woven, compiled module.

    Attributes:
        compiled: Its machine code.
        woven: What the weaver tells of it.
        calls: The WASI calls that it can make.
        state_format: How to read the guard's state in it.
    """

    compiled: CompiledModule
    woven: Woven
    calls: tuple[str, ...]
    state_format: StateFormat

    @classmethod
    def of(cls, compiled: CompiledModule, woven: Woven, module: Module) -> Program:
        """Puts a program together; the WASI calls that it can make are those that it imports."""
        asked = {entry.name.decode() for entry in module.parsed.imports}
        calls = [call for call in WASI if call.name in asked]
        format_ = StateFormat(guard().layout, [call.number for call in calls])
        return cls(compiled, woven, tuple(call.name for call in calls), format_)


class _Programs:
    """Compiled modules by content and configuration, the most recently used ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, EngineConfig], Program] = OrderedDict()
        self._under_way: dict[tuple[str, EngineConfig], threading.Lock] = {}

    def get(self, module: Module, limits: Limits, progress: Callable[[str], None]) -> tuple[Program, bool]:
        """Returns the program for a module, and whether it was at hand."""
        config = _config(module, limits)
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
                program = _compile(module, config, progress)
            finally:
                with self._lock:
                    self._under_way.pop(key, None)
            with self._lock:
                self._kept[key] = program
                while len(self._kept) > _MAX_PROGRAMS:
                    self._kept.popitem(last=False)
        return program, False


_programs = _Programs()


def _config(module: Module, limits: Limits) -> EngineConfig:
    parsed = module.parsed
    # One more memory for the guard, one for a guest that has none, one more table for natives.
    pooled = (
        len(parsed.memories) + 2 <= MAX_POOLED_MEMORIES
        and len(parsed.tables) + 1 <= MAX_POOLED_TABLES
        and max((table.minimum for table in parsed.tables), default=0) <= MAX_POOLED_TABLE_ELEMENTS
    )
    return EngineConfig(fuel=limits.fuel is not None, stack_bytes=limits.stack, pooled=pooled)


def _compile(module: Module, config: EngineConfig, progress: Callable[[str], None]) -> Program:
    progress("checking")
    # The original is validated as a guest may write it: with one memory, unless it legitimately has more.
    multi_memory = len(module.parsed.memories) > 1
    plain = EngineConfig(fuel=False, stack_bytes=config.stack_bytes, multi_memory=multi_memory, pooled=False)
    Engine.shared(plain).validate(module.data)
    progress("weaving")
    woven = weave(module.parsed, guard())
    progress("compiling")
    return Program.of(CompiledModule(Engine.shared(config), woven.wasm), woven, module)


@dataclass(frozen=True, slots=True)
class Plan:
    """What all runs of one module under one policy share.

    Attributes:
        module: The module.
        policy: The policy.
        program: Its machine code.
        directories: What native WASI may reach.
        info: The module, for reports.
        state: The guard's state as every run begins with it, inputs left out.
        bare: The same completed for a run without inputs, the most frequent kind, and where its buffers end.
        compile_seconds: What making this plan took, where the machine code was not at hand.
        was_compiled: Whether the machine code was at hand.
    """

    module: Module
    policy: Policy
    program: Program
    directories: tuple[Directory, ...]
    info: ModuleInfo
    state: bytes
    bare: tuple[bytes, int]
    compile_seconds: float
    was_compiled: bool

    def at_hand(self) -> Plan:
        """This plan for later runs, which find the machine code at hand."""
        return replace(self, compile_seconds=0.0, was_compiled=True)


def make_plan(module: Module, policy: Policy, progress: Callable[[str], None]) -> Plan:
    """Makes a module ready to run under a policy.

    Args:
        module: The module.
        policy: The policy.
        progress: Is told what is being done, before each step that may take long.

    Raises:
        PolicyError: A mount cannot be granted.
        InvalidModule: The module is not valid, or beyond a structural limit.
        LinkError: It imports what nothing provides.
    """
    limits = policy.limits
    directories = check_mounts(policy.filesystem.mounts)
    for what, found, allowed in (
        ("memories", len(module.parsed.memories), limits.memories),
        ("tables", len(module.parsed.tables), limits.tables),
    ):
        if found > allowed:
            raise InvalidModule(f"{module.name} has {found} {what}; the policy allows {allowed} (limits.{what})")
    check_imports(module.parsed)
    begun = time.perf_counter()
    program, at_hand = _programs.get(module, limits, progress)
    seconds = 0.0 if at_hand else time.perf_counter() - begun
    state = _initial_state(policy, program.woven)
    bare = place_inputs(state, limits, [PROGRAM_NAME], {}, b"")
    info = ModuleInfo(module.sha256, module.name)
    return Plan(module, policy, program, directories, info, state, bare, seconds, at_hand)


def _initial_state(policy: Policy, woven: Woven) -> bytes:
    layout = guard().layout
    limits = policy.limits
    block = bytearray(layout.size)
    layout.write(block, "memory_limit", limits.memory)
    layout.write(block, "memory_used", woven.initial_memory_bytes)
    layout.write(block, "table_limit", limits.table_elements)
    layout.write(block, "table_used", woven.initial_table_elements)
    layout.write(block, "slice", WAIT_SLICE_NANOSECONDS)
    layout.write(block, "stop_on_memory", limits.on_memory_denied == "stop")
    rules = layout.offsets["rules"] - layout.block
    for call in WASI:
        if call.group == "sock":
            block[rules + call.number] = ENOTCAPABLE
    return bytes(block)
