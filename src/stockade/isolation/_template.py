"""A template: a process that has the machine code of one module loaded, and forks a fresh process for each run of it.

It was forked by the fork server, has one thread, and has never run a guest. It knows programs of this module alone, so
that its workers have nothing of any other in their memory. What it is told comes from the host; workers have sockets
of their own, of which this process keeps none and reads nothing. It reaps them, tells how they ended, ends with the
fork server or when the host closes its socket, and they end with it. Where something else has ended it, they go on: the
fork server has them then.

For a module that has not run before, it becomes the first worker itself: two processes would take twice as long.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
from contextlib import suppress
from signal import SIGKILL
from typing import TYPE_CHECKING, Final, NoReturn

from stockade.isolation._frames import MOST_DESCRIPTORS, Garbled, Gone, receive, send
from stockade.isolation._messages import TO_TEMPLATE, Ended, Forget, FromTemplate, Register, Spawn, Spawned
from stockade.isolation._prepared import Prepared, prepared
from stockade.isolation._worker import work
from stockade.jail import has_other_threads
from stockade.system import end_with
from stockade.worker import ForkLoop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.jail import Step

__all__ = ["FIRST", "be_template"]

FIRST: Final = 1
"""The number of the first process of a namespace: when it ends, the kernel ends all others there."""


def be_template(line: socket.socket, server: int, namespaces: tuple[Step, ...]) -> NoReturn:
    """Is a template.

    Args:
        line: The socket to the host.
        server: The process that has forked this one.
        namespaces: What came of the namespaces that it is in.
    """
    end_with(server)
    os._exit(_Template(line, server, namespaces).run())


class _Template(ForkLoop):
    def __init__(self, line: socket.socket, server: int, namespaces: tuple[Step, ...]) -> None:
        super().__init__(line, None)
        self._server = server
        self._namespaces = namespaces
        self._programs: dict[int, Prepared] = {}
        self._running: dict[int, int] = {}
        self._halted: dict[int, int] = {}

    def _is_busy(self) -> bool:
        # It is the host that ends it: a worker may be asked for at any moment.
        return True

    def _children(self) -> Sequence[int]:
        return tuple(self._running)

    def _reaped(self, child: int, status: int) -> None:
        worker = self._running.pop(child, None)
        # What has stopped it says more than that it was ended for that.
        status = self._halted.pop(child, status)
        if worker is not None:
            self._tell(Ended(worker, status))

    def _stopped(self, child: int, signal: int) -> None:
        """Ends a worker that was stopped: nobody says when it would go on, and its run would wait for that."""
        if child in self._running:
            self._halted[child] = -signal
            os.kill(child, SIGKILL)

    def _take(self) -> bool:
        try:
            found = receive(self._control, TO_TEMPLATE, most_descriptors=MOST_DESCRIPTORS)
        except (Gone, Garbled):
            return False
        assert found is not None
        order, _, descriptors = found
        if isinstance(order, Register):
            known = None if order.like is None else self._programs[order.like]
            self._programs[order.program] = prepared(order, descriptors, self._namespaces, known)
            # What is there now is not looked at in the children, whose memory it would become.
            gc.collect()
            gc.freeze()
        elif isinstance(order, Forget):
            self._programs.pop(order.program, None)
        else:
            line = socket.socket(fileno=descriptors[0])
            with line:
                if order.becomes:
                    self._become(order, self._programs[order.program], line)
                self._spawn(order, self._programs[order.program], line)
        return True

    def _become(self, order: Spawn, program: Prepared, line: socket.socket) -> NoReturn:
        """Is a worker from now on."""
        self._tell_of(order, os.getpid())
        self.leave_loop()
        work(program, line, self._server, keeps=order.keeps)

    def _spawn(self, order: Spawn, program: Prepared, line: socket.socket) -> None:
        template = os.getpid()
        try:
            if has_other_threads():
                # A child would lack them, and wait for ever for what they do. Nothing here starts any.
                raise OSError(errno.EDEADLK, "this process has other threads")
            child = os.fork()
        except OSError as problem:
            self._tell(Spawned(order.worker, problem.errno or 1))
            return
        if child == 0:
            try:
                self.leave_loop()
                # Where the fork server is the first process, nothing outlives that.
                work(program, line, None if self._server == FIRST else template, keeps=order.keeps)
            finally:
                os._exit(1)
        self._running[child] = order.worker
        self._tell_of(order, child)

    def _tell_of(self, order: Spawn, worker: int) -> None:
        """Tells that there is a worker."""
        # It is not reaped before this thread comes to that, so the number is its own.
        process = os.pidfd_open(worker)
        try:
            self._tell(Spawned(order.worker, process=worker), (process,))
        finally:
            os.close(process)

    def _tell(self, message: FromTemplate, descriptors: Sequence[int] = ()) -> None:
        # That there is nobody is found out in the next turn, too.
        with suppress(Gone):
            send(self._control, message, descriptors=descriptors)
