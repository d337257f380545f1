"""Which starts may go on that are made ahead of need: runs that have to wait for their own come first.

To start an interpreter takes a processor for some time. As many are made ahead at once as leave one processor free for
the runs that use them; and none where runs that found none waiting need all processors for their own.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from stockade.runner import FOREVER

if TYPE_CHECKING:
    from stockade.runner import RunControl, RunCoroutine

__all__ = ["Starts", "starts"]


class Starts:
    """Starts that are made ahead, and those that runs wait for. Safe to share between threads, and with signals.

    Args:
        processors: How many processors there are.
    """

    def __init__(self, processors: int) -> None:
        self._processors = processors
        self._most = max(1, processors - 1)
        # Each call on these is one of the interpreter's own, so no lock is needed: two that look at once may both find
        # the last place free, which does no harm.
        self._ahead: set[RunControl] = set()
        self._urgent: set[object] = set()
        self._line: deque[RunControl] = deque()

    @property
    def ahead(self) -> int:
        """How many are being made ahead."""
        return len(self._ahead)

    @property
    def urgent(self) -> int:
        """How many runs have one made for themselves."""
        return len(self._urgent)

    def turn(self, control: RunControl) -> RunCoroutine[None]:
        """Waits, in steps, until a start may go on that is made ahead. Asked before each of its steps.

        Args:
            control: The control of whoever makes it, who is woken when it may.
        """
        if control in self._ahead:
            if self._has_room(1):
                return
            self._ahead.discard(control)
            # It was begun before those that wait for their first step.
            self._line.appendleft(control)
        else:
            self._line.append(control)
        # In line before it looks: whoever makes room afterwards finds it there.
        try:
            yield from self._room(control)
            self._ahead.add(control)
        finally:
            with suppress(ValueError):
                self._line.remove(control)

    def _room(self, control: RunControl) -> RunCoroutine[None]:
        while not (self._has_room(0) or control.cancelled):
            yield FOREVER

    def _has_room(self, mine: int) -> bool:
        others = len(self._ahead) - mine
        return others < self._most and others + len(self._urgent) < self._processors

    def over(self, control: RunControl) -> None:
        """Notes that a start is not made ahead any more: it is over, or is a run's."""
        self._ahead.discard(control)
        self._call_next()

    def begin_urgent(self, run: object) -> None:
        """Notes that a run has one made for itself.

        Args:
            run: It.
        """
        self._urgent.add(run)

    def end_urgent(self, run: object) -> None:
        """Notes that the run is over."""
        self._urgent.discard(run)
        self._call_next()

    def _call_next(self) -> None:
        for control in list(self._line)[: self._most]:
            control.wake()


_starts = Starts(os.cpu_count() or 1)


def starts() -> Starts:
    """Returns those of this process."""
    return _starts


def _after_fork() -> None:
    """Begins anew in a forked child, which has none of its parent's threads."""
    global _starts
    _starts = Starts(os.cpu_count() or 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
