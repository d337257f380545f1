"""From a module and a policy to what all its runs share: machine code, and the policy as the guard reads it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Final

from stockade._wasi import ERRNO, WASI
from stockade.engine import Lending, LinkedModule, can_interrupt_opens
from stockade.execution._prepare import check_outline
from stockade.execution._programs import Made, Program, Wanted, programs
from stockade.execution._state import PAGE_BYTES, PROGRAM_NAME, Placed, place_inputs
from stockade.guard import check_imports, guard
from stockade.report import SAMPLES_KEPT, ModuleInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stockade.engine import Claim, CompiledModule, Directory, Lent, Owner
    from stockade.execution._module import Module
    from stockade.host import HostFunctions
    from stockade.policy import Limits, Policy

__all__ = ["Plan", "make_plan"]


_OVERDRAFT_FOR_REFILLS: Final = 65_536
"""With refills, a guest that has spent what is in hand must yield, not trap; so the engine needs more to go on with
than a block of instructions costs, for it counts a block before it runs it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What all runs of one module under one policy share.

    Attributes:
        module: The module.
        policy: The policy.
        program: Its machine code.
        linked: The same with its imports.
        claim: What a run takes of what there is only so much of.
        directories: What native WASI may reach.
        info: The module, for reports.
        fuel: The units that a run begins with; None where the policy does not meter.
        overdraft: Units that the engine has beyond them, and the guest has not: whoever comes to use one is over.
        fuel_most: The units that it may be given in all; None where nothing but its refills limits that.
        natives: Native functions to lend to the guard, each with its slot in the woven module's table.
        natives_for_streams: The same for a run with callbacks, for which guests that import no waits must wait, too.
        rates: What the policy lets go in a second, by the names of the guard's tokens; nothing where it does not say.
        state: The guard's state as every run begins with it, inputs left out.
        bare: The same completed for a run without inputs, the most frequent kind.
        compile_seconds: What making this plan took, where the machine code was not at hand.
        was_compiled: Whether the machine code was at hand.
        without_slots: Makes the same ready for an engine that has no slots to run out of.
        history: What the latest runs consumed, and in how many seconds.
    """

    module: Module
    policy: Policy
    program: Program
    linked: LinkedModule
    claim: Claim
    directories: tuple[Directory, ...]
    info: ModuleInfo
    fuel: int | None
    overdraft: int
    fuel_most: int | None
    natives: tuple[tuple[int, bytes], ...]
    natives_for_streams: tuple[tuple[int, bytes], ...]
    rates: Mapping[str, int]
    state: bytes
    bare: Placed
    compile_seconds: float
    was_compiled: bool
    without_slots: Callable[[], LinkedModule]
    history: deque[tuple[int, float]]

    def admit(self) -> tuple[LinkedModule, Owner]:
        """Returns what to instantiate, and a place on its engine, which has counted one instance more.

        Raises:
            EngineError: There is no room.
        """
        linked, claim = self.linked, self.claim
        owner = linked.engine.admit(claim)
        if owner is None and not linked.engine.has_slots(claim):
            linked = self.without_slots()
            claim = linked.claim._replace(descriptors=claim.descriptors)
            owner = linked.engine.admit(claim)
        if owner is None:
            raise linked.engine.full(claim)
        return linked, owner

    def at_hand(self) -> Plan:
        """This plan for later runs, which find the machine code at hand."""
        return replace(self, compile_seconds=0.0, was_compiled=True)


def ask_for(
    module: Module, policy: Policy, functions: HostFunctions, progress: Callable[[str], None] | None, tenant: str
) -> Made | Wanted:
    """Checks a module, and has its program made, unless it is at hand.

    Args:
        module: The module.
        policy: The policy.
        functions: What the embedder lends.
        progress: Is told what is being done, before each step that may take long.
        tenant: For whom it is made.

    Raises:
        InvalidModule: The module is not valid, or beyond a structural limit.
        LinkError: It imports what nothing provides.
    """
    check_outline(module.name, module.parsed, policy.structure, policy.limits, policy.features)
    check_imports(module.parsed, functions.types())
    return programs.ask(module, policy, progress, tenant)


def make_plan(
    module: Module,
    policy: Policy,
    directories: tuple[Directory, ...],
    functions: HostFunctions,
    units_for: Callable[[float], int],
    made: Made,
) -> Plan:
    """Makes a module ready to run under a policy.

    Args:
        module: The module.
        policy: The policy.
        directories: What native WASI may reach: the policy's mounts, checked and open.
        functions: What the embedder lends.
        units_for: Estimates the fuel for some seconds of computing.
        made: Its program.
    """
    limits = policy.limits
    program = made.program
    wanted = {(entry.module, entry.name) for entry in module.parsed.imports}
    lent = functions.lent(wanted) if program.lends else ()
    linked = program.linked or _linked(program, program.compiled, lent)

    @cache
    def without_slots() -> LinkedModule:
        return _linked(program, program.without_slots(), lent)

    rates = _rates(limits)
    natives, parking = _natives(program)
    most = None if limits.fuel_time is None else units_for(limits.fuel_time)
    state = _initial_state(policy, program, len(directories))
    bare = place_inputs(state, limits, [PROGRAM_NAME], {}, b"")
    info = ModuleInfo(module.sha256, module.name)
    return Plan(
        module,
        policy,
        program,
        linked,
        linked.claim._replace(descriptors=_most_descriptors(program, limits, directories)),
        directories,
        info,
        min((units for units in (limits.fuel, most) if units is not None), default=None),
        _OVERDRAFT_FOR_REFILLS if limits.fuel_refill else 1,
        most,
        (*natives, *parking) if rates else natives,
        (*natives, *parking),
        rates,
        state,
        bare,
        made.seconds,
        made.at_hand,
        without_slots,
        deque(maxlen=SAMPLES_KEPT),
    )


def _linked(program: Program, compiled: CompiledModule, lent: Sequence[Lent]) -> LinkedModule:
    lending = Lending(compiled.engine, lent) if program.lends else None
    return LinkedModule(compiled, lending, parks=program.parks, memories=program.memories, tables=program.tables)


def _most_descriptors(program: Program, limits: Limits, directories: Sequence[Directory]) -> int:
    """How many file descriptors a run can come to have: without a mount, there is nothing that it could open."""
    return len(directories) + (limits.open_files if directories and "path_open" in program.calls else 0)


_UNLIMITED = 2**64 - 1
_NANOSECONDS = 1_000_000_000


_Natives = tuple[tuple[int, bytes], ...]


def _natives(program: Program) -> tuple[_Natives, _Natives]:
    """Which of the natives that the guest does not import the guard can come to need: their slots and names.

    Lending one takes a microsecond or two of every run, so those that cannot be called are left out. Should the guard
    call one all the same, the empty slot in its table traps.

    Returns:
        Those that every run needs, and what halts the guest: only where it can come to wait.
    """
    files = any(name.startswith("path_") for name in program.calls)
    slots = [(slot, call) for slot, call in enumerate(program.woven.natives)]
    return (
        tuple(
            (slot, call.name.encode())
            for slot, call in slots
            if call.group != "poll" and (files if call.group in ("fd", "path") else program.parks)
        ),
        tuple((slot, call.name.encode()) for slot, call in slots if call.group == "poll"),
    )


def _rates(limits: Limits) -> Mapping[str, int]:
    """What may go in a second, by the names of the guard's tokens."""
    pages = limits.memory_growth
    rates = {
        "call_tokens": limits.call_rate,
        "read_tokens": limits.read_rate,
        "write_tokens": limits.write_rate,
        "growth_tokens": None if pages is None else pages * PAGE_BYTES,
    }
    return {name: rate for name, rate in rates.items() if rate is not None}


