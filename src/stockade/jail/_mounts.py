"""Folders as mounts of their own: nothing is above them, and what they do not permit, the kernel does not either.

An open folder leads to all that is above it, by `..`, wherever the process has its root. Landlock refuses to open what
is there, and knows nothing of asking for its size or setting its times. Such a mount is made from a path, in a
namespace where the folder has one: so a process stays there, and makes them for the one that has left it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from stockade.jail._leftovers import close_others
from stockade.jail._libc import syscall
from stockade.jail._privileges import forgo_new_privileges, hide_memory
from stockade.system import prctl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stockade.jail._model import Step

__all__ = ["detach_folders", "line_to_mounter", "start_mounter", "take_line_to_mounter"]

_FOLDER: Final = getattr(os, "O_PATH", 0) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_EMPTY_PATH, _RECURSIVE, _CLONE, _CLOEXEC = 0x1000, 0x8000, 1, os.O_CLOEXEC
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_PROGRAMS = 1, 2, 4, 8
_PR_SET_PDEATHSIG: Final = 1
_ANSWER: Final = struct.Struct("<i")
_WRITABLE, _READABLE, _ANOTHER = b"w", b"r", b"a"

_line: socket.socket | None = None
"""To the process that makes mounts; None where there is none, or another process asks by this one."""


def start_mounter() -> None:
    """Forks the process that stays in this namespace of mounts. It ends with this one.

    Raises:
        OSError: The system does not do so.
    """
    global _line
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    server = os.getpid()
    if os.fork():
        theirs.close()
        _line = ours
        return
    try:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == server:
            _serve(theirs)
    finally:
        os._exit(1)


def line_to_mounter() -> socket.socket | None:
    """Makes another line to the process that makes mounts, for a process that is going to be forked from this one.

    Two that asked by one line could each get what is the other's.

    Returns:
        The line; None where there is no such process.
    """
    if _line is None:
        return None
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        try:
            socket.send_fds(_line, [_ANOTHER], [theirs.fileno()])
        except OSError:
            ours.close()
            return None
    return ours


def take_line_to_mounter(line: socket.socket | None) -> None:
    """In the process that was forked: asks by its own line from now on, and gives up that of its parent.

    Args:
        line: Its own line; None where nobody makes mounts.
    """
    global _line
    if _line is not None:
        _line.close()
    _line = line


def detach_folders(folders: Iterable[tuple[int, bool]], steps: tuple[Step, ...]) -> tuple[list[int], tuple[Step, ...]]:
    """Makes of open folders such from which nothing else can be reached, where the process has left its root.

    Args:
        folders: Each folder, which is closed, and whether it is to be writable.
        steps: What came of the namespaces.

    Returns:
        The folders, which cannot be read from but by opening them anew; and the same steps, without the wall of mounts
        where one of them leads out of it.
    """
    found, reason = [], ""
    apart = any(step.wall == "mount" and step.active for step in steps)
    for folder, writable in folders:
        made = -1
        if apart:
            try:
                made = _detached(folder, writable)
            except OSError as problem:
                reason = f"a folder that is granted leads to what is above it ({problem.strerror})"
        # Opened anew in any case: who has the descriptor of another process moves its place in the folder.
        found.append(made if made >= 0 else os.open(".", _FOLDER, dir_fd=folder))
        os.close(folder)
    if not reason:
        return found, steps
    return found, tuple(
        msgspec.structs.replace(step, active=False, detail=reason) if step.wall == "mount" else step for step in steps
    )


def _detached(folder: int, writable: bool) -> int:
    if _line is None:
        raise OSError(0, "no process makes mounts")
    socket.send_fds(_line, [_WRITABLE if writable else _READABLE], [folder])
    answer, descriptors, _, _ = socket.recv_fds(_line, _ANSWER.size, 1)
    if len(answer) != _ANSWER.size:
        raise OSError(0, "the process that makes mounts has ended")
    (problem,) = _ANSWER.unpack(answer)
    if problem or not descriptors:
        raise OSError(problem, os.strerror(problem))
    return descriptors[0]


def _serve(line: socket.socket) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    close_others({line.fileno()})
    with suppress(OSError):
        hide_memory()
        forgo_new_privileges()
    poll = select.poll()
    poll.register(line, select.POLLIN)
    others: dict[int, socket.socket] = {}
    while True:
        for ready, _ in poll.poll():
            asking = others.get(ready, line)
            asked = b""
            descriptors: list[int] = []
            with suppress(OSError):
                asked, descriptors, _, _ = socket.recv_fds(asking, 1, 1)
            if not asked:
                if asking is line:
                    os._exit(0)
                poll.unregister(asking)
                others.pop(ready).close()
            elif asked == _ANOTHER and asking is line:
                another = socket.socket(fileno=descriptors[0])
                others[another.fileno()] = another
                poll.register(another, select.POLLIN)
            else:
                with suppress(OSError):
                    _answer(asking, asked, descriptors)


def _answer(line: socket.socket, asked: bytes, folders: list[int]) -> None:
    """Makes the mount that is asked for, and hands it over."""
    made: list[int] = []
    problem = 0
    try:
        made.append(_clone(folders[0], writable=asked == _WRITABLE))
    except OSError as failed:
        problem = failed.errno or 1
    try:
        socket.send_fds(line, [_ANSWER.pack(problem)], made)
    finally:
        for descriptor in (*folders, *made):
            os.close(descriptor)


def _clone(folder: int, *, writable: bool) -> int:
    """Returns a mount that is in no namespace, of a folder and what is mounted below it."""
    # It is open in another namespace. Where it is there, it is here, if it is the same.
    here = os.open(Path(f"/proc/self/fd/{folder}").readlink(), _FOLDER)
    try:
        if not os.path.samestat(os.fstat(here), os.fstat(folder)):
            raise FileNotFoundError(2, "it has no path")
        nothing = ctypes.create_string_buffer(b"")
        # SAFETY: the path is empty and ends with a zero; `nothing` outlives the call.
        made = syscall("open_tree", here, nothing, _CLONE | _CLOEXEC | _EMPTY_PATH | _RECURSIVE)
    finally:
        os.close(here)
    flags = _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS | _READ_ONLY * (not writable)
    attributes = ctypes.create_string_buffer(struct.pack("<4Q", flags, 0, 0, 0), 32)
    try:
        # SAFETY: `struct mount_attr` has four words of 64 bits, and both buffers outlive the call.
        syscall("mount_setattr", made, nothing, _EMPTY_PATH | _RECURSIVE, attributes, 32)
    except OSError:
        os.close(made)
        raise
    return made
