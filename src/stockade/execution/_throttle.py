"""A share of one core: a guest that has used more than its share is halted until it has not."""

from __future__ import annotations

import time
from typing import Final

from stockade.execution._steps import GO_ON

__all__ = ["Throttle"]

_MOST_SAVED_SECONDS: Final = 0.02
"""CPU time that a guest which waited may use at once; more would let it burst after every sleep."""


class Throttle:
    """Holds one run to a share of a core, from its beginning on.

    Args:
        percent: The share, 1 to 99.
    """

    def __init__(self, percent: int) -> None:
        self._share = percent / 100
        self._credit_seconds = 0.0
        self._wall = time.monotonic()
        self._cpu = 0.0

    def until(self, cpu_seconds: float) -> float:
        """Says when the guest is within its share again.

        Args:
            cpu_seconds: CPU time that it has used since this was made.

        Returns:
            A time of `time.monotonic`; `GO_ON` if it is.
        """
        wall = time.monotonic()
        earned = (wall - self._wall) * self._share - (cpu_seconds - self._cpu)
        self._wall, self._cpu = wall, cpu_seconds
        self._credit_seconds = min(self._credit_seconds + earned, _MOST_SAVED_SECONDS)
        return wall - self._credit_seconds / self._share if self._credit_seconds < 0 else GO_ON
