"""From a module and a policy to machine code that is ready to run: inspect, weave, compile.

Machine code depends on the module and on the engine's configuration only: the policy itself is data that the guard
reads. So one compiled module serves all policies that share an engine.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stockade._wasi import ERRNO, WASI
from stockade.engine import (
    MAX_POOLED_MEMORIES,
    MAX_POOLED_TABLE_ELEMENTS,
    MAX_POOLED_TABLES,
    CompiledModule,
    Engine,
    EngineConfig,
)
from stockade.errors import InvalidModule
from stockade.execution._features import validate
from stockade.execution._state import PROGRAM_NAME, Counters, Placed, place_inputs
from stockade.guard import StateFormat, Woven, check_imports, guard, weave
from stockade.report import ModuleInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine import Directory
    from stockade.execution._module import Module
    from stockade.policy import Features, Policy

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
        assert format_.names == Counters._fields, "Counters and guard.wat tell the same fields in the same order"
        return cls(compiled, woven, tuple(call.name for call in calls), format_)


class _Programs:
    """Compiled modules by content and configuration, the most recently used ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, EngineConfig], Program] = OrderedDict()
        self._under_way: dict[tuple[str, EngineConfig], threading.Lock] = {}
        self._valid: OrderedDict[tuple[str, Features], None] = OrderedDict()

    def get(self, module: Module, policy: Policy, progress: Callable[[str], None]) -> tuple[Program, bool]:
        """Returns the program for a module, and whether it was at hand."""
        self._validate(module, policy.features, progress)
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
                program = _compile(module, config, progress)
            finally:
                with self._lock:
                    self._under_way.pop(key, None)
            with self._lock:
                self._kept[key] = program
                while len(self._kept) > _MAX_PROGRAMS:
                    self._kept.popitem(last=False)
        return program, False

    def _validate(self, module: Module, features: Features, progress: Callable[[str], None]) -> None:
        """Validates a module as its guest wrote it, under the proposals that the policy allows."""
        key = (module.sha256, features)
        with self._lock:
            if key in self._valid:
                self._valid.move_to_end(key)
                return
        progress("checking")
        validate(module, features)
        with self._lock:
            self._valid[key] = None
            while len(self._valid) > _MAX_PROGRAMS:
                self._valid.popitem(last=False)

    def after_fork(self) -> None:
        """Begins anew in a forked child: locks may have been held, compilations under way are the parent's."""
        self._lock = threading.Lock()
        self._under_way.clear()


_programs = _Programs()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_programs.after_fork)


def _config(module: Module, policy: Policy) -> EngineConfig:
    parsed = module.parsed
    # One more memory for the guard, one for a guest that has none, one more table for natives.
    pooled = (
        len(parsed.memories) + 2 <= MAX_POOLED_MEMORIES
        and len(parsed.tables) + 1 <= MAX_POOLED_TABLES
        and max((table.minimum for table in parsed.tables), default=0) <= MAX_POOLED_TABLE_ELEMENTS
    )
    return EngineConfig(
        fuel=policy.limits.fuel is not None,
        stack_bytes=policy.limits.stack,
        canonical_nans=policy.reproducible,
        pooled=pooled,
    )


def _compile(module: Module, config: EngineConfig, progress: Callable[[str], None]) -> Program:
    progress("weaving")
    woven = weave(module.parsed, guard())
    progress("compiling")
    engine = Engine.for_compiling(config)
    try:
        engine.validate(woven.wasm)
    except InvalidModule as problem:
        # The original was valid, so with the guard in it, it is beyond a limit of the engine.
        raise InvalidModule(f"{module.name} leaves no room for the guard: {problem}") from None
    return Program.of(CompiledModule(engine, woven.wasm), woven, module)


@dataclass(frozen=True, slots=True)
class Plan:
    """What all runs of one module under one policy share.

    Attributes:
        module: The module.
        policy: The policy.
        program: Its machine code.
        directories: What native WASI may reach.
        info: The module, for reports.
        natives: Native functions to lend to the guard, each with its slot in the woven module's table.
        needs_time: Whether the host must keep the time for the guard, which has no clock but has limits on rates.
        state: The guard's state as every run begins with it, inputs left out.
        bare: The same completed for a run without inputs, the most frequent kind.
        compile_seconds: What making this plan took, where the machine code was not at hand.
        was_compiled: Whether the machine code was at hand.
    """

    module: Module
    policy: Policy
    program: Program
    directories: tuple[Directory, ...]
    info: ModuleInfo
    natives: tuple[tuple[int, bytes], ...]
    needs_time: bool
    state: bytes
    bare: Placed
    compile_seconds: float
    was_compiled: bool

    def at_hand(self) -> Plan:
        """This plan for later runs, which find the machine code at hand."""
        return replace(self, compile_seconds=0.0, was_compiled=True)


