"""Tokens of rates: what the host adds, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from stockade.execution import _timekeeper
from stockade.execution._timekeeper import Timekeeper

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

_RATE = 1000


class _State:
    """The fields that a timekeeper reads and writes."""

    def __init__(self) -> None:
        self.fields = {"read_tokens": _RATE, "host_now": 0, "credit": 0}

    def get(self, name: str, _: str) -> int:
        return self.fields[name]

    def put(self, name: str, _: str, number: int) -> None:
        self.fields[name] = number


@given(steps=st.lists(st.tuples(st.integers(0, 2_000_000_000), st.integers(0, 1200), st.booleans()), max_size=40))
def test_over_any_window_no_more_is_spent_than_rate_and_burst_allow(steps: list[tuple[int, int, bool]]) -> None:
    """The attack: to spend all just before the host looks, after a long time in which nothing was spent."""
    now = 0
    state = _State()
    with _patched(lambda: now / 1e9):
        keeper = Timekeeper(state, 0.0, {"read_tokens": _RATE})  # type: ignore[arg-type]
        spent: list[tuple[int, int]] = []
        for passed, wanted, looks in steps:
            now += passed
            if looks:
                keeper.look()
            taken = min(wanted, state.fields["read_tokens"])
            state.fields["read_tokens"] -= taken
            spent.append((now, taken))
    for first, (begin, _) in enumerate(spent):
        total = 0
        for end, taken in spent[first:]:
            total += taken
            # The clock of the test is exact to a microsecond.
            assert total <= _RATE + _RATE * (end - begin) / 1e9 + 0.01


def test_what_has_passed_is_added() -> None:
    """The twin: nothing of what is due is lost below a second's worth."""
    now = 0
    state = _State()
    with _patched(lambda: now / 1e9):
        keeper = Timekeeper(state, 0.0, {"read_tokens": _RATE})  # type: ignore[arg-type]
        state.fields["read_tokens"] = 0
        for _ in range(900):
            now += 1_000_000
            keeper.look()
    assert 899 <= state.fields["read_tokens"] <= 900


def _patched(clock: Callable[[], float]) -> AbstractContextManager[object]:
    return mock.patch.object(_timekeeper.time, "perf_counter", clock)
