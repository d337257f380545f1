"""From a module and a policy to what all its runs share: machine code, and the policy as the guard reads it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from stockade._wasi import MODULE
from stockade.compilation import MadeProgram, PendingProgram, Program, programs
from stockade.engine import Instance, Loan
from stockade.errors import LinkError
from stockade.execution._pace import Pace
from stockade.execution._snapshot import SPARE_MAPS
from stockade.execution._values import Call
from stockade.guard import (
    PROGRAM_NAME,
    StateImage,
    check_imports,
    heap_bytes,
    memories_bytes,
    place_inputs,
    policy_block,
    rates_of,
)
from stockade.report import SAMPLES_KEPT, ModuleInfo, RunLimits
from stockade.system import can_interrupt_opens
from stockade.worker import check_outline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stockade.engine import Directory, LinkedModule, ResourceCost, Store
    from stockade.execution._snapshot import GuestState
    from stockade.guard import TraceRing
    from stockade.host import BoundFunction, HostFunctions
    from stockade.modules import Module
    from stockade.policy import Limits, Policy
    from stockade.report import Trace

__all__ = ["Plan", "make_plan"]


WHOLE_CORE_PERCENT: Final = 100
"""The share of a core that is no limit."""

SLACK_BYTES: Final = 2 << 20
"""Room above the guard's buffers for what one call moves, or the subscriptions of one poll."""

_OVERDRAFT_FOR_REFILLS: Final = 65_536
"""With refills, a guest that has spent what is in hand must yield, not trap; so the engine needs more to go on with
than a block of instructions costs, for it counts a block before it runs it."""


_DERIVED: Any = None  # in the place of what `Plan` makes out itself


