"""The fork server: has everything loaded and modules taken apart, and forks a fresh process for each run.

It has one thread and no engine. What it is told comes from the host, which started it; workers have sockets of their
own, of which this process keeps none. It reaps them, tells how they ended, and ends with the host, and they with it.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
from contextlib import suppress
from signal import SIGKILL
from typing import TYPE_CHECKING, NoReturn

from stockade.engine import wasmtime_version
from stockade.guard import guard
from stockade.isolation._frames import MOST_DESCRIPTORS, Garbled, Gone, receive, send
from stockade.isolation._messages import TO_SERVER, Ended, Forget, FromServer, Register, Spawn, Spawned
from stockade.isolation._prepared import Prepared, prepared, rehearse
from stockade.isolation._worker import work
from stockade.jail import (
    NAMESPACES,
    Jail,
    Step,
    enter_namespaces,
    leave_root,
    left_before,
    namespaces_of_this_process,
    warm_up,
)
from stockade.worker import ForkLoop, watched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["main", "serve"]


def main(control: int, host: int) -> NoReturn:
    """Is the fork server.

    Args:
        control: Descriptor of the socket that orders come from.
        host: The process that started this one.
    """
    # The host cannot be seen from where this goes on.
    serve(control, watched(host), {})


def serve(control: int, watching: int | None, outside: Mapping[str, str]) -> NoReturn:
    """Is the fork server, wherever it was started.

    Args:
        control: Descriptor of the socket that orders come from.
        watching: Is ready when the process has ended that started this one.
        outside: The namespaces of that process, where something else may have left them.
    """
    status = 1
    try:
        wanted = frozenset(NAMESPACES)
        if outside.get("pid") not in (None, namespaces_of_this_process().get("pid")):
            # Its /proc may not be mounted anew in another one.
            wanted -= {"pid"}
        namespaces = left_before(enter_namespaces(wanted), outside)
        _warm_up()
        namespaces = leave_root(namespaces)
        status = _Server(socket.socket(fileno=control), watching, namespaces).run()
    finally:
        # Nothing is left to do, and taking the interpreter down takes its time.
        os._exit(status)


def _warm_up() -> None:
    """Has done what every child would do again: the library loaded, the guard read, decoders made. No engine."""
    # Each program takes descriptors of its module, its machine code and its mounts.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    guard()
    wasmtime_version()
    rehearse()
    warm_up(Jail(seal_later=True))
    # What is there already is not looked at in the children, whose memory it would become.
    gc.collect()
    gc.freeze()
    gc.disable()


class _Server(ForkLoop):
    def __init__(self, control: socket.socket, host: int | None, namespaces: tuple[Step, ...]) -> None:
        super().__init__(control, host)
        self._namespaces = namespaces
        self._programs: dict[int, Prepared] = {}
        self._running: dict[int, int] = {}
        self._halted: dict[int, int] = {}

    def _is_busy(self) -> bool:
        return bool(self._running)

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
            found = receive(self._control, TO_SERVER, most_descriptors=MOST_DESCRIPTORS)
        except (Gone, Garbled):
            return False
        assert found is not None
        order, _, descriptors = found
        if isinstance(order, Register):
            known = None if order.like is None else self._programs[order.like]
            self._programs[order.program] = prepared(order, descriptors, self._namespaces, known)
        elif isinstance(order, Forget):
            gone = self._programs.pop(order.program, None)
            if gone is not None:
                gone.close()
        else:
            line = socket.socket(fileno=descriptors[0])
            with line:
                self._spawn(order, self._programs[order.program], line)
        return True

    def _spawn(self, order: Spawn, program: Prepared, line: socket.socket) -> None:
        server = os.getpid()
        try:
            child = os.fork()
        except OSError as problem:
            self._tell(Spawned(order.worker, problem.errno or 1))
            return
        if child == 0:
            try:
                self.leave_loop()
                work(program, line, server, keeps=order.keeps)
            finally:
                os._exit(1)
        self._running[child] = order.worker
        # It is not reaped before this thread comes to that, so the number is its own.
        process = os.pidfd_open(child)
        try:
            self._tell(Spawned(order.worker), (process,))
        finally:
            os.close(process)

    def _tell(self, message: FromServer, descriptors: Sequence[int] = ()) -> None:
        # That there is nobody is found out in the next turn, too.
        with suppress(Gone):
            send(self._control, message, descriptors=descriptors)