def _initial_state(policy: Policy, program: Program, mounts: int) -> bytes:
    """The policy as the guard reads it."""
    layout = guard().layout
    constants = layout.constants
    limits, filesystem, clock, random = policy.limits, policy.filesystem, policy.clock, policy.random
    # A refused call that is only noted is made all the same: "none" then tells no more than a made-up clock.
    clock_mode = "virtual" if clock.mode == "none" and policy.on_violation == "note" else clock.mode
    resolution = clock.resolution if clock.mode == "coarse" else max(clock.step, 1e-9)
    woven, rates = program.woven, _rates(limits)
    # A second's worth may go at once, so that the first calls need not be looked at.
    credit = min(_UNLIMITED if limit is None else limit for limit in (limits.calls, limits.call_rate))
    fields: dict[str, int | None] = {
        **dict.fromkeys(("call_tokens", "read_tokens", "write_tokens", "growth_tokens")),
        **rates,
        "credit": credit,
        "calls_left": None if limits.calls is None else limits.calls - credit,
        "call_tokens": None if limits.call_rate is None else limits.call_rate - credit,
        "read_left": limits.read_bytes,
        "write_left": limits.write_bytes,
        "created_left": limits.files_created,
        "random_left": limits.random_bytes,
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
        "growth_rate": rates.get("growth_tokens"),
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
        "has_clock": not {"clock_time_get", "poll_oneoff"}.isdisjoint(program.calls),
        "look_first": not can_interrupt_opens(),
        "mounts": mounts,
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
