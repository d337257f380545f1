"""The compiling process as seen from here: started when it is first needed, one for each process of ours.

It is kept, for starting a Python takes longer than compiling most modules. It ends with this process, however that
ends, or when it has had nothing to do for some minutes. A forked child of this process starts its own.
"""

from __future__ import annotations

import atexit
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from typing import IO, TYPE_CHECKING

from stockade._text import printable
from stockade.errors import EngineError
from stockade.worker._fork_server import MESSAGE, REFUSED, STARTED, TAKEN
from stockade.worker._frames import scratch
from stockade.worker._server_process import NO_SIGNAL, ServerProcess, socket_pair

if TYPE_CHECKING:
    from stockade.worker._compile_queue import Turn

__all__ = ["signal_name", "worker"]

_START_SECONDS = 60.0
"""How long a new process may take until it knows of its first job, on a machine that is very busy."""


class _Lost(Exception):  # noqa: N818 - no error: it is started again
    """The compiling process is gone."""


class _Process(ServerProcess):
    """A compiling process that was started."""

    def __init__(self) -> None:
        super().__init__(
            "stockade.worker._child",
            "there is no Python to compile with, for sys.executable is not set: set it, or let the policy say "
            'limits.compile_process = "never"',
        )

    def send(self, descriptors: list[int]) -> None:
        """Hands a job over.

        Raises:
            _Lost: There is nobody to take it.
        """
        try:
            socket.send_fds(self.control, [b"j"], descriptors, NO_SIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            raise _Lost from None


class Worker:
    """Has jobs done in the compiling process. For any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._closed = False
        self._lines: set[socket.socket] = set()

    def run(self, source: IO[bytes], seconds: float, turn: Turn) -> tuple[int | None, IO[bytes]]:
        """Has a job done, and waits for it.

        Args:
            source: A file that says what to do.
            seconds: How long it may take, from when it is begun, of the time that it has the machine for itself.
            turn: The turn in which it is done; where nobody waits for it any more, it is ended.

        Returns:
            Its exit status, negative for the signal that ended it, or None where its time was up; and a file with the
            answer, which the caller closes.

        Raises:
            EngineError: There can be no such process, it ends again and again, or nobody waits for the job any more.
            OSError: The system does not let this process have what that needs.
        """
        try:
            return self._attempt(source, seconds, turn)
        except _Lost:
            pass  # It has ended for want of work, or somebody has ended it.
        try:
            return self._attempt(source, seconds, turn)
        except _Lost as lost:
            (status,) = lost.args or (None,)
        raise EngineError(_why_lost(status))

    def _attempt(self, source: IO[bytes], seconds: float, turn: Turn) -> tuple[int | None, IO[bytes]]:
        # One for each attempt: the one before may have left a part of an answer.
        target = scratch()
        try:
            return self._wait_for(source, target, seconds, turn), target
        except BaseException:
            target.close()
            raise

    def _wait_for(self, source: IO[bytes], target: IO[bytes], seconds: float, turn: Turn) -> int | None:
        line, theirs = socket_pair()
        self._lines.add(line)
        try:
            with theirs:
                process = self._hand_over([source.fileno(), target.fileno(), theirs.fileno()])
            try:
                turn.on_abandoned = partial(_hang_up, line)
                return _wait(line, seconds, turn)
            except _Lost:
                if turn.abandoned:
                    raise EngineError("nobody waits for this any more") from None
                raise _Lost(self._discard(process)) from None
        finally:
            turn.on_abandoned = None
            self._lines.discard(line)
            _hang_up(line)
            line.close()

    def _hand_over(self, descriptors: list[int]) -> _Process:
        with self._lock:
            if self._closed:
                raise EngineError("nothing is compiled any more: this process is ending")
            if self._process is None:
                self._process = _Process()
            process = self._process
            try:
                process.send(descriptors)
            except _Lost:
                raise _Lost(self._discard_locked(process)) from None
            return process

    def _discard(self, process: _Process) -> int | None:
        with self._lock:
            return self._discard_locked(process)

    def _discard_locked(self, process: _Process) -> int | None:
        if self._process is process:
            self._process = None
            process.close()
        return process.popen.returncode

    def close(self) -> None:
        """Ends the compiling process, at the end of this one."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.close()
                self._process = None

    def after_fork(self) -> None:
        """Begins anew in a forked child."""
        self._lock = threading.Lock()
        for line in self._lines:
            line.close()
        self._lines = set()
        if self._process is not None:
            self._process.forget()
            self._process = None


worker = Worker()

atexit.register(worker.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=worker.after_fork)


def _hang_up(line: socket.socket) -> None:
    """Lets the other side know that nobody waits for the job."""
    # A process that was forked meanwhile may have it, too. Where the other end is gone, all is well.
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def _wait(line: socket.socket, seconds: float, turn: Turn) -> int | None:
    """Waits for what is told of a job on its socket."""
    poll = select.poll()
    # Not select(), which cannot wait for descriptors from 1024 on.
    poll.register(line, select.POLLIN)
    last_start = time.monotonic() + _START_SECONDS
    # What the job had had when it began; None before.
    begun: float | None = None
    taken = False
    while True:
        if begun is not None:
            left = seconds - (turn.had() - begun)
        elif taken:
            # Whoever waits for a turn is not charged for it: what comes before is limited itself.
            left = math.inf
        else:
            left = last_start - time.monotonic()
        if left <= 0:
            break
        if turn.abandoned:
            raise _Lost
        # In so much time, it has had no more: where others are at work, less.
        if not poll.poll(None if left == math.inf else math.ceil(left * 1000)):
            continue
        try:
            message = line.recv(MESSAGE.size)
        except ConnectionResetError:
            message = b""
        if len(message) < MESSAGE.size:
            raise _Lost
        what, number = MESSAGE.unpack(message)
        if what == TAKEN:
            taken = True
        elif what == STARTED:
            begun = turn.had()
        elif what == REFUSED:
            raise OSError(number, os.strerror(number))
        else:
            return int(number)
    if begun is not None:
        return None
    raise EngineError(f"no process to compile in has begun within {_START_SECONDS:g} s")


def _why_lost(status: int | None) -> str:
    if status:
        if status > 0:
            return (
                f"the compiling process failed with exit status {status}: check that {printable(sys.executable, 400)} "
                "is a sound Python with this Stockade and its packages"
            )
        return f"the compiling process was ended by {signal_name(status)}, and so was the one that took its place"
    return "the compiling process is gone, and so is the one that took its place"


def signal_name(status: int) -> str:
    """Names the signal that ended a process."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
