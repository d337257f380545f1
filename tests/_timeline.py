"""A clock of a test's own for runs on its thread, whose waits take no time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from stockade.execution import _budget, _guest, _halted, _reporting, _run, _streams, _throttle, _timekeeper
from stockade.runner import _coroutine

if TYPE_CHECKING:
    import pytest

__all__ = ["Timeline"]

_MODULES: Final = (_budget, _coroutine, _guest, _halted, _reporting, _run, _streams, _throttle, _timekeeper)
_BEGIN: Final = 1000.0


class Timeline:
    """Takes the place of the module `time` where runs read their clocks, and of what they wait by.

    The clocks stand still, however long the machine takes, and go on by as much as is waited. A guest that computes
    for ever is not stopped by them, then. Guests that sleep look at a clock of the operating system, which goes on by
    itself.

    Args:
        patch: What undoes it again.
        work_seconds: How much time and CPU time passes whenever somebody asks for the latter, as is done around each
            piece of work.

    Attributes:
        cpu: CPU time of this thread.
        now: The time.
        sleeps: Whether waits take their time, and these clocks count as much as was asked for: then guests that sleep
            wake up.
    """

    def __init__(self, patch: pytest.MonkeyPatch, work_seconds: float = 0.0) -> None:
        self.now = _BEGIN
        self.cpu = 0.0
        self.sleeps = False
        self._work_seconds = work_seconds
        timeline = self

        class Bell:
            def ring(self) -> None:
                """Nobody rings on this thread while it waits."""

            def wait(self, seconds: float | None = None) -> None:
                assert seconds is not None, "it would wait for ever"
                timeline.now += max(0.0, seconds)
                if timeline.sleeps:
                    time.sleep(max(0.0, seconds))

        for module in _MODULES:
            patch.setattr(module, "time", self)
        patch.setattr(_coroutine, "Bell", Bell)

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def monotonic(self) -> float:
        """The time."""
        return self.now

    perf_counter = monotonic

    def thread_time(self) -> float:
        """CPU time of this thread."""
        self.now += self._work_seconds
        self.cpu += self._work_seconds
        return self.cpu

    @property
    def passed(self) -> float:
        """Seconds since the beginning."""
        return self.now - _BEGIN
