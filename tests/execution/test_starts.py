"""Which starts may go on that are made ahead of need."""

from __future__ import annotations

from stockade.execution._starts import Starts
from stockade.runner import FOREVER, RunControl


class _Maker:
    """Makes one ahead: stands in line for each step, and notes when it is woken."""

    def __init__(self, starts: Starts) -> None:
        self.control = RunControl()
        self.control.on_wake = self._woken
        self.calls = 0
        self._starts = starts
        self._steps = starts.turn(self.control)

    def _woken(self) -> None:
        self.calls += 1

    def may_go(self) -> bool:
        """Asks for a step; says whether it may take it. Where not, it asks again the next time."""
        for until in self._steps:
            assert until == FOREVER
            return False
        self._steps = self._starts.turn(self.control)
        return True


def test_one_processor_is_left_to_runs() -> None:
    starts = Starts(3)
    first, second, third, fourth = (_Maker(starts) for _ in range(4))
    assert [maker.may_go() for maker in (first, second, third, fourth)] == [True, True, False, False]
    assert first.may_go()
    assert second.may_go()
    assert starts.ahead == 2
    starts.over(first.control)
    assert (third.calls, fourth.calls) == (1, 1)
    assert third.may_go()
    assert not fourth.may_go()


def test_runs_that_make_their_own_come_first() -> None:
    """What is made ahead halts between two steps, and goes on before others begin."""
    starts = Starts(2)
    first, second = _Maker(starts), _Maker(starts)
    assert first.may_go()
    assert not second.may_go()
    starts.begin_urgent("a")
    assert first.may_go()
    starts.begin_urgent("b")
    assert not first.may_go()
    assert (starts.ahead, starts.urgent) == (0, 2)
    starts.end_urgent("a")
    assert (first.calls, second.calls) == (1, 0)
    assert first.may_go()
    assert not second.may_go()
    starts.end_urgent("b")
    starts.over(first.control)
    assert second.may_go()


def test_with_one_processor_one_is_made_at_a_time() -> None:
    starts = Starts(1)
    maker = _Maker(starts)
    assert maker.may_go()
    starts.begin_urgent("a")
    assert not maker.may_go()
    starts.end_urgent("a")
    assert maker.may_go()


def test_one_that_is_not_wanted_any_more_waits_no_longer() -> None:
    starts = Starts(2)
    first, second = _Maker(starts), _Maker(starts)
    assert first.may_go()
    assert not second.may_go()
    second.control.cancel()
    assert second.may_go()
    starts.over(second.control)
    starts.over(first.control)
    assert starts.ahead == 0
