"""What every process of ours that forks children for the host does: waits for orders, reaps, ends with the host.

It has one thread. While it waits, it listens to its socket, to the end of its children and to that of the host.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

__all__ = ["ForkLoop", "watched"]

IDLE_SECONDS = 300.0
"""Without anything to do for so long, the process ends; what comes next starts another."""


class ForkLoop:
    """Serves until the other side is gone, or has nothing to do for a while. What it does, a subclass says.

    Args:
        control: The socket that orders come from.
        host: Is ready when the process has ended that started this one; None where the system has no such thing.
    """

    def __init__(self, control: socket.socket, host: int | None) -> None:
        self._control = control
        # Whatever the host has blocked or ignored, its children do not.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        self._poll = select.poll()
        self._poll.register(self._control, select.POLLIN)
        self._host = host
        if host is not None:
            # A child that the host has forked may hold the socket's other end open beyond the host's own end.
            self._poll.register(host, select.POLLIN)
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
            busy = self._is_busy()
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
                    self._heard(descriptor)
            self._go_on()

    def leave_loop(self) -> None:
        """In a child: gives up what belongs to the loop."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for descriptor in (self._woken, self._wakes, self._host):
            if descriptor is not None:
                os.close(descriptor)

    def _reap(self) -> None:
        """Notes of all children that have ended how they did."""
        try:
            while os.read(self._woken, 512):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                child, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if not child:
                return
            if os.WIFSTOPPED(status):
                self._stopped(child, os.WSTOPSIG(status))
            else:
                self._reaped(child, os.waitstatus_to_exitcode(status))

    def _end(self) -> int:
        """Ends all children; returns the exit status."""
        children = list(self._children())
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
        return 0

    # -- what a subclass says ------------------------------------------------------------------------------------------

    def _is_busy(self) -> bool:
        """Whether there is anything to do."""
        raise NotImplementedError

    def _take(self) -> bool:
        """Takes an order; whether there is still somebody to give one."""
        raise NotImplementedError

    def _reaped(self, child: int, status: int) -> None:
        """A child has ended, with a status as `subprocess` has it."""
        raise NotImplementedError

    def _stopped(self, child: int, signal: int) -> None:
        """A child does nothing until somebody has it go on."""

    def _children(self) -> Iterable[int]:
        """The children that have not been reaped."""
        raise NotImplementedError

    def _heard(self, descriptor: int) -> None:
        """Something else that is registered is ready."""

    def _go_on(self) -> None:
        """Whatever was ready has been seen to."""


def watched(process: int) -> int | None:
    """Returns a descriptor that is ready when a process has ended; None where the system has no such thing.

    Args:
        process: Its number.

    Raises:
        ProcessLookupError: It has ended.
    """
    try:
        return os.pidfd_open(process) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        raise
    except OSError:
        return None
