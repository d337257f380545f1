"""How a run ended: told by trap codes and by the guard's state, never by text.

Several things can be true of the end of a run: it was cancelled, its time is up, the guard has ended it, it trapped, it
left with an exit code. The one that came first counts:

1. What came to its end by itself (it returned, left, trapped, or the guard or a host function ended it) before it was
   cancelled and before its deadline has the outcome that it came to.
2. Else it is `cancelled`, if it was cancelled before it came to its end, and a `timeout` if it was not: whatever it
   returned, it did so too late. What it was refused in the end is told among the violations all the same.

That is asked right after the guest's code has come back: a callback that is given the last output has no part in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stockade._pages import PAGE_BYTES
from stockade._text import leads_out, printable
from stockade._wasi import WASI_BY_NAME
from stockade.engine import OUT_OF_FUEL, STACK_OVERFLOW, TRAP_CODES, Failure
from stockade.guard import stop_reasons
from stockade.report import Outcome, TrapFrame, TrapInfo, Violation, ViolationEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import Number
    from stockade.execution._plan import Plan
    from stockade.guard import GuardEvent, GuardViolation, StateReading, Woven
    from stockade.policy import Limits
    from stockade.report import Value
    from stockade.runner import RunControl

__all__ = ["Classification", "GuestStopped", "StopReason", "classify", "returned", "tell_event"]


class StopReason(NamedTuple):
    """Why the guest did not return.

    Attributes:
        failure: What the engine says; None where it was stopped from outside.
        cancelled: Whether the caller stopped it; if neither, its time was up.
        refused: What it asked for and may not have: memory or a table at its start, or to return too much.
        broken: How it broke the convention by which text is passed.
        too_late: Whether it came to its end by itself after it should have been stopped from outside.
    """

    failure: Failure | None = None
    cancelled: bool = False
    refused: Violation | None = None
    broken: TrapInfo | None = None
    too_late: bool = False

    @property
    def from_outside(self) -> bool:
        """Whether the guest was, or should have been, stopped from outside."""
        return self.too_late or (self.failure is None and self.refused is None and self.broken is None)

    def unless_late(self, control: RunControl) -> StopReason:
        """Returns what counts of this end: itself, unless the guest should have been stopped before it came to it.

        Args:
            control: The control of the run, right after the guest's code has come back.
        """
        if self.from_outside or control():
            return self
        return StopReason(cancelled=control.cancelled, refused=self.refused, too_late=True)

    @classmethod
    def without_capability(cls, name: str, function: str) -> StopReason:
        """The guest called a host function that needs a capability which the policy does not grant."""
        shown = printable(name)
        return cls(
            refused=Violation(kind="capability", subject=shown, call=function, action="stop", field=f"custom.{shown}")
        )

    @classmethod
    def idle(cls, call: str, limit_seconds: float | None, seconds: float) -> StopReason:
        """The guest waited longer than a single wait may last."""
        return cls(
            refused=Violation(
                kind="idle",
                subject=call,
                limit=limit_seconds,
                observed=seconds,
                call=call,
                action="stop",
                field="limits.idle_time",
            )
        )

    @classmethod
    def heap_full(cls, limits: Limits) -> StopReason:
        """There was no room for what the module's globals, tables and elements begin with."""
        return cls(refused=_stopped("memory", "limits.memory", limits.memory, None))

    @classmethod
    def too_large(cls, woven: Woven, limits: Limits, *, restored: bool = False) -> StopReason:
        """The module's memories or tables, or those of a snapshot, are over the limit before the first instruction."""
        if woven.initial_table_elements > limits.table_elements:
            return cls(
                refused=Violation(
                    kind="table",
                    subject="initial tables",
                    limit=limits.table_elements,
                    observed=woven.initial_table_elements,
                    action="stop",
                    field="limits.table_elements",
                )
            )
        return cls(
            refused=Violation(
                kind="memory",
                subject="memory of the snapshot" if restored else "initial memory",
                limit=limits.memory,
                observed=woven.initial_memory_bytes,
                action="stop",
                field="limits.memory",
            )
        )


class GuestStopped(Exception):  # noqa: N818 - it says what happened to the guest, which is no error of the host's
    """The guest came to its end in the middle of something.

    Attributes:
        ending: Why.
    """

    def __init__(self, ending: StopReason) -> None:
        super().__init__()
        self.ending = ending


_STOPS = {"memory": Outcome.MEMORY, "host_memory": Outcome.CRASHED, "denied": Outcome.DENIED}
"""What it means that the guard ended the run, by its reasons."""


