"""Steps that are taken on the caller's thread: who is woken, and who is not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from stockade.errors import UsageError
from stockade.runner import RunControl, run_blocking

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
