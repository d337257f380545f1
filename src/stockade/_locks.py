"""Locks that a forked child finds open where another thread of its parent had them: that thread is not there."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Final

__all__ = ["new_lock"]

_made: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def new_lock() -> threading.RLock:
    """Makes a lock; reentrant, for the handler of a signal may come back to what its thread is in the middle of."""
    lock = threading.RLock()
    _made.add(lock)
    return lock


def _after_fork() -> None:
    for lock in list(_made):
        # This thread's own stays, for it goes on where it was.
        if not lock._is_owned():  # noqa: SLF001 - as conditions do
            lock._at_fork_reinit()  # noqa: SLF001 - as the modules of Python do


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
