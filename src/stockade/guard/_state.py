"""The guard's state as the host writes and reads it."""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from stockade._pages import PAGE_BYTES
from stockade._wasi import WASI
from stockade.guard._inputs import OUTPUT_RING_BYTES
from stockade.guard._records import HOST_CALLS, GuardEvent, GuardViolation, call_name
from stockade.guard._source import StateFormat, guard

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from stockade.engine import Memory
    from stockade.guard._inputs import StateImage

__all__ = [
    "Counters",
    "Glance",
    "State",
    "StateReading",
    "Wait",
    "fields_kept",
    "state_format",
    "stop_reasons",
]


class Counters(NamedTuple):
    """What the guard counted and noted, field by field as `guard.wat` has it."""

    memory_used: int
    table_used: int
    open_now: int
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
    violation_kinds: int
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
    open_peak: int
    created: int
    deleted: int
    violations_dropped: int
    event_count: int


def state_format(asked: Collection[str]) -> tuple[StateFormat, tuple[str, ...]]:
    """Returns how to read a guest's state, and the names of the calls that it can make, in the order of the format.

    Args:
        asked: The WASI calls that it imports; `HOST_CALLS` where it imports functions of the embedder.
    """
    numbers = {call.name: call.number for call in WASI if call.name in asked}
    if HOST_CALLS in asked:
        numbers[HOST_CALLS] = guard().layout.constants["HOST"]
    format_ = StateFormat(guard().layout, list(numbers.values()), guard().memory_bytes)
    assert format_.names == Counters._fields, "Counters and guard.wat tell the same fields in the same order"
    return format_, tuple(numbers)


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

    @property
    def refused_growth(self) -> bool:
        """Whether memory or a table was refused."""
        return any(self.number[_GROWTH])  # type: ignore[arg-type] # a slice is a tuple

    @property
    def refused_growths(self) -> int:
        """How often memory or a table was refused."""
        number = self.number
        tables = number.table_refusals + number.table_memory_refusals + number.table_growth_refusals
        return number.memory_refusals + number.growth_refusals + tables

    @property
    def has_files(self) -> bool:
        """Whether it has waited, or done anything with files or randomness."""
        return any(self.number[_FILES])  # type: ignore[arg-type] # a slice is a tuple


Glance: TypeAlias = tuple[int, int, bytes, bytes, dict[str, int]]
"""What most runs come to: the bytes of memories and tables, the elements of tables, what was written to stdout and to
stderr, and how often which call was made."""

# Makes a named tuple without a line of Python.
_tuple: Final = tuple.__new__

_STDOUT: Final = slice(Counters._fields.index("stdout_base"), Counters._fields.index("stdout_total") + 1)
_STDERR: Final = slice(Counters._fields.index("stderr_base"), Counters._fields.index("stderr_total") + 1)
_GROWTH: Final = slice(Counters._fields.index("memory_refusals"), Counters._fields.index("growth_asked"))
_FILES: Final = slice(Counters._fields.index("idle"), Counters._fields.index("violations_dropped"))


def _by_call(names: Sequence[str], counts: Sequence[int]) -> dict[str, int]:
    if 0 in counts:
        return {name: count for name, count in zip(names, counts, strict=True) if count} if any(counts) else {}
    return dict(zip(names, counts))  # noqa: B905 - they are as long, and asking takes as long again


@cache
def stop_reasons() -> dict[int, str]:
    """Returns why the guard ends a run, by its numbers: `memory`, `host_memory` or `denied`."""
    constants = guard().layout.constants.items()
    return {number: name.removeprefix("STOP_").lower() for name, number in constants if name.startswith("STOP_")}


def fields_kept() -> dict[str, str]:
    """Returns for limits by their names whether what is used of them is kept for a `session` or for a `call`."""
    return guard().layout.kept()


@cache
def _token_names() -> dict[int, str]:
    """The names of tokens, by where they lie."""
    return {address: name for name, address in guard().layout.offsets.items() if name.endswith("_tokens")}


