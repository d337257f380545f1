"""A share of one core: a guest that has used more than its share is halted until it has not."""

from __future__ import annotations

import time
from typing import Final

from stockade.runner import GO_ON

__all__ = ["Throttle"]

_MOST_SAVED_SECONDS: Final = 0.02
"""CPU time that a guest which waited may use at once; more would let it burst after every sleep."""


class Throttle:
    """Holds one guest to a share of a core, from its beginning on, over all its calls.

    Args:
        percent: The share, 1 to 99.
    """

    def __init__(self, percent: int) -> None:
        self._share = percent / 100
        self._credit_seconds = 0.0
        self._wall = time.monotonic()
        self._cpu = 0.0

    def begin(self) -> float:
        """Begins a call, whose CPU time counts from zero; says when the guest is within its share again.

        Returns:
            A time of `time.monotonic`; `GO_ON` if it is.
        """
        self._cpu = 0.0
        return self.until(0.0)

    def until(self, cpu_seconds: float) -> float:
        """Says when the guest is within its share again.

        Args:
            cpu_seconds: CPU time that it has used since the call began.

        Returns:
            A time of `time.monotonic`; `GO_ON` if it is.
        """
        wall = self.settle(cpu_seconds)
        return wall - self._credit_seconds / self._share if self._credit_seconds < 0 else GO_ON

    def settle(self, cpu_seconds: float) -> float:
        """Takes account of what the guest has used.

        Args:
            cpu_seconds: CPU time that it has used since the call began.

        Returns:
            The time now, of `time.monotonic`.
        """
        wall = time.monotonic()
        earned = (wall - self._wall) * self._share - (cpu_seconds - self._cpu)
        self._wall, self._cpu = wall, cpu_seconds
        self._credit_seconds = min(self._credit_seconds + earned, _MOST_SAVED_SECONDS)
        return wall
