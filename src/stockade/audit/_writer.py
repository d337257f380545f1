"""The process that writes audit logs for another one, beside the runs of that: encodes, seals, and brings to the disk.

It gets batches of records, each of which it answers when it is in the file, or cannot be. There is a thread for each
log, so that none waits for another's disk. What was handed over whole is written, also where its sender is gone.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from stockade._text import printable
from stockade.audit._chain_file import ChainFile, Opening
from stockade.audit._events import AuditEvent
from stockade.audit._lines import lines_of
from stockade.audit._packed import split
from stockade.audit._places import LogPlace
from stockade.errors import AuditError
from stockade.system import NO_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.audit._events import EventName
    from stockade.audit._lines import KindTexts, Line

__all__ = ["READY", "Answer", "begin_to_send", "is_readable", "main", "receive", "send"]

READY: Final = b"r"
"""What it says when it takes logs."""

_IDLE_SECONDS: Final = 300.0
"""Without a log for so long, it ends; who has one then starts another."""

_SIZE: Final = struct.Struct("<I")

_PIECE_BYTES: Final = 1 << 18


class Answer(msgspec.Struct, frozen=True):
    """What became of a batch.

    Attributes:
        written: How many of its events are in the log.
        size_bytes: How large that is now.
        problem: Why the others are not; empty where all are.
        number: The number of the system's error; 0 where it is none of the system's.
    """

    written: int
    size_bytes: int = 0
    problem: str = ""
    number: int = 0


def send(line: socket.socket, message: bytes) -> None:
    """Sends a message.

    Raises:
        OSError: There is nobody at the other end.
    """
    # In one piece, for each call lets others have the interpreter lock, which has to be got back then.
    line.sendall(_SIZE.pack(len(message)) + message, NO_SIGNAL)


def begin_to_send(line: socket.socket, message: bytes) -> memoryview:
    """Sends as much of a message as there is room for, and waits for nothing; returns what is left of it."""
    data = memoryview(_SIZE.pack(len(message)) + message)
    sent = 0
    with suppress(OSError):
        sent = line.send(data, NO_SIGNAL | socket.MSG_DONTWAIT)
    return data[sent:]


def is_readable(line: socket.socket) -> bool:
    """Says whether there is something to receive, or never will be."""
    poll = select.poll()
    poll.register(line, select.POLLIN)
    return bool(poll.poll(0))


def receive(line: socket.socket) -> bytearray | None:
    """Receives a message; None where there comes no whole one. None is sent before the one before was answered."""
    with suppress(ConnectionError):
        return _whole(line)
    return None


def _whole(line: socket.socket) -> bytearray | None:
    data = bytearray()
    while piece := line.recv(_PIECE_BYTES):
        data += piece
        if len(data) >= _SIZE.size and len(data) - _SIZE.size >= _SIZE.unpack_from(data)[0]:
            return data[_SIZE.size :]
    return None


def main(control: int, host: int) -> None:  # noqa: ARG001 - it outlives the host, to write what that has handed over
    """Is the writing process.

    Args:
        control: Descriptor of the socket that logs come from.
        host: The process that started this one.
    """
    for number in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGXFSZ else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with socket.socket(fileno=control) as orders:
        orders.sendall(READY)
        _serve(orders)


def _serve(orders: socket.socket) -> None:
    """Takes logs until the other side is gone, or has none for a while. Threads that write are waited for."""
    poll = select.poll()
    poll.register(orders, select.POLLIN)
    threads: list[threading.Thread] = []
    last = time.monotonic()
    while threads or time.monotonic() - last < _IDLE_SECONDS:
        threads = [thread for thread in threads if thread.is_alive()]
        if threads:
            last = time.monotonic()
        if not poll.poll(_IDLE_SECONDS * 100):
            continue
        try:
            word, descriptors, _, _ = socket.recv_fds(orders, 1, 1)
        except ConnectionError:
            return
        if not word:
            return
        for descriptor in descriptors:
            thread = threading.Thread(target=_write, args=(socket.socket(fileno=descriptor),))
            thread.start()
            threads.append(thread)


def _write(line: socket.socket) -> None:
    """Writes one log, until whoever has it closes it."""
    with line, suppress(OSError):
        opening = receive(line)
        if opening is None:
            return
        log = _Log(msgspec.msgpack.decode(opening, type=Opening))
        send(line, msgspec.msgpack.encode(Answer(0)))
        try:
            _answer_batches(line, log)
        finally:
            log.close()


def _answer_batches(line: socket.socket, log: _Log) -> None:
    while (batch := receive(line)) is not None:
        send(line, msgspec.msgpack.encode(log.write(batch)))


class _Log:
    """A log that is written for another process.

    Args:
        opening: What that says of it.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._texts: dict[int, KindTexts] = {}
        self._file: ChainFile[bytes | msgspec.Raw] | None = None
        self._own_name = os.urandom(4).hex()
        self._number = itertools.count(1).__next__

    def write(self, batch: bytearray) -> Answer:
        """Writes a batch."""
        texts, items = split(batch)
        for kind, (started, ended) in texts.items():
            self._texts[kind] = msgspec.Raw(started), msgspec.Raw(ended)
        size = len(items)
        try:
            self._opened().append(items)
        except OSError as problem:
            return Answer(size - len(items), self._size(), problem.strerror or str(problem), problem.errno or 0)
        except AuditError as problem:
            return Answer(size - len(items), self._size(), str(problem))
        return Answer(size, self._size())

    def _size(self) -> int:
        return 0 if self._file is None else self._file.size_bytes()

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> ChainFile[bytes | msgspec.Raw]:
        if self._file is None:
            told = self._opening
            folder, name, state = map(os.fsdecode, (told.folder, told.name, told.state))
            place = LogPlace(Path(folder), name, Path(state))
            self._file = ChainFile(place, told.key, told.fsync, self._make, self._expand)
        return self._file

    def _make(self, name: EventName, reason: str, count: int) -> AuditEvent:
        """Makes an event of the log's own, by this writer."""
        return AuditEvent(name, time.time(), self._number(), self._own_name, reason=printable(reason, 400), count=count)

    def _expand(self, items: Sequence[bytes | msgspec.Raw]) -> list[msgspec.Raw | Line]:
        return lines_of(items, self._opening.writer, self._texts)
