"""Exports of a guest that a coroutine function of the embedder's has called, on its event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from stockade.runner.loop import loop_bridge

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from stockade.execution._values import Call
    from stockade.report import Report

__all__ = ["AskedCall"]


class AskedCall:
    """A call of an export that a coroutine function of the embedder's asks for, on its loop.

    Args:
        call: The call.
        wake: Has the guest's steps look at it.
    """

    def __init__(self, call: Call, wake: Callable[[], object]) -> None:
        self.call = call
        self._wake = wake
        self._bridge = loop_bridge()
        self._over: asyncio.Future[Report] = asyncio.get_running_loop().create_future()

    async def report(self, asked: deque[Any]) -> Report:
        """Asks, and returns the report.

        Args:
            asked: Where the guest's steps look for what is asked.
        """
        asked.append(self)
        self._wake()
        return await self._over

    def answer(self, report: Report | None, problem: BaseException | None) -> None:
        """Tells what came of it. May be called from any thread."""

        def deliver() -> None:
            if self._over.done():
                return
            if problem is not None:
                self._over.set_exception(problem)
            elif report is not None:
                self._over.set_result(report)

        self._bridge.post(deliver)
