"""Runs awaited: the executor takes their steps, and an event loop gets their results.

Messages to a loop are gathered, so that a burst of results wakes it once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from stockade._bell import start_thread
from stockade._locks import new_lock
from stockade.errors import EngineError
from stockade.runner._executor import WorkItem, executor

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.runner._awaited import AwaitedCall
    from stockade.runner._coroutine import RunControl, RunCoroutine

__all__ = ["BackgroundLoop", "LoopBridge", "await_run", "background_loop", "loop_bridge", "new_loop", "wait_until"]

_Result = TypeVar("_Result")


class _Batch:
    """What is to be called on an event loop, in its order. Only the loop keeps it, so that it goes with the loop.

    A letter may be opened twice, where the handler of a signal raises in the middle of it; so what it asks for is done
    once, however often it is asked.
    """

    __slots__ = ("__weakref__", "bridge", "letters")

    def __init__(self, bridge: LoopBridge) -> None:
        self.bridge = bridge
        self.letters: deque[Callable[[], object]] = deque()

    def open(self) -> None:
        """On the loop: does what they ask for."""
        self.bridge.collect(self)
        try:
            self._open_all()
        except BaseException:
            asyncio.get_running_loop().call_soon(self.open)
            raise

    def _open_all(self) -> None:
        while self.letters:
            self.letters[0]()
            self.letters.popleft()


class LoopBridge:
    """Gathers what other threads want done on an event loop, so that a burst of it wakes the loop once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not the loop itself, which would never be let go of: it is the key under which this is kept. Nor what is to be
        # called, for that knows the loop.
        self._loop = weakref.ref(loop)
        self._letters: weakref.ref[_Batch] | None = None
        self._spent_seconds = 0.0
        # Reentrant, for something may be posted in the middle of anything.
        self._lock = new_lock()

    def post(self, letter: Callable[[], object]) -> None:
        """Has something called on the loop. Of a loop that is closed, nobody waits for anything."""
        with self._lock:
            letters = None if self._letters is None else self._letters()
            if letters is not None:
                letters.letters.append(letter)
                return
            letters = _Batch(self)
            letters.letters.append(letter)
            self._letters = weakref.ref(letters)
        loop = self._loop()
        if loop is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(letters.open)

    async def turn(self) -> bool:
        """Says whether a run that is over within a moment may be done on the loop's own thread, when it is its turn.

        It may where nobody is before it: runs that the executor has share its threads fairly.
        """
        if self._spent_seconds >= _TURN_SECONDS:
            self._spent_seconds = 0.0
            # Others on the loop have waited for long enough.
            await asyncio.sleep(0)
        return executor().is_idle

    def spend(self, seconds: float) -> None:
        """Counts how long the loop's thread was busy with runs."""
        self._spent_seconds += seconds

    def begin(self, call: AwaitedCall) -> None:
        """Has a call of a coroutine function begun on the loop."""
        self.post(lambda: call.start(asyncio.get_running_loop()))

    def stop(self, call: AwaitedCall) -> None:
        """Has it cancelled there."""
        self.post(call.cancel)

    def collect(self, letters: _Batch) -> None:
        """On the loop: nothing is put to these letters any more."""
        with self._lock:
            if self._letters is not None and self._letters() is letters:
                self._letters = None


_TURN_SECONDS = 0.001
"""How long a loop's thread may be busy with runs before others on the loop have their turn."""

_bridges: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopBridge] = weakref.WeakKeyDictionary()


def loop_bridge() -> LoopBridge:
    """The bridge of the running loop."""
    loop = asyncio.get_running_loop()
    found = _bridges.get(loop)
    if found is None:
        found = _bridges[loop] = LoopBridge(loop)
    return found


def new_loop() -> asyncio.AbstractEventLoop:
    """Makes an event loop that is Stockade's own."""
    return asyncio.new_event_loop()


