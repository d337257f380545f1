"""The executor: a few threads that take the steps of thousands of runs.

A run that waits holds no thread: it stands in a list of alarms, or nowhere at all until somebody wakes it. Those that
can go on stand in line by fair shares: first among tenants, then among the runs of a tenant by their priorities.
Whoever has used more of its share stands further back.

As Python runs one thread at a time, a second thread would only get in the way of short runs. So a thread takes the next
run only when every other one has been busy with a single slice for a while: with a guest that computes, which needs no
Python.

Functions of the embedder take as long as they like. So runs that call some have threads of their own beside those of
the others, as far as they go: whoever is in such a function is not at work here, and the next thread takes over.
"""

from __future__ import annotations

import heapq
import itertools
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from stockade._bell import MOST_RAISED, start_thread
from stockade._locks import reentrant_lock
from stockade._outside import outside
from stockade.errors import EngineError
from stockade.runner._coroutine import FOREVER, GO_ON

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.runner._coroutine import RunControl, RunCoroutine

__all__ = ["MOST_OUTSIDE", "MOST_THREADS", "NORMAL_PRIORITY", "Executor", "WorkItem", "executor"]

_Result = TypeVar("_Result")

NORMAL_PRIORITY: Final = 50
"""The share of a run among the others of its tenant, if nothing is said."""

MOST_THREADS: Final = 16
"""Threads of those that are not in functions of the embedder, where runs block theirs: in files."""

MOST_OUTSIDE: Final = 32
"""Threads beside these, of runs that call such functions. Where all of those block, others like them wait."""

_SLICE_SECONDS: Final = 0.005
"""How long a run that could go on keeps its thread while others stand in line."""

_PATIENCE_SECONDS: Final = 0.002
"""How long all others must have been busy with one slice before another thread goes to work."""

_STUCK_SECONDS: Final = 0.1
"""How long they must have been where all processors are busy already: no guest computes that long without yielding."""

_LINGER_SECONDS: Final = 1.0
"""How long a thread stays that has nothing to do."""

_MOST_CREDIT_SECONDS: Final = 0.1
"""How much a tenant may come to have used less than others and still catch up: it could not use its share, for want of
runs."""

_AWAY_CREDIT_SECONDS: Final = 0.02
"""The same for one that has had nothing to do: who has one short run after the other is away again and again."""

_MOST_DEBTS: Final = 1000
"""Of so many tenants that are gone it is known what they have used."""

_FORGOTTEN_ALARMS: Final = 64
"""So many alarms that do not count any more may stay on the list, beside four for each run."""

_WAITING, _READY, _RUNNING, _OVER = range(4)


class WorkItem(Generic[_Result]):
    """One run, in the hands of the executor.

    Args:
        steps: What to do.
        control: Its control.
        done: What is called when it is over, with its result and None, or with None and what it raised; on a thread of
            the executor.
        priority: Its share among the runs of its tenant, from 1 on.
        tenant: For whom it runs.
    """

    __slots__ = (
        "alarm",
        "calls_out",
        "context",
        "control",
        "done",
        "limit",
        "on_wake",
        "place",
        "priority",
        "state",
        "steps",
        "tenant",
        "used",
        "woken",
    )

    def __init__(
        self,
        steps: RunCoroutine[_Result],
        control: RunControl,
        done: Callable[[_Result | None, BaseException | None], object],
        priority: int,
        tenant: str,
    ) -> None:
        self.steps = steps
        self.control = control
        self.done = done
        self.priority = priority
        self.tenant = tenant
        # Functions of the embedder see the context of whoever asked for the run.
        self.context = copy_context()
        # Whether it holds one of the threads of those that call functions of the embedder.
        self.calls_out = False
        # Not yet begun, it is as if it were over: waking it does nothing.
        self.state = _OVER
        self.woken = False
        self.on_wake: Callable[[], object] | None = None
        # Which of its alarms count, that of its wait and that of its deadline, and which of its places in line: old
        # ones are left where they are.
        self.alarm = self.limit = self.place = 0
        # Seconds that it has used, by its priority.
        self.used = 0.0


