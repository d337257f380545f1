"""From a module and a policy to what all its runs share: machine code, and the policy as the guard reads it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stockade._wasi import ERRNO, WASI
from stockade.engine import Lending, LinkedModule
from stockade.execution._prepare import check_outline
from stockade.execution._programs import Program, programs
from stockade.execution._state import PAGE_BYTES, PROGRAM_NAME, Placed, place_inputs
from stockade.guard import Woven, check_imports, guard
from stockade.report import ModuleInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine import Directory
    from stockade.execution._module import Module
    from stockade.host import HostFunctions
    from stockade.policy import Policy

__all__ = ["Plan", "make_plan"]

WAIT_SLICE_NANOSECONDS = 10_000_000
"""A sleeping guest looks up this often, so that deadlines hold while it sleeps."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What all runs of one module under one policy share.

    Attributes:
        module: The module.
        policy: The policy.
        program: Its machine code.
        linked: The same with its imports.
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
    linked: LinkedModule
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
    module: Module,
    policy: Policy,
    directories: tuple[Directory, ...],
    functions: HostFunctions,
    progress: Callable[[str], None],
) -> Plan:
    """Makes a module ready to run under a policy.

    Args:
        module: The module.
        policy: The policy.
        directories: What native WASI may reach: the policy's mounts, checked and open.
        functions: What the embedder lends.
        progress: Is told what is being done, before each step that may take long.

    Raises:
        InvalidModule: The module is not valid, or beyond a structural limit.
        LinkError: It imports what nothing provides.
    """
    limits = policy.limits
    check_outline(module.name, module.parsed, policy.structure, limits, policy.features)
    check_imports(module.parsed, functions.types())
    begun = time.perf_counter()
    program, was_compiled = programs.get(module, policy, progress)
    seconds = time.perf_counter() - begun if not was_compiled else 0.0
    linked = program.linked
    if linked is None:
        wanted = {(entry.module, entry.name) for entry in module.parsed.imports}
        linked = LinkedModule(program.compiled, Lending(program.compiled.engine, functions.lent(wanted)))
    has_clock = "poll_oneoff" in program.calls
    rates = (limits.call_rate, limits.read_rate, limits.write_rate, limits.memory_growth)
    needs_time = not has_clock and any(rate is not None for rate in rates)
    state = _initial_state(policy, program.woven, has_clock)
    bare = place_inputs(state, limits, [PROGRAM_NAME], {}, b"")
    info = ModuleInfo(module.sha256, module.name)
    return Plan(
        module,
        policy,
        program,
        linked,
        directories,
        info,
        _natives(program),
        needs_time,
        state,
        bare,
        seconds,
        was_compiled,
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
    # A refused call that is only noted is made all the same: "none" then tells no more than a made-up clock.
    clock_mode = "virtual" if clock.mode == "none" and policy.on_violation == "note" else clock.mode
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
        "growth_rate": None if limits.memory_growth is None else limits.memory_growth * PAGE_BYTES,
        "slice": WAIT_SLICE_NANOSECONDS,
        "clock_resolution": round(resolution * _NANOSECONDS),
        "clock_step": round(clock.step * _NANOSECONDS),
        "clock_start": 0 if clock.mode == "none" else round(clock.start * _NANOSECONDS),
        "clock_mode": constants[f"CLOCK_{clock_mode.upper()}"],
        "random_mode": constants["RANDOM_NATIVE" if random.mode == "full" else "RANDOM_SEEDED"],
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
