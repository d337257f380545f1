"""Batches that are written by a process beside this one, where they are large: so that it takes no time of the runs.

There is one such process for all logs, started when a batch is large for the first time. Where it is not there yet, not
any more, or cannot be had, batches are written here. So nothing depends on it.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections import deque
from contextlib import suppress
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Final

import msgspec

from stockade._locks import new_lock
from stockade.audit._packed import join
from stockade.audit._records import number
from stockade.audit._writer import READY, Answer, begin_to_send, is_readable, receive, send
from stockade.errors import AuditError, EngineError
from stockade.system import NO_SIGNAL, ServerProcess, socket_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stockade.audit._chain_file import ChainFile
    from stockade.audit._lines import KindTexts
    from stockade.audit._records import Noted

__all__ = ["Aside"]

_RETRY_SECONDS: Final = 60.0
"""How long nobody tries again to start the process, where it could not be started."""

_START_SECONDS: Final = 1.0
"""How long events wait for a process that is starting."""


class _Writer:
    """The process that writes, as seen from here. For any number of threads."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._process: ServerProcess | None = None
        self._is_ready = False
        self._not_before = 0.0
        # Until when it is expected to be ready.
        self._soon = 0.0

    def connect(self) -> socket.socket | None:
        """Returns a line to it, over which one log is written; None where there is no process, or not yet."""
        with self._lock:
            process = self._started()
            if process is None:
                return None
            ours, theirs = socket_pair()
            with theirs:
                try:
                    socket.send_fds(process.control, [b"l"], [theirs.fileno()], NO_SIGNAL)
                except OSError:
                    ours.close()
                    self._end()
                    return None
            return ours

    @property
    def is_ready(self) -> bool:
        """Whether it takes logs, as far as is known."""
        return self._process is not None and self._is_ready

    def is_starting(self) -> bool:
        """Says whether it was started, and takes logs soon."""
        with self._lock:
            return self._process is not None and self._started() is None and time.monotonic() < self._soon

    def _started(self) -> ServerProcess | None:
        """Starts it, where there is none; returns it when it takes logs."""
        if self._process is None:
            if time.monotonic() < self._not_before:
                return None
            try:
                self._process = ServerProcess("stockade.audit._writer", "there is no Python to write audit logs with")
            except (EngineError, OSError):
                self._not_before = time.monotonic() + _RETRY_SECONDS
                return None
            self._is_ready = False
            self._soon = time.monotonic() + _START_SECONDS
        if not self._is_ready:
            try:
                self._is_ready = self._process.control.recv(1, socket.MSG_DONTWAIT) == READY
            except BlockingIOError:
                return None
            except OSError:
                self._is_ready = False
            if not self._is_ready:
                self._not_before = time.monotonic() + _RETRY_SECONDS
                self._soon = 0.0
                self._end()
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def leave(self) -> None:
        """Has it end when all that it was given is written."""
        process, self._process = self._process, None
        if process is not None:
            process.leave()

    def forget(self) -> None:
        """Lets go of it, in a forked child: it is the parent's."""
        process, self._process = self._process, None
        if process is not None:
            process.forget()


_writer: Final = _Writer()


class _Line:
    """The line to the other process, over which one log is written.

    Args:
        socket: Its end here.

    Attributes:
        socket: Its end here.
        known: How many kinds of runs the other end knows.
        rest: What is left to send of a batch; empty where all was sent.
        answer: An answer that has come and nobody has looked after; None for none.
    """

    __slots__ = ("answer", "known", "rest", "socket")

    def __init__(self, socket: socket.socket) -> None:
        self.socket = socket
        self.known = 0
        self.rest: memoryview | bytes = b""
        self.answer: Answer | None = None