class _Tenant:
    """The line of those that can go on for one tenant."""

    __slots__ = ("at_work", "items", "line", "served", "used")

    def __init__(self) -> None:
        self.line: list[tuple[float, int, WorkItem[Any]]] = []
        self.items: set[WorkItem[Any]] = set()
        self.at_work = 0
        # Seconds that its runs have used, and what the one served last had used of its share.
        self.used = 0.0
        self.served = 0.0


class Executor:
    """Threads that take the steps of runs. They come when there is something to do, and go when there is not."""

    def __init__(self) -> None:
        # Reentrant, for the handler of a signal may come between any two lines. It finds things half done, so what it
        # asks for is done later, by whoever it has interrupted. Not taken by way of the condition, whose `__enter__` is
        # a line of Python, after which it could be left locked.
        self._lock = reentrant_lock()
        self._change = threading.Condition(self._lock)
        self._late: deque[WorkItem[Any]] = deque()
        self._numbers = itertools.count(1)
        self._tenants: dict[str, _Tenant] = {}
        # Tenants with somebody in line, the one that has used least first.
        self._order: list[tuple[float, int, _Tenant]] = []
        self._served = 0.0
        # What tenants had used that are gone, where that is about as much as others had, or more.
        self._debts: dict[str, float] = {}
        # Those that would call functions of the embedder, and for whom there is no thread.
        self._held: dict[_Tenant, deque[tuple[int, WorkItem[Any]]]] = {}
        self._calling_out = 0
        # Those whose time is up, or who are not wanted any more: they only have to be told, and stand in no line.
        self._ending: deque[WorkItem[Any]] = deque()
        # Taken on and not over. Not only counted, so that whoever is interrupted may add or take out one again.
        self._items: set[WorkItem[Any]] = set()
        self._alarms: list[tuple[float, int, WorkItem[Any]]] = []
        # When each slice under way began, by its thread.
        self._busy: dict[int, float] = {}
        # Also one that is about to start; one whose start was interrupted is not among them, and ends.
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        # One of the idle threads looks after alarms and after the busy ones, at the latest at this time.
        self._watching = False
        self._looks_at = FOREVER
        # Whether somebody was called who has not looked yet.
        self._called = False

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return len(self._threads)

    @property
    def has_this_thread(self) -> bool:
        """Whether whoever asks is on one of them."""
        return threading.current_thread() in self._threads

    @property
    def is_idle(self) -> bool:
        """Whether nobody stands in line, and no thread takes a step."""
        return not (self._order or self._ending or self._busy)

    def begin(self, item: WorkItem[Any]) -> None:
        """Takes a run on.

        Raises:
            EngineError: There is no thread, and the system has none to give.
        """
        with self._lock:
            try:
                tenant = self._tenants.get(item.tenant)
                if tenant is None:
                    tenant = self._tenants[item.tenant] = _Tenant()
                    tenant.used = max(self._served - _AWAY_CREDIT_SECONDS, self._debts.pop(item.tenant, self._served))
                tenant.items.add(item)
                self._items.add(item)
                item.control.on_wake = item.on_wake = lambda: self.wake(item)
                self._results(item)
            except BaseException:
                # Nobody takes it on: it is not to be found in any line, nor counted.
                for _ in range(MOST_RAISED):
                    try:
                        self._refuse(item)
                        break
                    except BaseException:  # noqa: S112 - a second signal; the first is raised
                        continue
                raise
        self._catch_up()

    def wake(self, item: WorkItem[Any]) -> None:
        """Has a run look around, if it waits. May be called in the middle of anything."""
        if self._lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - as conditions do
            # By the handler of a signal, or by what is dropped.
            self._late.append(item)
            return
        try:
            with self._lock:
                self._wake(item)
        except BaseException:
            # The handler of a signal has raised, in the middle of this.
            for _ in range(MOST_RAISED):
                try:
                    with self._lock:
                        self._wake_again(item)
                    break
                except BaseException:  # noqa: S112 - a second signal; the first is raised
                    continue
            raise
        self._catch_up()

    def _catch_up(self) -> None:
        """Does what was asked for meanwhile, in the middle of something."""
        while self._late:
            try:
                with self._lock:
                    self._wake_late()
            except BaseException:
                # It is all still there: a thread does it, as soon as one looks.
                for _ in range(MOST_RAISED):
                    try:
                        with self._lock:
                            self._have_looked_at(time.monotonic())
                        break
                    except BaseException:  # noqa: S112 - a second signal; the first is raised
                        continue
                raise

    # -- all of this under the lock -----------------------------------------------------------------------------------

    def _wake_late(self) -> None:
        while self._late:
            # It stays there until that is done. A handler that comes in between may do it, too.
            item = self._late[0]
            self._wake(item)
            with suppress(ValueError):
                self._late.remove(item)

    def _wake(self, item: WorkItem[Any]) -> None:
        if item.state == _RUNNING:
            item.woken = True
        elif item.state == _WAITING:
            self._results(item)
        elif item.state == _READY and item.control.cancelled:
            self._end(item)

    def _wake_again(self, item: WorkItem[Any]) -> None:
        """Does what `_wake` does, where that was interrupted."""
        if item.state == _READY and item.place:
            self._line_up(item)
        else:
            self._wake(item)
        if self._order or self._ending:
            self._have_looked_at(time.monotonic())

    def _results(self, item: WorkItem[Any]) -> None:
        """Lines up one who was away, and who does not come back with a share saved up; nor does its tenant."""
        tenant = self._tenants[item.tenant]
        item.used = max(item.used, tenant.served)
        if not (tenant.line or tenant.at_work):
            tenant.used = max(tenant.used, self._served - _AWAY_CREDIT_SECONDS)
        self._line_up(item)

    def _line_up(self, item: WorkItem[Any]) -> None:
        tenant = self._tenants[item.tenant]
        item.place = next(self._numbers)
        if not tenant.line:
            self._have_looked_soon()
            tenant.used = max(tenant.used, self._served - _MOST_CREDIT_SECONDS)
            heapq.heappush(self._order, (tenant.used, item.place, tenant))
        heapq.heappush(tenant.line, (item.used, item.place, item))
        # Not before: whoever finds this half done finds one who waits, and lines it up.
        item.state, item.alarm = _READY, 0
        if item.control.cancelled:
            self._end(item)
        elif not item.limit and item.control.deadline != FOREVER:
            # It may be up before its turn has come.
            item.limit = self._set_alarm(item, item.control.deadline)

    def _end(self, item: WorkItem[Any]) -> None:
        """Takes one out of the line that has only to be told, once."""
        if not item.place:
            return
        nobody_waits = not (self._order or self._ending)
        # Of these, a handler of a signal finds both done, or none.
        item.place = 0
        self._ending.append(item)
        if nobody_waits:
            self._have_looked_at(time.monotonic() + (_PATIENCE_SECONDS if self._busy else 0.0))

    def _set_alarm(self, item: WorkItem[Any], when: float) -> int:
        """Returns the number of the alarm, which counts as long as its item knows it."""
        if len(self._alarms) > 4 * len(self._items) + _FORGOTTEN_ALARMS:
            self._alarms = [entry for entry in self._alarms if entry[1] in (entry[2].alarm, entry[2].limit)]
            heapq.heapify(self._alarms)
        number = next(self._numbers)
        heapq.heappush(self._alarms, (when, number, item))
        self._have_looked_at(self._alarms[0][0])
        return number

    def _next_in_line(self) -> WorkItem[Any] | None:
        if self._ending:
            return self._ending.popleft()
        while self._order:
            used, _, tenant = heapq.heappop(self._order)
            # Places that were left.
            while tenant.line and tenant.line[0][2].place != tenant.line[0][1]:
                heapq.heappop(tenant.line)
            if not tenant.line:
                continue
            if self._order and used < tenant.used:
                # Its runs have gone on since it got its place, beside others'.
                heapq.heappush(self._order, (tenant.used, next(self._numbers), tenant))
                continue
            _, _, item = heapq.heappop(tenant.line)
            if tenant.line:
                heapq.heappush(self._order, (tenant.used, next(self._numbers), tenant))
            if item.control.calls_out and self._calling_out >= MOST_OUTSIDE:
                self._held.setdefault(tenant, deque()).append((item.place, item))
                continue
            self._served = max(self._served, tenant.used)
            tenant.served = max(tenant.served, item.used)
            return item
        return None

    def _release(self) -> None:
        """Lines up one for whom there was no thread, of the tenant that has used least."""
        while self._held and self._calling_out < MOST_OUTSIDE:
            tenant = min(self._held, key=lambda held: held.used)
            place, item = self._held[tenant].popleft()
            if not self._held[tenant]:
                del self._held[tenant]
            if item.place == place:
                self._line_up(item)
                return

    def _ring(self, now: float) -> None:
        """Lines up those whose time has come; those in line whose time is up are to end."""
        while self._alarms and self._alarms[0][0] <= now:
            _, number, item = heapq.heappop(self._alarms)
            if number == item.alarm and item.state == _WAITING:
                self._results(item)
            elif number == item.limit:
                # If it runs, it may not have seen that; it is looked at again when it lines up.
                item.limit = 0
                if item.state == _READY:
                    self._end(item)

    def _may_work(self, now: float) -> bool:
        busy = [began for thread, began in self._busy.items() if thread not in outside]
        if not busy:
            return True
        if len(busy) >= MOST_THREADS:
            return False
        patience = _PATIENCE_SECONDS if len(busy) < _processors() else _STUCK_SECONDS
        return max(busy) <= now - patience

    def _have_looked_soon(self) -> None:
        if not (self._order or self._ending):
            # Where others wait for their turn already, somebody knows.
            self._have_looked_at(time.monotonic() + (_PATIENCE_SECONDS if self._busy else 0.0))

    def _have_looked_at(self, when: float) -> None:
        """Sees to it that a thread looks at what there is to do, at this time or before."""
        if self._called or (self._watching and self._looks_at <= when):
            return
        if self._idle:
            # Any of them would do, but the one that watches has to know when it must look.
            self._change.notify_all()
        elif len(self._threads) < MOST_THREADS + self._calling_out:
            thread = threading.Thread(target=self._work, name="stockade-executor", daemon=True)
            self._threads.add(thread)
            try:
                start_thread(thread)
            except BaseException as problem:
                self._threads.discard(thread)
                if not isinstance(problem, RuntimeError):
                    raise
                # The system has no more. Those that are there look when they have done with what they are at.
                if not self._threads:
                    raise EngineError(
                        f"no thread can be started to run this: the process or the system has as many as it may "
                        f"({problem}). Run fewer at once, or raise the limit (ulimit -u)"
                    ) from None
                return
        else:
            # All are at work, and look when they have done with what they are at.
            return
        self._called = True

    def _wait_for_work(self) -> WorkItem[Any] | None:
        """Returns the next run; None when there has been none for a while."""
        idle_since = time.monotonic()
        while True:
            now = time.monotonic()
            self._called = False
            self._wake_late()
            self._ring(now)
            if (self._order or self._ending) and self._may_work(now):
                item = self._next_in_line()
                if item is not None:
                    return item
            if self._watching:
                # One looks after alarms and the busy ones; the others wait to be called.
                if now - idle_since >= _LINGER_SECONDS:
                    return None
                self._rest(_LINGER_SECONDS)
                continue
            patience = FOREVER
            if self._order or self._ending:
                patience = _PATIENCE_SECONDS
                idle_since = now
            if self._alarms:
                patience = min(patience, self._alarms[0][0] - now)
                idle_since = now
            if now - idle_since >= _LINGER_SECONDS:
                return None
            patience = min(patience, _LINGER_SECONDS)
            self._watching = True
            self._looks_at = now + patience
            try:
                self._rest(patience)
            finally:
                self._watching = False

    def _rest(self, seconds: float) -> None:
        self._idle += 1
        try:
            self._change.wait(seconds)
        finally:
            self._idle -= 1

    # -- the threads --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        me, thread = threading.get_ident(), threading.current_thread()
        with self._lock:
            if thread not in self._threads:
                # What has started it was interrupted, and does not know that it has.
                return
        while True:
            with self._lock:
                item = self._wait_for_work()
                if item is None:
                    self._threads.discard(thread)
                    return
                began = self._busy[me] = time.monotonic()
                item.state = _RUNNING
                item.calls_out = item.control.calls_out
                self._calling_out += item.calls_out
                self._tenants[item.tenant].at_work += 1
                if self._order or self._ending:
                    self._have_looked_at(began + _PATIENCE_SECONDS)
                elif self._alarms:
                    self._have_looked_at(self._alarms[0][0])
            mark = time.thread_time()
            until, outcome = item.context.run(_advance, item, began)
            # Of the processor: what a run has waited for, it has taken from nobody.
            seconds = time.thread_time() - mark
            with self._lock:
                del self._busy[me]
                if until is not None and not self._watching:
                    # Nobody else has to look: this thread does, next.
                    self._called = True
                self._put_away(item, seconds, FOREVER if until is None else until, over=until is None)
            if until is None:
                _tell(item, *outcome)
                # It may still stand on the list of alarms.
                del item.steps, item.done, item.context
            # Nothing of it is kept while this thread waits for the next.
            del item, outcome

    def _put_away(self, item: WorkItem[Any], seconds: float, until: float, *, over: bool) -> None:
        tenant = self._tenants[item.tenant]
        tenant.at_work -= 1
        tenant.used += seconds
        self._calling_out -= item.calls_out
        item.used += seconds * NORMAL_PRIORITY / item.priority
        if over:
            self._let_go(item, tenant)
        elif item.woken or until <= GO_ON:
            item.woken = False
            self._line_up(item)
        else:
            item.state = _WAITING
            if until != FOREVER:
                item.alarm = self._set_alarm(item, until)
        if self._held:
            self._release()

    def _refuse(self, item: WorkItem[Any]) -> None:
        """Lets go of one that was about to be taken on."""
        item.place = 0
        with suppress(ValueError):
            self._ending.remove(item)
        tenant = self._tenants.get(item.tenant)
        if tenant is not None:
            self._let_go(item, tenant)

    def _let_go(self, item: WorkItem[Any], tenant: _Tenant) -> None:
        item.state = _OVER
        item.alarm = item.limit = 0
        # The steps are done with what they used, so the next ones of the same control may have begun already.
        if item.control.on_wake is item.on_wake:
            item.control.on_wake = None
        item.on_wake = None
        self._items.discard(item)
        if not self._items:
            # None of them counts any more, and they would only keep a thread.
            self._alarms.clear()
        tenant.items.discard(item)
        if not tenant.items:
            self._tenants.pop(item.tenant, None)
            if tenant.used > self._served - _AWAY_CREDIT_SECONDS:
                # Else whoever comes and goes would begin anew each time.
                self._debts[item.tenant] = tenant.used
                if len(self._debts) > _MOST_DEBTS:
                    # Those that others have caught up with are the least.
                    most = heapq.nlargest(_MOST_DEBTS // 2, self._debts.items(), key=lambda debt: debt[1])
                    self._debts = dict(most)


def _tell(item: WorkItem[Any], result: Any, problem: BaseException | None) -> None:
    try:
        item.done(result, problem)
    except BaseException:
        threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


def _advance(item: WorkItem[Any], began: float) -> tuple[float | None, tuple[Any, BaseException | None]]:
    """Takes steps until the run waits, has had its turn, or is over: then the first that is returned is None."""
    try:
        while True:
            until = next(item.steps)
            if until != GO_ON or time.monotonic() - began >= _SLICE_SECONDS:
                return until, (None, None)
    except StopIteration as end:
        return None, (end.value, None)
    except BaseException as problem:
        return None, (None, problem)


def _processors() -> int:
    return os.cpu_count() or 1


_executor = Executor()


def executor() -> Executor:
    """Returns the executor of this process."""
    return _executor


def _after_fork() -> None:
    """Begins anew in a forked child, which has the parent's memory but not its threads."""
    global _executor
    _executor = Executor()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
