"""What is noted of a run at its begin and its end, on its own thread: as little as it takes. The rest is done later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, cast

from stockade._text import printable
from stockade.audit._events import AuditEvent, EventName, RunFigures

if TYPE_CHECKING:
    from stockade.report import Outcome, PolicyInfo, Usage

__all__ = ["EndRecord", "StartRecord", "event_of"]


class _Module(Protocol):
    @property
    def sha256(self) -> str: ...

    @property
    def name(self) -> str: ...


StartRecord: TypeAlias = "tuple[int, float, int, PolicyInfo, _Module, str, str, str, str]"
"""The number of the event, the time, the number of the run, the policy, the module, the function that is called, the
tenant, what the caller calls the run, and the session."""

EndRecord: TypeAlias = (
    "tuple[int, float, int, PolicyInfo, _Module, str, str, str, str, Outcome | str, int | None, Usage | str]"
)
"""The same, and: the outcome, the exit code, and what was used; or the reason, where there is no report."""

_START_FIELDS: Final = 9

_STARTED, _ENDED = EventName.RUN_STARTED, EventName.RUN_ENDED


def event_of(record: StartRecord | EndRecord, writer: str) -> AuditEvent:
    """Makes the event of what was noted.

    Args:
        record: What was noted.
        writer: Who did.
    """
    outcome: Outcome | str = ""
    seq, at, number, policy, module, export, tenant, run_name, session = record[:9]
    if len(record) > _START_FIELDS:
        outcome, exit_code, usage = cast("EndRecord", record)[9:]
    if export or tenant or run_name:
        export, tenant, run_name = printable(export), printable(tenant), printable(run_name)
    if not outcome:
        return AuditEvent(
            _STARTED,
            at,
            seq,
            writer,
            f"{writer}-{number}",
            tenant,
            policy.digest,
            module.sha256,
            module.name,
            run_name,
            session,
            export,
        )
    reason, figures = (usage, None) if isinstance(usage, str) else ("", _figures_of(usage))
    return AuditEvent(
        _ENDED,
        at,
        seq,
        writer,
        f"{writer}-{number}",
        tenant,
        policy.digest,
        "",
        module.name,
        run_name,
        session,
        export,
        reason,
        outcome,
        exit_code,
        None,
        None,
        0,
        figures,
    )


def _figures_of(usage: Usage) -> RunFigures:
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
