"""What the guard wrote down of violations: the entries of its table and of its ring of events."""

from __future__ import annotations

import struct
from functools import cache
from typing import Final, Literal, NamedTuple

from stockade._wasi import WASI
from stockade.guard._source import guard

__all__ = ["HOST_CALLS", "GuardEvent", "GuardViolation", "call_name"]

HOST_CALLS: Final = "host functions"
"""What stands for all functions of the embedder among the names of calls."""

_ACTIONS: Final[tuple[Literal["deny", "stop", "audit"], ...]] = ("deny", "stop", "audit")


class GuardViolation(NamedTuple):
    """An entry of the guard's table of violations.

    Attributes:
        kind: What was violated, as reports name it.
        call: The WASI call that did it.
        times: How often.
        limit: What is allowed; 0 where it is not a number.
        observed: The most that was asked for.
        at_seconds: When it happened first, in seconds since the instance was made.
        action: What was done: `deny`, `stop` or `audit`.
        subject: The path that it was about, as far as it was kept.
        subject_bytes: The length of the whole path.
        mount: The mount, by its place among those of the policy, at which the path begins; -1 where it is none.
        writes: Whether the path is opened for writing.
        is_listed: Whether its mount has no list of paths, or one that names it.
    """

    kind: str
    call: str
    times: int
    limit: int
    observed: int
    at_seconds: float
    action: Literal["deny", "stop", "audit"]
    subject: bytes
    subject_bytes: int
    mount: int
    writes: bool
    is_listed: bool

    @classmethod
    def unpack(cls, entry: bytes) -> GuardViolation:
        """Reads an entry."""
        kind, call, count, limit, observed, at, length, action, start = struct.unpack_from("<IIQQQQIHH", entry)
        subject = _kept_subject(entry, length)
        mount, writes, is_listed = _path_flags(start)
        return cls(
            kind=_kinds()[kind],
            call=call_name(call),
            times=count,
            limit=limit,
            observed=observed,
            at_seconds=at / 1e9,
            action=_ACTIONS[action],
            subject=subject,
            subject_bytes=length,
            mount=mount,
            writes=writes,
            is_listed=is_listed,
        )


class GuardEvent(NamedTuple):
    """An entry of the guard's ring of events: one violation, one time. Fields as in `GuardViolation`."""

    kind: str
    call: str
    errno: int
    action: Literal["deny", "stop", "audit"]
    limit: int
    observed: int
    at_seconds: float
    subject: bytes
    subject_bytes: int
    mount: int
    writes: bool
    is_listed: bool

    @classmethod
    def unpack(cls, entry: bytes) -> GuardEvent:
        """Reads an entry."""
        kind, call, errno, action, limit, observed, at, length, start = struct.unpack_from("<IIIIQQQI2xH", entry)
        subject = _kept_subject(entry, length)
        mount, writes, is_listed = _path_flags(start)
        return cls(
            kind=_kinds()[kind],
            call=call_name(call),
            errno=errno,
            action=_ACTIONS[action],
            limit=limit,
            observed=observed,
            at_seconds=at / 1e9,
            subject=subject,
            subject_bytes=length,
            mount=mount,
            writes=writes,
            is_listed=is_listed,
        )


def call_name(number: int) -> str:
    """Returns the name of a call by the guard's number."""
    return WASI[number].name if number < len(WASI) else HOST_CALLS


@cache
def _kinds() -> dict[int, str]:
    """The names of kinds of violations, by the guard's numbers."""
    constants = guard().layout.constants
    return {number: name.removeprefix("KIND_") for name, number in constants.items() if name.startswith("KIND_")}


def _path_flags(start: int) -> tuple[int, bool, bool]:
    """Reads where a path begins, as the guard notes it: the mount, and whether it is written to, and listed."""
    constants = guard().layout.constants
    writing, unlisted = constants["FOR_WRITING"], constants["NOT_LISTED"]
    return (start & ~(writing | unlisted)) - 1, bool(start & writing), not start & unlisted


def _kept_subject(entry: bytes, length: int) -> bytes:
    """What an entry of violations or events keeps of a subject of this length."""
    constants = guard().layout.constants
    return entry[constants["SUBJECT"] :][: min(length, constants["SUBJECT_MAX"])]