def make_plan(
    module: Module, policy: Policy, directories: tuple[Directory, ...], progress: Callable[[str], None]
) -> Plan:
    """Makes a module ready to run under a policy.

    Args:
        module: The module.
        policy: The policy.
        directories: What native WASI may reach: the policy's mounts, checked and open.
        progress: Is told what is being done, before each step that may take long.

    Raises:
        InvalidModule: The module is not valid, or beyond a structural limit.
        LinkError: It imports what nothing provides.
    """
    limits = policy.limits
    for what, found, allowed in (
        ("memories", len(module.parsed.memories), limits.memories),
        ("tables", len(module.parsed.tables), limits.tables),
    ):
        if found > allowed:
            raise InvalidModule(f"{module.name} has {found} {what}; the policy allows {allowed} (limits.{what})")
    if len(module.parsed.memories) > 1 and not policy.features.multi_memory:
        raise InvalidModule(
            f"{module.name} has {len(module.parsed.memories)} memories; the policy allows one (features.multi_memory)"
        )
    check_imports(module.parsed)
    begun = time.perf_counter()
    program, at_hand = _programs.get(module, policy, progress)
    seconds = 0.0 if at_hand else time.perf_counter() - begun
    has_clock = "poll_oneoff" in program.calls
    rates = (limits.call_rate, limits.read_rate, limits.write_rate, limits.memory_growth)
    needs_time = not has_clock and any(rate is not None for rate in rates)
    state = _initial_state(policy, program.woven, has_clock)
    bare = place_inputs(state, limits, [PROGRAM_NAME], {}, b"")
    info = ModuleInfo(module.sha256, module.name)
    return Plan(
        module, policy, program, directories, info, _natives(program), needs_time, state, bare, seconds, at_hand
    )


_UNLIMITED = 2**64 - 1
_NANOSECONDS = 1_000_000_000


def _natives(program: Program) -> tuple[tuple[int, bytes], ...]:
    """Which of the natives that the guest does not import the guard can come to need: their slots and names.

    Lending one takes a microsecond or two of every run, so those that cannot be called are left out. Should the guard
    call one all the same, the empty slot in its table traps.
    """
    files = any(name.startswith("path_") for name in program.calls)
    waits = "poll_oneoff" in program.calls
    return tuple(
        (slot, call.name.encode())
        for slot, call in enumerate(program.woven.natives)
        if (files if call.group in ("fd", "path") else waits)
    )


def _initial_state(policy: Policy, woven: Woven, has_clock: bool) -> bytes:
    """The policy as the guard reads it."""
    layout = guard().layout
    constants = layout.constants
    limits, filesystem, clock, random = policy.limits, policy.filesystem, policy.clock, policy.random
    resolution = clock.resolution if clock.mode == "coarse" else max(clock.step, 1e-9)
    # The first second begins with the run, so that not even its first call has to read a clock.
    credit = min(_UNLIMITED if limit is None else limit for limit in (limits.calls, limits.call_rate))
    fields: dict[str, int | None] = {
        "credit": credit,
        "granted": credit,
        "call_window": 1,
        "memory_limit": limits.memory,
        "memory_used": woven.initial_memory_bytes,
        "table_limit": limits.table_elements,
        "table_used": woven.initial_table_elements,
        "calls_limit": limits.calls,
        "call_rate": limits.call_rate,
        "open_limit": limits.open_files,
        "created_limit": limits.files_created,
        "file_size_limit": limits.file_size,
        "read_limit": limits.read_bytes,
        "write_limit": limits.write_bytes,
        "read_rate": limits.read_rate,
        "write_rate": limits.write_rate,
        "random_limit": limits.random_bytes,
        "idle_limit": None if limits.idle_time is None else int(limits.idle_time * _NANOSECONDS),
        "growth_rate": limits.memory_growth,
        "slice": WAIT_SLICE_NANOSECONDS,
        "clock_resolution": round(resolution * _NANOSECONDS),
        "clock_step": round(clock.step * _NANOSECONDS),
        "clock_start": 0 if clock.mode == "none" else round(clock.start * _NANOSECONDS),
        "clock_mode": constants[f"CLOCK_{clock.mode.upper()}"],
        "random_mode": constants["RANDOM_SEEDED" if random.mode == "seeded" else "RANDOM_NATIVE"],
        "random_state": random.seed,
        "on_violation": constants[policy.on_violation.upper()],
        "on_rate": constants[limits.on_rate.upper()],
        "on_memory": limits.on_memory_denied == "stop",
        "may_create": filesystem.create,
        "may_delete": filesystem.delete,
        "may_link": filesystem.symlinks,
        "has_clock": has_clock,
    }
    block = bytearray(layout.size)
    for name, value in fields.items():
        layout.write(block, name, _UNLIMITED if value is None else int(value))
    refused = set(policy.wasi.refused())
    for section, group in ((clock, "clock"), (random, "random")):
        if section.mode == "none":
            refused |= {call.name for call in WASI if call.group == group}
    for call in WASI:
        if call.name in refused:
            block[layout.offsets["rules"] - layout.block + call.number] = ERRNO[policy.wasi.errno]
    return bytes(block)
