"""Handlers of signals raise in the middle of taking a task on, once or twice: nothing of it is lost or stays.

Python looks for signals where functions begin, and the model of it also when they have returned. Each
of these places has its turn, also while what the first one has left is put in order.

Holds P-RUN-5.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Policy, Sandbox, Scheduler, StockadeError, Task, _bell
from stockade.runner import RunControl, _executor
from stockade.scheduling import _fair_queue, _tellers
from tests._processes import until
from tests._signals import Signal, Signals
from tests.conftest import HELLO, wat
from tests.sandbox.test_async import SLEEPER

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

_STEP = 4
"""All tests but the first of so many are slow ones."""

_APART = (0, 1, 2, 3, 5, 9, 14, 22)
"""So many places after the first signal there is another one."""

_SMALL = wat(HELLO)


_LOOKED_AT = (
    (
        Scheduler,
        "submit _mend _catch_up _has_room _next_ones _leave _start _try_to_begin _begin _over _tell _done",
    ),
    (Scheduler, "_cancel _cancel_now _tell_waiters"),
    (_executor.Executor, "begin wake _catch_up _wake_late _wake _wake_again _results _line_up _end _set_alarm _let_go"),
    (_executor.Executor, "_refuse _have_looked_soon _have_looked_at"),
    (_executor.WorkItem, "__init__"),
    (_fair_queue.Line, "__init__ __len__ add take emptied has remove"),
    (_bell.Once, "settle when_done _tell _tell_all"),
    (_bell.Bell, "ring"),
    (RunControl, "cancel wake"),
    (_tellers._Tellers, "tell _has_nobody"),
    (Sandbox, "steps"),
)


class Startless:
    """Starts no thread, the first times."""

    def __init__(self, times: int) -> None:
        self._times = times

    def __call__(self, thread: threading.Thread) -> None:
        if self._times:
            self._times -= 1
            raise RuntimeError("can't start new thread")
        thread.start()


def take_on(scheduler: Scheduler, jobs: list[stockade.TaskHandle]) -> None:
    jobs.extend(scheduler.submit(Task(module=_SMALL, tenant=tenant)) for tenant in "aab")  # type: ignore[arg-type]


def cancel(scheduler: Scheduler, jobs: list[stockade.TaskHandle]) -> None:
    for tenant in "aab":
        job = scheduler.submit(Task(module=SLEEPER, export="sleep", args=(1,), tenant=tenant))  # type: ignore[arg-type]
        jobs.append(job)
    for job in reversed(jobs):
        job.cancel()


@pytest.mark.parametrize(
    "first",
    [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(1, _STEP))],
    ids=lambda first: f"{first}",
)
@pytest.mark.parametrize("startless", [0, 1, 9])
@pytest.mark.parametrize("operation", [take_on, cancel])
def test_what_is_interrupted_is_whole_or_undone(
    operation: Callable[[Scheduler, list[stockade.TaskHandle]], None],
    startless: int,
    first: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attack: a task that is neither running nor told that it failed, for which whoever closes waits for ever."""
    signals = Signals()
    for owner, names in _LOOKED_AT:
        for name in names.split():
            monkeypatch.setattr(owner, name, signals.within(getattr(owner, name)))
    with Sandbox(Policy().replace(wall_time=10.0)) as box:
        box.prepare(_SMALL)
        box.prepare(SLEEPER)

        def once(at: int, apart: int = 0) -> int:
            executor = _executor.Executor()
            monkeypatch.setattr(_executor, "_executor", executor)
            monkeypatch.setattr(_executor, "start_thread", Startless(startless))
            scheduler, jobs = Scheduler(box, concurrency=2), []  # type: ignore[var-annotated]
            signals.come(at, apart)
            with suppress(Signal, StockadeError):
                operation(scheduler, jobs)
            places = signals.places
            signals.end()
            # Somebody comes after those who could not start a thread.
            scheduler.submit(Task(module=_SMALL)).wait()  # type: ignore[arg-type]
            scheduler.cancel_all()
            where = f"signals at place {at} and {apart} after it"
            assert until(lambda: not scheduler._unfinished), where
            assert all(job.done for job in jobs), where
            assert (scheduler.running, scheduler.waiting, len(scheduler._late)) == (0, 0, 0), where
            assert until(lambda: not executor._items), where
            assert not executor._tenants, where
            return places

        places = once(0)
        assert places > 40
        for at in range(1 + first, places, _STEP):
            for apart in _APART:
                once(at, apart)
