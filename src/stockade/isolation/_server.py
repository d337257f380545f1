"""The fork server: has everything loaded, and forks a template for each module, which forks a process for each run.

It has one thread, no engine and no module. What it is told comes from the host, which started it; templates have
sockets of their own, on which this process says how they have ended. It ends with the host, and they with it. Workers
whose template has ended are its children then: they go on, and it tells how they end.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import time
from contextlib import suppress
from signal import SIGKILL
from typing import TYPE_CHECKING, Final, NoReturn

from stockade.engine import wasmtime_version
from stockade.guard import guard
from stockade.isolation._frames import Garbled, Gone, receive, send
from stockade.isolation._messages import TO_SERVER, Left, Over, Refused
from stockade.isolation._prepared import rehearse
from stockade.isolation._template import FIRST, be_template
from stockade.jail import (
    NAMESPACES,
    Jail,
    Step,
    enter_namespaces,
    leave_root,
    left_before,
    line_to_mounter,
    namespaces_of_this_process,
    take_line_to_mounter,
    warm_up,
)
from stockade.system import forgo_interrupts, prctl
from stockade.worker import ForkLoop, watched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["main", "serve"]

_PR_SET_CHILD_SUBREAPER: Final = 36

_MOST_REAPED_SECONDS: Final = 0.2
_REAP_SECONDS: Final = 0.001


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
    # Runs are planned here, and happen behind walls.
    forgo_interrupts()
    warm_up(Jail(executable=False))
    # What is there already is not looked at in the children, whose memory it would become.
    gc.collect()
    gc.freeze()
    gc.disable()


class _Server(ForkLoop):
    def __init__(self, control: socket.socket, host: int | None, namespaces: tuple[Step, ...]) -> None:
        super().__init__(control, host)
        self._namespaces = namespaces
        self._templates: dict[int, socket.socket] = {}
        self._halted: dict[int, int] = {}
        # Where it is the first process of a namespace, what a template leaves behind comes to it anyway.
        with suppress(OSError):
            prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def _is_busy(self) -> bool:
        return bool(self._templates)

    def _children(self) -> Sequence[int]:
        return tuple(self._templates)

    def _reaped(self, child: int, status: int) -> None:
        line = self._templates.pop(child, None)
        # What has stopped it says more than that it was ended for that.
        status = self._halted.pop(child, status)
        with suppress(Gone):
            if line is None:
                send(self._control, Left(child, status))
            else:
                with line:
                    send(line, Over(status), waits=False)

    def _stopped(self, child: int, signal: int) -> None:
        """Ends what was stopped: nobody says when it would go on, and runs would wait for that."""
        self._halted[child] = -signal
        with suppress(ProcessLookupError):
            os.kill(child, SIGKILL)

    def _take(self) -> bool:
        try:
            found = receive(self._control, TO_SERVER, most_descriptors=1)
        except (Gone, Garbled):
            return False
        assert found is not None
        _, _, descriptors = found
        line = socket.socket(fileno=descriptors[0])
        try:
            self._make(line)
        except OSError as problem:
            with line, suppress(Gone):
                send(line, Refused(problem.errno or 1))
        return True

    def _make(self, line: socket.socket) -> None:
        """Forks a template."""
        server, mounter = os.getpid(), line_to_mounter()
        try:
            child = os.fork()
            if child == 0:
                try:
                    self.leave_loop()
                    for other in self._templates.values():
                        other.close()
                    take_line_to_mounter(mounter)
                    be_template(line, server, self._namespaces)
                finally:
                    os._exit(1)
        finally:
            if mounter is not None:
                mounter.close()
        self._templates[child] = line

    def _end(self) -> int:
        status = super()._end()
        # Workers end with their templates, and are this process's then, to be waited for.
        if os.getpid() != FIRST:
            with suppress(ChildProcessError):
                _reap_all()
        return status


def _reap_all() -> None:
    """Waits for children that are about to end.

    Raises:
        ChildProcessError: There are no more.
    """
    end = time.monotonic() + _MOST_REAPED_SECONDS
    while time.monotonic() < end:
        if not os.waitpid(-1, os.WNOHANG)[0]:
            time.sleep(_REAP_SECONDS)
