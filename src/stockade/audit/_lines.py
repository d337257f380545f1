"""The lines of runs: made of their records, with no event between, for they are nearly all of a log.

What the runs of a kind have in common is encoded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import msgspec

from stockade.audit._events import AuditEvent, EventName, RunFigures
from stockade.audit._packed import Ended, Started, figures_in, records_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade.audit._packed import KindFields

__all__ = ["KindTexts", "Line", "lines_of", "texts_of"]

_Item = TypeVar("_Item")

KindTexts: TypeAlias = tuple[msgspec.Raw, msgspec.Raw]
"""What stands behind `"event":` in the lines of runs of a kind: the name of the event, and all that they have in
common; of `run_started` and of `run_ended`."""

_encode: Final = msgspec.json.Encoder().encode


class Line(msgspec.Struct, frozen=True, gc=False):
    """The line of a run that begins."""

    event: msgspec.Raw
    time: float
    seq: int
    writer: str
    run: str


class _EndLine(Line, frozen=True, gc=False, omit_defaults=True):
    """The line of a run that is over."""

    exit_code: int | None = None
    figures: RunFigures | None = None


def texts_of(fields: KindFields) -> KindTexts:
    """Encodes what runs of a kind have in common.

    Args:
        fields: What that is.
    """
    started, ended, isolation = fields
    return (
        _text(AuditEvent(EventName.RUN_STARTED, 0.0, 0, "", "", *started)),
        _text(AuditEvent(EventName.RUN_ENDED, 0.0, 0, "", "", *ended, outcome="ok", isolation=isolation)),
    )


def _text(event: AuditEvent) -> msgspec.Raw:
    """Returns what is in the line of an event, but for what is its own."""
    own = _encode(AuditEvent(event.event, event.time, event.seq, event.writer))[:-1]
    return msgspec.Raw(_encode(event.event) + _encode(event)[len(own) : -1])


def lines_of(items: Sequence[_Item | bytes], writer: str, texts: Mapping[int, KindTexts]) -> list[_Item | Line]:
    """Makes lines of records; what is none stays as it is.

    Args:
        items: Events, and records.
        writer: Who noted them.
        texts: What runs have in common, by the numbers of their kinds.
    """
    found = records_in(items)
    return [_line(next(found), writer, texts) if isinstance(item, bytes) else item for item in items]


def _line(found: Started | Ended, writer: str, texts: Mapping[int, KindTexts]) -> Line:
    started, ended = texts[found.kind]
    if isinstance(found, Started):
        return Line(started, found.at, found.seq, writer, f"{writer}-{found.seq}")
    return _EndLine(ended, found.at, found.seq, writer, f"{writer}-{found.start}", found.exit_code, figures_in(found))
