"""What a process of ours asks the system for when it begins, where the system can."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from functools import cache
from typing import Any

__all__ = ["end_with", "forgo_privileges", "prctl"]

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


@cache
def _libc() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl.restype = ctypes.c_int
    library.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
    return library


def prctl(option: int, *arguments: int) -> int:
    """Asks something of Linux for this process, or about it.

    Args:
        option: What, as prctl(2) numbers it; one that takes numbers only.
        *arguments: Up to four of them.

    Raises:
        OSError: It fails.
    """
    ctypes.set_errno(0)
    # SAFETY: only options that take numbers are used.
    result: int = _libc().prctl(option, *arguments, *(0,) * (4 - len(arguments)))
    if result < 0:
        problem = ctypes.get_errno()
        raise OSError(problem, os.strerror(problem))
    return result


def end_with(parent: int) -> None:
    """Has the system end this process when the one that started it ends, however that happens.

    The system looks at the thread that started it, so this is for parents that have one.

    Args:
        parent: The process that started this one.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # It may have ended before that.
        if os.getppid() != parent:
            os._exit(1)


def forgo_privileges() -> None:
    """Has the system give this process no more rights than it has, whatever it executes.

    Raises:
        OSError: It does not.
    """
    if sys.platform == "linux":
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
