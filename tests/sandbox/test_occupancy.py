"""Who has a session."""

from __future__ import annotations

import pytest

from stockade.errors import UsageError
from stockade.runner import RunControl
from stockade.sandbox import Occupancy


def test_whoever_comes_second_is_told_so() -> None:
    occupancy, first, second = Occupancy(), object(), object()
    occupancy.take(first)
    with pytest.raises(UsageError, match=r"^the session is in use by another thread: give each thread"):
        occupancy.take(second)
    with pytest.raises(UsageError, match=r"^not now$"):
        occupancy.take(second, otherwise="not now")
    occupancy.leave(second)
    assert occupancy.holder is first
    occupancy.leave(first)
    occupancy.take(second)
    assert occupancy.holder is second


def test_a_check_that_raises_leaves_it_free() -> None:
    def check() -> None:
        raise UsageError("closed")

    occupancy = Occupancy()
    with pytest.raises(UsageError, match=r"^closed$"):
        occupancy.take(object(), check)
    assert occupancy.holder is None


def test_a_cancellation_is_for_whoever_has_it() -> None:
    occupancy, control, holder = Occupancy(), RunControl(), object()
    occupancy.cancel(lambda: control)
    assert not control.cancelled
    occupancy.take(holder, begin=lambda: None)
    occupancy.cancel(lambda: control)
    assert control.cancelled


def test_what_is_over_is_told_before_who_has_it() -> None:
    def check() -> None:
        raise UsageError("closed")

    occupancy, begun = Occupancy(), list[str]()
    occupancy.take(object())
    with pytest.raises(UsageError, match=r"^closed$"):
        occupancy.take(object(), check, lambda: begun.append("begun"))
    with pytest.raises(UsageError, match=r"in use by another thread"):
        occupancy.take(object(), lambda: None, lambda: begun.append("begun"))
    assert not begun