_REFUSED = {
    "capability": Outcome.DENIED,
    "idle": Outcome.IDLE,
    "value": Outcome.OUTPUT,
    **dict.fromkeys(
        ("network", "connections", "requests", "request_time", "sent_bytes", "received_bytes"), Outcome.DENIED
    ),
}
"""What it means that the host ended the run, by what it refused; any other is memory."""


class Classification(NamedTuple):
    """What a report says about the end of a run."""

    outcome: Outcome
    exit_code: int | None
    value: Value
    trap: TrapInfo | None
    violations: tuple[Violation, ...]


_OK: Final = Outcome.OK  # so that it is at hand


def returned(results: Sequence[Number | str], command: bool) -> tuple[Outcome, int | None, Value]:
    """Says how a run ended whose guest has returned: the outcome, the exit code and the value.

    Args:
        results: What it returned.
        command: Whether that is an exit code.
    """
    if not command:
        return _OK, None, results[0] if len(results) == 1 else list(results) or None
    # As `proc_exit` takes it: what is made of codes above 255 is for whoever has to say them in eight bits.
    status = int(results[0]) & 0xFFFF_FFFF if results else 0
    return Outcome.EXIT if status else _OK, status, None


def classify(
    plan: Plan,
    ending: StopReason | None,
    reading: StateReading | None,
    noted: Sequence[GuardViolation],
    results: Sequence[Number | str] | None,
    command: bool,
    fuel: int | None,
    wall_seconds: float,
) -> Classification:
    """Says how a run ended.

    Args:
        plan: What ran.
        ending: Why it did not return; None where it did.
        reading: The guard's counters; None for a module without a guard.
        noted: The violations that the guard wrote down.
        results: What it returned.
        command: Whether the result is an exit code.
        fuel: Fuel used; None where it was not metered.
        wall_seconds: How long it ran.
    """
    violations: tuple[Violation, ...] = ()
    # Most runs have none, and pay for each look.
    if noted or (reading is not None and reading.refused_growth):
        violations = _violations(plan, reading, noted)
    limits = plan.policy.limits
    exit_code: int | None = None
    value: Value = None
    trap = None
    if ending is not None and ending.from_outside:
        outcome = Outcome.CANCELLED if ending.cancelled else Outcome.TIMEOUT
        if ending.refused is not None:
            violations += (ending.refused,)
        if not ending.cancelled:
            violations += (_stopped("timeout", "limits.wall_time", limits.wall_time, wall_seconds),)
    elif reading is not None and reading.number.exited:
        # The flag stands where only the guard can write, and the guard traps right after setting it.
        exit_code = reading.number.exit_code
        outcome = Outcome.EXIT if exit_code else Outcome.OK
    elif reading is not None and reading.number.stop:
        outcome = _STOPS[stop_reasons()[reading.number.stop]]
    elif ending is None:
        assert results is not None
        outcome, exit_code, value = returned(results, command)
    elif ending.broken is not None:
        outcome, trap = Outcome.TRAP, ending.broken
    elif ending.refused is not None:
        outcome = _REFUSED.get(ending.refused.kind, Outcome.MEMORY)
        violations += (ending.refused,)
    elif (failure := ending.failure) is not None and failure.code == OUT_OF_FUEL:
        outcome = Outcome.FUEL
        # What was measured for `fuel_time` is a number of units, too.
        path = "limits.fuel_time" if plan.fuel == plan.fuel_most else "limits.fuel"
        violations += (_stopped("fuel", path, plan.fuel, fuel),)
    elif failure is not None and _heap_was_full(plan, failure):
        outcome = Outcome.MEMORY
        violations += (_stopped("memory", "limits.memory", limits.memory, None),)
    else:
        assert failure is not None
        trap = _trap(plan, failure)
        outcome = Outcome.TRAP
        if failure.code == STACK_OVERFLOW:
            outcome = Outcome.STACK
            violations += (_stopped("stack", "limits.stack", limits.stack, None),)
    return Classification(outcome, exit_code, value, trap, violations)


def _heap_was_full(plan: Plan, failure: Failure) -> bool:
    """Whether there was no room for an object: what the guest's own code comes to fail at without a trap."""
    woven = plan.program.woven
    return (
        woven.collects
        and failure.code is None
        and bool(failure.frames)
        and failure.frames[0].function_index < woven.guest_functions
    )


def _stopped(kind: str, subject: str, limit: float | None, observed: float | None) -> Violation:
    return Violation(kind=kind, subject=subject, limit=limit, observed=observed, action="stop", field=subject)