class Aside:
    """Has batches of one log written by the other process. For one thread at a time.

    Whoever hands a batch over may be interrupted between any two steps, by the handler of a signal that raises, waits
    for the log, or forks. Another thread then breaks its line off: what it still does there fails, and touches nothing
    else. So a batch is on the list of those under way from when it is taken out of its queue, with its line.

    Args:
        file: The log.
        writer: Returns who notes its events.
        texts: What the lines of runs have in common, by the numbers of their kinds; grows.

    Attributes:
        is_unsure: Whether the other process may have written what comes next, and has ended before it could say so.
    """

    def __init__(self, file: ChainFile[Noted], writer: Callable[[], str], texts: Mapping[int, KindTexts]) -> None:
        self._file = file
        self._writer = writer
        self._texts = texts
        # Where the other process writes next, at the earliest.
        self._end = 0
        self.is_unsure = False
        self._line: _Line | None = None
        # Lines that were broken off, for whoever still has one.
        self._broken: list[_Line] = []
        # Batches that were not answered, each with its line: one, but for what came of interruptions.
        self._under_way: deque[tuple[_Line, list[Noted]]] = deque()

    @property
    def is_ready(self) -> bool:
        """Whether the other process is there: for this log, or for others and then for this one, too."""
        return self._line is not None or (_writer.is_ready and not self.is_unsure)

    @property
    def is_starting(self) -> bool:
        """Whether the other process is going to be there soon."""
        return self._line is None and _writer.is_starting()

    @property
    def awaits(self) -> bool:
        """Whether anything was handed over that is not known to be written."""
        return bool(self._under_way)

    @property
    def waiting(self) -> int:
        """How many events were handed over and are not known to be written."""
        return sum(len(batch) for _, batch in tuple(self._under_way))

    def hand_over(self, queue: deque[Noted], most: int) -> bool:
        """Hands over what is in a queue, where the batch before was written; waits for nothing.

        Args:
            queue: The queue.
            most: How many events to hand over at most.

        Returns:
            Whether all is well; if not, somebody has to `collect`, and to `feed`.
        """
        line = self._line
        if line is None or line.rest or self.is_unsure:
            return False
        under_way = self._under_way
        if under_way:
            before = under_way[0]
            if before[0] is not line:
                return False
            if not is_readable(line.socket):
                return True
            answer = _answer_of(line)
            if answer is None:
                return False
            if answer.problem:
                line.answer = answer
                return False
            self._end = answer.size_bytes
            with suppress(ValueError):
                under_way.remove(before)
        # In one call into C, which nothing interrupts: else what is taken could be lost.
        taken = starmap(queue.popleft, repeat((), min(len(queue), most)))
        under_way.extend(zip((line,), map(list, (taken,)), strict=True))
        with suppress(IndexError):
            self._send(line, under_way[-1][1])
        return not line.rest

    def feed(self, noted: list[Noted]) -> bool:
        """Hands events over that are not waited for; takes them off the list.

        Args:
            noted: The events.

        Returns:
            Whether there is somebody to take them.
        """
        line = self._line or (self._connected() if self.is_ready and not self.is_unsure else None)
        if line is None:
            return False
        batch = noted[:]
        self._under_way.append((line, batch))
        noted.clear()
        self._send(line, batch)
        self._send_rest(line)
        return True

    def collect(self, noted: list[Noted], *, wait: bool) -> bool:
        """Looks what has become of what was handed over.

        Args:
            noted: Is given the events that were not written.
            wait: Whether to wait for that.

        Returns:
            Whether that is known of all.

        Raises:
            OSError: They cannot be written.
            AuditError: What is in the place of the log cannot be used.
        """
        while self._under_way:
            line, batch = self._under_way[0]
            answer = None
            if line is self._line:
                self._send_rest(line)
                if not wait and line.answer is None and not is_readable(line.socket):
                    return False
                answer, line.answer = line.answer or _answer_of(line), None
                if answer is None:
                    self.close()
                    self.is_unsure = True
            self._under_way.popleft()
            if answer is None:
                noted += batch
            else:
                noted += batch[answer.written :]
                self._note(answer)
        return True

    def break_off(self) -> None:
        """Takes the line from whoever has been interrupted while he was about to hand something over."""
        line, self._line = self._line, None
        if line is not None:
            # The other process writes what it has as a whole, and hangs up.
            with suppress(OSError):
                line.socket.shutdown(socket.SHUT_WR)
            while receive(line.socket) is not None:
                pass
            self.is_unsure = True
            # Not closed: its number could come to be another file's, and be written to.
            self._broken.append(line)

    def append(self, noted: list[Noted]) -> bool:
        """Has events written, where nothing is under way.

        Args:
            noted: The events. Those that are in the log are taken off the list.

        Returns:
            Whether all are; where there is nobody to write them, they are for the caller to write.

        Raises:
            OSError: They cannot be written.
            AuditError: What is in the place of the log cannot be used.
        """
        if self.is_unsure:
            self._take_off(noted)
        line = self._line or self._connected()
        if line is None or not noted:
            return not noted
        self._send(line, noted)
        self._send_rest(line)
        answer = _answer_of(line)
        if answer is None:
            self.close()
            self.is_unsure = True
            self._take_off(noted)
            return not noted
        del noted[: answer.written]
        self._note(answer)
        return True

    def _note(self, answer: Answer) -> None:
        """Notes where the other process has come to, and raises what it could not do."""
        self._end = answer.size_bytes
        if answer.number:
            raise OSError(answer.number, answer.problem)
        if answer.problem:
            raise AuditError(answer.problem)

    def _send(self, line: _Line, noted: list[Noted]) -> None:
        """Sends events, as far as that takes no waiting."""
        self._file.note_written()
        texts = self._texts
        new = {kind: _as_bytes(texts[kind]) for kind in range(line.known + 1, len(texts) + 1)}
        line.known += len(new)
        line.rest = begin_to_send(line.socket, join(noted, new))

    def _send_rest(self, line: _Line) -> None:
        """Sends what is left of a batch. Where nobody takes it, there is no answer."""
        rest, line.rest = line.rest, b""
        if rest:
            with suppress(OSError):
                line.socket.sendall(rest, NO_SIGNAL)

    def _connected(self) -> _Line | None:
        line = _writer.connect()
        if line is None:
            return None
        answer = None
        try:
            with suppress(OSError):
                send(line, msgspec.msgpack.encode(self._file.opening(self._writer())))
                answer = receive(line)
        finally:
            if answer is None:
                line.close()
        if answer is None:
            return None
        self._line = _Line(line)
        return self._line

    def _take_off(self, noted: list[Noted]) -> None:
        """Takes off the list what is in the log, where the process has ended before it could say so."""
        written = self._file.written(self._end, self._writer())
        if written:
            noted[:] = [item for item in noted if number(item) not in written]
        self.is_unsure = False

    def forget(self) -> None:
        """Lets go of what is under way, in a forked child: it is the parent's."""
        self._under_way = deque()
        self.is_unsure = False
        self.close()

    def close(self) -> None:
        """Lets go of the other process; what comes next asks for it again."""
        line, self._line = self._line, None
        broken, self._broken = self._broken, []
        for each in broken if line is None else (*broken, line):
            each.socket.close()

    def __del__(self) -> None:
        # It may never have come to have one.
        if hasattr(self, "_line"):
            self.close()


def _as_bytes(texts: KindTexts) -> tuple[bytes, bytes]:
    started, ended = texts
    return bytes(started), bytes(ended)


def _answer_of(line: _Line) -> Answer | None:
    """Waits for the answer to a batch; None where there comes none any more."""
    told = receive(line.socket)
    return None if told is None else msgspec.msgpack.decode(told, type=Answer)


atexit.register(_writer.leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_writer.forget)
