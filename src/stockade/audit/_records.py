"""What is noted of a run at its begin and its end, on its own thread: as little as it takes. The rest is done later.

A run that is over within microseconds finds none of this in the caches of the processor, and pays for each object that
is kept. So its begin and its end are a record of bytes each, and what many runs have in common is told once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from stockade._text import printable
from stockade.audit._events import AuditEvent, RunFigures
from stockade.audit._packed import event_of, number_of, records_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stockade.audit._packed import KindFields
    from stockade.policy import Isolation
    from stockade.report import PolicyInfo, Usage

__all__ = ["Noted", "RunKind", "batched", "events_of", "figures_of", "number"]

_Item = TypeVar("_Item")

Noted: TypeAlias = AuditEvent | bytes
"""What waits for a sink: an event, or the record of one."""


class RunKind:
    """What many runs have in common, as events tell it.

    Args:
        policy: The policy.
        isolation: Where they happen.
        sha256: The SHA-256 of the module.
        name: The name of that.
        export: The function that is called.
        tenant: For whom it runs.
        run_name: What the caller calls it.
        session: The session that it is a call of.

    Attributes:
        fields: The fields of events from `tenant` on, of its begin and of its end; and where it happens.
        number: What it is called in records; 0 where its runs are told as events.
    """

    __slots__ = ("export", "fields", "isolation", "name", "number", "policy", "sha256")

    def __init__(
        self,
        policy: PolicyInfo,
        isolation: Isolation,
        sha256: str,
        name: str,
        export: str,
        tenant: str,
        run_name: str,
        session: str,
    ) -> None:
        self.policy = policy
        self.isolation: Final = isolation
        self.sha256 = sha256
        self.name = name
        self.export = export
        export, tenant, run_name = printable(export), printable(tenant), printable(run_name)
        self.fields: Final[KindFields] = (
            (tenant, policy.digest, sha256, name, run_name, session, export),
            (tenant, policy.digest, "", name, run_name, session, export),
            isolation,
        )
        self.number = 0


_FEW: Final = 256


def figures_of(usage: Usage) -> RunFigures:
    """Returns what is told of what a run used.

    Args:
        usage: What it used.
    """
    return RunFigures(
        usage.wall_seconds,
        usage.cpu_seconds,
        usage.fuel,
        usage.memory_bytes,
        sum(usage.calls.values()),
        sum(usage.denied.values()),
        usage.host_calls,
        usage.read_bytes,
        usage.written_bytes,
        usage.stdout_bytes,
        usage.stderr_bytes,
    )


def number(item: Noted) -> int:
    """Returns the number of an event among those of its writer.

    Args:
        item: The event, or its record.
    """
    return number_of(item) if isinstance(item, bytes) else item.seq


def batched(noted: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """Yields so few at once that what is made of them stays in the caches of the processor.

    Args:
        noted: What was noted.
    """
    for start in range(0, len(noted), _FEW):
        yield noted[start : start + _FEW]


def events_of(items: Sequence[_Item | bytes], writer: str, kinds: Mapping[int, KindFields]) -> list[_Item | AuditEvent]:
    """Makes events of records; what is none stays as it is.

    Args:
        items: Events, and records.
        writer: Who noted them.
        kinds: Kinds of runs, by their numbers.
    """
    found = records_in(items)
    return [event_of(next(found), writer, kinds) if isinstance(item, bytes) else item for item in items]
