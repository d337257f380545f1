"""Audit logs for tests: written in batches, read, and looked at."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from stockade.audit import AuditEvent, EventName
from stockade.audit._chain_file import ChainFile
from stockade.audit._places import find_place
from stockade.audit._records import events_of
from tests._small_guests import wat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

GUEST = wat(
    """(module
      (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "_start") (drop (call $random (i32.const 0) (i32.const 4))))
      (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
      (func (export "spin") (loop (br 0)))
      (func (export "trap") (unreachable)))"""
)
"""A guest that asks for four random bytes; functions that add, spin and trap."""

KEY = b"the key of tests"


def write(path: Path, batches: Sequence[int] = (3, 1, 4)) -> list[str]:
    """Writes a log in batches of so many events; returns its lines."""
    file = chain_file(path)
    number = 0
    for size in batches:
        file.append([denied(number + more) for more in range(1, size + 1)])
        number += size
    file.close()
    return path.read_text().splitlines(keepends=True)


def denied(number: int) -> AuditEvent:
    """An event with a number."""
    return AuditEvent(EventName.DENIED, 1.5, number, "writer", subject=f"event {number}", count=number)


def chain_file(path: Path, key: bytes = KEY) -> ChainFile[AuditEvent]:
    """A log that is written batch by batch, without a thread."""
    return ChainFile(
        find_place(path),
        key,
        "never",
        lambda name, reason, count: AuditEvent(name, 1.5, 0, "w", reason=reason, count=count),
        lambda noted: events_of(noted, "w", {}),
    )


def events(path: Path) -> list[dict[str, Any]]:
    """The events in a log, without what seals them."""
    found = []
    for line in path.read_text().splitlines():
        # Not what is left of a write that was broken off.
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return [told for told in found if "event" in told]


def names(path: Path) -> list[str]:
    """The names of the events in a log."""
    return [told["event"] for told in events(path)]
