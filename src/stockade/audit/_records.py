"""What is noted of a run at its begin and its end, on its own thread: as little as it takes. The rest is done later.

A run that is over within microseconds finds none of this in the caches of the processor, and pays for each object that
is kept. So there is one for its begin and one for its end, and what many runs have in common is made once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from stockade._text import printable
from stockade.audit._events import AuditEvent, EventName, RunFigures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stockade.report import PolicyInfo, Usage

__all__ = ["Noted", "RunEnd", "RunKind", "RunStart", "batched", "events_of", "run_end"]


class RunKind:
    """What many runs have in common, as events tell it.

    Args:
        policy: The policy.
        sha256: The SHA-256 of the module.
        name: The name of that.
        export: The function that is called.
        tenant: For whom it runs.
        run_name: What the caller calls it.
        session: The session that it is a call of.
    """

    __slots__ = ("end", "export", "name", "policy", "sha256", "start")

    def __init__(
        self, policy: PolicyInfo, sha256: str, name: str, export: str, tenant: str, run_name: str, session: str
    ) -> None:
        self.policy = policy
        self.sha256 = sha256
        self.name = name
        self.export = export
        export, tenant, run_name = printable(export), printable(tenant), printable(run_name)
        # The fields of events from `tenant` on.
        self.start: Final = tenant, policy.digest, sha256, name, run_name, session, export
        self.end: Final = tenant, policy.digest, "", name, run_name, session, export


class RunStart(msgspec.Struct, frozen=True, gc=False):
    """Noted when a run begins. Not looked at by the collector of garbage, for which thousands wait to be written.

    Attributes:
        seq: The number of the event; and of the run.
        at: The time.
        kind: What it has in common with others.
    """

    seq: int
    at: float
    kind: RunKind


class RunEnd(msgspec.Struct, frozen=True, gc=False):
    """Noted when a run is over: what `RunFigures` has, with the numbers that it takes to make one.

    Attributes:
        seq: The number of the event.
        at: The time.
        start: What was noted at its begin.
        outcome: How it has ended.
        exit_code: The guest's exit code.
        reason: Why there are no figures.
        has_figures: Whether there are.
    """

    seq: int
    at: float
    start: RunStart
    outcome: str
    exit_code: int | None = None
    reason: str = ""
    has_figures: bool = False
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


Noted: TypeAlias = AuditEvent | RunStart | RunEnd

_FEW: Final = 256

_STARTED, _ENDED = EventName.RUN_STARTED, EventName.RUN_ENDED


def run_end(seq: int, at: float, start: RunStart, outcome: str, exit_code: int | None, usage: Usage) -> RunEnd:
    """Returns what is noted when a run is over.

    Args:
        seq: The number of the event.
        at: The time.
        start: What was noted at its begin.
        outcome: How it has ended.
        exit_code: The guest's exit code.
        usage: What it used. It is not kept: it would take what the next run uses again.
    """
    calls, denied = usage.calls, usage.denied
    return RunEnd(
        seq,
        at,
        start,
        outcome,
        exit_code,
        "",
        True,
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


def batched(noted: Sequence[Noted]) -> Iterator[Sequence[Noted]]:
    """Yields so few at once that what is made of them stays in the caches of the processor.

    Args:
        noted: What was noted.
    """
    for start in range(0, len(noted), _FEW):
        yield noted[start : start + _FEW]


def events_of(items: Sequence[Noted], writer: str) -> list[AuditEvent]:
    """Makes events of what was noted; what is an event stays as it is.

    One loop, for it is done twice for each run.

    Args:
        items: Events, and what was noted of runs.
        writer: Who did.
    """
    made: list[AuditEvent] = []
    add = made.append
    for item in items:
        if isinstance(item, RunStart):
            seq = item.seq
            add(AuditEvent(_STARTED, item.at, seq, writer, f"{writer}-{seq}", *item.kind.start))
        elif isinstance(item, RunEnd):
            start = item.start
            figures = None
            if item.has_figures:
                figures = RunFigures(
                    item.wall_seconds,
                    item.cpu_seconds,
                    item.fuel,
                    item.memory_bytes,
                    item.calls,
                    item.denied,
                    item.host_calls,
                    item.read_bytes,
                    item.written_bytes,
                    item.stdout_bytes,
                    item.stderr_bytes,
                )
            run, end = f"{writer}-{start.seq}", start.kind.end
            reason, outcome, code = item.reason, item.outcome, item.exit_code
            add(AuditEvent(_ENDED, item.at, item.seq, writer, run, *end, reason, outcome, code, None, None, 0, figures))
        else:
            add(item)
    return made
