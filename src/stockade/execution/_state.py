"""The guard's state as the host writes and reads it."""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from stockade._wasi import WASI
from stockade.errors import UsageError
from stockade.guard import guard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade.engine import Memory
    from stockade.guard import StateFormat
    from stockade.policy import Limits

__all__ = [
    "HOST_CALLS",
    "NEVER",
    "PAGE_BYTES",
    "PROGRAM_NAME",
    "STDIN_PIECE_BYTES",
    "TAP_BYTES",
    "Counters",
    "GuardEvent",
    "GuardViolation",
    "Placed",
    "State",
    "StateReading",
    "place_inputs",
]

STDIN_PIECE_BYTES: Final = 64 << 10
"""The most that is asked of a stdin callback at a time."""

TAP_BYTES: Final = 256 << 10
"""Output that may wait for the host's callbacks; a guest that is ahead of them waits. A power of two."""

_MOST_BYTES: Final = 1 << 30
"""The guard's memory has this much room for arguments, environment, stdin and captured output together."""

PROGRAM_NAME: Final = b"main.wasm"
"""What every guest is called in its own arguments: the file's true name and place are none of its business (H30)."""


PAGE_BYTES: Final = 65_536
"""A page of a linear memory."""

NEVER: Final = 2**64 - 1
"""Nanoseconds that are not over before the end of time."""

HOST_CALLS: Final = "host functions"
"""What stands for all functions of the embedder among the names of calls."""


class Counters(NamedTuple):
    """What the guard counted and noted, field by field as `guard.wat` has it."""

    stdout_base: int
    stdout_head: int
    stdout_cap: int
    stdout_total: int
    stderr_base: int
    stderr_head: int
    stderr_cap: int
    stderr_total: int
    exited: int
    exit_code: int
    stop: int
    violation_count: int
    memory_used: int
    table_used: int
    memory_refusals: int
    memory_asked: int
    table_refusals: int
    table_asked: int
    table_memory_refusals: int
    growth_refusals: int
    table_growth_refusals: int
    growth_asked: int
    idle: int
    read: int
    written: int
    random: int
    opened: int
    open_now: int
    open_peak: int
    created: int
    deleted: int
    stdin_read: int
    violations_dropped: int
    event_count: int
    virtual_now: int
    random_state: int


class StateReading(NamedTuple):
    """The guard's state at one moment.

    Attributes:
        number: The counters.
        calls: WASI call -> how often it was made, without zeros.
        denied: WASI call -> how often it was refused, without zeros.
    """

    number: Counters
    calls: dict[str, int]
    denied: dict[str, int]


def _by_call(names: Sequence[str], counts: tuple[int, ...]) -> dict[str, int]:
    return {name: count for name, count in zip(names, counts, strict=True) if count} if any(counts) else {}


class Placed(NamedTuple):
    """The guard's state for one run, ready to be written.

    Attributes:
        block: The state, and behind it arguments, environment and stdin.
        reach_bytes: How far the guard's memory must reach before the guest runs.
        end_bytes: How far it may come to reach.
    """

    block: bytes
    reach_bytes: int
    end_bytes: int


