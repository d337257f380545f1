"""Whether the runs of a module are over within a moment, so that one may be begun where others wait for it."""

from __future__ import annotations

from typing import Final

__all__ = ["BRIEF_SECONDS", "Pace"]

BRIEF_SECONDS: Final = 0.001
"""How much processor time a run takes at most that is over within a moment."""

_WARY_RUNS: Final = 100
"""So many must be so brief after one that was not: a guest that is brief only now and then gains little by it."""


class Pace:
    """What is known of how long the runs of a plan take before they halt for the first time.

    Attributes:
        wary: How many must be over within a moment before the next one is expected to be.
    """

    __slots__ = ("wary",)

    def __init__(self) -> None:
        self.wary = 1

    def note(self, seconds: float) -> None:
        """Takes note of a run.

        Args:
            seconds: How much processor time it took; infinity where it waits.
        """
        if seconds > BRIEF_SECONDS:
            self.wary = _WARY_RUNS
        elif self.wary:
            self.wary -= 1
