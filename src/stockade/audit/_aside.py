"""Batches that are written by a process beside this one, where they are large: so that it takes no time of the runs.

There is one such process for all logs, started when a batch is large for the first time. Where it is not there yet, not
any more, or cannot be had, batches are written here. So nothing depends on it.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from stockade._locks import new_lock
from stockade.audit._packed import join
from stockade.audit._records import number
from stockade.audit._writer import READY, Answer, is_readable, receive, send
from stockade.errors import AuditError, EngineError
from stockade.system import NO_SIGNAL, ServerProcess, socket_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stockade.audit._chain_file import ChainFile
    from stockade.audit._packed import KindFields
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


class Aside:
    """Has batches of one log written by the other process. For one thread at a time.

    Args:
        file: The log.
        writer: Returns who notes its events.
        kinds: Kinds of runs, by their numbers; grows.
    """

    def __init__(self, file: ChainFile[Noted], writer: Callable[[], str], kinds: Mapping[int, KindFields]) -> None:
        self._file = file
        self._writer = writer
        self._kinds = kinds
        self._known = 0
        # Where the other process writes next, at the earliest.
        self._end = 0
        # Whether it has ended before it could say what is written.
        self._is_unsure = False
        self._line: socket.socket | None = None
        # Whether a batch was sent that was not answered.
        self.awaits = False

    @property
    def is_ready(self) -> bool:
        """Whether the other process is there: for this log, or for others and then for this one, too."""
        return self._line is not None or (_writer.is_ready and not self._is_unsure)

    @property
    def is_starting(self) -> bool:
        """Whether the other process is going to be there soon."""
        return self._line is None and _writer.is_starting()

    def feed(self, noted: list[Noted]) -> None:
        """Has events written, which are not waited for; then, with the same list, looks whether they are.

        Args:
            noted: The events. Those that are in the log are taken off the list.

        Raises:
            OSError: They cannot be written.
            AuditError: What is in the place of the log cannot be used.
        """
        line = self._line or (self._connected() if self.is_ready else None)
        if line is not None and (not is_readable(line) if self.awaits else self._send(line, noted)):
            return
        self.append(noted)

    def append(self, noted: list[Noted]) -> bool:
        """Has events written.

        Args:
            noted: The events. Those that are in the log are taken off the list.

        Returns:
            Whether all are; where there is nobody to write them, they are for the caller to write.

        Raises:
            OSError: They cannot be written.
            AuditError: What is in the place of the log cannot be used.
        """
        if self._is_unsure:
            self._take_off(noted)
        line = self._line or self._connected()
        if line is None or not noted:
            return not noted
        answer = receive(line) if self.awaits or self._send(line, noted) else None
        self.awaits = False
        if answer is None:
            self.close()
            self._is_unsure = True
            self._take_off(noted)
            return not noted
        told = msgspec.msgpack.decode(answer, type=Answer)
        self._end = told.size_bytes
        del noted[: told.written]
        if told.number:
            raise OSError(told.number, told.problem)
        if told.problem:
            raise AuditError(told.problem)
        return True

    def _send(self, line: socket.socket, noted: list[Noted]) -> bool:
        """Sends events; whether somebody has taken them."""
        self._file.note_written()
        kinds = {kind: self._kinds[kind] for kind in range(self._known + 1, len(self._kinds) + 1)}
        self._known += len(kinds)
        with suppress(OSError):
            send(line, join(noted, kinds))
            self.awaits = True
        return self.awaits

    def _connected(self) -> socket.socket | None:
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
        self._known = 0
        self._line = line
        return line

    def _take_off(self, noted: list[Noted]) -> None:
        """Takes off the list what is in the log, where the process has ended before it could say so."""
        written = self._file.written(self._end, self._writer())
        if written:
            noted[:] = [item for item in noted if number(item) not in written]
        self._is_unsure = False

    def close(self) -> None:
        """Lets go of the other process; what comes next asks for it again."""
        line, self._line = self._line, None
        self.awaits = False
        if line is not None:
            line.close()

    def __del__(self) -> None:
        # It may never have come to have one.
        if hasattr(self, "_line"):
            self.close()


atexit.register(_writer.leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_writer.forget)
