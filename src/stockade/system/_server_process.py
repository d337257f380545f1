"""A process of ours that was started from here, and serves this one through a socket."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from stockade.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FIRST_FREE", "NO_SIGNAL", "ServerProcess", "socket_pair"]

_BOOT = "import sys; sys.path += {paths!r}; from {module} import main; main({control}, {host})"

_NEEDED_VARIABLES = ("LD_LIBRARY_PATH",)
"""Variables without which some installations of Python find no library of their own."""

NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)

FIRST_FREE = 3
"""The first descriptor after the standard streams."""

_END_SECONDS = 5.0
"""How long it may take to end, when it is told to; it ends at once, but on a busy machine."""


class ServerProcess:
    """A process that was started, and ends when the socket does.

    Args:
        module: Has the function `main`, which is given the descriptor of the socket and the number of this process.
        missing: What is said where there is no Python to start.
        kind: What kind of socket it is.
        folders: Where else than beside ours there are packages that it imports.

    Raises:
        EngineError: There is no Python.
        OSError: The system does not start it.

    Attributes:
        control: The socket.
        popen: The process.
    """

    def __init__(self, module: str, missing: str, kind: int = socket.SOCK_STREAM, folders: Iterable[Path] = ()) -> None:
        if not sys.executable:
            raise EngineError(missing)
        ours, theirs = socket_pair(kind)
        with theirs:
            try:
                self.popen = subprocess.Popen(  # noqa: S603 - our own code; what a guest chose goes by descriptor
                    [sys.executable, "-I", "-X", "utf8", "-c", _boot(module, theirs.fileno(), folders)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    # Nothing of what the host was given: keys, tokens, passwords.
                    env={name: os.environ[name] for name in _NEEDED_VARIABLES if name in os.environ},
                    # Ctrl-C is for this process, which ends the other one.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        self.control = ours

    def close(self) -> None:
        """Ends it, and all that it does."""
        # A process that was forked without our knowing may have it, too. Where the other end is gone, all is well.
        with suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)
        self.control.close()
        try:
            self.popen.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()

    def leave(self) -> None:
        """Has it end when it has done what it was given, without waiting for that."""
        with suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)
        self.forget()

    def forget(self) -> None:
        """Lets go of it, in a forked child: it is the parent's."""
        self.control.close()
        # So that nobody waits for it, or complains that nobody did.
        self.popen.returncode = 0


def _boot(module: str, control: int, folders: Iterable[Path]) -> str:
    # Only where our own packages are, and last: never the working folder, which a guest may have written to.
    homes = (Path(__file__).parents[2], Path(str(msgspec.__file__)).parents[1], *folders)
    paths = list(dict.fromkeys(map(str, homes)))
    return _BOOT.format(paths=paths, module=module, control=control, host=os.getpid())


def socket_pair(kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, socket.socket]:
    """Makes a pair of sockets, neither under the number of a standard stream, which something may write to.

    Args:
        kind: What kind of sockets they are.
    """
    first, second = (_moved(end) for end in socket.socketpair(type=kind))
    return first, second


def _moved(end: socket.socket) -> socket.socket:
    if end.fileno() >= FIRST_FREE:
        return end
    # The host has closed a standard stream.
    with end:
        return socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, FIRST_FREE))
