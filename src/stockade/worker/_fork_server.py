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
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ENDED", "MESSAGE", "REFUSED", "STARTED", "TAKEN", "Work", "serve"]

MESSAGE = struct.Struct("<Bi")
TAKEN, STARTED, ENDED, REFUSED = range(4)

IDLE_SECONDS = 300.0
"""Without a job for so long, the process ends; the next job starts another."""

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


class _Server:
    def __init__(self, control: int, host: int, work: Work) -> None:
        self._control = socket.socket(fileno=control)
        self._work = work
        self._spare: _Child | None = None
        self._running: dict[int, _Job] = {}
        self._waiting: deque[_Job] = deque()
        # The host gives no more at once, but where it has forked, or means ill; whoever waits is not charged for it.
        self._processors = os.cpu_count() or 1
        self._most_running = self._processors + 4
        # Whatever the host has blocked or ignored, its children do not.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        self._poll = select.poll()
        self._poll.register(self._control, select.POLLIN)
        self._host = _watched(host)
        if self._host is not None:
            # A child that the host has forked may hold the socket's other end open beyond the host's own end.
            self._poll.register(self._host, select.POLLIN)
        self._woken, self._wakes = os.pipe()
        for end in (self._woken, self._wakes):
            os.set_blocking(end, False)
        self._poll.register(self._woken, select.POLLIN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)

    def run(self) -> int:
        """Serves; returns the exit status."""
        last = time.monotonic()
        while True:
            busy = bool(self._running or self._waiting)
            if busy:
                last = time.monotonic()
            ready = self._poll.poll(None if busy else max(0.0, last + IDLE_SECONDS - time.monotonic()) * 1000)
            if not ready:
                return self._end()
            # What came last goes first: a new job must not be taken for one whose descriptor it has got.
            for descriptor, _ in reversed(ready):
                if descriptor == self._host:
                    return self._end()
                if descriptor == self._woken:
                    self._reap()
                elif descriptor == self._control.fileno():
                    if not self._take():
                        return self._end()
                    last = time.monotonic()
                else:
                    self._cancel(descriptor)
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
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            ours.close()
            self._control.close()
            for other in (*self._running.values(), *self._waiting):
                other.close()
            for descriptor in (self._woken, self._wakes, self._host):
                if descriptor is not None:
                    os.close(descriptor)
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

    def _reap(self) -> None:
        """Says of all children that have ended how they did."""
        try:
            while os.read(self._woken, 512):
                pass
        except BlockingIOError:
            pass
        while self._running or self._spare:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            job = self._running.pop(child, None)
            if job is None:
                if self._spare is not None and child == self._spare.number:
                    self._spare.line.close()
                    self._spare = None
                continue
            self._tell(job, ENDED, os.waitstatus_to_exitcode(status))
            self._drop(job)

    def _cancel(self, line: int) -> None:
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

    def _end(self) -> int:
        """Ends all children; returns the exit status."""
        children = [*self._running, *([self._spare.number] if self._spare else [])]
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
        return 0


def _watched(process: int) -> int | None:
    """Returns a descriptor that is ready when a process has ended; None where the system has no such thing.

    Raises:
        ProcessLookupError: It has ended.
    """
    try:
        return os.pidfd_open(process) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        raise
    except OSError:
        return None


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
