"""Records of runs as bytes: what most runs leave, in as little as it takes; and batches as they are sent to the writer.

A run that went well leaves two of them. They are MessagePack, for one call makes a record of what a report holds as it
is: nothing is added up or looked at on the thread of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from stockade.audit._events import AuditEvent, EventName, RunFigures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ENDED", "STARTED", "KindFields", "join", "number_of", "pack", "split", "unpack"]

_Fields: TypeAlias = tuple[str, str, str, str, str, str, str]

KindFields: TypeAlias = tuple[_Fields, _Fields, str]
"""What runs have in common: fields of `run_started` and of `run_ended` from `tenant` on, and where they happen."""

STARTED: Final = 1
ENDED: Final = 2


class _Started(msgspec.Struct, frozen=True, array_like=True, tag=STARTED, gc=False):
    kind: int
    seq: int
    at: float


class _Ended(msgspec.Struct, frozen=True, array_like=True, tag=ENDED, gc=False):
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
_decode: Final = msgspec.msgpack.Decoder(_Started | _Ended).decode


pack: Final = _encode
"""Returns the record of a run: a tuple of STARTED or ENDED and the fields of `_Started` or `_Ended`, in their order.

Whoever notes a run calls it with no function between: that would be a tenth of what it costs.
"""


def number_of(record: bytes) -> int:
    """Returns the number of the event that a record stands for."""
    return _decode(record).seq


def unpack(record: bytes, writer: str, kinds: Mapping[int, KindFields]) -> AuditEvent:
    """Makes an event of a record.

    Args:
        record: The record.
        writer: Who noted it.
        kinds: Kinds of runs, by their numbers.
    """
    found = _decode(record)
    seq, at = found.seq, found.at
    started, ended, isolation = kinds[found.kind]
    if isinstance(found, _Started):
        return AuditEvent(_RUN_STARTED, at, seq, writer, f"{writer}-{seq}", *started)
    calls, denied, run = found.calls, found.denied, f"{writer}-{found.start}"
    figures = RunFigures(
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
    return AuditEvent(
        _RUN_ENDED, at, seq, writer, run, *ended, "", "ok", found.exit_code, None, None, 0, figures, isolation
    )


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    """What is sent to the writer: records, and events as they are."""

    kinds: dict[int, KindFields]
    items: list[bytes | dict[str, object]]


_decode_batch: Final = msgspec.msgpack.Decoder(_Batch).decode


def join(items: Sequence[bytes | AuditEvent], kinds: Mapping[int, KindFields]) -> bytes:
    """Returns a batch as it is sent to the writer.

    Args:
        items: Records and events.
        kinds: Kinds that the writer has not been told of, by their numbers.
    """
    return _encode((kinds, items))


def split(batch: bytes | bytearray, kinds: dict[int, KindFields]) -> list[bytes | msgspec.Raw]:
    """Returns what is in a batch: records, and lines of events.

    Args:
        batch: What `join` returned.
        kinds: Is told of the kinds that are in it.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    told = _decode_batch(batch)
    kinds.update(told.kinds)
    return [item if isinstance(item, bytes) else msgspec.Raw(msgspec.json.encode(item)) for item in told.items]
