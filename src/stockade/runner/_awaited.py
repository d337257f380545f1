"""Calls of coroutine functions of the embedder's, which an event loop awaits for a run.

A run that is awaited, or scheduled by who has a loop, says in its control who begins such calls: the bridge to that
loop (`loop.py`). One that takes its steps on the caller's thread has a loop of its own there (`own_loop.py`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from stockade._bell import MOST_RAISED
from stockade._outside import await_outside

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from contextvars import Context

__all__ = ["GRACE_SECONDS", "AwaitedCall", "Awaiter"]

GRACE_SECONDS: Final = 0.05
"""How long a coroutine that was cancelled has to come to its end, before its run is over without it."""


class Awaiter(Protocol):
    """Who begins calls on an event loop."""

    def begin(self, call: AwaitedCall) -> None:
        """Has a call begun on the loop. May be called from any thread."""

    def stop(self, call: AwaitedCall) -> None:
        """Has a call cancelled on the loop, or not begun. May be called from any thread."""


class AwaitedCall:
    """A call of a coroutine function.

    Args:
        function: The function.
        arguments: What it is given.
        context: The context that it sees, which is its own.
        wake: What is called when it is over, on its loop.

    Attributes:
        asked: What the coroutine asks of the steps that wait for it, the oldest first.
    """

    __slots__ = (
        "_context",
        "_function",
        "_given",
        "_over",
        "_problem",
        "_result",
        "_task",
        "_unwanted",
        "_wake",
        "asked",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Sequence[object],
        context: Context,
        wake: Callable[[], object],
    ) -> None:
        self._function = function
        self._given = arguments
        self._context: Context | None = context
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self._result: object = None
        self._problem: BaseException | None = None
        self._unwanted = False
        self._over = False
        self.asked: deque[Any] = deque()

    def is_over(self) -> bool:
        """Whether it is over. May be asked from any thread."""
        return self._over

    def has_answered(self) -> bool:
        """Whether it has come to its end by itself, and `result` tells what came of it."""
        return self._over and not self._unwanted

    def is_stopped(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._unwanted

    def start(self, loop: asyncio.AbstractEventLoop, over: Callable[[], object] | None = None) -> None:
        """On the loop: begins it, unless it is not wanted any more.

        Args:
            loop: The loop.
            over: What else is called when it is over.
        """
        context, self._context = self._context, None
        if context is None:
            # Begun already, for a letter to a loop may be opened twice.
            return
        if self._unwanted:
            if over is not None:
                over()
            return
        # A loop keeps only weak references to its tasks: while it is wanted, this one is kept by who wants it.
        task = self._task = loop.create_task(self._perform(), context=context)
        if over is not None:
            task.add_done_callback(lambda _: over())

    def cancel(self) -> None:
        """On the loop: cancels it, if it has begun and is not over."""
        self._unwanted = True
        if self._task is not None:
            self._task.cancel()
            # Should it go on all the same, and nothing that it waits for keep it, there is nothing to tell.
            self._task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001

    async def _perform(self) -> None:
        # Nothing that it raises is for the loop: it is for whoever awaits the run.
        try:
            result = await await_outside(self._function, *self._given)
            if not self._unwanted:
                self._result = result
        except BaseException as problem:
            # What it knows keeps this frame, which keeps us.
            self._problem = None if self._unwanted else problem
        finally:
            self._over = True
            self._given = ()
            # It knows its context, where a function that asks finds this.
            self._task = None
            self._wake_run()

    def _wake_run(self) -> None:
        try:
            self._wake()
        except BaseException:
            # The handler of a signal has raised, in the middle of this.
            for _ in range(MOST_RAISED):
                try:
                    self._wake()
                    break
                except BaseException:  # noqa: S112 - a second signal; the first is raised
                    continue
            raise

    def result(self) -> object:
        """Returns what it has returned, or raises what it has raised. To be asked once, when it is over."""
        problem, self._problem = self._problem, None
        if problem is None:
            return self._result
        try:
            raise problem
        finally:
            # This frame is in its traceback: the two would keep each other.
            del problem
