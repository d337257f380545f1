"""An event loop of a run's own, for coroutine functions of the embedder's where no loop awaits the run."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from stockade.errors import UsageError
from stockade.runner._awaited import GRACE_SECONDS
from stockade.runner._coroutine import FOREVER, is_in_coroutine
from stockade.runner.loop import new_loop

if TYPE_CHECKING:
    from stockade.runner._awaited import AwaitedCall
    from stockade.runner._coroutine import RunControl

__all__ = ["OwnLoop"]


class OwnLoop:
    """An event loop that runs while a call is awaited, on the thread that takes the steps of the run.

    It is the same for all calls of a session, so that what belongs to a loop can be kept from one to the next.

    Args:
        control: The control of the run.
    """

    def __init__(self, control: RunControl) -> None:
        self._control = control
        self._loop: asyncio.AbstractEventLoop | None = None

    def perform(self, call: AwaitedCall) -> None:
        """Begins a call, or goes on with it, and returns when it is over, asks something, or the run is to end.

        Raises:
            UsageError: Another event loop runs on this thread.
        """
        if is_in_coroutine():
            raise UsageError(
                "the guest calls a coroutine function, and the event loop of this thread waits for the guest: await "
                "run_async, call_async or open_async, or call what blocks by asyncio.to_thread"
            )
        if self._loop is None:
            self._loop = new_loop()
        loop, control = self._loop, self._control
        before = control.on_wake
        try:
            loop.run_until_complete(self._until_over(loop, call))
        finally:
            control.on_wake = before

    async def _until_over(self, loop: asyncio.AbstractEventLoop, call: AwaitedCall) -> None:
        control, changed = self._control, asyncio.Event()

        def wake() -> None:
            # It may be closed by now.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(changed.set)

        control.on_wake = wake
        call.start(loop)
        while not call.is_over() and not call.asked and control():
            left = None if control.deadline == FOREVER else max(0.0, control.deadline - time.monotonic())
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left)
            changed.clear()
        if not call.is_over() and not control():
            call.cancel()
            last = time.monotonic() + GRACE_SECONDS
            while not call.is_over() and time.monotonic() < last:
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), max(0.0, last - time.monotonic()))
                changed.clear()

    def close(self) -> None:
        """Ends what is left on the loop, as far as it ends, and closes it. May be called in the middle of anything."""
        loop, self._loop = self._loop, None
        if loop is None or loop.is_running():
            return
        try:
            left = asyncio.all_tasks(loop)
            # Not where another loop runs on this thread.
            if not is_in_coroutine():
                for task in left:
                    task.cancel()
                if left:
                    loop.run_until_complete(asyncio.wait(left, timeout=GRACE_SECONDS))
                loop.run_until_complete(loop.shutdown_asyncgens())
            for task in left:
                # What does not end when it is cancelled is dropped.
                task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001
        finally:
            loop.close()
