"""The clock that makes running guests look up.

wasmtime lets compiled code check an epoch counter at every loop and call. While guests run, one thread raises the
counter every `TICK_SECONDS`; each tick makes every running guest yield to the Python code that drives it, which
checks deadlines, cancellation and signals. The thread lingers for a moment after the last run, so that a burst of
short runs does not start a thread for each, and then ends.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from stockade.engine._fifo import can_release_opens, release_opens

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TICK_SECONDS", "Ticker", "Watched"]

TICK_SECONDS = 0.01
"""How often the epoch is raised. A deadline is met within about two ticks."""

_LINGER_TICKS = 10
"""Idle ticks after which the thread ends: 0.1 s."""


_PATIENCE_TICKS = 2
"""Who has not yielded at the second tick is not computing: it is in a native call, or in a long instruction."""


class Watched(Protocol):
    """A guest that may come to open a FIFO."""

    def was_released(self, path: bytes) -> None:
        """Is told that an open of this path, maybe its own, was waiting for the other end of a FIFO."""


class Ticker:
    """Calls `tick` every `TICK_SECONDS` while something runs.

    Args:
        tick: What to call; must be safe to call from another thread.

    Attributes:
        count: How often it has ticked.
    """

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._lock = threading.Lock()
        self._running = 0
        self._thread: threading.Thread | None = None
        # How often it has ticked: raised before the epoch is, so whoever finds it unchanged was not made to look up.
        self.count = 0
        self._watched: dict[Watched, int] = {}

    def watch(self, guest: Watched) -> None:
        """Has a guest looked after that begins to run now."""
        self._watched[guest] = self.count

    def unwatch(self, guest: Watched) -> None:
        """It does not run any more."""
        del self._watched[guest]

    @property
    def running(self) -> int:
        """How many runs are under way."""
        return self._running

    def forget(self) -> None:
        """Begins anew in a forked child, which has the parent's memory but not its threads."""
        self._lock = threading.Lock()
        self._running = 0
        self._thread = None
        self._watched = {}

    def enter(self) -> None:
        """Counts one more run, and starts the thread if there is none."""
        with self._lock:
            self._running += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="stockade-ticker", daemon=True)
                self._thread.start()

    def leave(self) -> None:
        """Counts one run less."""
        with self._lock:
            self._running -= 1

    def _loop(self) -> None:
        idle = 0
        while True:
            time.sleep(TICK_SECONDS)
            # Read without the lock: a run that begins right now gets its tick a little later.
            if self._running:
                idle = 0
                self.count += 1
                self._tick()
                if self._watched:
                    self._release()
                continue
            idle += 1
            if idle >= _LINGER_TICKS:
                with self._lock:
                    if not self._running:
                        self._thread = None
                        return

    def _release(self) -> None:
        """Lets guests go on that wait for the other end of a FIFO."""
        watched = list(self._watched.items())
        if any(self.count - since > _PATIENCE_TICKS for _, since in watched) and can_release_opens():

            def tell(path: bytes) -> None:
                for guest, _ in watched:
                    guest.was_released(path)

            # What the system does not tell just now, it tells at the next tick.
            with suppress(OSError):
                release_opens(tell)
