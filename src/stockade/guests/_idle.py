"""Sessions that nobody uses are closed after a time: one thread looks after them all."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from stockade._bell import start_thread
from stockade._locks import new_lock

if TYPE_CHECKING:
    from stockade.guests._session import LanguageSession

__all__ = ["close_when_idle"]

_changed = threading.Condition(new_lock())
_watched: dict[weakref.ref[LanguageSession], float] = {}
"""How many seconds each may rest."""
_running = False

_SHORTEST_SECONDS = 0.01
_LONGEST_SECONDS = 3600.0


def close_when_idle(session: LanguageSession, seconds: float) -> None:
    """Has a session closed that has not been used for some time.

    Args:
        session: The session.
        seconds: How long.
    """
    global _running
    with _changed:
        _watched[weakref.ref(session)] = seconds
        if not _running:
            _running = True
            start_thread(threading.Thread(target=_look_after, name="stockade-idle", daemon=True))
        _changed.notify()


def _look_after() -> None:
    global _running
    while True:
        with _changed:
            if not _watched:
                _running = False
                return
            listed = list(_watched.items())
        soonest = min(_look(reference, seconds) for reference, seconds in listed)
        with _changed:
            if _watched:
                _changed.wait(max(_SHORTEST_SECONDS, min(soonest - time.monotonic(), _LONGEST_SECONDS)))


def _look(reference: weakref.ref[LanguageSession], seconds: float) -> float:
    """Closes a session whose time is up; returns when to look again."""
    session = reference()
    if session is not None and not session.closed:
        due = session.last_used + seconds
        if time.monotonic() < due:
            return due
        if not session.close_idle(f"the session was closed after {seconds:g} s without use: open a new one"):
            return time.monotonic() + seconds
    with _changed:
        _watched.pop(reference, None)
    return float("inf")
