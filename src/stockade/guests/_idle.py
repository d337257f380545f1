"""Sessions that nobody uses are closed after a time: one thread looks after them all."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from stockade._bell import start_thread
from stockade._locks import new_lock
from stockade.errors import EngineError

if TYPE_CHECKING:
    from stockade.guests._session import LanguageSession

__all__ = ["close_when_idle", "forget"]

_changed = threading.Condition(new_lock())
_watched: dict[weakref.ref[LanguageSession], float] = {}
"""How many seconds each may rest."""
_thread: threading.Thread | None = None

_SHORTEST_SECONDS = 0.01
# Those that were dropped without being closed are let go of at the latest then.
_LONGEST_SECONDS = 60.0


def close_when_idle(session: LanguageSession, seconds: float) -> None:
    """Has a session closed that has not been used for some time.

    Args:
        session: The session.
        seconds: How long.

    Raises:
        EngineError: There can be no thread that closes it.
    """
    global _thread
    with _changed:
        # It is not alive where it could not be started, nor in a process that was forked since.
        if _thread is None or not _thread.is_alive():
            fresh = threading.Thread(target=_look_after, name="stockade-idle", daemon=True)
            try:
                start_thread(fresh)
            except RuntimeError as problem:
                raise EngineError(
                    "no thread can be started to close sessions that nobody uses: the process or the system has as "
                    f"many as it may ({problem}). Open the session without idle=, or raise the limit (ulimit -u)"
                ) from None
            _thread = fresh
        _watched[weakref.ref(session)] = seconds
        _changed.notify_all()


def forget(session: LanguageSession) -> None:
    """Looks no more after a session, for it is closed."""
    with _changed:
        if _watched.pop(weakref.ref(session), None) is not None:
            _changed.notify_all()


def _look_after() -> None:
    global _thread
    while True:
        with _changed:
            if not _watched:
                # Whoever comes next starts another one.
                _thread = None
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
