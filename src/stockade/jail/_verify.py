"""What a jailed process tries, to find out whether its walls hold.

Each attempt would fail all the same, but in another way: with arguments that the kernel refuses for another reason. So
that a wall refuses it shows in the error, and nothing happens where there is none.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Final

from stockade.jail._libc import number_of, syscall
from stockade.jail._model import JailError
from stockade.jail._privileges import has_no_new_privileges, is_hidden
from stockade.jail._seccomp import filter_mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.jail._model import Wall

__all__ = ["verify"]

_CLONE_NEWUSER: Final = 0x1000_0000
_PTRACE_ATTACH: Final = 16
_AF_INET, _SOCK_STREAM = 2, 1


def _start_process() -> None:
    """What has been forked in spite of all ends at once."""
    child = syscall("clone", int(signal.SIGCHLD), 0, 0, 0, 0)
    if not child:
        os._exit(0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


_REFUSED_CALLS: Final[dict[str, Callable[[], object]]] = {
    "start a process": _start_process,
    "execute a program": lambda: syscall("execve", 0, 0, 0),
    "open a socket": lambda: os.close(syscall("socket", _AF_INET, _SOCK_STREAM, 0)),
    "trace a process": lambda: syscall("ptrace", _PTRACE_ATTACH, -1, 0, 0),
    "signal its parent": lambda: syscall("kill", os.getppid(), 0),
    "enter a namespace": lambda: syscall("unshare", _CLONE_NEWUSER | 1),
    "set up a ring": lambda: syscall("io_uring_setup", 0, 0),
    "load a program into the kernel": lambda: syscall("bpf", -1, 0, 0),
}


def load_checks() -> None:
    """Finds the numbers of all calls that are tried, so that processes forked from this one need not."""
    for name in (*_TRIED_CALLS, *_CALLS_OF_WALLS):
        number_of(name)


def verify(active: frozenset[Wall]) -> tuple[str, ...]:
    """Tries what a process must not be able to do behind its walls.

    Args:
        active: The walls that are said to stand.

    Returns:
        What it has tried, a few words each.

    Raises:
        JailError: Something worked.
    """
    tried = []
    if "environment" in active:
        tried.append("read its environment")
        if os.environ:
            raise JailError("the environment is not empty")
    if "privileges" in active and not has_no_new_privileges():
        raise JailError("this process can gain privileges")
    if "undumpable" in active and not is_hidden():
        raise JailError("processes of the same user can look into this one")
    if "landlock" in active:
        tried.append("open a folder of the host's")
        _must_fail("open /", lambda: os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY)), errno.EACCES, errno.EPERM)
    if "seccomp" in active:
        if not filter_mode():
            raise JailError("no filter stands before the system calls of this process")
        for told, attempt in _REFUSED_CALLS.items():
            tried.append(told)
            _must_fail(told, attempt, errno.EPERM)
    return tuple(tried)


_TRIED_CALLS: Final = ("clone", "execve", "socket", "ptrace", "kill", "unshare", "io_uring_setup", "bpf")
_CALLS_OF_WALLS: Final = ("capget", "capset", "close_range", "seccomp")


def _must_fail(told: str, attempt: Callable[[], object], *how: int) -> None:
    try:
        attempt()
    except OSError as problem:
        if problem.errno in how:
            return
        raise JailError(f"the attempt to {told} met no wall ({problem.strerror})") from None
    raise JailError(f"the attempt to {told} was not refused")
