"""Output passed on while the guest runs, and input fetched when it asks.

The guard puts output into a ring, and raises a flag when it wants more of stdin. Whenever the guest has halted, the
ring is emptied into the callbacks and the flag is answered: on the thread that drives the run, between two polls, so a
callback is ordinary Python. What it raises ends the run and reaches the caller.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final

from stockade.errors import UsageError
from stockade.execution._state import STDIN_PIECE_BYTES, TAP_BYTES
from stockade.execution._steps import FOREVER
from stockade.guard import guard

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine import Memory
    from stockade.execution._steps import Steps
    from stockade.report import Progress

__all__ = ["Streams"]

_STDOUT: Final = 1

_RETRY_SECONDS: Final = 0.01
"""How soon a callback that had nothing is asked again; whoever can tell when there is more wakes the run instead."""

_PROGRESS_SECONDS: Final = 0.1
"""How often progress is told, at most."""


class Streams:
    """Callbacks of one run.

    Args:
        stdin: Is called with a number of bytes and returns at most so many: no bytes at the end, None where there are
            none yet (the guest goes on waiting, under its deadline). Without a callback, stdin is given as bytes.
        stdout: Is given each piece of stdout as the guest wrote it. None: nobody listens.
        stderr: The same for stderr.
        progress: Is told how far the run is, ten times a second.
        wakes: Whether whoever has more of stdin wakes the run. If not, it is asked again and again.

    Attributes:
        retry_seconds: How soon to ask for stdin again where there was none.
    """

    def __init__(
        self,
        stdin: Callable[[int], bytes | None] | None = None,
        stdout: Callable[[bytes], object] | None = None,
        stderr: Callable[[bytes], object] | None = None,
        progress: Callable[[Progress], object] | None = None,
        *,
        wakes: bool = False,
    ) -> None:
        self.stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._progress = progress
        self._next_progress = 0.0
        self.retry_seconds = FOREVER if wakes else _RETRY_SECONDS

    @property
    def listening(self) -> bool:
        """Whether somebody wants output as it is written."""
        return self._stdout is not None or self._stderr is not None

    @property
    def clogged(self) -> bool:
        """Whether output that was passed on has not been taken yet, so that nothing is passed on."""
        return False

    def serve(self, memory: Memory | None, progress: Callable[[], Progress | None]) -> None:
        """Empties the ring, answers the flag, and tells how far the run is.

        Args:
            memory: The guard's memory; None for a guest without a guard, which neither reads nor writes.
            progress: Says how far the run is.
        """
        if memory is not None:
            if self.listening:
                self._pass_on(memory)
            if self.stdin is not None:
                self._answer(memory, self.stdin)
        if self._progress is not None and (now := time.monotonic()) >= self._next_progress:
            self._next_progress = now + _PROGRESS_SECONDS
            told = progress()
            if told is not None:
                self._progress(told)

    def finish(self, memory: Memory | None) -> Steps[None]:
        """Passes the last output on, in steps, when the guest has ended.

        Args:
            memory: The guard's memory, as above.
        """
        if memory is not None and self.listening:
            self._pass_on(memory)
        yield from ()

    def _pass_on(self, memory: Memory) -> None:
        offsets = guard().layout.offsets
        (ring,) = struct.unpack("<I", memory.read(offsets["tap"], 4))
        (end,) = struct.unpack("<Q", memory.read(offsets["tap_written"], 8))
        (at,) = struct.unpack("<Q", memory.read(offsets["tap_read"], 8))
        while at < end and not self.clogged:
            stream, size = struct.unpack("<II", memory.read(ring + at % TAP_BYTES, 8))
            start = (at + 8) % TAP_BYTES
            first = min(size, TAP_BYTES - start)
            piece = memory.read(ring + start, first) + memory.read(ring, size - first)
            at += (size + 15) & ~7
            # Made free first: a callback that raises must not be given the same piece again.
            memory.write(offsets["tap_read"], struct.pack("<Q", at))
            callback = self._stdout if stream == _STDOUT else self._stderr
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
