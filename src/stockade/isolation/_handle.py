"""A worker as the host holds it: its socket, its process, and how it has ended."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from stockade._locks import reentrant_lock
from stockade.isolation._frames import MOST_MESSAGE_BYTES, Garbled, Gone, receive, send, send_packed
from stockade.isolation._messages import (
    FROM_WORKER,
    Expect,
    FromWorker,
    Open,
    ToWorker,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.engine import SealedFile
    from stockade.isolation._hub import Hub, _Server


__all__ = ["BRIEF_SECONDS", "Expectation", "WorkerHandle"]

BRIEF_SECONDS: Final = 0.005
"""How long a call is waited for on the thread that makes it, and how long no other worker is made meanwhile."""

_BRIEF_TIME: Final = struct.pack("@ll", 0, round(BRIEF_SECONDS * 1e6))
"""The same as a `timeval`."""


class Expectation(NamedTuple):
    """What a guest is given, but for its call.

    Attributes:
        message: That, as a worker is told of it.
        files: Files of what it begins with.
    """

    message: Open
    files: tuple[SealedFile, ...]


class WorkerHandle:
    """A worker, from when it is asked for until its run is over. For one thread at a time, but for what says otherwise.

    Attributes:
        number: What it is called.
        program: What it runs.
        status: Its exit status, negative for the signal that ended it; None while it is not known.
        refused: The system's reason why there is no worker; 0 where there is one, or is going to be.
        is_garbled: Whether it has said what makes no sense.
        most_bytes: How many bytes a message of its may have, what stands behind it left out.
        most_descriptors: How many descriptors may come with one.
        given: What its guest was given, where that takes long, and others may be given the same.
        hub: Who had it made, once a run has got it.
    """

    hub: Hub

    def __init__(self, number: int, program: int, line: socket.socket, server: _Server) -> None:
        self.number = number
        self.program = program
        self.status: int | None = None
        self.refused = 0
        self.is_garbled = False
        self.most_bytes = MOST_MESSAGE_BYTES
        self.most_descriptors = 0
        self.given: Expectation | None = None
        self._expected: Expectation | None = None
        self._closed = False
        self._line = line
        # How long `receive_soon` waits.
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _BRIEF_TIME)
        self._put_back: deque[tuple[FromWorker, bytes, tuple[int, ...]] | Garbled | Gone] = deque()
        self._server = server
        self._wake: Callable[[], object] = _nobody
        self._process: int | None = None
        self._killed = False
        self._lock = reentrant_lock()

    def begin(self, message: Open, blob: bytes, files: Sequence[SealedFile], wake: Callable[[], object]) -> None:
        """Tells the worker what its guest is given, whether it waits already or there is none yet.

        Args:
            message: That.
            blob: What stands behind it.
            files: Files of what it begins with.
            wake: Is called, from any thread, when it has said something, or has ended.

        Raises:
            Gone: It has ended.
        """
        self._wake = wake
        if message.saved is not None and not blob:
            self.given = Expectation(msgspec.structs.replace(message, call=None, watched=False), tuple(files))
            if self.given == self._expected:
                send(self._line, Open(watched=message.watched, call=message.call, as_expected=True))
                return
        send(self._line, message, blob, [file.descriptor for file in files])

    def expect(self, given: Expectation) -> None:
        """Tells a worker that waits what its guest may come to be given.

        Args:
            given: That.
        """
        self._expected = given
        # Where it has ended, that is seen by whoever tells it more.
        with suppress(Gone):
            send(self._line, Expect(given.message), descriptors=[file.descriptor for file in given.files])

    def receive(self, most_blob: int) -> tuple[FromWorker, bytes, tuple[int, ...]] | None:
        """Returns what the worker says next; None where there is nothing yet.

        Args:
            most_blob: How many bytes may stand behind it.

        Returns:
            The message, what stands behind it, and what came with it, which the caller closes.

        Raises:
            Gone: It says nothing any more.
            Garbled: It is nothing that a worker says.
        """
        if self._closed:
            raise Gone
        if self._put_back:
            heard = self._put_back.popleft()
            if isinstance(heard, Exception):
                raise heard
            return heard
        most = {"most_bytes": self.most_bytes, "most_blob": most_blob, "most_descriptors": self.most_descriptors}
        try:
            return receive(self._line, FROM_WORKER, **most, waits=False)
        except Garbled:
            self.is_garbled = True
            raise

    def tell_first(self, message: bytes, wake: Callable[[], object]) -> None:
        """Does what `begin` does, where nothing goes with the message, which is put together already.

        Args:
            message: Its head and its struct.
            wake: As there.

        Raises:
            Gone: It has ended.
        """
        self._wake = wake
        send_packed(self._line, message)

    def receive_soon(self, most_blob: int) -> tuple[FromWorker, bytes, tuple[int, ...]] | None:
        """Does what `receive` does, and waits a moment for it, on this thread."""
        try:
            return receive(self._line, FROM_WORKER, most_bytes=self.most_bytes, most_blob=most_blob)
        except Garbled:
            self.is_garbled = True
            raise

    def put_back(self, heard: tuple[FromWorker, bytes, tuple[int, ...]] | Garbled | Gone) -> None:
        """Has something received once more, before what comes later, and in the order in which it was put back.

        Args:
            heard: What was received, or was raised for it.
        """
        self._put_back.append(heard)

    def send(self, message: ToWorker, blob: bytes | memoryview = b"", descriptors: Sequence[int] = ()) -> None:
        """Tells the worker something. What it does not take is lost: that is seen by what it does next."""
        if not self._closed:
            with suppress(Gone):
                send(self._line, message, blob, descriptors, waits=False)

    def wait(self, seconds: float) -> bool:
        """Waits on this thread until it says something, or is gone; whether it does so in time."""
        if self._closed:
            return True
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        return bool(poll.poll(max(0, math.ceil(seconds * 1000))))

    def listen(self) -> None:
        """Has the run woken when the worker says something, or has done so since it was last asked."""
        self._server.watcher.arm(self._line)

    def kill(self) -> None:
        """Ends the worker, whatever it is doing. May be called from any thread."""
        with self._lock:
            self._killed = True
            self._end()

    def _end(self) -> None:
        if self._killed and self._process is not None and self.status is None:
            # Each run comes here, and `suppress` takes three calls.
            try:  # noqa: SIM105
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def close(self) -> bool:
        """Ends the worker, if it has not ended, and forgets it. Closing twice is harmless.

        Its socket is closed by the thread that listens, when it hears that the worker has ended: whoever waits for the
        run's report does not wait for that.

        Returns:
            Whether it was not closed before.
        """
        with self._lock:
            if self._closed:
                return False
            self._closed = self._killed = True
            # Whoever listens may know this for longer than the run is known, and its loop.
            self._wake = _nobody
            self._end()
            ends_later = self.status is None and self._process is not None and not self._server.lost
        if not ends_later:
            self.drop()
        self._server.left(self)
        return True

    def drop(self) -> None:
        """Closes its socket, if it is closed itself. May be called from any thread, and again."""
        if self._closed:
            self._server.watcher.forget(self._line)
            self._line.close()

    def forget(self) -> None:
        """In a forked child: lets go of it, for it is the parent's."""
        self._lock = reentrant_lock()
        self._closed = True
        self.status = -signal.SIGKILL
        self._line.close()
        process, self._process = self._process, None
        if process is not None:
            os.close(process)

    # -- by the thread that listens ------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Has the run look around."""
        self._wake()

    def spawned(self, process: int | None, errno: int) -> None:
        """There is a process, or there can be none."""
        with self._lock:
            self._process, self.refused = process, errno
            self._end()
        if errno:
            self._wake()

    def ended(self, status: int) -> None:
        """The process has ended."""
        with self._lock:
            self.status = status
            process, self._process = self._process, None
        if process is not None:
            os.close(process)
        self.drop()
        self._wake()


def _nobody() -> None:
    """Wakes nobody."""