_GROWTH = (
    ("memory.grow", "memory_refusals", "memory_asked", "limits.memory"),
    ("memory.grow", "growth_refusals", "growth_asked", "limits.memory_growth"),
    ("table.grow", "table_memory_refusals", "memory_asked", "limits.memory"),
    ("table.grow", "table_growth_refusals", "growth_asked", "limits.memory_growth"),
    ("table.grow", "table_refusals", "table_asked", "limits.table_elements"),
)
"""Refused growth: what asked, the guard's counter of refusals and of the most asked for, and the limit."""


def _violations(plan: Plan, reading: StateReading | None, noted: Sequence[GuardViolation]) -> tuple[Violation, ...]:
    if reading is None:
        return ()
    number = reading.number
    limits = plan.policy.limits
    stops = limits.on_memory_denied == "stop" or plan.policy.on_violation == "stop"
    found: list[Violation] = []
    for call, refusals, asked, path in _GROWTH:
        if count := getattr(number, refusals):
            paced = path == "limits.memory_growth"
            found.append(
                Violation(
                    kind="table" if path == "limits.table_elements" else path.removeprefix("limits."),
                    subject=path,
                    limit=plan.memories_bytes
                    if path == "limits.memory"
                    else getattr(limits, path.removeprefix("limits.")),
                    # The guard counts bytes; the policy, for a pace, pages.
                    observed=-(-number.growth_asked // PAGE_BYTES) if paced else getattr(number, asked),
                    call=call,
                    action="stop" if stops else "deny",
                    count=count,
                    field=path,
                )
            )
    found += (_from_guard(plan, entry) for entry in noted)
    return tuple(found)


def tell_event(entry: GuardEvent) -> ViolationEvent:
    """Puts an event of the guard into a report's words."""
    return ViolationEvent(
        kind=entry.kind,
        subject=_subject(entry),
        call=entry.call,
        errno=entry.errno,
        action=entry.action,
        limit=_number(entry, entry.limit),
        observed=_number(entry, entry.observed),
        at=entry.at_seconds or None,
    )


def _subject(entry: GuardViolation | GuardEvent) -> str:
    if not entry.subject_bytes:
        return entry.call
    subject = printable(entry.subject)
    if entry.subject_bytes > len(entry.subject):
        subject += f"… ({entry.subject_bytes:,} long)"
    return subject


def _from_guard(plan: Plan, entry: GuardViolation) -> Violation:
    guest = plan.directories[entry.mount][1] if 0 <= entry.mount < len(plan.directories) else None
    return Violation(
        kind=entry.kind,
        subject=_subject(entry),
        limit=_number(entry, entry.limit),
        observed=_number(entry, entry.observed),
        call=entry.call,
        action=entry.action,
        count=entry.times,
        at=entry.at_seconds or None,
        field=_field(plan, entry),
        mount=None if guest is None else printable(guest),
    )


def _field(plan: Plan, entry: GuardViolation) -> str:
    """Says which field of the policy decides a violation; "" where none does."""
    policy = plan.policy
    if entry.kind == "call":
        group = WASI_BY_NAME[entry.call].group
        by_mode = {"clock": policy.clock.mode, "random": policy.random.mode}
        if by_mode.get(group) == "none" and entry.call not in policy.wasi.refused():
            return f"{group}.mode"
        return f"wasi.{policy.wasi.refused_by(entry.call)}"
    if entry.kind in ("create", "delete", "symlinks"):
        return f"filesystem.{entry.kind}"
    if entry.kind != "path":
        return f"limits.{entry.kind}"
    if not entry.is_listed:
        return "filesystem.mounts.only"
    if not 0 <= entry.mount < len(plan.directories) or leads_out(entry.subject):
        return ""
    writable = plan.directories[entry.mount][2]
    return "" if writable or not (entry.writes or entry.call in _CHANGING) else "filesystem.mounts"


_CHANGING = frozenset(
    {
        *("path_create_directory", "path_filestat_set_times", "path_link", "path_remove_directory", "path_rename"),
        *("path_symlink", "path_unlink_file"),
    }
)
"""Calls that change what is in a folder."""


def _number(entry: GuardViolation | GuardEvent, value: int) -> float | None:
    if not entry.limit and not entry.observed:
        return None
    return value


def _trap(plan: Plan, failure: Failure) -> TrapInfo:
    woven = plan.program.woven
    frames = []
    for frame in failure.frames:
        name = frame.function_name
        own = frame.function_index - woven.guest_functions
        if own >= 0:
            name = f"guard: {woven.guard_functions[own]}" if own < len(woven.guard_functions) else "guard"
        frames.append(TrapFrame(name, frame.function_index, frame.offset_bytes))
    if failure.code is None:
        return TrapInfo("host", failure.message, tuple(frames))
    return TrapInfo(TRAP_CODES.get(failure.code, ("unknown", ""))[0], failure.message, tuple(frames))
