"""Threads for what is to be called when tasks are over: it may take its time, and wait for other tasks."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from stockade._bell import MOST_RAISED, start_thread
from stockade._locks import reentrant_lock
from stockade._outside import call_outside
from stockade.errors import EngineError
from stockade.runner import executor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MOST_TELLERS", "check_may_wait", "tell_later"]

MOST_TELLERS: Final = 16
"""Threads. Where all of them wait, so does what is to be called next, but no run does."""

_LINGER_SECONDS: Final = 1.0
"""How long one stays that has nothing to do."""

_lent: Final[set[int]] = set()
"""Threads of the executor that make calls, for want of others. Each adds and removes its own number."""


def check_may_wait() -> None:
    """Checks that whoever calls may wait for tasks.

    Raises:
        EngineError: It is called on a thread that tasks need.
    """
    if _lent and threading.get_ident() in _lent:
        raise EngineError(
            "no thread can be started for what is to be called when tasks are over, so it is called on one that tasks "
            "need: waiting for a task here could last for ever. Run fewer at once, or raise the limit (ulimit -u)"
        )


class _Tellers:
    """Calls what it is given, in the order in which it was given, on a few threads that come and go."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        # Reentrant, for the handler of a signal may end something.
        self._lock = reentrant_lock()
        self._change = threading.Condition(self._lock)
        # Also one that is about to start; one whose start was interrupted is not among them, and ends.
        self._threads: set[threading.Thread] = set()
        self._idle = 0

    def tell(self, call: Callable[[], object]) -> None:
        """Has something called, that raises nothing. Without any thread to be had, it is called at once."""
        self._calls.append(call)
        try:
            alone = self._has_nobody()
        except BaseException:
            # The handler of a signal has raised, in the middle of this.
            for _ in range(MOST_RAISED):
                try:
                    self._has_nobody()
                    break
                except BaseException:  # noqa: S112 - a second signal; the first is raised
                    continue
            raise
        if alone:
            self._call_here()

    def _has_nobody(self) -> bool:
        """Sees to it that a thread makes the calls; whether there is none to be had."""
        with self._lock:
            if self._idle:
                self._change.notify()
            if self._idle >= len(self._calls) or len(self._threads) >= MOST_TELLERS:
                return False
            thread = threading.Thread(target=self._work, name="stockade-teller", daemon=True)
            self._threads.add(thread)
            try:
                start_thread(thread)
            except BaseException as problem:
                self._threads.discard(thread)
                if not isinstance(problem, RuntimeError):
                    raise
            return not self._threads

    def _call_here(self) -> None:
        me = threading.get_ident()
        if me in _lent or not executor().has_this_thread:
            self._call_all()
            return
        _lent.add(me)
        try:
            # Whoever is in there is not at work: the next thread takes over, as soon as one can be had.
            call_outside(self._call_all)
        finally:
            _lent.discard(me)

    def _call_all(self) -> None:
        while self._calls:
            with suppress(IndexError):
                self._calls.popleft()()

    def _work(self) -> None:
        thread = threading.current_thread()
        with self._lock:
            if thread not in self._threads:
                return
        while True:
            self._call_all()
            with self._lock:
                if not self._calls:
                    self._idle += 1
                    self._change.wait(_LINGER_SECONDS)
                    self._idle -= 1
                if not self._calls:
                    # Whoever brings something after this looks at how many there are after this, too.
                    self._threads.discard(thread)
                    return


_tellers = _Tellers()


def tell_later(call: Callable[[], object]) -> None:
    """Has something called on a thread of its own kind.

    Args:
        call: What to call; it raises nothing.
    """
    _tellers.tell(call)


def _after_fork() -> None:
    """Begins anew in a forked child, which has none of the parent's threads."""
    global _tellers
    _tellers = _Tellers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