class Plan(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What all runs of one module under one policy share.

    Attributes:
        module: The module.
        policy: The policy.
        program: Its machine code.
        linked: The same with its imports.
        claim: What a run takes of what there is only so much of.
        directories: What native WASI may reach.
        info: The module, for reports.
        heap_bytes: How large the heap of its objects may become; 0 where it has none.
        memories_bytes: How many bytes its memories and tables may come to have together.
        fuel: The units that a run begins with; None where the policy does not meter.
        overdraft: Units that the engine has beyond them, and the guest has not: whoever comes to use one is over.
        fuel_most: The units that it may be given in all; None where nothing but its refills limits that.
        loan: Native functions to lend to the guard; None where it needs none.
        loan_for_streams: The same for a run with callbacks, for which guests that import no waits must wait, too.
        rates: What the policy lets go in a second, by the names of the guard's tokens; nothing where it does not say.
        state: The guard's state as every run begins with it, inputs left out.
        bare: The same completed for a run without inputs, the most frequent kind.
        compile_seconds: What making this plan took, where the machine code was not at hand.
        was_compiled: Whether the machine code was at hand.
        functions: The functions of the embedder that it imports, in the order of their numbers in the mailbox.
        without_slots: Makes the same ready for an engine that has no slots to run out of.
        history: What the latest runs consumed, and in how many seconds.
        pace: Whether runs are over within a moment.
        trace: What of its calls is traced; None where nothing is.
        held: What its guests begin with, where that is not what the module begins with.
        forks: Whether its guests keep their memory so that forks of them copy next to nothing.
        limits: Those of the policy.
        run_limits: The same as numbers, for reports.
        calls_out: Whether it calls functions of the embedder that are called on the thread that drives a run.
        grows: Whether there is a memory or a table that the guest can grow.
        is_plain: Whether a run can be over before anybody has to look at a clock or at what it opens: it reaches no
            files and no functions of the embedder, and has neither a share of a core nor refills of fuel.
        is_bare: Whether a plain run that is given nothing needs nothing set up but the guard's state and its natives.
        begins_too_large: Whether the module has more at its beginning than it may have.
        command: What is called where the module is run as a command; None where it is none.
        ring: What is asked of the guard where calls are traced.
        engine_fuel: The units that the engine is given; None where it does not count.
        most_elements: The most elements that any table may have, the guard's included.
        renamed: Exports of the guest that are found under another name.
    """

    module: Module
    policy: Policy
    program: Program
    linked: LinkedModule
    claim: ResourceCost
    directories: tuple[Directory, ...]
    info: ModuleInfo
    heap_bytes: int
    memories_bytes: int
    fuel: int | None
    overdraft: int
    fuel_most: int | None
    loan: Loan | None
    loan_for_streams: Loan | None
    rates: Mapping[str, int]
    state: bytes
    bare: StateImage
    compile_seconds: float
    was_compiled: bool
    functions: tuple[BoundFunction, ...]
    without_slots: Callable[[], LinkedModule]
    history: deque[tuple[int, float]]
    pace: Pace
    trace: Trace | None = None
    held: GuestState | None = None
    forks: bool = False

    # What follows from these is made out once: a run takes less time than to ask.
    limits: Limits = _DERIVED
    run_limits: RunLimits = _DERIVED
    calls_out: bool = _DERIVED
    grows: bool = _DERIVED
    is_plain: bool = _DERIVED
    is_bare: bool = _DERIVED
    begins_too_large: bool = _DERIVED
    command: Call | None = _DERIVED
    ring: TraceRing | None = _DERIVED
    engine_fuel: int | None = _DERIVED
    most_elements: int = _DERIVED
    renamed: Mapping[bytes, bytes] = _DERIVED

    def __post_init__(self) -> None:
        limits, woven, format_ = self.policy.limits, self.program.woven, self.program.state_format
        reaches = self.functions or self.directories
        is_plain = not (reaches or limits.fuel_refill) and limits.cpu_percent == WHOLE_CORE_PERCENT
        most_elements = max(limits.table_elements, len(woven.natives))
        begins_too_large = (
            woven.initial_memory_bytes > limits.memory or woven.initial_table_elements > limits.table_elements
        )
        derived: dict[str, object] = {
            "limits": limits,
            "run_limits": _run_limits(limits, self.fuel),
            "calls_out": any(not (function.is_awaited or function.is_brief) for function in self.functions),
            "grows": bool(woven.grown_memories or woven.grown_tables),
            "is_plain": is_plain,
            "is_bare": is_plain
            and not (self.held or self.forks or begins_too_large or woven.collects)
            and woven.start_export is None
            and woven.state_export is not None
            and self.bare.reach_bytes <= format_.memory_bytes
            and self.bare.end_bytes + SLACK_BYTES <= limits.memory
            and most_elements == limits.table_elements
            and self.trace is None,
            "begins_too_large": begins_too_large,
            "command": _command(self.module),
            "ring": None if self.trace is None else _ring(self.trace),
            "engine_fuel": None if self.fuel is None else self.fuel + self.overdraft,
            "most_elements": most_elements,
            "renamed": woven.renamed,
        }
        for name, value in derived.items():
            msgspec.structs.force_setattr(self, name, value)

    def acquire(self) -> tuple[LinkedModule, Store]:
        """Returns what to instantiate, and a place on its engine, which has counted one instance more.

        Raises:
            EngineError: There is no room.
        """
        store = self.linked.engine.acquire(self.claim)
        return self._acquire_elsewhere() if store is None else (self.linked, store)

    def _acquire_elsewhere(self) -> tuple[LinkedModule, Store]:
        linked, claim = self.linked, self.claim
        if linked.engine.has_slots(claim):
            raise linked.engine.full(claim)
        linked = self.without_slots()
        claim = linked.claim._replace(descriptors=claim.descriptors)
        store = linked.engine.acquire(claim)
        if store is None:
            raise linked.engine.full(claim)
        return linked, store

    def instantiate(self, guard_bytes: int, *, streamed: bool = False) -> Instance:
        """Makes an instance.

        Args:
            guard_bytes: How large the guard's memory may become; 0 where that is no more than the guest may have.
            streamed: Whether its run has callbacks, or may have some.

        Raises:
            EngineError: There is no room for it.
        """
        linked, store = self.linked, self.linked.engine.acquire(self.claim)
        if store is None:
            linked, store = self._acquire_elsewhere()
        memory_bytes, elements = (
            self.instance_limits(guard_bytes) if guard_bytes else (self.limits.memory, self.most_elements)
        )
        more = self.directories, self.renamed, self.loan_for_streams if streamed else self.loan
        return Instance(linked, store, self.engine_fuel, memory_bytes, elements, *more)

    def instance_limits(self, guard_bytes: int) -> tuple[int, int]:
        """Returns how large any single memory, and any single table, of an instance may become.

        Args:
            guard_bytes: How large the guard's memory may become.
        """
        memory_bytes = self.limits.memory
        if guard_bytes > memory_bytes and self.program.woven.state_export is not None:
            memory_bytes = guard_bytes
        return memory_bytes, self.most_elements

    def restoring(self, held: GuestState) -> Plan:
        """This plan for guests that begin with what another guest of the module held.

        They are instantiated one by one: a slot of a pool would keep the mapping of a snapshot for whoever comes next.

        Args:
            held: What the other guest held.
        """
        woven, limits = self.program.woven, self.policy.limits
        woven = msgspec.structs.replace(
            woven,
            initial_memory_bytes=woven.initial_memory_bytes + held.grown_bytes,
            start_export=None if held.started else woven.start_export,
        )
        program = msgspec.structs.replace(self.program, woven=woven)
        state = _state(self.policy, program, self.directories)
        linked = self.without_slots()
        maps = linked.claim.maps + held.instance.maps + SPARE_MAPS
        return msgspec.structs.replace(
            self.at_hand(),
            program=program,
            linked=linked,
            claim=linked.claim._replace(maps=maps, descriptors=self.claim.descriptors),
            state=state,
            bare=place_inputs(state, limits, [PROGRAM_NAME], {}, b""),
            held=held,
        )

    def at_hand(self) -> Plan:
        """This plan for later runs, which find the machine code at hand."""
        return msgspec.structs.replace(self, compile_seconds=0.0, was_compiled=True)


def _run_limits(limits: Limits, fuel: int | None) -> RunLimits:
    numbers = {name: getattr(limits, name) for name in RunLimits.__struct_fields__}
    percent = None if limits.cpu_percent == WHOLE_CORE_PERCENT else limits.cpu_percent
    return RunLimits(**{**numbers, "fuel": fuel, "cpu_percent": percent})


def _ring(trace: Trace) -> TraceRing:
    # Most modules are not traced.
    from stockade.execution._tracing import trace_ring

    return trace_ring(trace)


def _command(module: Module) -> Call | None:
    try:
        return Call(module.command_entry)
    except LinkError:
        return None


def ask_for(
    module: Module,
    policy: Policy,
    functions: HostFunctions,
    progress: Callable[[str], None] | None,
    tenant: str,
    *,
    traced: bool,
) -> MadeProgram | PendingProgram:
    """Checks a module, and has its program made, unless it is at hand.

    Args:
        module: The module.
        policy: The policy.
        functions: The host functions.
        progress: Is told what is being done, before each step that may take long.
        tenant: For whom it is made.
        traced: Whether its calls are traced.

    Raises:
        InvalidModule: The module is not valid, or beyond a structural limit.
        LinkError: It imports what nothing provides.
    """
    check_outline(module.name, module.parsed, policy.structure, policy.limits, policy.features)
    functions.provide(entry.module for entry in module.parsed.imports)
    check_imports(module.parsed, functions.types())
    return programs.ask(module, policy, progress, tenant, traced=traced)


def make_plan(
    module: Module,
    policy: Policy,
    directories: tuple[Directory, ...],
    functions: HostFunctions,
    units_for: Callable[[float], int],
    made: MadeProgram,
    trace: Trace | None,
) -> Plan:
    """Makes a module ready to run under a policy.

    Args:
        module: The module.
        policy: The policy.
        directories: What native WASI may reach: the policy's mounts, checked and open.
        functions: The host functions.
        units_for: Estimates the fuel for some seconds of computing.
        made: Its program.
        trace: What of its calls is traced.
    """
    limits, program = policy.limits, made.program
    linked = program.linked
    # In the order of their imports, as the weaver numbers them.
    imports = [(entry.module, entry.name) for entry in module.parsed.imports if entry.module != MODULE.encode()]
    rates = rates_of(limits)
    (natives, parking), woven, table = _natives(program), program.woven, program.woven.natives_export
    loan_for_streams = Loan.of(table, (*natives, *parking), asks=woven.asks and not directories)
    loan = loan_for_streams if rates or trace or woven.waits or woven.shares_heap else Loan.of(table, natives)
    linked.link(asking=loan is not None and loan.asked is not None)
    most = None if limits.fuel_time is None else units_for(limits.fuel_time)
    state = _state(policy, program, directories)
    bare = place_inputs(state, limits, [PROGRAM_NAME], {}, b"")
    return Plan(
        module=module,
        policy=policy,
        program=program,
        linked=linked,
        claim=linked.claim._replace(descriptors=_most_descriptors(program, limits, directories)),
        directories=directories,
        info=ModuleInfo(module.sha256, module.name),
        heap_bytes=heap_bytes(program.woven, limits),
        memories_bytes=memories_bytes(program.woven, limits),
        fuel=min((units for units in (limits.fuel, most) if units is not None), default=None),
        overdraft=_OVERDRAFT_FOR_REFILLS if limits.fuel_refill else 1,
        fuel_most=most,
        loan=loan,
        loan_for_streams=loan_for_streams,
        rates=rates,
        state=state,
        bare=bare,
        compile_seconds=made.seconds,
        was_compiled=made.at_hand,
        functions=functions.bound(imports, policy) if program.lends else (),
        without_slots=program.without_slots,
        history=deque(maxlen=SAMPLES_KEPT),
        pace=Pace(),
        trace=trace,
    )


def _state(policy: Policy, program: Program, directories: Sequence[Directory]) -> bytes:
    return policy_block(policy, program.woven, program.calls, len(directories), look_first=not can_interrupt_opens())


def _most_descriptors(program: Program, limits: Limits, directories: Sequence[Directory]) -> int:
    """How many file descriptors a run can come to have: without a mount, there is nothing that it could open."""
    return len(directories) + (limits.open_files if directories and "path_open" in program.calls else 0)


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
            if call.group != "poll"
            and (files if call.group in ("fd", "path") else program.parks or program.woven.traced)
        ),
        tuple((slot, call.name.encode()) for slot, call in slots if call.group == "poll"),
    )
