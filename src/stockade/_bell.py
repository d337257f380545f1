"""Waiting for others without a lock that the handler of a signal could find held by the thread that it interrupts.

`threading.Event`, conditions and futures hold a lock for a few lines of Python. A handler runs on the main thread,
between any two lines: one that cancels a run would wait for that lock for ever, and one that raises could leave it
locked, so that whoever has something to tell would. What is here makes do with calls into C that are whole for signals.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MOST_RAISED", "Bell", "Once", "start_thread", "wait_until"]

_Result = TypeVar("_Result")

MOST_RAISED: Final = 100
"""So many handlers of signals may raise, one after the other, while it is put in order what they have interrupted.

Who does that tries again in the same frame: between two calls there is no place where a handler could come.
"""


def start_thread(thread: threading.Thread) -> None:
    """Starts a thread; what the handler of a signal raises meanwhile is raised as it is.

    `Thread.start` of Python 3.11 to 3.14 makes a KeyError of it where the thread runs already: it is off a list by then
    that `start` takes it off again.

    Raises:
        RuntimeError: There can be no more threads.
    """
    thread._started = _Begun()  # type: ignore[attr-defined] # noqa: SLF001 - there is no other way
    depth = _depth_of_lists()
    try:
        thread.start()
    except BaseException as problem:
        for _ in range(_depth_of_lists() - depth):
            _LISTS.release()
        if isinstance(problem, KeyError) and problem.__context__ is not None:
            raise problem.__context__ from None
        raise


_LISTS: Final[threading.RLock] = threading._active_limbo_lock  # type: ignore[attr-defined] # noqa: SLF001 - as above
"""What Python guards its lists of threads with: each that begins needs it. In Python 3.14, what a handler raises right
behind taking it leaves it taken (`_locks.py`): then no thread of this process would ever begin."""


def _depth_of_lists() -> int:
    """How many times this thread has taken it."""
    if sys.version_info < (3, 14):
        return 0
    return _LISTS._recursion_count()  # noqa: SLF001 - as above


class Bell:
    """Wakes the one thread that waits at it. May be rung from any thread, in the middle of anything."""

    # Not a `queue.SimpleQueue`, which waits for ever where a signal comes as its time is up.
    __slots__ = ("_silent",)

    def __init__(self) -> None:
        # A lock that whoever rings releases, and whoever waits takes.
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        """Wakes whoever waits, or comes to wait next."""
        # Where it is released already, it has rung.
        with suppress(RuntimeError):
            self._silent.release()

    def wait(self, seconds: float | None = None) -> None:
        """Waits until it has rung since the last time, or for so long; may return for no reason.

        Args:
            seconds: The longest to wait.
        """
        self._silent.acquire(timeout=-1 if seconds is None else min(max(0.0, seconds), threading.TIMEOUT_MAX))


class _Begun:
    """Says that a thread has begun, to the one that starts it, in the place of the event that Python has for that.

    A handler that raises where that event is waited for can leave its lock taken. Then the thread waits for it for ever
    before it has begun; or the lock is given back twice, which looks as if there were no more threads.
    """

    # Not a bell: at one, nobody waits who holds what others need.
    __slots__ = ("_begun", "_silent")

    def __init__(self) -> None:
        self._begun = False
        self._silent = threading.Lock()
        self._silent.acquire()

    def is_set(self) -> bool:
        return self._begun

    def set(self) -> None:
        self._begun = True
        self._silent.release()

    def wait(self) -> None:
        while not self._begun:
            self._silent.acquire()

    def _at_fork_reinit(self) -> None:
        """In a forked child, of threads that are not there."""


def wait_until(is_so: Callable[[], bool], waiters: list[Callable[[], object]]) -> None:
    """Waits until something is so; `runner.loop` has the same for event loops.

    Args:
        is_so: Says whether it is.
        waiters: What is called, from any thread, when it may have become so: we are on the list while we wait.
    """
    bell = Bell()
    waiters.append(bell.ring)
    try:
        _wait_at(bell, is_so)
    finally:
        waiters.remove(bell.ring)


def _wait_at(bell: Bell, is_so: Callable[[], bool]) -> None:
    while not is_so():
        bell.wait()


class Once(Generic[_Result]):
    """What comes of something: a result or a problem, once. For any number of threads that tell, ask and wait.

    Attributes:
        done: Whether it is there.
    """

    __slots__ = ("_calls", "_problem", "_result", "done")

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._problem: BaseException | None = None
        self._result: _Result | None = None
        self.done = False

    def settle(self, result: _Result | None, problem: BaseException | None = None) -> None:
        """Says what has come of it, and calls whoever is to be called."""
        self._result, self._problem = result, problem
        self.done = True
        self._tell()

    def when_done(self, call: Callable[[], object]) -> None:
        """Has something called when it is done, on the thread that says so; at once, if it is.

        Args:
            call: What to call; it raises nothing. It may be called again, where several say so at once.
        """
        self._calls.append(call)
        if self.done:
            self._tell()

    def _tell(self) -> None:
        try:
            self._tell_all()
        except BaseException:
            # The handler of a signal has raised, in the middle of this.
            for _ in range(MOST_RAISED):
                try:
                    self._tell_all()
                    break
                except BaseException:  # noqa: S112 - a second signal; the first is raised
                    continue
            raise

    def _tell_all(self) -> None:
        # Each stays there until its call was made, so that none is lost.
        while self._calls:
            with suppress(IndexError):
                call = self._calls[0]
                call()
                with suppress(ValueError):
                    self._calls.remove(call)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until it is done; says whether it is.

        Args:
            seconds: The longest to wait.
        """
        if not self.done and (seconds is None or seconds > 0):
            bell = Bell()
            ring = bell.ring
            self.when_done(ring)
            end = None if seconds is None else time.monotonic() + seconds
            while not self.done:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    # Else who asks again and again would leave a bell each time.
                    with suppress(ValueError, IndexError):
                        self._calls.remove(ring)
                    break
                bell.wait(left)
        return self.done

    @property
    def problem(self) -> BaseException | None:
        """What went wrong, where it is done and something did."""
        return self._problem

    def result(self, seconds: float | None = None) -> _Result:
        """Waits until it is done, and returns or raises what came of it.

        Args:
            seconds: The longest to wait.

        Raises:
            TimeoutError: It was not done by then.
        """
        if not self.wait(seconds):
            raise TimeoutError
        if self._problem is not None:
            raise self._problem
        result: _Result = self._result  # type: ignore[assignment] # there is one, as there is no problem
        return result
