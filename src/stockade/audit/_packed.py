"""Records of runs as bytes: what most runs leave, in as little as it takes; and batches as they are sent to the writer.

A run that went well leaves two of them. They are MessagePack, for one call makes a record of what a report holds as it
is: nothing is added up or looked at on the thread of the run.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from stockade.audit._events import AuditEvent, EventName, RunFigures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "ENDED",
    "STARTED",
    "Ended",
    "KindFields",
    "Started",
    "event_of",
    "figures_in",
    "join",
    "number_of",
    "pack",
    "records_in",
    "split",
]

_Fields: TypeAlias = tuple[str, str, str, str, str, str, str]

KindFields: TypeAlias = tuple[_Fields, _Fields, str]
"""What runs have in common: fields of `run_started` and of `run_ended` from `tenant` on, and where they happen."""

STARTED: Final = 1
ENDED: Final = 2


class Started(msgspec.Struct, frozen=True, array_like=True, tag=STARTED, gc=False):
    """What is noted of a run that begins."""

    kind: int
    seq: int
    at: float


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=ENDED, gc=False):
    """What is noted of a run that went well."""

    kind: int
    seq: int
    start: int
    at: float
    exit_code: int | None
    wall_seconds: float
    cpu_seconds: float
    fuel: int | None
    memory_bytes: int
    calls: dict[str, int]
    denied: dict[str, int]
    host_calls: int
    read_bytes: int
    written_bytes: int
    stdout_bytes: int
    stderr_bytes: int


# An enumeration looks its names up each time.
_RUN_STARTED, _RUN_ENDED = EventName.RUN_STARTED, EventName.RUN_ENDED

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Started | Ended).decode
_decode_all: Final = msgspec.msgpack.Decoder(list[Started | Ended]).decode

_LIST: Final = struct.Struct(">BI")
"""How MessagePack begins a list of many."""


pack: Final = _encode
"""Returns the record of a run: a tuple of STARTED or ENDED and the fields of `Started` or `Ended`, in their order.

Whoever notes a run calls it with no function between: that would be a tenth of what it costs.
"""


def number_of(record: bytes) -> int:
    """Returns the number of the event that a record stands for."""
    return _decode(record).seq


def records_in(items: Sequence[object]) -> Iterator[Started | Ended]:
    """Reads the records among what was noted, at once.

    Args:
        items: Records, and what is none.
    """
    records = [item for item in items if isinstance(item, bytes)]
    return iter(_decode_all(_LIST.pack(0xDD, len(records)) + b"".join(records)))


def figures_in(found: Ended) -> RunFigures:
    """Returns what a record tells of what its run used.

    Args:
        found: The record.
    """
    calls, denied = found.calls, found.denied
    return RunFigures(
        found.wall_seconds,
        found.cpu_seconds,
        found.fuel,
        found.memory_bytes,
        sum(calls.values()) if calls else 0,
        sum(denied.values()) if denied else 0,
        found.host_calls,
        found.read_bytes,
        found.written_bytes,
        found.stdout_bytes,
        found.stderr_bytes,
    )


def event_of(found: Started | Ended, writer: str, kinds: Mapping[int, KindFields]) -> AuditEvent:
    """Makes an event of a record.

    Args:
        found: The record.
        writer: Who noted it.
        kinds: Kinds of runs, by their numbers.
    """
    seq, at = found.seq, found.at
    started, ended, isolation = kinds[found.kind]
    if isinstance(found, Started):
        return AuditEvent(_RUN_STARTED, at, seq, writer, f"{writer}-{seq}", *started)
    figures, run = figures_in(found), f"{writer}-{found.start}"
    return AuditEvent(
        _RUN_ENDED, at, seq, writer, run, *ended, "", "ok", found.exit_code, None, None, 0, figures, isolation
    )


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    """What is sent to the writer: what it has not been told of runs, and records, and events as they are."""

    texts: dict[int, tuple[bytes, bytes]]
    items: list[bytes | dict[str, object]]


_decode_batch: Final = msgspec.msgpack.Decoder(_Batch).decode


def join(items: Sequence[bytes | AuditEvent], texts: Mapping[int, tuple[bytes, bytes]]) -> bytes:
    """Returns a batch as it is sent to the writer.

    Args:
        items: Records and events.
        texts: What the lines of runs have in common of which the writer has not been told, by the numbers of their
            kinds.
    """
    return _encode((texts, items))


def split(
    batch: bytes | bytearray,
) -> tuple[Mapping[int, tuple[bytes, bytes]], list[bytes | msgspec.Raw]]:
    """Returns what is in a batch: what `join` was given; of events, their lines.

    Args:
        batch: What `join` returned.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    told = _decode_batch(batch)
    items = [item if isinstance(item, bytes) else msgspec.Raw(msgspec.json.encode(item)) for item in told.items]
    return told.texts, items