class Wait(NamedTuple):
    """What a guest that is parked waits for; it goes on when one of its reasons holds.

    Attributes:
        seconds: How long it waits at most; None where time alone is no reason.
        stdin: Whether more of stdin, or its end, is a reason.
        room: Whether it is that the host has taken output.
        at_once: Whether it only lets the host look: it goes on as soon as that is done.
        tokens: The name of the tokens of which there must be some; None where they are no reason.
        amount: How many.
        call: The call that waits.
        waited_seconds: How long it has waited before, for the same.
        grows: Whether one of its memories is about to grow, beside a heap of objects.
        has_grown: Whether one has grown, or has not.
    """

    seconds: float | None
    stdin: bool
    room: bool
    at_once: bool
    tokens: str | None
    amount: int
    call: str
    waited_seconds: float
    grows: bool = False
    has_grown: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether the guest itself wants to wait, as opposed to being kept waiting."""
        return (self.seconds is not None or self.stdin) and not self.at_once


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

    def write(self, placed: StateImage) -> None:
        """Writes the state and the inputs behind it, before the guest's first instruction."""
        memory, (block, reach_bytes, _, where) = self.memory, placed
        if reach_bytes <= len(memory.page):
            memory.page[where] = block
        else:
            memory.grow_to(reach_bytes)
            memory.write(where.start, block)

    def renew(self, block: bytes) -> None:
        """Begins counting anew, for the next call of a session. What is left of its quotas stays as it is.

        Args:
            block: The state as it was at first.
        """
        layout = guard().layout
        start, end = layout.call.start, layout.call.stop
        self.memory.write(start, block[start - layout.block : end - layout.block])
        self.put("open_peak", "<Q", self.get("open_now", "<Q"))

    def glance(self) -> Glance | None:
        """Reads what most runs come to; None where there is more to tell.

        That is so where the guest left with an exit code, was refused or stopped, has waited, has opened files or been
        handed randomness, or has written more than is kept.
        """
        format_, page = self._format, self.memory.page
        # fmt: off
        (
            memory_bytes, elements, open_now, out_base, _, out_cap, out_total, err_base, _, err_cap, err_total,
            seldom, *calls,
        ) = format_.glance_from(page, format_.start)
        # fmt: on
        if open_now or seldom != format_.nothing or out_total > out_cap or err_total > err_cap:
            return None
        stdout = stderr = b""
        if out_total:
            end = out_base + out_total
            stdout = page[out_base:end].tobytes() if end <= PAGE_BYTES else self.memory.read(out_base, out_total)
        if err_total:
            stderr = self.memory.read(err_base, err_total)
        return memory_bytes, elements, stdout, stderr, _by_call(self._names, calls)

    def read(self) -> StateReading:
        """Reads all counters."""
        format_, names = self._format, self._names
        # The first page has all of it.
        numbers = format_.unpack_from(self.memory.page, format_.start)
        counters = _tuple(Counters, numbers[: format_.calls.start])
        # Whatever is refused is an event.
        denied = _by_call(names, numbers[format_.denied]) if counters.event_count else {}
        return _tuple(StateReading, (counters, _by_call(names, numbers[format_.calls]), denied))

    # -- between two calls --------------------------------------------------------------------------------------------

    def open_files(self) -> int:
        """Returns how many files and folders the guest has open."""
        return self.get("open_now", "<Q")

    def changed_descriptors(self) -> list[int]:
        """Returns the descriptors that are not what they began as, for they were closed or renumbered."""
        layout = guard().layout
        constants, mounts = layout.constants, self.get("mounts", "<I")
        kinds = self.memory.read(layout.offsets["kinds"], constants["MAX_DESCRIPTORS"])
        first = [constants["STDIN"] + number for number in range(3)] + [constants["MOUNT"]] * mounts
        began = bytes(first).ljust(len(kinds), bytes([constants["CLOSED"]]))
        return [number for number, kind in enumerate(kinds) if kind and kind != began[number]] if any(kinds) else []

    def has_untaken_output(self) -> bool:
        """Whether there is output in the ring that the host has not taken."""
        return self.get("tap_read", "<Q") != self.get("tap_written", "<Q")

    # -- while the guest is halted ------------------------------------------------------------------------------------

    def wait(self) -> Wait:
        """Tells what a guest that is parked waits for."""
        constants = guard().layout.constants
        reason = self.get("wait_reason", "<I")
        return Wait(
            seconds=self.get("wait_nanoseconds", "<Q") / 1e9 if reason & constants["FOR_TIME"] else None,
            stdin=bool(reason & constants["FOR_STDIN"]),
            room=bool(reason & constants["FOR_ROOM"]),
            at_once=bool(reason & (constants["FOR_NOW"] | constants["FOR_GROWTH"] | constants["FOR_HEAP"])),
            grows=bool(reason & constants["FOR_GROWTH"]),
            has_grown=bool(reason & constants["FOR_HEAP"]),
            tokens=_token_names()[self.get("wait_bucket", "<I")] if reason & constants["FOR_TOKENS"] else None,
            amount=self.get("wait_amount", "<Q"),
            call=call_name(self.get("wait_call", "<I")),
            waited_seconds=self.get("waited", "<Q") / 1e9,
        )

    def add_idle(self, seconds: float) -> None:
        """Counts time that the guest has waited."""
        nanoseconds = round(seconds * 1e9)
        for name in ("idle", "waited"):
            self.put(name, "<Q", self.get(name, "<Q") + nanoseconds)

    def give_stdin(self, piece: bytes) -> None:
        """Puts the next piece of stdin in place; one without bytes is its end."""
        self.memory.write(self.get("stdin", "<I"), piece)
        mode = guard().layout.constants["STDIN_ASKED" if piece else "STDIN_BYTES"]
        for name, number in (("stdin_read", 0), ("stdin_size", len(piece)), ("stdin_mode", mode)):
            self.put(name, "<I", number)

    def take_output(self) -> tuple[Literal["stdout", "stderr"], bytes] | None:
        """Takes the next piece of output out of the ring; None where there is none."""
        at = self.get("tap_read", "<Q")
        if at == self.get("tap_written", "<Q"):
            return None
        ring = self.get("tap", "<I")
        stream, size = struct.unpack("<II", self.memory.read(ring + at % OUTPUT_RING_BYTES, 8))
        start = (at + 8) % OUTPUT_RING_BYTES
        first = min(size, OUTPUT_RING_BYTES - start)
        piece = self.memory.read(ring + start, first) + self.memory.read(ring, size - first)
        self.put("tap_read", "<Q", at + ((size + 15) & ~7))
        return ("stdout" if stream == 1 else "stderr"), piece

    def get(self, name: str, code: str) -> int:
        """Reads one field."""
        number: int = struct.unpack(code, self.memory.read(guard().layout.offsets[name], struct.calcsize(code)))[0]
        return number

    def put(self, name: str, code: str, number: int) -> None:
        """Writes one field."""
        self.memory.write(guard().layout.offsets[name], struct.pack(code, number))

    # -- when the guest has come to its end ---------------------------------------------------------------------------

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
        base, head, cap, total = tuple.__getitem__(reading.number, _STDOUT if name == "stdout" else _STDERR)
        if total <= cap:
            return self.memory.read(base, total), 0
        kept = self.memory.read(base, cap) if cap else b""
        tail = cap - head
        newest = (total - head) % tail if tail else 0
        return kept[:head] + kept[head + newest :] + kept[head : head + newest], total - cap
