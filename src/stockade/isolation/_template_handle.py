"""A template as the host holds it: its socket, what it knows, and the workers that it has made."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from stockade.isolation._frames import Full, Garbled, Gone, receive, send
from stockade.isolation._messages import FROM_TEMPLATE, Forget, Over, Refused, Register, Spawn, Spawned
from stockade.system import socket_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.isolation._handle import WorkerHandle

__all__ = ["TemplateHandle"]


class TemplateHandle:
    """A template, from when it is asked for. For one thread at a time, but for `hear`.

    Args:
        line: The socket to it.
        clock: Tells the time, in seconds.
        over: Is called with a worker that has ended, or that there cannot be, on the thread that listens.
        orphaned: Is called with a worker that goes on when its template has ended, and the number of its process.
        alone: Whether it is for one worker, which it becomes itself.

    Attributes:
        alone: The same.
        line: The socket to it.
        programs: Numbers of what it knows.
        workers: Those that have not ended, by their numbers.
        used: When it was last asked for a worker, or one of its workers has ended.
        spent: Whether it makes no more workers: it has ended, or has become one.
        listener: The thread that listens.
    """

    listener: threading.Thread

    def __init__(
        self,
        line: socket.socket,
        clock: Callable[[], float],
        over: Callable[[WorkerHandle], object],
        orphaned: Callable[[WorkerHandle, int], object],
        *,
        alone: bool = False,
    ) -> None:
        self.line = line
        self.alone = alone
        self._clock = clock
        self._over = over
        self._orphaned = orphaned
        self.programs: set[int] = set()
        self.workers: dict[int, WorkerHandle] = {}
        # Of these, those that it has said to be there, by their numbers, with those of their processes.
        self._processes: dict[int, int] = {}
        self.used = clock()
        self.spent = False

    @classmethod
    def pair(
        cls,
        kind: int,
        clock: Callable[[], float],
        over: Callable[[WorkerHandle], object],
        orphaned: Callable[[WorkerHandle, int], object],
        *,
        alone: bool,
    ) -> tuple[Self, socket.socket]:
        """Makes one, and the socket that its process is to have.

        Args:
            kind: What kind of socket it is.
            clock: As above.
            over: As above.
            orphaned: As above.
            alone: As above.

        Raises:
            OSError: There are no more descriptors.
        """
        ours, theirs = socket_pair(kind)
        return cls(ours, clock, over, orphaned, alone=alone), theirs

    def order(self, message: Register | Forget | Spawn, descriptors: Sequence[int] = ()) -> None:
        """Tells it something.

        Raises:
            Gone: It is no more.
        """
        while not self.spent:
            try:
                send(self.line, message, descriptors=descriptors, waits=False)
            except Full:
                self._wait_for_room()
            else:
                return
        raise Gone

    def _wait_for_room(self) -> None:
        """Waits until it takes more. The thread that listens hears it meanwhile, for it may wait for that itself."""
        poll = select.poll()
        poll.register(self.line, select.POLLOUT)
        if threading.current_thread() is self.listener:
            poll.register(self.line, select.POLLIN | select.POLLOUT)
            self.hear()
        poll.poll()

    def spawn(self, worker: WorkerHandle, line: socket.socket, *, keeps: bool) -> None:
        """Has it make a worker.

        Args:
            worker: The worker.
            line: The worker's end of the socket between it and the host.
            keeps: Whether its guest is called any number of times.

        Raises:
            Gone: It is no more.
        """
        self.used = self._clock()
        self.workers[worker.number] = worker
        try:
            self.order(Spawn(worker.number, worker.program, keeps, self.alone), [line.fileno()])
        except BaseException:
            self.drop(worker)
            raise
        self.spent = self.spent or self.alone

    def hear(self) -> bool:
        """On the thread that listens: takes what it says; whether there is more to come."""
        while True:
            try:
                found = receive(self.line, FROM_TEMPLATE, most_descriptors=1, waits=False)
            except (Gone, Garbled, OSError):
                self.lose()
                return False
            if found is None:
                return True
            message, _, descriptors = found
            if isinstance(message, Refused):
                self.lose(errno=message.errno)
                return False
            if isinstance(message, Over):
                self.lose(message.status)
                return False
            worker = self.workers.get(message.worker)
            if isinstance(message, Spawned):
                process = descriptors[0] if descriptors else None
                if worker is not None:
                    self._processes[message.worker] = message.process
                    worker.spawned(process, message.errno)
                elif process is not None:
                    os.close(process)
            elif worker is not None:
                worker.ended(message.status)
                self._gone(worker)

    def lose(self, status: int = -signal.SIGKILL, errno: int = 0) -> None:
        """It has ended, or there can be none: no worker comes to be any more. Of those that there are, others tell.

        Args:
            status: How it has ended, as a worker's status is told.
            errno: Why there can be none; 0 where there was one.
        """
        self.spent = True
        for worker in list(self.workers.values()):
            process = self._processes.get(worker.number)
            if process is not None and not self.alone:
                self.drop(worker)
                self._orphaned(worker, process)
                continue
            self._gone(worker)
            if errno:
                worker.spawned(None, errno)
            else:
                worker.ended(status)

    def _gone(self, worker: WorkerHandle) -> None:
        self.drop(worker)
        self._over(worker)

    def drop(self, worker: WorkerHandle) -> None:
        """Forgets a worker that has ended, or that there could not be."""
        self.used = self._clock()
        self.workers.pop(worker.number, None)
        self._processes.pop(worker.number, None)

    def end(self) -> None:
        """Ends it, and all its workers. It is closed when that is heard."""
        self.spent = True
        # A process that was forked without our knowing may have it, too. Where the other end is gone, all is well.
        with suppress(OSError):
            self.line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Lets go of it."""
        self.spent = True
        self.line.close()
