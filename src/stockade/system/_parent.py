"""What a process of ours asks the system for when it begins, where the system can."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from functools import cache
from typing import Any

__all__ = ["end_with", "forgo_privileges"]

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def end_with(parent: int) -> None:
    """Has the system end this process when the one that started it ends, however that happens.

    The system looks at the thread that started it, so this is for parents that have one.

    Args:
        parent: The process that started this one.
    """
    if sys.platform == "linux":
        # SAFETY: prctl takes numbers only.
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # It may have ended before that.
        if os.getppid() != parent:
            os._exit(1)


def forgo_privileges() -> None:
    """Has the system give this process no more rights than it has, whatever it executes."""
    if sys.platform == "linux":
        # SAFETY: prctl takes numbers only.
        _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
