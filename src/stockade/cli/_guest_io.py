"""The guest's stdin, stdout and stderr on those of the command: whole, in order, and as they come.

Nothing here waits for another process: where a pipe is full, or stdin has nothing yet, the guest waits, under its
limits, until a thread that watches descriptors and signals says that there is something to do.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
import time
from codecs import getincrementaldecoder
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from stockade._text import terminal_safe
from stockade.cli._encoding import encoded
from stockade.cli._terminal import begun
from stockade.execution import Streams
from stockade.runner import FOREVER, RunControl

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Self, TextIO

    from stockade.execution import StreamState
    from stockade.report import Progress
    from stockade.runner import RunCoroutine

__all__ = ["GuestStreams", "Watcher"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

_PIECE_BYTES: Final = 4096
"""What can be written to a pipe without waiting, if it can be written to at all."""

_PATIENCE_SECONDS: Final = 1.0
"""How long whoever reads our output may take nothing of it before the rest is given up, when the guest was stopped."""


def _take_note(number: int, frame: FrameType | None) -> None:
    """Handles a signal: it goes to the watcher by the descriptor that Python writes it to."""


class Watcher:
    """A thread that waits for descriptors to become ready and for signals, and tells a run. A context manager.

    The first Ctrl-C or SIGTERM cancels the run, so that it can be reported on; the second ends the process.

    Attributes:
        signal: The signal that ended the run; 0 where none did.
        control: The control of the run.
    """

    def __init__(self) -> None:
        self.signal = 0
        # Until there is a run, one that nothing comes of: so there is always one to cancel.
        self.control = RunControl()
        self._lock = threading.Lock()
        self._wanted: dict[int, int] = {}
        self._stopped = False
        self._inbox, self._outbox = os.pipe()
        # A handler must never wait; a pipe that is full has woken the thread already.
        os.set_blocking(self._outbox, False)
        self._handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._thread = threading.Thread(target=self._watch, name="stockade-watcher", daemon=True)

    def __enter__(self) -> Self:
        # Before the handlers, which do nothing themselves: no signal may come to nothing.
        signal.set_wakeup_fd(self._outbox, warn_on_full_buffer=False)
        for number in _SIGNALS:
            # Whoever started us may want it ignored, as nohup does.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, _take_note)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self._stopped = True
        self._poke()
        self._thread.join()
        os.close(self._inbox)
        os.close(self._outbox)

    def attach(self, control: RunControl) -> None:
        """Says which run is told.

        Args:
            control: The control of the run.
        """
        self.control = control
        if self.signal:
            control.cancel()

    def want(self, descriptor: int, events: int) -> None:
        """Has the run told when a descriptor becomes ready, once.

        Args:
            descriptor: The descriptor.
            events: What it has to be ready for, as `select.poll` says it.
        """
        with self._lock:
            if self._wanted.get(descriptor) == events:
                return
            self._wanted[descriptor] = events
        self._poke()

    def finish(self, work: Callable[[], object]) -> bool:
        """Does work that nothing can interrupt on a thread of its own, and waits for it, but not beyond a signal.

        Args:
            work: What to do; it may be left undone when the process ends.

        Returns:
            Whether it is done.
        """
        thread, problems = begun(work)
        while thread.is_alive() and not self.signal:
            thread.join(0.05)
        if problems:
            raise problems[0]
        return not self.signal

    def _poke(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._outbox, b"\0")

    def _watch(self) -> None:
        while not self._stopped:
            poll = select.poll()
            poll.register(self._inbox, select.POLLIN)
            with self._lock:
                for descriptor, events in self._wanted.items():
                    poll.register(descriptor, events)
            for descriptor, _ in poll.poll():
                if descriptor == self._inbox:
                    for number in os.read(self._inbox, 4096):
                        if number in self._handlers:
                            self._interrupt(number)
                    continue
                with self._lock:
                    self._wanted.pop(descriptor, None)
                self.control.wake()

    def _interrupt(self, number: int) -> None:
        if self.signal:
            # Somebody means it.
            os._exit(128 + number)
        self.signal = number
        self.control.cancel()


class _Output:
    """One of the command's own streams, which takes what a guest writes as far as that does not make us wait.

    So it goes past the stream to its descriptor; on a terminal it is made harmless first, as there.

    Args:
        stream: The stream.
        watcher: Tells when it can be written to again.
        failing: Whether what cannot be written ends the run; else it is lost, for stderr is beside the exit status.
    """

    def __init__(self, stream: TextIO, watcher: Watcher, *, failing: bool) -> None:
        stream.flush()
        self._failing = failing
        self._broken = False
        self._stream = stream
        self._watcher = watcher
        self._descriptor = stream.fileno()
        self._is_terminal = stream.isatty()
        mode = os.fstat(self._descriptor).st_mode
        self._never_waits = stat.S_ISREG(mode)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)
        # A character may be cut in two by the border between two pieces, and so may the end of a line.
        self._decode = getincrementaldecoder("utf-8")("backslashreplace").decode
        self._held = ""
        self._rest = memoryview(b"")
        self.problem: OSError | None = None
        self.written = 0

    @property
    def has_rest(self) -> bool:
        """Whether something has not been written yet."""
        return bool(self._rest)

    def put(self, piece: bytes) -> None:
        """Writes a piece as far as it goes; only where there is no rest of the one before."""
        if self._broken:
            return
        if self._is_terminal:
            piece = self._made_harmless(self._decode(piece))
        self._rest = memoryview(piece)
        self.flush()

    def end(self) -> None:
        """Writes what cannot become a character any more."""
        if self._is_terminal and not self._broken:
            self._rest = memoryview(self._made_harmless(self._decode(b"", final=True), last=True))
            self.flush()

    def _made_harmless(self, text: str, *, last: bool = False) -> bytes:
        text, self._held = self._held + text, ""
        if text.endswith("\r") and not last:
            text, self._held = text[:-1], "\r"
        return encoded(terminal_safe(text.encode()), self._stream.encoding)

    def flush(self) -> None:
        """Writes the rest as far as it goes."""
        try:
            while self._rest:
                if not (self._never_waits or self._poll.poll(0)):
                    self._watcher.want(self._descriptor, select.POLLOUT)
                    return
                most = len(self._rest) if self._never_waits else _PIECE_BYTES
                count = os.write(self._descriptor, self._rest[:most])
                self.written += count
                self._rest = self._rest[count:]
        except BlockingIOError:
            self._watcher.want(self._descriptor, select.POLLOUT)
        except OSError as problem:
            self._broken = True
            self._rest = memoryview(b"")
            if self._failing:
                # Nobody reads it, or there is no room: there is no use in running on.
                self.problem = problem
                self._watcher.control.cancel()

    def give_up(self) -> int:
        """Drops the rest; returns how much it was."""
        lost = len(self._rest)
        self._rest = memoryview(b"")
        return lost


class GuestStreams(Streams):
    """The streams of one run.

    Args:
        watcher: Tells the run when there is something to do.
        reads: Whether the guest's stdin is ours.
        shows: Whether its output goes to ours.

    Attributes:
        lost_bytes: How much of the output nobody took.
    """

    def __init__(self, watcher: Watcher, *, reads: bool, shows: bool) -> None:
        self._watcher = watcher
        self.lost_bytes = 0
        self._outputs: dict[str, _Output] = {}
        if shows:
            self._outputs = {
                "stdout": _Output(sys.stdout, watcher, failing=True),
                "stderr": _Output(sys.stderr, watcher, failing=False),
            }
        self._input = select.poll()
        self._input.register(0, select.POLLIN)
        super().__init__(
            self._read if reads else None,
            self._outputs["stdout"].put if shows else None,
            self._outputs["stderr"].put if shows else None,
            wakes=True,
        )

    @property
    def problem(self) -> OSError | None:
        """Why output could not be written."""
        return next((output.problem for output in self._outputs.values() if output.problem), None)

    @property
    def clogged(self) -> bool:
        """Whether output that was passed on has not been taken yet."""
        return any(output.has_rest for output in self._outputs.values())

    def serve(self, state: StreamState | None, progress: Callable[[], Progress | None]) -> None:
        """Does what streams do, where the last output has been taken."""
        self._flush()
        super().serve(state, progress)

    def finish(self, state: StreamState | None) -> RunCoroutine[bool]:
        """Passes the last output on, in steps.

        A guest that came to its end in time has no time left to lose: its output waits for whoever reads it. That of
        one that was stopped is given up when nobody takes anything of it any more.
        """
        if not self._outputs:
            return True
        control = self._watcher.control
        in_time = control()
        written, patience = self._written(), time.monotonic() + _PATIENCE_SECONDS
        while True:
            self._flush()
            if state is not None:
                self._pass_on(state)
            if not self.clogged:
                if self.pass_rest():
                    continue
                break
            if (now_written := self._written()) != written:
                written, patience = now_written, time.monotonic() + _PATIENCE_SECONDS
            stopped = control.cancelled or not in_time
            if stopped and time.monotonic() >= patience:
                self._give_up(state)
                break
            yield patience if stopped else FOREVER
        for output in self._outputs.values():
            output.end()
        return True

    def _flush(self) -> None:
        for output in self._outputs.values():
            output.flush()

    def _written(self) -> int:
        return sum(output.written for output in self._outputs.values())

    def _give_up(self, state: StreamState | None) -> None:
        self.lost_bytes += sum(output.give_up() for output in self._outputs.values())
        while state is not None and (output := state.take_output()) is not None:
            self.lost_bytes += len(output[1])
        if self.gate is not None:
            self.lost_bytes += sum(len(piece) for _, piece in self.gate.rest())

    def _read(self, size: int) -> bytes | None:
        """Fetches a piece of our own stdin, if there is one."""
        try:
            if self._input.poll(0):
                return os.read(0, size)
        except BlockingIOError:
            pass
        except OSError:
            return b""
        self._watcher.want(0, select.POLLIN)
        return None