def place_inputs(
    initial: bytes,
    limits: Limits,
    args: Sequence[bytes],
    env: Mapping[bytes, bytes],
    stdin: bytes | None,
    *,
    listening: bool = False,
) -> Placed:
    """Completes the guard's first state with what this run is given.

    Args:
        initial: The state as every run under this policy begins with it.
        limits: Tells how much output is kept.
        args: The guest's arguments, its own name first.
        env: Its environment.
        stdin: Its standard input; None where the host is asked for it piece by piece.
        listening: Whether the host wants output as it is written.

    Raises:
        UsageError: All together is more than the guard has room for.
    """
    layout = guard().layout
    block = bytearray(initial)
    arguments = b"".join(arg + b"\0" for arg in args)
    variables = b"".join(name + b"=" + value + b"\0" for name, value in env.items())
    at = layout.offsets["room"]
    layout.write(block, "args", at)
    layout.write(block, "args_count", len(args))
    layout.write(block, "args_size", len(arguments))
    at += len(arguments)
    layout.write(block, "environ", at)
    layout.write(block, "environ_count", len(env))
    layout.write(block, "environ_size", len(variables))
    at += len(variables)
    layout.write(block, "stdin", at)
    if stdin is None:
        layout.write(block, "stdin_mode", layout.constants["STDIN_ASKED"])
        at += STDIN_PIECE_BYTES
    else:
        layout.write(block, "stdin_size", len(stdin))
        at += len(stdin)
    at = (at + 7) & ~7
    if listening:
        layout.write(block, "tap", at)
        layout.write(block, "tap_size", TAP_BYTES)
        at += TAP_BYTES
    reach = at
    for name, cap in (("stdout", limits.stdout), ("stderr", limits.stderr)):
        layout.write(block, name, at, cap - cap // 2, cap, 0)
        at += cap
    at = (at + 7) & ~7
    if at > _MOST_BYTES:
        raise UsageError(
            f"arguments, environment, stdin and output limits together take {at:,} bytes; {_MOST_BYTES:,} fit. "
            "Give large inputs as files in a mount"
        )
    layout.write(block, "scratch", at)
    return Placed(bytes(block) + arguments + variables + (stdin or b""), reach, at)


class GuardViolation(NamedTuple):
    """An entry of the guard's table of violations.

    Attributes:
        kind: What was violated, as reports name it.
        call: The WASI call that did it.
        times: How often.
        limit: What is allowed; 0 where it is not a number.
        observed: The most that was asked for.
        at_seconds: When it happened first, in seconds since the instance was made.
        action: What was done: `deny`, `stop` or `note`.
        subject: The path that it was about, as far as it was kept.
        subject_bytes: The length of the whole path.
    """

    kind: str
    call: str
    times: int
    limit: int
    observed: int
    at_seconds: float
    action: Literal["deny", "stop", "note"]
    subject: bytes
    subject_bytes: int

    @classmethod
    def unpack(cls, entry: bytes) -> GuardViolation:
        """Reads an entry."""
        kind, call, count, limit, observed, at, length, action = struct.unpack_from("<IIQQQQII", entry)
        subject = _kept_subject(entry, length)
        return cls(
            _kinds()[kind], _call_name(call), count, limit, observed, at / 1e9, _ACTIONS[action], subject, length
        )


class GuardEvent(NamedTuple):
    """An entry of the guard's ring of events: one violation, one time. Fields as in `GuardViolation`."""

    kind: str
    call: str
    errno: int
    action: Literal["deny", "stop", "note"]
    limit: int
    observed: int
    at_seconds: float
    subject: bytes
    subject_bytes: int

    @classmethod
    def unpack(cls, entry: bytes) -> GuardEvent:
        """Reads an entry."""
        kind, call, errno, action, limit, observed, at, length = struct.unpack_from("<IIIIQQQI", entry)
        subject = _kept_subject(entry, length)
        return cls(
            _kinds()[kind], _call_name(call), errno, _ACTIONS[action], limit, observed, at / 1e9, subject, length
        )


def _call_name(number: int) -> str:
    """The name of a call by the guard's number."""
    return WASI[number].name if number < len(WASI) else HOST_CALLS


_ACTIONS: Final[tuple[Literal["deny", "stop", "note"], ...]] = ("deny", "stop", "note")


@cache
def _kinds() -> dict[int, str]:
    """The names of kinds of violations, by the guard's numbers."""
    constants = guard().layout.constants
    return {number: name.removeprefix("KIND_") for name, number in constants.items() if name.startswith("KIND_")}


def _kept_subject(entry: bytes, length: int) -> bytes:
    """What an entry of violations or events keeps of a subject of this length."""
    constants = guard().layout.constants
    return entry[constants["SUBJECT"] :][: min(length, constants["SUBJECT_MAX"])]


_LASTING: Final = ("memory_used", "table_used", "stdin_read", "open_now", "virtual_now", "random_state")
"""What belongs to the instance, not to one call of a session."""


class State:
    """The guard's state in a live instance.

    Args:
        memory: The memory that holds it.
        format_: How to read it.
        names: The WASI calls that the guest imports, in the order of the format.

    Attributes:
        memory: The memory that holds it.
    """

    __slots__ = ("_format", "_names", "memory")

    def __init__(self, memory: Memory, format_: StateFormat, names: Sequence[str]) -> None:
        self.memory = memory
        self._format = format_
        self._names = names

    def write(self, placed: Placed) -> None:
        """Writes the state and the inputs behind it, before the guest's first instruction."""
        self.memory.grow_to(placed.reach_bytes)
        self.memory.write(guard().layout.block, placed.block)

    def renew(self, block: bytes) -> None:
        """Begins counting anew, for the next call of a session.

        What the guest has stays counted (memory, tables, open files); so does how much of stdin it has read.
        """
        layout = guard().layout
        fresh = bytearray(block[: layout.size])
        now = self.read().number
        for name in _LASTING:
            layout.write(fresh, name, getattr(now, name))
        layout.write(fresh, "open_peak", now.open_now)
        self.memory.write(layout.block, bytes(fresh))

    def read(self) -> StateReading:
        """Reads all counters."""
        format_ = self._format
        numbers = format_.unpack(self.memory.read(format_.start, format_.size))
        counters = Counters._make(numbers[: format_.calls.start])
        # Whatever is refused is an event.
        denied = _by_call(self._names, numbers[format_.denied]) if counters.event_count else {}
        return StateReading(counters, _by_call(self._names, numbers[format_.calls]), denied)

    def halt(self) -> tuple[int, bool, bool]:
        """Tells for what the guest is halted.

        Returns:
            For how many nanoseconds; whether that counts as idle time of its; whether it waits for stdin.
        """
        offsets = guard().layout.offsets
        return (
            self._number("<Q", offsets["halt_for"]),
            bool(self._number("<I", offsets["resting"])),
            self.wants_stdin(),
        )

    def wants_stdin(self) -> bool:
        """Whether the guest waits for more of stdin."""
        return bool(self._number("<I", guard().layout.offsets["stdin_wanted"]))

    def add_idle(self, seconds: float) -> None:
        """Counts time that the guest has waited."""
        offset = guard().layout.offsets["idle"]
        self.memory.write(offset, struct.pack("<Q", self._number("<Q", offset) + int(seconds * 1e9)))

    def _number(self, code: str, offset: int) -> int:
        number: int = struct.unpack(code, self.memory.read(offset, struct.calcsize(code)))[0]
        return number

    def violations(self, reading: StateReading) -> list[GuardViolation]:
        """Returns what the guard wrote down, in the order of its first time."""
        count = reading.number.violation_count
        layout = guard().layout
        size, start = layout.constants["VIOLATION_SIZE"], layout.offsets["violations"]
        table = self.memory.read(start, count * size)
        return [GuardViolation.unpack(table[at : at + size]) for at in range(0, len(table), size)]

    def events(self, reading: StateReading) -> list[GuardEvent]:
        """Returns the newest events, the oldest of them first."""
        count = reading.number.event_count
        layout = guard().layout
        size, most = layout.constants["VIOLATION_SIZE"], layout.constants["EVENTS_MAX"]
        ring = self.memory.read(layout.offsets["events"], min(count, most) * size)
        places = (number % most * size for number in range(max(0, count - most), count))
        return [GuardEvent.unpack(ring[at : at + size]) for at in places]

    def output(self, reading: StateReading, name: Literal["stdout", "stderr"]) -> tuple[bytes, int]:
        """Returns what a stream keeps, beginning and end, and how many bytes between them were dropped."""
        number = reading.number
        if name == "stdout":
            base, head, cap, total = number.stdout_base, number.stdout_head, number.stdout_cap, number.stdout_total
        else:
            base, head, cap, total = number.stderr_base, number.stderr_head, number.stderr_cap, number.stderr_total
        if not total:
            return b"", 0
        if total <= cap:
            return self.memory.read(base, total), 0
        kept = self.memory.read(base, cap) if cap else b""
        tail = cap - head
        newest = (total - head) % tail if tail else 0
        return kept[:head] + kept[head + newest :] + kept[head : head + newest], total - cap
