"""Calls of coroutine functions: whoever waits for one comes to know that it is over."""

from __future__ import annotations

import asyncio
import contextvars

from stockade.runner import AwaitedCall
from tests._signals import Signal


def test_a_run_is_woken_although_the_handler_of_a_signal_raises_as_it_is() -> None:
    """The attack: it comes as the run is told that its coroutine function is over, and may raise again after that."""
    woken: list[bool] = []

    def wake() -> None:
        woken.append(call.is_over())
        if len(woken) < 4:
            raise Signal

    async def function() -> int:
        return 7

    async def scenario() -> None:
        call.start(asyncio.get_running_loop())
        task = call._task
        assert task is not None
        await asyncio.wait([task])
        # What was raised first.
        assert isinstance(task.exception(), Signal)

    call = AwaitedCall(function, (), contextvars.copy_context(), wake)
    asyncio.run(scenario())
    assert woken == [True] * 4
    assert call.result() == 7
