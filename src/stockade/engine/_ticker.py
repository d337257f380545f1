"""The clock that makes running guests look up.

wasmtime lets compiled code check an epoch counter at every loop and call. While guests run, one thread raises the
counter every `TICK_SECONDS`; each tick makes every running guest yield to the Python code that drives it, which
checks deadlines, cancellation and signals. The thread lingers for a moment after the last run, so that a burst of
short runs does not start a thread for each, and then ends.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TICK_SECONDS", "Ticker"]

TICK_SECONDS = 0.01
"""How often the epoch is raised. A deadline is met within about two ticks."""

_LINGER_TICKS = 10
"""Idle ticks after which the thread ends: 0.1 s."""


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

    @property
    def running(self) -> int:
        """How many runs are under way."""
        return self._running

    def forget(self) -> None:
        """Begins anew in a forked child, which has the parent's memory but not its threads."""
        self._lock = threading.Lock()
        self._running = 0
        self._thread = None

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
                continue
            idle += 1
            if idle >= _LINGER_TICKS:
                with self._lock:
                    if not self._running:
                        self._thread = None
                        return
