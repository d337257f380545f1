"""Records of runs as bytes: what most runs leave, in as little as it takes; and as they are sent to the writer.

A run that went well leaves two of them, of a size each. What is rarer is an event, and is sent as its line of JSON.
Each record begins with what it is, so a batch is nothing but one behind the other.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from stockade.audit._events import AuditEvent, EventName, RunFigures

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stockade.report import Usage

__all__ = ["KindFields", "join", "number_of", "pack_end", "pack_start", "split", "unpack"]

_Fields: TypeAlias = tuple[str, str, str, str, str, str, str]

KindFields: TypeAlias = tuple[_Fields, _Fields]
"""What runs have in common: fields of `run_started` and of `run_ended` from `tenant` on."""

_START: Final = Struct("<BHQd")
_END: Final = Struct("<BHQQddd10q")
_SIZED: Final = Struct("<BI")

_STARTED: Final = 1
_ENDED: Final = 2
_LINE: Final = 3
_KIND: Final = 4

_NONE: Final = -1
"""Stands for a number that is not there."""

_start, _end = _START.pack, _END.pack


def pack_start(kind: int, seq: int, at: float) -> bytes:
    """Returns the record of a run that begins.

    Args:
        kind: The number of its kind.
        seq: The number of the event; and of the run.
        at: The time.
    """
    return _start(_STARTED, kind, seq, at)


def pack_end(kind: int, seq: int, start: int, at: float, exit_code: int | None, usage: Usage) -> bytes:
    """Returns the record of a run that is over, and went well.

    Args:
        kind: The number of its kind.
        seq: The number of the event.
        start: That of the event of its begin.
        at: The time.
        exit_code: The guest's exit code.
        usage: What it used.
    """
    fuel, calls, denied = usage.fuel, usage.calls, usage.denied
    return _end(
        _ENDED,
        kind,
        seq,
        start,
        at,
        usage.wall_seconds,
        usage.cpu_seconds,
        _NONE if exit_code is None else exit_code,
        _NONE if fuel is None else fuel,
        usage.memory_bytes,
        sum(calls.values()) if calls else 0,
        sum(denied.values()) if denied else 0,
        usage.host_calls,
        usage.read_bytes,
        usage.written_bytes,
        usage.stdout_bytes,
        usage.stderr_bytes,
    )


def number_of(record: bytes) -> int:
    """Returns the number of the event that a record stands for."""
    return int.from_bytes(record[3:11], "little")


def unpack(record: bytes, writer: str, kinds: Mapping[int, KindFields]) -> AuditEvent:
    """Makes an event of a record.

    Args:
        record: The record.
        writer: Who noted it.
        kinds: Kinds of runs, by their numbers.
    """
    if record[0] == _STARTED:
        _, kind, seq, at = _START.unpack(record)
        return AuditEvent(EventName.RUN_STARTED, at, seq, writer, f"{writer}-{seq}", *kinds[kind][0])
    _, kind, seq, start, at, wall, cpu, code, fuel, *figures = _END.unpack(record)
    return AuditEvent(
        EventName.RUN_ENDED,
        at,
        seq,
        writer,
        f"{writer}-{start}",
        *kinds[kind][1],
        "",
        "ok",
        None if code == _NONE else code,
        None,
        None,
        0,
        RunFigures(wall, cpu, None if fuel == _NONE else fuel, *figures),
    )


def join(items: Iterable[bytes | AuditEvent], kinds: Mapping[int, KindFields]) -> bytes:
    """Returns a batch as it is sent to the writer.

    Args:
        items: Records and events.
        kinds: Kinds that the writer has not been told of, by their numbers.
    """
    told = [_sized(_KIND, msgspec.msgpack.encode((number, *kind))) for number, kind in kinds.items()]
    encode = msgspec.json.encode
    told += [item if item.__class__ is bytes else _sized(_LINE, encode(item)) for item in items]
    return b"".join(told)


def _sized(what: int, data: bytes) -> bytes:
    return _SIZED.pack(what, len(data)) + data


def split(batch: bytes, kinds: dict[int, KindFields]) -> list[bytes | msgspec.Raw]:
    """Returns what is in a batch: records, and lines of events.

    Args:
        batch: What `join` returned.
        kinds: Is told of the kinds that are in it.

    Raises:
        ValueError: It is none.
    """
    found: list[bytes | msgspec.Raw] = []
    at, end = 0, len(batch)
    while at < end:
        what = batch[at]
        if what == _STARTED:
            after = at + _START.size
            found.append(batch[at:after])
        elif what == _ENDED:
            after = at + _END.size
            found.append(batch[at:after])
        else:
            _, size = _SIZED.unpack_from(batch, at)
            begin, after = at + _SIZED.size, at + _SIZED.size + size
            if what == _LINE:
                found.append(msgspec.Raw(batch[begin:after]))
            else:
                number, start, close = msgspec.msgpack.decode(batch[begin:after], type=_Told)
                kinds[number] = start, close
        at = after
    return found


_Told: TypeAlias = tuple[int, _Fields, _Fields]
