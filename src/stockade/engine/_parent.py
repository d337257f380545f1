"""A process that ends with the one that waits for it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["end_with"]

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Has the system end this process when the one that started it ends, however that happens, where the system can.

    Args:
        parent: The process that started this one.
    """
    if sys.platform == "linux":
        # SAFETY: prctl takes numbers only.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # It may have ended before that.
        if os.getppid() != parent:
            os._exit(1)