class BackgroundLoop:
    """An event loop on a thread of its own, for runs that are scheduled by who has none.

    It goes when it has had nothing to do for a while.
    """

    def __init__(self) -> None:
        # Reentrant, as all locks here.
        self._lock = new_lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[AwaitedCall] = set()

    def begin(self, call: AwaitedCall) -> None:
        """Has a call of a coroutine function begun on the loop.

        Raises:
            EngineError: There is no thread, and the system has none to give.
        """
        with self._lock:
            self._calls.add(call)
            loop = self._loop
            if loop is None:
                loop = new_loop()
                try:
                    start_thread(threading.Thread(target=partial(_run_loop, loop), name="stockade-loop", daemon=True))
                except BaseException as problem:
                    self._calls.discard(call)
                    loop.close()
                    if isinstance(problem, RuntimeError):
                        raise EngineError(f"no thread can be started to await a host function ({problem})") from None
                    raise
                self._loop = loop
            loop.call_soon_threadsafe(self._start, loop, call)

    def stop(self, call: AwaitedCall) -> None:
        """Has it cancelled there."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(call.cancel)

    def _start(self, loop: asyncio.AbstractEventLoop, call: AwaitedCall) -> None:
        call.start(loop, lambda: self._over(loop, call))

    def _over(self, loop: asyncio.AbstractEventLoop, call: AwaitedCall) -> None:
        self._calls.discard(call)
        if not self._calls:
            loop.call_later(_LINGER_SECONDS, self._leave, loop)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if not self._calls and self._loop is loop:
                self._loop = None
                loop.stop()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


_LINGER_SECONDS = 1.0

_background = BackgroundLoop()


def background_loop() -> BackgroundLoop:
    """Returns the one of this process."""
    return _background


def _after_fork() -> None:
    """Begins anew in a forked child, which has the parent's memory but not its threads."""
    global _background
    _background = BackgroundLoop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


async def wait_until(is_so: Callable[[], bool], waiters: list[Callable[[], object]]) -> None:
    """Waits until something is so.

    Args:
        is_so: Says whether it is.
        waiters: What is called, from any thread, when it may have become so: we are on the list while we wait.
    """
    bridge = loop_bridge()
    looked = asyncio.Event()

    def look() -> None:
        bridge.post(looked.set)

    waiters.append(look)
    try:
        await _look_until(is_so, looked)
    finally:
        waiters.remove(look)


async def _look_until(is_so: Callable[[], bool], looked: asyncio.Event) -> None:
    while not is_so():
        await looked.wait()
        looked.clear()


async def await_run(steps: RunCoroutine[_Result], control: RunControl, priority: int, tenant: str) -> _Result:
    """Has the executor take steps, and waits for their result.

    A cancelled task stops the guest, and waits until it has stopped, however often it is cancelled: what the steps use
    is theirs until then.

    Args:
        steps: What to do.
        control: Its control.
        priority: Its share among the runs of its tenant.
        tenant: For whom it runs.

    Raises:
        EngineError: There is no thread to take them.
    """
    bridge, loop = loop_bridge(), asyncio.get_running_loop()
    over: asyncio.Future[_Result] = loop.create_future()
    # A loop that is closed in the middle of this wakes nobody who could stop the guest.
    control.abandoned = loop.is_closed
    control.awaiter = bridge

    def done(result: Any, problem: BaseException | None) -> None:
        def deliver() -> None:
            if over.done():
                return
            if problem is None:
                over.set_result(result)
            else:
                over.set_exception(problem)

        bridge.post(deliver)

    try:
        executor().begin(WorkItem(steps, control, done, priority, tenant))
    except EngineError:
        steps.close()
        raise
    except BaseException:
        # Such as what the handler of a signal raises: the executor may have it by now, and nobody waits for it.
        control.cancel()
        raise
    cancelled: asyncio.CancelledError | None = None
    try:
        cancelled = await _until_over(over, control)
    finally:
        # Where nobody can wait any more, for the loop is no more, it is to stop all the same.
        if not over.done():
            control.cancel()
    if cancelled is None:
        return over.result()
    over.exception()  # Looked at: it was the caller who did not want to wait for it.
    try:
        raise cancelled
    finally:
        # This frame is in its traceback: the two would keep each other.
        del cancelled


async def _until_over(over: asyncio.Future[Any], control: RunControl) -> asyncio.CancelledError | None:
    """Waits for a run, and cancels it each time that whoever awaits it is cancelled; returns the last time."""
    cancelled: asyncio.CancelledError | None = None
    while not over.done():
        try:
            await asyncio.shield(over)
        except asyncio.CancelledError as problem:
            cancelled = problem
            control.cancel()
    try:
        return cancelled
    finally:
        # It knows this frame.
        del cancelled
