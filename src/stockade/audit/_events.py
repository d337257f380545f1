"""What is told to an audit log: events with a closed set of names, and fields whose sizes are bounded."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final

import msgspec

__all__ = ["SEVERITIES", "AuditEvent", "EventName", "RunFigures", "RunInfo", "Severity"]


class EventName(StrEnum):
    """What happened. There are no other events."""

    CONFIGURATION = "configuration"
    """A sandbox was made that tells this log."""
    POLICY_USED = "policy_used"
    """A policy came to be used for the first time."""
    MODULE_LOADED = "module_loaded"
    """A module came to be used for the first time."""
    MODULE_REFUSED = "module_refused"
    """A module cannot be run."""
    RUN_STARTED = "run_started"
    """A run begins."""
    RUN_REFUSED = "run_refused"
    """A hook has refused a run."""
    DENIED = "denied"
    """The guest tried something that it has no right to."""
    LIMIT_REACHED = "limit_reached"
    """The guest came to a limit."""
    RUN_ENDED = "run_ended"
    """A run is over; has its figures."""
    SESSION_OPENED = "session_opened"
    """A live instance was opened."""
    SESSION_CLOSED = "session_closed"
    """It was closed."""
    SNAPSHOT_TAKEN = "snapshot_taken"
    """A snapshot was taken of a session."""
    SNAPSHOT_OPENED = "snapshot_opened"
    """A guest begins with a snapshot."""
    HOST_FUNCTION_CALLED = "host_function_called"
    """A guest has called a function of the embedder's, or code a tool."""
    HOOK_FAILED = "hook_failed"
    """A hook has raised an exception."""
    EVENTS_DROPPED = "events_dropped"
    """There was no room for events; tells how many."""
    LOG_CONTINUED = "log_continued"
    """The file is another one than the last that was written, or shorter: it was rotated, cut or removed."""
    LOG_INTERRUPTED = "log_interrupted"
    """A write was broken off, as by the end of a process: what is left of it is no event."""
    LOG_DAMAGED = "log_damaged"
    """The file holds what no writer of this log has written, or its head is missing."""


class Severity(IntEnum):
    """How much it matters. Each has a queue of its own, so that none pushes out another."""

    DETAIL = 0
    NOTICE = 1
    CRITICAL = 2


_CRITICAL: Final = frozenset(
    {
        EventName.MODULE_REFUSED,
        EventName.RUN_REFUSED,
        EventName.DENIED,
        EventName.LIMIT_REACHED,
        EventName.HOOK_FAILED,
        EventName.EVENTS_DROPPED,
        EventName.LOG_CONTINUED,
        EventName.LOG_INTERRUPTED,
        EventName.LOG_DAMAGED,
    }
)

SEVERITIES: Final[dict[EventName, Severity]] = {
    name: Severity.CRITICAL
    if name in _CRITICAL
    else Severity.DETAIL
    if name is EventName.HOST_FUNCTION_CALLED
    else Severity.NOTICE
    for name in EventName
}
"""Of each event."""


class RunFigures(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a run used; what it did not use is left out of the log.

    Attributes:
        wall_seconds: From the first instruction to the last.
        cpu_seconds: Processor time of the thread that ran the guest.
        fuel: Fuel units; None where the policy does not meter.
        memory_bytes: What its memories and tables had at the end.
        calls: WASI calls.
        denied: Those among them that the policy refused.
        host_calls: Calls of host functions.
        read_bytes: Read from files.
        written_bytes: Written to files.
        stdout_bytes: Written to stdout.
        stderr_bytes: Written to stderr.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    fuel: int | None = None
    memory_bytes: int = 0
    calls: int = 0
    denied: int = 0
    host_calls: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0


class AuditEvent(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One event. Text in it is short, and has no control characters. What does not apply is left out of the log.

    Attributes:
        event: What happened.
        time: When, in seconds since 1970, by the clock of the system.
        seq: The number of the event among those of its writer.
        writer: Which log object of which process wrote it: a random name.
        run: Which run, by a name that is used once.
        tenant: For whom it runs.
        policy: The digest of the policy.
        module: The SHA-256 of the module.
        name: The name of what it is about: of the module, the policy or the function.
        run_name: What the caller calls the run.
        session: Which session, by a name that is used once.
        subject: What was called, violated, or refused.
        reason: Why.
        outcome: How the run ended: as in `Outcome`, or `error` where it came to no report.
        exit_code: The guest's exit code.
        limit: What is allowed, where it is a number.
        observed: What was asked for or reached, where it is a number.
        count: How often, or how many.
        figures: What the run used.
        isolation: Where the run happened, or was to, as in `Report`: of its end.
    """

    event: EventName
    time: float
    seq: int
    writer: str
    run: str = ""
    tenant: str = ""
    policy: str = ""
    module: str = ""
    name: str = ""
    run_name: str = ""
    session: str = ""
    subject: str = ""
    reason: str = ""
    outcome: str = ""
    exit_code: int | None = None
    limit: float | None = None
    observed: float | None = None
    count: int = 0
    figures: RunFigures | None = None
    isolation: str = ""

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return SEVERITIES[self.event]


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is about to begin, as hooks see it.

    Attributes:
        run: Its name in the audit log.
        tenant: For whom it runs.
        policy: The digest of its policy.
        policy_name: The name of that.
        module: The SHA-256 of its module.
        module_name: The name that that was loaded under.
        export: The function that is called; empty for a command.
        session: The session that it is a call of; empty where it is none.
        run_name: What the caller calls it.
    """

    run: str
    tenant: str = ""
    policy: str = ""
    policy_name: str = ""
    module: str = ""
    module_name: str = ""
    export: str = ""
    session: str = ""
    run_name: str = ""
