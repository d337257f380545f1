"""Workers that are made ahead: forked, jailed and with their module loaded, each waits for the one run that it is for.

How many wait for a module under a policy follows from how many of its runs are under way at once; none does for what
has run but once. Another is made when the run is over that one was taken for, or is not over within a moment: whoever
made it before would take that run's time. All are ended that nobody has asked for in a while, but
those that somebody has asked to wait.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from stockade.isolation._frames import Gone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.isolation._handle import Expectation, WorkerHandle

__all__ = ["MOST_AHEAD", "MOST_FOR_ONE", "WorkersAhead"]

MOST_AHEAD: Final = 16
"""Workers that wait, at a time."""

MOST_FOR_ONE: Final = 8
"""Of these, workers for one module under one policy."""

IDLE_SECONDS: Final = 30.0
"""For so long after a module has run under a policy, workers wait for it to do so again."""


class _Expected:
    """What waits for one module under one policy.

    Attributes:
        waiting: The workers.
        working: Numbers of those that were taken, or made for a run at once, and whose run is not over.
        wanted: How many of these there were when one was asked for last: so many are to wait.
        asked: When that was.
        is_usual: Whether that was not the first time.
        kept: How many are to wait at least, whether anybody asks for them or not.
        given: What the guest of the last run was given, where that of the next one may be given the same; None where
            nothing is gained by having that ready.
    """

    def __init__(self, asked: float) -> None:
        self.waiting: deque[WorkerHandle] = deque()
        self.working: set[int] = set()
        self.wanted = 0
        self.asked = asked
        self.is_usual = False
        self.kept = 0
        self.given: Expectation | None = None

    @property
    def spare(self) -> int:
        """How many wait that may be ended."""
        return max(0, len(self.waiting) - self.kept)


class WorkersAhead:
    """Those of one fork server. For one thread at a time, but for what says otherwise.

    Args:
        make: Has a worker made for a program, which waits.
        most: How many wait at a time.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self,
        make: Callable[[int], WorkerHandle],
        most: int = MOST_AHEAD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._most = most
        self._clock = clock
        self._expected: dict[int, _Expected] = {}
        # Programs of which a run is over that has taken one.
        self._short: deque[int] = deque()

    def __len__(self) -> int:
        """Returns how many wait. May be asked from any thread."""
        return sum(len(expected.waiting) for expected in list(self._expected.values()))

    def take(self, program: int) -> WorkerHandle | None:
        """Returns a worker that waits, or is about to; None where none does.

        Args:
            program: What it is to run.
        """
        expected = self._expected.get(program)
        while expected is not None and expected.waiting:
            worker = expected.waiting.popleft()
            if worker.status is None and not worker.refused:
                return worker
            worker.close()
        return None

    def keep(self, program: int, size: int) -> Sequence[WorkerHandle]:
        """Has so many wait at least, whether anybody asks for them or not, until it is told otherwise.

        Args:
            program: What they are to run.
            size: How many.

        Returns:
            Those that wait now, or are about to.

        Raises:
            Gone: Nobody makes any.
            OSError: There are no more descriptors.
        """
        expected = self._expected.get(program)
        if expected is None:
            expected = self._expected[program] = _Expected(self._clock())
        expected.kept, expected.is_usual = size, True
        for _ in range(len(expected.waiting)):
            worker = expected.waiting.popleft()
            if len(expected.waiting) < size and worker.status is None and not worker.refused:
                expected.waiting.append(worker)
            else:
                worker.close()
        self._refill(program, expected)
        return tuple(expected.waiting)

    def has(self, worker: WorkerHandle) -> bool:
        """Whether a worker still waits for a run to take it."""
        expected = self._expected.get(worker.program)
        return expected is not None and worker in expected.waiting

    def took(self, worker: WorkerHandle) -> None:
        """Notes that a run has its worker and has told it what to do.

        Args:
            worker: The worker.
        """
        program = worker.program
        now = self._clock()
        expected = self._expected.get(program)
        if expected is None:
            expected = self._expected[program] = _Expected(now)
        else:
            expected.asked, expected.is_usual = now, True
        expected.given = worker.given
        expected.working.add(worker.number)
        expected.wanted = len(expected.working)

    def refill(self, program: int) -> None:
        """Has others made for runs that follow.

        Args:
            program: What they are to run.
        """
        expected = self._expected.get(program)
        if expected is not None and expected.is_usual:
            # The run has what it needs: where there can be none for the next one, that is seen by the next one.
            with suppress(Gone, OSError):
                self._refill(program, expected)

    def refill_all(self) -> None:
        """Has others made in the place of those whose runs are over."""
        while self._short:
            self.refill(self._short.popleft())

    @property
    def is_short(self) -> bool:
        """Whether there is something to be made. May be asked from any thread."""
        return bool(self._short)

    def _refill(self, program: int, expected: _Expected) -> None:
        while len(expected.waiting) < max(expected.kept, min(expected.wanted, MOST_FOR_ONE, self._most)):
            spare = sum(one.spare for one in self._expected.values())
            if len(expected.waiting) >= expected.kept and spare >= self._most and not self._end_oldest(program):
                return
            worker = self._make(program)
            expected.waiting.append(worker)
            if expected.given is not None:
                worker.expect(expected.given)

    def left(self, worker: WorkerHandle) -> None:
        """Notes that a run needs its worker no more. May be called from any thread, and again."""
        expected = self._expected.get(worker.program)
        if expected is not None and worker.number in expected.working:
            expected.working.discard(worker.number)
            self._short.append(worker.program)

    def _end_oldest(self, but: int) -> bool:
        """Ends a worker of what was not asked for for longest; whether there was one."""
        found = [one for program, one in self._expected.items() if one.spare and program != but]
        if not found:
            return False
        min(found, key=lambda one: one.asked).waiting.popleft().close()
        return True

    def drop(self, program: int) -> None:
        """Ends what waits for a program that is to be forgotten."""
        expected = self._expected.pop(program, None)
        if expected is not None:
            _end(expected)

    def end_idle(self) -> None:
        """Ends what waits for what nobody has asked for in a while."""
        late = self._clock() - IDLE_SECONDS
        for program, expected in list(self._expected.items()):
            if expected.asked <= late:
                expected.wanted = 0
                _end(expected, expected.kept)
                if not (expected.working or expected.kept):
                    del self._expected[program]

    def idle_at(self) -> float | None:
        """Returns when there is something to end, by the clock; None where nothing waits. For any thread."""
        asked = [expected.asked for expected in list(self._expected.values()) if expected.spare]
        return min(asked) + IDLE_SECONDS if asked else None

    def close(self) -> None:
        """Ends all that wait. Closing twice is harmless."""
        while self._expected:
            _end(self._expected.popitem()[1])


def _end(expected: _Expected, but: int = 0) -> None:
    while len(expected.waiting) > but:
        expected.waiting.popleft().close()
