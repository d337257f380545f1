"""Threads of native WASI's own, which a forked child lacks: there, no call about files would ever return.

Native WASI hands such calls to threads of a runtime that it begins when it first needs one, and waits for them where
nothing interrupts it. So a child whose parent had these threads gets no guests with files.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["look_before_fork", "lost_by_forking"]

_NAME: Final = "tokio-rt-worker"
_TASKS: Final = Path("/proc/self/task")

_there = False
_lost = False


def lost_by_forking() -> bool:
    """Whether this process was forked from one that had such threads."""
    return _lost


def look_before_fork() -> None:
    """Finds out whether this process has such threads: when no other thread is in the engine, which begins them."""
    global _there
    _there = False
    # Elsewhere than on Linux, nobody tells.
    with suppress(OSError):
        for task in _TASKS.iterdir():
            # It may end meanwhile.
            with suppress(OSError):
                _there = _there or (task / "comm").read_text().strip() == _NAME


def _after_fork() -> None:
    global _lost
    _lost = _lost or _there


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
