"""P-TIME-1: calls that are made of several, whose number the guest decides: none is beyond the deadline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from stockade import Outcome, Sandbox
from stockade.execution import Call, Inputs
from stockade.runner import GO_ON, run_blocking
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from stockade.engine import HaltedMemory, Memory, Number
    from stockade.execution import CallExport

MODULE = '(module (memory (export "memory") 1) (func (export "more") (result i32) (i32.const 1)))'


class Calls:
    """Calls the guest as long as it says that there is more, and something else says so, too."""

    def __init__(self, goes_on: Callable[[int], bool]) -> None:
        self.goes_on = goes_on
        self.count = 0

    def perform(
        self,
        call: Call,  # noqa: ARG002 - all are the same
        memory: Memory | HaltedMemory,  # noqa: ARG002 - nothing is passed
        enter: CallExport,
        limit_bytes: int,  # noqa: ARG002 - nothing is read
    ) -> Generator[float, None, Sequence[Number | str | bytes]]:
        """Makes the calls."""
        while self.goes_on(self.count) and (yield from enter(b"more", (), ("i32",)))[0]:
            self.count += 1
        return [self.count]


@pytest.mark.parametrize(("is_cancelled", "outcome"), [(False, Outcome.TIMEOUT), (True, Outcome.CANCELLED)])
def test_a_call_of_endless_calls_is_stopped(*, is_cancelled: bool, outcome: Outcome) -> None:
    """The attack: each call of the guest is over at once, so that nobody looks at the clock in the middle of one."""
    module = wat(MODULE)
    with Sandbox() as box:
        guest, control = box.live(module, Inputs())

        def goes_on(count: int) -> bool:
            if count == 1000:
                if is_cancelled:
                    control.cancelled = True
                else:
                    control.deadline = time.monotonic()
            assert count <= 1000, "nothing is called once its time is up"
            return True

        calls = Calls(goes_on)
        report = run_blocking(guest.invoke(Call(module.function_entry("more"), (), calls)), control)
        guest.close()
    assert (report.outcome, calls.count) == (outcome, 1000)


def test_others_have_their_turn() -> None:
    """Many calls that are over at once let others go on between them; as many as are made come to their end."""
    module = wat(MODULE)
    with Sandbox() as box:
        guest, _ = box.live(module, Inputs())
        calls = Calls(lambda count: count < 1000)
        steps, yields = guest.invoke(Call(module.function_entry("more"), (), calls)), 0
        try:
            while True:
                assert next(steps) == GO_ON
                yields += 1
        except StopIteration as end:
            report = end.value
        guest.close()
    assert (report.ok, report.value) == (True, 1000)
    assert yields >= 3
