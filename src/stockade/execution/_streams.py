"""Output passed on while the guest runs, and input fetched when it asks.

The guard puts output into a ring, and raises a flag when it wants more of stdin. Whenever the guest yields, the ring is
emptied into the callbacks and the flag is answered: on the caller's own thread, between two polls, so a callback is
ordinary Python. What it raises ends the run and reaches the caller.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stockade.errors import UsageError
from stockade.execution._state import STDIN_PIECE_BYTES, TAP_BYTES
from stockade.guard import guard

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine import Memory

__all__ = ["Streams"]

_STDOUT: Final = 1


@dataclass(frozen=True, slots=True)
class Streams:
    """Callbacks of one run.

    Attributes:
        stdin: Is called with a number of bytes and returns at most so many: no bytes at the end, None where there are
            none yet (the guest goes on waiting, under its deadline). Without a callback, stdin is given as bytes.
        stdout: Is given each piece of stdout as the guest wrote it. None: nobody listens.
        stderr: The same for stderr.
    """

    stdin: Callable[[int], bytes | None] | None = None
    stdout: Callable[[bytes], object] | None = None
    stderr: Callable[[bytes], object] | None = None

    @property
    def listening(self) -> bool:
        """Whether somebody wants output as it is written."""
        return self.stdout is not None or self.stderr is not None

    def serve(self, memory: Memory) -> None:
        """Empties the ring and answers the flag.

        Args:
            memory: The guard's memory.
        """
        if self.listening:
            self._pass_on(memory)
        if self.stdin is not None:
            self._answer(memory, self.stdin)

    def _pass_on(self, memory: Memory) -> None:
        offsets = guard().layout.offsets
        (ring,) = struct.unpack("<I", memory.read(offsets["tap"], 4))
        (end,) = struct.unpack("<Q", memory.read(offsets["tap_written"], 8))
        (at,) = struct.unpack("<Q", memory.read(offsets["tap_read"], 8))
        while at < end:
            stream, size = struct.unpack("<II", memory.read(ring + at % TAP_BYTES, 8))
            start = (at + 8) % TAP_BYTES
            first = min(size, TAP_BYTES - start)
            piece = memory.read(ring + start, first) + memory.read(ring, size - first)
            at += (size + 15) & ~7
            # Made free first: a callback that raises must not be given the same piece again.
            memory.write(offsets["tap_read"], struct.pack("<Q", at))
            callback = self.stdout if stream == _STDOUT else self.stderr
            if callback is not None:
                callback(piece)

    def _answer(self, memory: Memory, fetch: Callable[[int], bytes | None]) -> None:
        layout = guard().layout
        (wanted,) = struct.unpack("<I", memory.read(layout.offsets["stdin_wanted"], 4))
        if not wanted:
            return
        piece = fetch(STDIN_PIECE_BYTES)
        if piece is None:
            return
        if len(piece) > STDIN_PIECE_BYTES:
            raise UsageError(
                f"the stdin callback returned {len(piece):,} bytes; it was asked for {STDIN_PIECE_BYTES:,}"
            )
        (place,) = struct.unpack("<I", memory.read(layout.offsets["stdin"], 4))
        memory.write(place, piece)
        mode = layout.constants["STDIN_ASKED" if piece else "STDIN_BYTES"]
        for name, number in (("stdin_read", 0), ("stdin_size", len(piece)), ("stdin_mode", mode), ("stdin_wanted", 0)):
            memory.write(layout.offsets[name], struct.pack("<I", number))
