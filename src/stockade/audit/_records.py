"""What is noted of a run at its begin and its end, on its own thread: as little as it takes. The rest is done later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from stockade._text import printable
from stockade.audit._events import AuditEvent, EventName, RunFigures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.report import PolicyInfo, Usage

__all__ = ["RunRecord", "events_of", "figures_of"]


class _Module(Protocol):
    @property
    def sha256(self) -> str: ...

    @property
    def name(self) -> str: ...


class RunRecord(msgspec.Struct, frozen=True, gc=False):
    """What is noted of a run. Not looked at by the collector of garbage, for which thousands wait to be written.

    Attributes:
        seq: The number of the event.
        at: The time.
        number: The number of the run.
        policy: The policy.
        module: The module.
        export: The function that is called.
        tenant: For whom it runs.
        run_name: What the caller calls it.
        session: The session that it is a call of.
        outcome: How it has ended; nothing at its begin.
        exit_code: The guest's exit code.
        figures: What was used; None where there is no report.
        reason: Why there is none.
    """

    seq: int
    at: float
    number: int
    policy: PolicyInfo
    module: _Module
    export: str
    tenant: str
    run_name: str
    session: str
    outcome: str = ""
    exit_code: int | None = None
    figures: RunFigures | None = None
    reason: str = ""


_STARTED, _ENDED = EventName.RUN_STARTED, EventName.RUN_ENDED


def events_of(items: Sequence[AuditEvent | RunRecord], writer: str) -> list[AuditEvent]:
    """Makes events of what was noted; what is an event stays as it is.

    One loop, for it is done twice for each run.

    Args:
        items: Events, and what was noted of runs.
        writer: Who did.
    """
    made: list[AuditEvent] = []
    for item in items:
        if isinstance(item, AuditEvent):
            made.append(item)
            continue
        export, tenant, run_name = item.export, item.tenant, item.run_name
        if export or tenant or run_name:
            export, tenant, run_name = printable(export), printable(tenant), printable(run_name)
        run, digest, name = f"{writer}-{item.number}", item.policy.digest, item.module.name
        outcome = item.outcome
        if outcome:
            event = AuditEvent(
                _ENDED,
                item.at,
                item.seq,
                writer,
                run,
                tenant,
                digest,
                "",
                name,
                run_name,
                item.session,
                export,
                item.reason,
                outcome,
                item.exit_code,
                None,
                None,
                0,
                item.figures,
            )
        else:
            event = AuditEvent(
                _STARTED,
                item.at,
                item.seq,
                writer,
                run,
                tenant,
                digest,
                item.module.sha256,
                name,
                run_name,
                item.session,
                export,
            )
        made.append(event)
    return made


def figures_of(usage: Usage) -> RunFigures:
    """Returns the figures that are told of a run.

    Args:
        usage: What it used.
    """
    calls, denied = usage.calls, usage.denied
    return RunFigures(
        usage.wall_seconds,
        usage.cpu_seconds,
        usage.fuel,
        usage.memory_bytes,
        sum(calls.values()) if calls else 0,
        sum(denied.values()) if denied else 0,
        usage.host_calls,
        usage.read_bytes,
        usage.written_bytes,
        usage.stdout_bytes,
        usage.stderr_bytes,
    )
