"""Output passed on while the guest runs, and input fetched when it asks.

The guard puts output into a ring. Whenever the guest has halted, the ring is emptied into the callbacks, and a guest
that is parked for stdin gets more of it: on the thread that drives the run, between two polls, so a callback is
ordinary Python. What it raises ends the run and reaches the caller.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from stockade._outside import call_outside
from stockade.errors import UsageError
from stockade.guard import STDIN_PIECE_BYTES
from stockade.runner import FOREVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.gate import GateRun
    from stockade.report import Progress
    from stockade.runner import RunCoroutine

__all__ = ["StreamState", "Streams"]

_RETRY_SECONDS: Final = 0.01
"""How soon a callback that had nothing is asked again; whoever can tell when there is more wakes the run instead."""

_PROGRESS_SECONDS: Final = 0.1
"""How often progress is told, at most."""


class StreamState(Protocol):
    """Where output comes from and input goes: the guard's state, or what stands for one in another process."""

    def take_output(self) -> tuple[str, bytes] | None:
        """Takes the oldest piece of output, and says of which stream it is; None where there is none."""

    def give_stdin(self, data: bytes) -> object:
        """Gives the guest more of its standard input; no bytes are its end."""


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
        calls_out: Whether a function of the embedder is asked for stdin.
        gate: What looks at output before it is passed on; None where nothing is looked for.
        retry_seconds: How soon to ask for stdin again where there was none.
    """

    gate: GateRun | None = None

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
        self.calls_out = stdin is not None and not wakes

    @property
    def listening(self) -> bool:
        """Whether somebody wants output as it is written."""
        return self._stdout is not None or self._stderr is not None

    @property
    def listening_to_both(self) -> bool:
        """Whether somebody wants both streams of output."""
        return self._stdout is not None and self._stderr is not None

    @property
    def clogged(self) -> bool:
        """Whether output that was passed on has not been taken yet, so that nothing is passed on."""
        return False

    def serve(self, state: StreamState | None, progress: Callable[[], Progress | None]) -> None:
        """Empties the ring, and tells how far the run is.

        Args:
            state: The guard's state; None for a guest without a guard, which neither reads nor writes.
            progress: Says how far the run is.
        """
        if state is not None and self.listening:
            self._pass_on(state)
        if self._progress is not None and (now := time.monotonic()) >= self._next_progress:
            self._next_progress = now + _PROGRESS_SECONDS
            told = progress()
            if told is not None:
                self._progress(told)

    def finish(self, state: StreamState | None) -> RunCoroutine[bool]:
        """Passes the last output on, in steps, when the guest has ended.

        Args:
            state: The guard's state, as above.

        Returns:
            Whether all of it was taken while there was time.
        """
        if state is not None and self.listening:
            self._pass_on(state)
        self.pass_rest()
        yield from ()
        return True

    def _pass_on(self, state: StreamState) -> None:
        # Taken first: a callback that raises must not be given the same piece again.
        while not self.clogged and (output := state.take_output()) is not None:
            if self.gate is None:
                self._give(*output)
                continue
            for stream, piece in self.gate.pass_on(*output):
                self._give(stream, piece)

    def pass_rest(self) -> bool:
        """Passes on what a gate has held, for there is no more; says whether there was something."""
        rest = [] if self.gate is None else self.gate.rest()
        for stream, piece in rest:
            self._give(stream, piece)
        return bool(rest)

    def _give(self, stream: str, piece: bytes) -> None:
        callback = self._stdout if stream == "stdout" else self._stderr
        if callback is not None and piece:
            callback(piece)

    def answer(self, state: StreamState) -> bool:
        """Gives a guest that is parked for stdin more of it; says whether there was something, or it is at its end.

        Args:
            state: The guard's state.

        Raises:
            UsageError: The callback returned more than it was asked for.
        """
        if self.stdin is None:
            return False
        piece = call_outside(self.stdin, STDIN_PIECE_BYTES)
        if piece is None:
            return False
        if len(piece) > STDIN_PIECE_BYTES:
            raise UsageError(
                f"the stdin callback returned {len(piece):,} bytes; it was asked for {STDIN_PIECE_BYTES:,}"
            )
        state.give_stdin(piece)
        return True
