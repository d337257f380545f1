"""Guests that open a FIFO, and the threads that wait for somebody at its other end.

Native WASI opens what it is told to. Opening a FIFO waits until its other end is opened, too: for ever, maybe, and out
of reach of any deadline. To look at each path before it is opened would take longer than opening it. So who waits is
found instead: the kernel tells in which system call each of our threads is (proc_pid_syscall(5)). If that is an open of
a FIFO, its other end is opened here for a moment, and the guest is told that it may not have it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import stat
import struct
import sys
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["can_release_opens", "release_opens"]

_OPENS: Final = {"x86_64": (257, 437), "aarch64": (56, 437)}
"""The numbers of openat(2) and openat2(2), by machine."""

_OPENAT2: Final = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_BENEATH = 0x02, 0x08
_PATH_MAX: Final = 4096

_TASKS: Final = Path("/proc/self/task")


class _Open(NamedTuple):
    """What a thread opens: a path below an open folder."""

    folder: int
    path: bytes


@cache
def can_release_opens() -> bool:
    """Whether the system tells in which call a thread is."""
    if sys.platform != "linux" or platform.machine() not in _OPENS:
        return False
    try:
        Path("/proc/thread-self/syscall").read_bytes()
        return os.access("/proc/self/mem", os.R_OK)
    except OSError:
        return False


def release_opens(tell: Callable[[bytes], None]) -> None:
    """Lets all threads of this process go on that wait for the other end of a FIFO.

    Args:
        tell: Is called with the path that they open, before they go on.
    """
    for open_ in set(_opens()):
        with suppress(OSError), closing(_File(_find(open_))) as found:
            if stat.S_ISFIFO(os.fstat(found.number).st_mode):
                tell(open_.path)
                # Both ends at once, so that this does not wait; whoever waits for one of them goes on.
                os.close(os.open(f"/proc/self/fd/{found.number}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))


class _File(NamedTuple):
    """An open descriptor."""

    number: int

    def close(self) -> None:
        os.close(self.number)


def _opens() -> Iterator[_Open]:
    """What threads of this process are opening right now, and have not got yet."""
    numbers = _OPENS[platform.machine()]
    for task in os.listdir(_TASKS):  # noqa: PTH208 - names are all that is wanted
        # A thread may be gone, or out of its call, at any moment.
        with suppress(OSError, ValueError, IndexError):
            words = (_TASKS / task / "syscall").read_bytes().split()
            if int(words[0]) in numbers:
                folder = ctypes.c_int(int(words[1], 16)).value
                yield _Open(folder, _text_at(int(words[2], 16)))


def _text_at(address: int) -> bytes:
    """Reads a text that ends with a zero byte. It may be gone: then this is an error, not a crash."""
    with open("/proc/self/mem", "rb", buffering=0) as memory:  # noqa: PTH123 - a descriptor is all that is wanted
        # To the end of its page first: what lies behind may not be there.
        first = min(-address % 4096 or 4096, _PATH_MAX)
        text = os.pread(memory.fileno(), first, address)
        if b"\0" not in text:
            text += os.pread(memory.fileno(), _PATH_MAX - first, address + first)
    return text[: text.index(b"\0")]


def _find(open_: _Open) -> int:
    """Opens the place that a path leads to, and nothing of what stands there, without leaving the folder."""
    how = struct.pack("<QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    # SAFETY: the path ends with a zero byte, and both texts are borrowed for the call (openat2(2)).
    library = ctypes.CDLL(None, use_errno=True)
    found = library.syscall(ctypes.c_long(_OPENAT2), open_.folder, open_.path, how, ctypes.c_size_t(len(how)))
    if found < 0:
        raise OSError(ctypes.get_errno(), "openat2")
    return int(found)
