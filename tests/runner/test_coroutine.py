"""Steps that are taken on the caller's thread: who is woken, and who is not."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from stockade.errors import UsageError
from stockade.runner import GO_ON, RunControl, run_blocking

if TYPE_CHECKING:
    from stockade.runner import RunCoroutine


def test_who_is_refused_takes_no_wakeup_of_another() -> None:
    """A thread begins to wait while another one is refused: a cancel still reaches the first."""
    control = RunControl()
    told: list[str] = []

    def refused() -> RunCoroutine[None]:
        # As the other thread does it, at the worst moment.
        control.on_wake = lambda: told.append("woken")
        raise UsageError("the session is in use by another thread")
        yield

    with pytest.raises(UsageError):
        run_blocking(refused(), control)
    control.cancel()
    assert told == ["woken"]


def test_who_has_waited_leaves_nothing_behind() -> None:
    """The twin: what was woken for these steps is not woken after them, and what was there before is there again."""
    control = RunControl()
    told: list[str] = []
    control.on_wake = lambda: told.append("woken")

    def patient() -> RunCoroutine[int]:
        yield time.monotonic() + 0.001
        control.wake()
        yield time.monotonic() + 0.001
        return 7

    assert run_blocking(patient(), control) == 7
    control.wake()
    assert told == ["woken"]


def test_steps_are_closed_wherever_the_handler_of_a_signal_raises() -> None:
    """The attack: it comes as the loop that takes the steps begins anew, outside of any call."""

    armed, closed, interrupted = False, 0, 0

    def ring(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise InterruptedError

    def steps() -> RunCoroutine[None]:
        nonlocal armed, closed
        try:
            armed = True
            while True:
                yield GO_ON
        finally:
            closed += 1

    chance = random.Random(5)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        while interrupted < 300:
            signal.setitimer(signal.ITIMER_REAL, chance.random() * 5e-4 + 1e-5, 1e-4)
            try:
                run_blocking(steps(), RunControl())
            except InterruptedError:
                interrupted += 1
                # While the exception is there, the frames are that it has come through, and what they hold.
                assert closed == interrupted
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
