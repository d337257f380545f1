"""Locks that stay taken neither where a signal's handler raises, nor in a forked child whose parent had them.

`with` on a lock takes it by a call. In Python 3.14, not before and not in 3.15, signals are looked for right behind
that call, where nothing gives the lock back yet: what a handler raises there would leave it taken for ever. They are
looked for behind calls, but not behind an operator. So there the lock is taken by one.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from _thread import RLock
from typing import Any, Final

__all__ = ["new_lock", "reentrant_lock"]

_made: Final[set[weakref.ref[Any]]] = set()
"""No `WeakSet`: where a lock was dropped, that would lose what the handler of a signal raises (`_dropped.py`)."""

_WAIT: Final = (True,)

_LOOKS_BEHIND_CALLS: Final = sys.version_info[:2] == (3, 14)


class _TakenByOperator(RLock):  # type: ignore[misc] # final in stubs only
    __slots__ = ()

    def __enter__(self) -> bool:  # type: ignore[override] # it is always true
        # The lock is taken within `in`: the next place where signals are looked for is one where it is given back.
        return True in map(self.acquire, _WAIT)


def reentrant_lock() -> threading.RLock:
    """Makes a lock; reentrant, for the handler of a signal may come back to what its thread is in the middle of."""
    lock = threading.RLock()
    return _TakenByOperator() if _LOOKS_BEHIND_CALLS and type(lock) is RLock else lock


def new_lock() -> threading.RLock:
    """Makes a reentrant lock that a forked child finds open where another thread had it."""
    lock = reentrant_lock()
    _made.add(weakref.ref(lock, _made.discard))
    return lock


def _after_fork() -> None:
    for lock in [kept() for kept in list(_made)]:
        # This thread's own stays, for it goes on where it was.
        if lock is not None and not lock._is_owned():  # noqa: SLF001 - as conditions do
            lock._at_fork_reinit()  # noqa: SLF001 - as the modules of Python do


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
