"""The ring of the trace as the host sees it: what is asked of the guard, and what that has written (`trace.wat`)."""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade._wasi import WASI
from stockade.guard._source import guard
from stockade.guard._trace_code import TRACED_VALUES

if TYPE_CHECKING:
    from stockade.guard._state import State

__all__ = [
    "MOST_STRING_BYTES",
    "TraceEntry",
    "TraceRing",
    "entries_in",
    "lost_entries",
    "take_entries",
    "take_slots",
    "traced_numbers",
]

MOST_STRING_BYTES: Final = 4096
"""What can be kept of a path or of data, at most: no path of WASI is longer."""

_RING_BYTES: Final = 1 << 20
_LEAST_SLOTS: Final = 64

_SLOW_GROUPS: Final = frozenset({"fd", "path", "poll", "sock", "sched"})
"""Calls that can wait, or go to the file system, where reading the clock is little beside them."""

_PIECE_SLOTS: Final = 256
"""Entries that are taken out at once."""


class TraceRing(NamedTuple):
    """What is traced, and in how much room.

    Attributes:
        calls: The WASI calls, and `HOST_CALLS` for functions of the embedder.
        string_bytes: How much is kept of a path, or of data.
        durations: Of which calls the duration is measured: `io`, those that can wait or go to the file system; `all`;
            or `none`.
        waits: Whether the guest waits where the ring is full; else entries are lost.
    """

    calls: frozenset[str]
    string_bytes: int
    durations: str
    waits: bool

    @property
    def slot_bytes(self) -> int:
        """How long an entry is."""
        texts: int = guard().layout.constants["TRACE_TEXTS"]
        return texts + 2 * self.string_bytes

    @property
    def slots(self) -> int:
        """How many entries there is room for: a power of two."""
        most = _RING_BYTES // self.slot_bytes
        return max(_LEAST_SLOTS, 1 << (most.bit_length() - 1))

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return self.slots * self.slot_bytes

    def write(self, block: bytearray, at: int) -> None:
        """Puts into a state what is traced.

        Args:
            block: The state.
            at: Where the ring lies in the guard's memory.
        """
        layout = guard().layout
        fields = {
            "trace": at,
            "trace_slots": self.slots,
            "trace_slot_size": self.slot_bytes,
            "trace_strings": self.string_bytes,
            "trace_waits": int(self.waits),
        }
        for name, number in fields.items():
            layout.write(block, name, number)
        rules = layout.offsets["trace_rules"] - layout.block
        for call in WASI:
            if call.name in self.calls:
                block[rules + call.number] = self._rule(is_slow=call.group in _SLOW_GROUPS)
        from stockade.guard._records import HOST_CALLS

        if HOST_CALLS in self.calls:
            block[rules + layout.constants["HOST"]] = self._rule(is_slow=True)

    def _rule(self, *, is_slow: bool) -> int:
        names = {"all": "TRACE_TIMED", "none": "TRACE_PLAIN", "io": "TRACE_SLOW" if is_slow else "TRACE_PLAIN"}
        rule: int = guard().layout.constants[names[self.durations]]
        return rule


class TraceEntry(NamedTuple):
    """An entry of the trace: what was called, as numbers and bytes.

    Attributes:
        sequence: Its number; of the rest of an entry, that of its beginning.
        number: The number of the call.
        has_returned: Whether the call has.
        is_rest: Whether only what came after the beginning is to be believed: arguments, and when it began, are not.
        errno: What it returned.
        began: When it began, in nanoseconds since the instance was made.
        ended: When it had returned; None where that is not measured, or it has not.
        is_timed: Whether it was measured when it began.
        arguments: Its parameters, as unsigned numbers.
        answers: Up to two numbers that it has answered; None where it has not.
        texts: Up to two texts, as far as they were kept; None where one is not in the guest's memory.
        lengths: How long these are.
    """

    sequence: int
    number: int
    has_returned: bool
    is_rest: bool
    errno: int
    began: int
    ended: int | None
    is_timed: bool
    arguments: tuple[int, ...]
    answers: tuple[int | None, int | None]
    texts: tuple[bytes | None, bytes | None]
    lengths: tuple[int, int]


@cache
def _head() -> struct.Struct:
    """How an entry begins, up to its texts."""
    head = struct.Struct(f"<BBBBIQQQ{TRACED_VALUES}Q2Q2I")
    assert head.size == guard().layout.constants["TRACE_TEXTS"]
    return head


def take_entries(state: State) -> list[TraceEntry]:
    """Takes entries out of the ring, the oldest first; not all at once where there are many.

    Args:
        state: The guard's state.
    """
    data = take_slots(state, _PIECE_SLOTS)
    return entries_in(data, state.get("trace_slot_size", "<I"), state.get("trace_strings", "<I")) if data else []


def take_slots(state: State, most: int) -> bytes:
    """Takes entries out of the ring as they are, the oldest first.

    Args:
        state: The guard's state.
        most: How many at most.
    """
    written, read = state.get("trace_written", "<Q"), state.get("trace_read", "<Q")
    if written == read:
        return b""
    ring, slots = state.get("trace", "<I"), state.get("trace_slots", "<I")
    size = state.get("trace_slot_size", "<I")
    first = read % slots
    count = min(written - read, slots - first, most)
    data: bytes = state.memory.read(ring + first * size, count * size)
    # Taken first: whoever is told of them may raise, and must not be told again.
    state.put("trace_read", "<Q", read + count)
    return data


def entries_in(data: bytes, slot_bytes: int, string_bytes: int) -> list[TraceEntry]:
    """Reads entries.

    Args:
        data: What was taken out of the ring.
        slot_bytes: How long an entry is.
        string_bytes: How much is kept of a text.
    """
    return [_entry(data, at, string_bytes) for at in range(0, len(data), slot_bytes)]


def traced_numbers(ring: TraceRing) -> frozenset[int]:
    """Returns the numbers of the calls of which there may be entries.

    Args:
        ring: What is traced.
    """
    from stockade.guard._records import HOST_CALLS

    numbers = {call.number for call in WASI if call.name in ring.calls}
    return frozenset(numbers | ({guard().layout.constants["HOST"]} if HOST_CALLS in ring.calls else set()))


def _entry(data: bytes, at: int, strings: int) -> TraceEntry:
    constants = guard().layout.constants
    head = _head().unpack_from(data, at)
    number, state, has, flags, errno, sequence, began, ended = head[:8]
    arguments, answers, lengths = head[8 : 8 + TRACED_VALUES], head[-4:-2], head[-2:]
    texts = []
    for which, length in enumerate(lengths):
        start = at + constants["TRACE_TEXTS"] + which * strings
        texts.append(None if flags & (1 << which) else data[start : start + min(length, strings)])
    return TraceEntry(
        sequence,
        number,
        state != 0,
        state == constants["TRACE_REST"],
        errno,
        began,
        ended or None,
        bool(flags & constants["TRACE_HAS_TIME"]),
        arguments,
        (answers[0] if has & 1 else None, answers[1] if has & 2 else None),
        (texts[0], texts[1]),
        lengths,
    )


def lost_entries(state: State) -> int:
    """Tells for how many entries there was no room.

    Args:
        state: The guard's state.
    """
    return state.get("trace_lost", "<Q")
