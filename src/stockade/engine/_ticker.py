"""The clock that makes running guests look up.

wasmtime lets compiled code check an epoch counter at every loop and call. While guests run, one thread raises the
counter every `TICK_SECONDS`; each tick makes every running guest yield to the Python code that drives it, which
checks deadlines, cancellation and signals. The thread lingers for a moment after the last run, so that short runs
that follow each other do not start a thread each, and then ends.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Final, Protocol

from stockade._bell import Bell, start_thread
from stockade._locks import reentrant_lock
from stockade._rendezvous import Rendezvous
from stockade.engine._fork_gate import forks, keep_list, stand_back
from stockade.errors import EngineError
from stockade.system import interrupt_opens, let_interrupts_in

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TICK_SECONDS", "Ticker", "Watched"]

TICK_SECONDS = 0.01
"""How often the epoch is raised. A deadline is met within about two ticks."""

_LINGER_TICKS = 10
"""Idle ticks after which the thread ends: 0.1 s."""

_LATE_SECONDS: Final = 0.0001
"""How long after its time a tick is late: nobody had to wait for the thread until then."""

_LET_BY_SECONDS: Final = 0.001
"""How long the thread is waited for at most, which takes a tenth of that."""

_COMPUTING_TICKS = 2
"""Who has not yielded by then is in a native call, or in a long instruction."""


class Watched(Protocol):
    """A guest that may come to open what takes for ever."""

    def patience(self) -> int | None:
        """Says how many ticks what it opens may take; None where it opens nothing."""


class Ticker:
    """Calls `tick` every `TICK_SECONDS` while something runs.

    Args:
        tick: What to call; must be safe to call from another thread.

    Attributes:
        count: How many ticks have begun. Raised before the epoch is.
        raised: How many ticks are over. Raised after the epoch is.
        running: What runs, each with its thread. Whoever has entered takes itself out when it halts.
        watched: Guests that run and may open something, each with the tick at which it went on.
        due: When a tick is late, by `time.perf_counter`: whoever ends a call of a guest after that lets the thread by.
    """

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        # Reentrant, for the handler of a signal may run something.
        self._lock = reentrant_lock()
        # The one that ticks. Another one, whose start was interrupted, finds that it is not this, and ends.
        self._thread: threading.Thread | None = None
        # From `raised` at one time to `count` at a later one there are at least as many as were felt in between.
        self.count = 0
        self.raised = 0
        self.running = keep_list(self)
        self.watched: dict[Watched, int] = {}
        self.due = inf
        # Where those are that let it by.
        self._rendezvous = Rendezvous()
        self._met = threading.local()
        # Where its thread rests when nothing runs; None where it ends then.
        self._rest: Bell | None = None
        self._rests = False
        # Whether anything has run since the last tick. Of most runs no tick finds that they run: they are too short.
        self._was_used = False

    def stay(self) -> None:
        """Has the thread stay from now on, for a process that has one engine, and is to begin its run at once.

        Raises:
            EngineError: There can be no thread.
        """
        self._rest = Bell()
        if self._thread is None:
            self._start()

    def let_by(self) -> None:
        """Lets the thread tick that has not got the interpreter lock."""
        self.due = inf
        self._rendezvous.let_by(_LET_BY_SECONDS)

    def watch(self, guest: Watched) -> None:
        """Has a guest looked after that begins to run now, on this thread."""
        if not getattr(self._met, "before", False):
            let_interrupts_in()
            self._met.before = True
        self.watched[guest] = self.count

    def forget(self) -> None:
        """Begins anew in a forked child, which has the parent's memory but not its threads."""
        self._lock = reentrant_lock()
        self._thread = self._rest = None
        self._rests = False
        self._rendezvous = Rendezvous()
        self.due = inf
        self.watched = {}
        # A handler of a signal has forked, in the middle of a run that goes on here.
        if self.running:
            self._start()

    def enter(self, run: object) -> None:
        """Counts one more run, and starts the thread if there is none.

        Args:
            run: What is taken out of `running` when it does not run any more, also where this has raised.

        Raises:
            EngineError: There can be no thread, and without it nothing would be stopped.
        """
        self.running[run] = get_ident()
        self._was_used = True
        if forks:
            stand_back(self.running, run)
        # Without the lock: a thread that is about to end looks again after it has said so.
        if self._thread is None:
            self._start()
        elif self._rests:
            self._wake()

    def _wake(self) -> None:
        self._rests = False
        if self._rest is not None:
            self._rest.ring()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._loop, name="stockade-ticker", daemon=True)
            try:
                start_thread(thread)
            except RuntimeError as problem:
                raise EngineError(
                    "no thread can be started to look at deadlines, and without it no guest runs: the process or "
                    f"the system has as many as it may ({problem}). Run fewer at once, or raise the limit "
                    "(ulimit -u)"
                ) from None
            # Not before: who else enters would rely on a thread that may never come. The handler of a signal may have
            # started another one meanwhile.
            if self._thread is None:
                self._thread = thread

    def _loop(self) -> None:
        me = threading.current_thread()
        with self._lock:
            # Whoever has started it has said so by now, or has been interrupted, and never does.
            pass
        try:
            self._tick_while_needed(me)
        finally:
            # Still this thread's: something was raised. Deadlines must not end with it.
            if self._thread is me:
                self._thread = None
                if self.running:
                    self._start()

    def _tick_while_needed(self, me: threading.Thread) -> None:
        idle = 0
        while self._thread is me:
            self.due = time.perf_counter() + TICK_SECONDS + _LATE_SECONDS
            time.sleep(TICK_SECONDS)
            self.due = inf
            if self.running:
                idle = 0
                self.count += 1
                self._tick()
                self.raised = self.count
                if self.watched:
                    # Nothing that goes wrong here may end this thread: what the system does not tell just now, it tells
                    # at the next tick.
                    with suppress(Exception):
                        self._interrupt()
                self._rendezvous.is_done()
                continue
            self._rendezvous.is_done()
            idle = 0 if self._was_used else idle + 1
            self._was_used = False
            if self._rest is not None:
                self._rests = True
                # Whoever comes after this sees that it rests.
                if not self.running:
                    self._rest.wait()
                self._rests = False
                idle = 0
            elif idle >= _LINGER_TICKS:
                with self._lock:
                    if self._thread is me:
                        self._thread = None
                        if self.running:
                            # It came before that was to be seen, and did not start another one.
                            self._thread = me
                idle = 0

    def _interrupt(self) -> None:
        """Lets guests go on that open what takes long."""
        for guest, since in list(self.watched.items()):
            # Who computes has yielded at the second tick, and is not asked.
            ticks = self.count - since
            if ticks > _COMPUTING_TICKS and (patience := guest.patience()) is not None and ticks > patience:
                interrupt_opens()
                break
