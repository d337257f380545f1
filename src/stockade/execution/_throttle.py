"""A share of one core: a guest that has used more than its share is halted until it has not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Throttle"]

_SLICE_SECONDS: Final = 0.01
"""Halts are no longer than this at a stretch, so that deadlines and cancellation hold."""

_MOST_SAVED_SECONDS: Final = 0.02
"""CPU time that a guest which waited may use at once; more would let it burst after every sleep."""


class Throttle:
    """Holds one run, on the thread that made it, to a share of a core.

    Args:
        percent: The share, 1 to 99.
    """

    def __init__(self, percent: int) -> None:
        self._share = percent / 100
        self._credit_seconds = 0.0
        self._wall = time.monotonic()
        self._cpu = time.thread_time()

    def serve(self, may_go_on: Callable[[], bool]) -> None:
        """Halts the guest for as long as it is over its share.

        Args:
            may_go_on: Ends the halt when it says no.
        """
        while True:
            wall, cpu = time.monotonic(), time.thread_time()
            earned = (wall - self._wall) * self._share - (cpu - self._cpu)
            self._wall, self._cpu = wall, cpu
            self._credit_seconds = min(self._credit_seconds + earned, _MOST_SAVED_SECONDS)
            if self._credit_seconds >= 0 or not may_go_on():
                return
            time.sleep(min(-self._credit_seconds / self._share, _SLICE_SECONDS))
