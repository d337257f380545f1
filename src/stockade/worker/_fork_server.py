"""The compiling process: waits for jobs, forks a child for each, tells how it ended.

It has one thread, no engine, and everything loaded that a child needs. While there is nothing to do, one child waits
for the next job, with its pages touched and its first millisecond behind it.

It speaks with the one that started it through a socket; each job has a socket of its own:

- A job is one byte with three descriptors: a file that says what to do, an empty file for the answer, the job's socket.
- On the job's socket comes `MESSAGE`: with `TAKEN`; with `STARTED` and the child's number when its turn has come; with
  `ENDED` and its status, or with `REFUSED` and why there can be no child. The child says itself that all went well.
- Whoever closes its end of the job's socket has the child killed. When the first socket closes, all is over.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from stockade.worker._fork_loop import ForkLoop, watched

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ENDED", "MESSAGE", "REFUSED", "STARTED", "TAKEN", "Work", "serve"]

MESSAGE = struct.Struct("<Bi")
TAKEN, STARTED, ENDED, REFUSED = range(4)

_DESCRIPTORS = 3


class _Job(NamedTuple):
    """A job: what to do, where to leave the answer, and the socket."""

    source: int
    target: int
    line: socket.socket

    def close(self) -> None:
        os.close(self.source)
        os.close(self.target)
        self.line.close()


class Work(NamedTuple):
    """What children do.

    Attributes:
        begin: Is called first, with the number of the process that forks children.
        rehearse: Is called in a child that waits for its job.
        do: Is called with descriptors of a job's two files.
    """

    begin: Callable[[int], None]
    rehearse: Callable[[], None]
    do: Callable[[int, int], None]


class _Child(NamedTuple):
    """A child that waits for a job, and the socket on which it does."""

    number: int
    line: socket.socket


def serve(control: int, host: int, work: Work) -> NoReturn:
    """Serves until the other side is gone, or has nothing to do for a while.

    Args:
        control: Descriptor of the socket that jobs come from.
        host: The process that started this one.
        work: What children do.
    """
    status = 1
    try:
        status = _Server(control, host, work).run()
    finally:
        # Nothing is left to do, and taking the interpreter down takes its time.
        os._exit(status)


class _Server(ForkLoop):
    def __init__(self, control: int, host: int, work: Work) -> None:
        super().__init__(socket.socket(fileno=control), watched(host))
        self._work = work
        self._spare: _Child | None = None
        self._running: dict[int, _Job] = {}
        self._waiting: deque[_Job] = deque()
        # The host gives no more at once, but where it has forked, or means ill; whoever waits is not charged for it.
        self._processors = os.cpu_count() or 1
        self._most_running = self._processors + 4

    def _is_busy(self) -> bool:
        return bool(self._running or self._waiting)

    def _children(self) -> list[int]:
        return [*self._running, *([self._spare.number] if self._spare else [])]

    def _go_on(self) -> None:
        while self._waiting and len(self._running) < self._most_running:
            self._start(self._waiting.popleft())
        if self._spare is None and len(self._running) < self._processors:
            with suppress(OSError):  # it is tried again for the next job
                self._spare = self._fork(spare=True)

    def _take(self) -> bool:
        """Takes a job; whether there is still somebody to give one."""
        try:
            job = _receive(self._control)
        except (ConnectionResetError, EOFError):
            return False
        if job is not None:
            self._waiting.append(job)
            # Nothing ever comes from there, so that it is ready means that it was closed.
            self._poll.register(job.line, select.POLLIN)
            self._tell(job, TAKEN, 0)
        return True

    def _start(self, job: _Job) -> None:
        """Has a child do a job."""
        try:
            child, self._spare = self._spare or self._fork(), None
        except OSError as problem:
            self._tell(job, REFUSED, problem.errno or 0)
            self._drop(job)
            return
        self._running[child.number] = job
        self._tell(job, STARTED, child.number)
        with child.line, suppress(BrokenPipeError):  # it has been killed, which is told when it is reaped
            socket.send_fds(child.line, [b"j"], (*job[:2], job.line.fileno()))

    def _fork(self, *, spare: bool = False) -> _Child:
        """Makes a child that does the job that it is given; a spare one has time until then."""
        ours, theirs = socket.socketpair()
        server = os.getpid()
        try:
            number = os.fork()
            if number == 0:
                self._be_child(ours, theirs, server, spare)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return _Child(number, ours)

    def _be_child(self, ours: socket.socket, theirs: socket.socket, server: int, spare: bool) -> NoReturn:
        try:
            self.leave_loop()
            ours.close()
            for other in (*self._running.values(), *self._waiting):
                other.close()
            self._work.begin(server)
            if spare:
                self._work.rehearse()
            job = _receive(theirs)
            if job is not None:
                self._work.do(job.source, job.target)
                # Whoever waits need not wait for all this memory to be given back.
                self._tell(job, ENDED, 0)
                os._exit(0)
        finally:
            os._exit(1)

    def _reaped(self, child: int, status: int) -> None:
        job = self._running.pop(child, None)
        if job is not None:
            self._tell(job, ENDED, status)
            self._drop(job)
        elif self._spare is not None and child == self._spare.number:
            self._spare.line.close()
            self._spare = None

    def _heard(self, line: int) -> None:
        """Somebody waits no longer."""
        for child, job in self._running.items():
            if job.line.fileno() == line:
                os.kill(child, signal.SIGKILL)
                # It is reaped when it has ended; until then the socket would be ready for ever.
                self._poll.unregister(line)
                return
        for job in self._waiting:
            if job.line.fileno() == line:
                self._waiting.remove(job)
                self._drop(job)
                return

    def _tell(self, job: _Job, what: int, number: int) -> None:
        # Where it is closed, nobody waits for it.
        with suppress(OSError):
            job.line.send(MESSAGE.pack(what, number), socket.MSG_DONTWAIT)

    def _drop(self, job: _Job) -> None:
        # Where it is not registered any more, it was cancelled.
        with suppress(KeyError):
            self._poll.unregister(job.line)
        job.close()


def _receive(line: socket.socket) -> _Job | None:
    """Receives a job.

    Returns:
        The job; None where there was no room for its descriptors, which closing what there is tells the other side.

    Raises:
        EOFError: There is nobody any more to give one.
    """
    data, descriptors, _, _ = socket.recv_fds(line, 1, _DESCRIPTORS)
    if not data:
        raise EOFError
    if len(descriptors) == _DESCRIPTORS:
        source, target, own = descriptors
        return _Job(source, target, socket.socket(fileno=own))
    for descriptor in descriptors:
        os.close(descriptor)
    return None
