"""The scheduler: bounded concurrency, a bounded queue, and fair turns between tenants.

It only decides when a run begins. What is running stands in the executor's line, where shares are fair slice by slice.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sized
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from stockade._bell import MOST_RAISED, wait_until
from stockade._interrupted import may_wait
from stockade._locks import new_lock
from stockade.errors import QueueFull, UsageError
from stockade.runner import WorkItem, executor, is_in_coroutine
from stockade.sandbox import Sandbox, check_count, check_text
from stockade.scheduling._fair_queue import Line
from stockade.scheduling._handle import TaskHandle, TaskRun, when_over
from stockade.scheduling._task import Task, TaskResult
from stockade.scheduling._tellers import check_may_wait

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator
    from types import TracebackType
    from typing import Self

    from stockade.report import Report
    from stockade.runner import AwaitedCall

__all__ = ["Scheduler"]


class _Window:
    """Tasks taken from an iterable as there is room for them: as many as can run, and as many again to follow them."""

    def __init__(
        self,
        scheduler: Scheduler,
        tasks: Iterable[Task],
        progress: Callable[[int, int | None], object] | None,
        room: int,
    ) -> None:
        self._scheduler = scheduler
        if not isinstance(tasks, Iterable):
            raise UsageError(f"tasks is {type(tasks).__name__}: give tasks one after another, such as a list of them")
        self._source = iter(tasks)
        self._total = len(tasks) if isinstance(tasks, Sized) else None
        self._progress = progress
        self._room = room
        self._finished = 0
        self._under_way: set[TaskHandle] = set()
        # Taken from the iterable, and not by the scheduler yet.
        self._kept: Task | None = None

    def fill(self) -> Iterator[TaskHandle]:
        """Submits what there is room for."""
        while len(self._under_way) < self._room:
            task = self._kept
            if task is None:
                try:
                    task = next(self._source)
                except StopIteration:
                    return
            try:
                job = self._scheduler.submit(task)
            except QueueFull:
                if not self._under_way:
                    raise
                # There is room when one of these is done.
                self._kept = task
                return
            self._kept = None
            self._under_way.add(job)
            yield job

    @property
    def empty(self) -> bool:
        """Whether nothing is under way."""
        return not self._under_way

    def leave(self, job: TaskHandle) -> bool:
        """Counts one that is over; says whether it was not counted yet."""
        if job not in self._under_way:
            return False
        self._under_way.discard(job)
        self._finished += 1
        if self._progress is not None:
            self._progress(self._finished, self._total)
        return True

    def close(self) -> None:
        """Stops what is under way."""
        for job in self._under_way:
            job.cancel()


_GATHERED_SECONDS: Final = 0.0005
"""How long reports of short runs may be late, so that several come at once."""

_CLOSED: Final = "the scheduler is closed: make a new one"


class _Background:
    """Awaits coroutine functions for those who have no event loop, on one that is made when it is needed."""

    def begin(self, call: AwaitedCall) -> None:
        from stockade.runner.loop import background_loop

        background_loop().begin(call)

    def stop(self, call: AwaitedCall) -> None:
        from stockade.runner.loop import background_loop

        background_loop().stop(call)


_BACKGROUND: Final = _Background()


class Scheduler:
    """Runs many tasks in one sandbox. Safe to share between threads; use it as a context manager.

    Closing waits until all tasks are done, so a coroutine uses `async with`, which does not block the event loop.

    Args:
        sandbox: Where they run; it must stay open.
        concurrency: The most that are under way at once, guests that wait included.
        queue_size: The most that may wait for their turn.
        tenant_concurrency: The most that are under way for one tenant; None: as many as there is room for.

    Raises:
        UsageError: A number is out of range.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        concurrency: int = 100,
        queue_size: int = 10_000,
        tenant_concurrency: int | None = None,
    ) -> None:
        if not isinstance(sandbox, Sandbox):
            raise UsageError(f"sandbox is {type(sandbox).__name__}: give a Sandbox")
        for name, number, least in (
            ("concurrency", concurrency, 1),
            ("queue_size", queue_size, 0),
            ("tenant_concurrency", concurrency if tenant_concurrency is None else tenant_concurrency, 1),
        ):
            check_count(name, number, least)
        self._sandbox = sandbox
        self._concurrency = concurrency
        self._queue_size = queue_size
        self._tenant_concurrency = concurrency if tenant_concurrency is None else tenant_concurrency
        # Reentrant, for the handler of a signal may come between any two lines. It finds things half done, so what it
        # asks for is done by whoever it has interrupted, afterwards.
        self._lock = new_lock()
        self._late: deque[Callable[[], object]] = deque()
        # Threads that take something on and are to wait, afterwards, until nothing is under way.
        self._closing: set[int] = set()
        # Taken on and not over: in line, or under way.
        self._unfinished: dict[TaskRun, None] = {}
        self._line = Line()
        self._running: set[TaskRun] = set()
        self._running_of: dict[str, int] = {}
        self._closed = False
        # What is called when nothing is unfinished any more.
        self._waiters: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        if is_in_coroutine():
            raise UsageError(
                "with Scheduler(...) would block the event loop until all its tasks are done: write async with"
            )
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close_async(cancel=kind is not None)

    def __exit__(self, kind: object, *rest: object) -> None:
        self.close(cancel=kind is not None)

    @property
    def running(self) -> int:
        """How many are under way."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._line)

    def close(self, *, cancel: bool = False) -> None:
        """Takes nothing on any more, and waits until all is done. Closing twice is harmless.

        The handler of a signal that has interrupted Stockade in the middle of something cannot wait for what needs that
        done: then it is not waited for here, but in `submit`, where that was interrupted, or by whoever closes it next,
        such as the end of the `with` block.

        Args:
            cancel: Whether to stop what is not done.

        Raises:
            EngineError: It cannot be waited for here, as of `TaskHandle.wait`.
        """
        self._closed = True
        with self._lock:
            # Who has not seen that yet is done with taking on, unless it is this thread.
            pass
        if self._unfinished and not cancel:
            # Before the block that stops all where it is not waited for.
            check_may_wait()
        try:
            if cancel:
                self.cancel_all()
            if may_wait(sys._getframe(1)):  # noqa: SLF001 - there is no other way
                self._wait_until_quiet()
            else:
                self._closing.add(threading.get_ident())
        except BaseException:
            # Such as Ctrl-C: what is left is not waited for, so it is not to go on by itself.
            self.cancel_all()
            raise

    def _wait_until_quiet(self) -> None:
        if self._unfinished:
            check_may_wait()
        wait_until(lambda: not self._unfinished, self._waiters)
        # A handler may have raised in the middle of what was put off.
        self._catch_up()

    async def close_async(self, *, cancel: bool = False) -> None:
        """Does what `close` does, without blocking the event loop. Cancelling it stops what is not done.

        Args:
            cancel: Whether to stop what is not done.
        """
        from stockade.runner.loop import wait_until

        with self._lock:
            self._closed = True
        if cancel:
            self.cancel_all()
        try:
            await wait_until(lambda: not self._unfinished, self._waiters)
        except BaseException:
            self.cancel_all()
            raise

    def cancel_all(self) -> None:
        """Stops everything that is under way or waits for its turn."""
        for run in tuple(self._unfinished):
            self._cancel(run)

    # -- taking on ----------------------------------------------------------------------------------------------------

    def submit(self, task: Task) -> TaskHandle:
        """Takes a task on.

        Args:
            task: What to run.

        Returns:
            The job: wait for it, await it, or cancel it.

        Raises:
            QueueFull: As many wait for their turn as may.
            UsageError: The scheduler is closed, that is no task, or its priority is none.
        """
        if not isinstance(task, Task):
            raise UsageError(f"task is {type(task).__name__}: give a Task; Task.from_json reads one")
        check_count("priority", task.priority, 1, 100)
        check_text("tenant", task.tenant)
        run = TaskRun(task)
        handle = TaskHandle(run, self._cancel)
        try:
            with self._lock:
                if self._closed:
                    raise UsageError(_CLOSED)
                if len(self._line) >= self._queue_size and not self._has_room(task.tenant):
                    raise QueueFull(
                        f"queue full: {len(self._running):,} running, {len(self._line):,} waiting; wait for some "
                        "of them, or raise queue_size or concurrency"
                    )
                self._unfinished[run] = None
                # The handler of a signal has closed it before it could find this one, and stopped what it found.
                if self._closed:
                    raise UsageError(_CLOSED)
                self._line.add(run)
                started = self._next_ones()
            self._start(started)
            self._catch_up()
            if self._closing and threading.get_ident() in self._closing:
                self._closing.discard(threading.get_ident())
                self._wait_until_quiet()
        except BaseException as problem:
            if run in self._unfinished:
                # The handler of a signal has raised, in the middle of this.
                for _ in range(MOST_RAISED):
                    try:
                        self._mend(run, problem)
                        break
                    except BaseException:  # noqa: S112 - a second signal; the first is raised
                        continue
            raise
        return handle

    def _mend(self, lost: TaskRun | None, problem: BaseException) -> None:
        """Puts things in order that the handler of a signal has left half done, as it has raised.

        Args:
            lost: A run that nobody comes to know of, if there is one.
            problem: What was raised.
        """
        with self._lock:
            ended = self._line_up_anew(lost)
            self._running_of = dict(Counter(run.task.tenant for run in self._running))
            started = [run for run in self._running if not run.begun]
            started += self._next_ones()
        for run in ended:
            if run.control is not None:
                # The executor may have it all the same.
                run.control.cancel()
            self._tell(run, None, _dropped() if run.dropped else problem)
        if lost is not None and lost.control is not None:
            lost.control.cancel()
        self._start(started)
        # It may have been done, and nobody told.
        self._tell_waiters()
        self._catch_up()

    def _line_up_anew(self, lost: TaskRun | None) -> list[TaskRun]:
        """Makes the line anew of all that wait for their turn; returns those that are over. Under the lock."""
        ended: list[TaskRun] = []
        line, me = self._line.emptied(), threading.get_ident()
        for run in tuple(self._unfinished):
            # Or whoever was interrupted before the executor had it, or before that was told that it failed.
            if run.beginner == me or (not run.begun and (run is lost or run.dropped)):
                run.begun, run.beginner = True, me
                self._running.discard(run)
                ended.append(run)
            elif not run.begun and run not in self._running:
                line.add(run)
        self._line = line
        return ended

    def _catch_up(self) -> None:
        """Does what was asked for meanwhile, in the middle of something; without the lock."""
        while self._late:
            # It stays there until it is done. A handler that comes in between may do it, too.
            with suppress(IndexError):
                call = self._late[0]
                call()
                with suppress(ValueError):
                    self._late.remove(call)

    def execute(self, task: Task | str | bytes) -> TaskResult:
        """Runs one task and waits for what comes of it.

        Args:
            task: The task, or its JSON.

        Raises:
            QueueFull: As many wait for their turn as may.
            UsageError: It is no task, or the scheduler is closed.
        """
        job = self.submit(task if isinstance(task, Task) else Task.from_json(task))
        try:
            return job.task_result()
        except BaseException:
            # Such as Ctrl-C: nobody waits for it any more.
            job.cancel()
            raise

    def map(
        self, tasks: Iterable[Task], *, progress: Callable[[int, int | None], object] | None = None
    ) -> Generator[Report, None, None]:
        """Runs tasks, and yields their reports in the order of the tasks.

        Tasks are taken from the iterable as there is room, so it may be endless. Whoever stops iterating stops what is
        under way.

        Args:
            tasks: What to run.
            progress: Is told how many are done, and of how many, if that is known.

        Raises:
            QueueFull: Tasks of others fill the queue, and none of these is under way.
            StockadeError: A task could not be run. The others that are under way are stopped.
        """
        window = self._window(tasks, progress)
        jobs: deque[TaskHandle] = deque()
        # Whether the last one that was waited for was over within a moment.
        follow_soon = False
        try:
            while True:
                jobs.extend(window.fill())
                if not jobs:
                    return
                job = jobs.popleft()
                if not job.done:
                    if follow_soon and jobs:
                        # To be woken for each takes longer than each.
                        jobs[-1].wait(_GATHERED_SECONDS)
                    begun = time.perf_counter()
                    job.wait()
                    follow_soon = time.perf_counter() - begun < _GATHERED_SECONDS
                window.leave(job)
                yield job.result()
        finally:
            window.close()

    def as_completed(
        self, tasks: Iterable[Task], *, progress: Callable[[int, int | None], object] | None = None
    ) -> Generator[TaskHandle, None, None]:
        """Runs tasks, and yields their jobs as they are done.

        Args:
            tasks: What to run, as in `map`.
            progress: As in `map`.
        """
        window = self._window(tasks, progress)
        done: queue.SimpleQueue[TaskHandle] = queue.SimpleQueue()
        try:
            while True:
                for job in window.fill():
                    when_over(job, partial(done.put, job))
                if window.empty:
                    return
                if done.empty():
                    check_may_wait()
                job = done.get()
                # It may be told twice.
                if window.leave(job):
                    yield job
        finally:
            window.close()

    async def as_completed_async(
        self, tasks: Iterable[Task], *, progress: Callable[[int, int | None], object] | None = None
    ) -> AsyncGenerator[TaskHandle, None]:
        """Does what `as_completed` does, without blocking the event loop.

        A loop over it that is left early is closed with `contextlib.aclosing`: only then is what is under way stopped.

        Args:
            tasks: What to run.
            progress: As in `map`.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        window = self._window(tasks, progress)
        done: asyncio.Queue[TaskHandle] = asyncio.Queue()

        def tell(job: TaskHandle) -> None:
            # Of a loop that is closed, nobody waits for anything.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(done.put_nowait, job)

        try:
            while True:
                for job in window.fill():
                    when_over(job, partial(tell, job))
                if window.empty:
                    return
                job = await done.get()
                # It may be told twice.
                if window.leave(job):
                    yield job
        finally:
            window.close()

    def _window(self, tasks: Iterable[Task], progress: Callable[[int, int | None], object] | None) -> _Window:
        return _Window(self, tasks, progress, self._concurrency + min(self._concurrency, self._queue_size))

    # -- whose turn it is (under the lock) ----------------------------------------------------------------------------

    def _has_room(self, tenant: str) -> bool:
        return len(self._running) < self._concurrency and self._running_of.get(tenant, 0) < self._tenant_concurrency

    def _next_ones(self) -> list[TaskRun]:
        """Takes out of the line whoever may begin."""
        started: list[TaskRun] = []
        while self._line and len(self._running) < self._concurrency:
            run = self._line.take(self._running_of, self._tenant_concurrency)
            if run is None:
                break
            # So that whoever finds this half done finds the run here, or still in line.
            self._running_of[run.task.tenant] = self._running_of.get(run.task.tenant, 0) + 1
            self._running.add(run)
            started.append(run)
        return started

    def _leave(self, run: TaskRun) -> list[TaskRun]:
        """Takes out whoever is over, and lets others begin."""
        if run in self._running:
            self._running.discard(run)
            self._running_of[run.task.tenant] -= 1
            if not self._running_of[run.task.tenant]:
                del self._running_of[run.task.tenant]
        return self._next_ones()

    # -- running ------------------------------------------------------------------------------------------------------

    def _start(self, runs: Iterable[TaskRun]) -> None:
        """Begins runs; in place of one that cannot begin, the next. Raises nothing, whatever is wrong with them."""
        line = deque(runs)
        failed: list[tuple[TaskRun, BaseException]] = []
        while line:
            run = line.popleft()
            problem = self._try_to_begin(run)
            if problem is not None:
                failed.append((run, problem))
                with self._lock:
                    line.extend(self._leave(run))
        # Others may be told, and do something in turn, when all that could begin has begun.
        for run, problem in failed:
            self._tell(run, None, problem)

    def _try_to_begin(self, run: TaskRun) -> BaseException | None:
        try:
            with self._lock:
                if run.begun:
                    return None
                run.begun, run.beginner = True, threading.get_ident()
            self._begin(run)
            run.beginner = 0
        except BaseException as problem:
            if run.control is not None:
                # It may have begun all the same.
                run.control.cancel()
            return problem
        return None

    def _begin(self, run: TaskRun) -> None:
        task, sandbox = run.task, self._sandbox
        steps, control = sandbox.steps(
            task.module,
            task.args,
            export=task.export,
            stdin=task.stdin,
            env=task.env,
            policy=None if task.policy is None and task.quota is None else lambda: task.narrowed(sandbox.policy),
            run_id=task.id,
            tenant=task.tenant,
        )
        run.control = control
        control.awaiter = run.awaiter or _BACKGROUND
        if run.cancelled:
            control.cancel()

        def done(report: Report | None, problem: BaseException | None) -> None:
            self._over(run, report, problem)

        # An item keeps the context that it is made in.
        executor().begin(run.context.run(WorkItem, steps, control, done, task.priority, task.tenant))

    def _over(self, run: TaskRun, report: Report | None, problem: BaseException | None) -> None:
        with self._lock:
            if report is not None:
                self._line.charge(run.task.tenant, report.usage.cpu_seconds)
            started = self._leave(run)
        self._start(started)
        self._tell(run, report, problem)
        self._catch_up()

    def _tell(self, run: TaskRun, report: Report | None, problem: BaseException | None) -> None:
        try:
            if not run.report.done:
                run.completed_at = datetime.now(UTC)
                run.report.settle(report, problem)
        finally:
            if run.report.done:
                self._done(run)

    def _done(self, run: TaskRun) -> None:
        self._unfinished.pop(run, None)
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        if not self._unfinished:
            for waiter in tuple(self._waiters):
                waiter()

    def _cancel(self, run: TaskRun) -> None:
        run.cancelled = True
        if self._lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - as conditions do
            # By the handler of a signal, or by what is dropped.
            self._late.append(lambda: self._cancel_now(run))
            return
        self._cancel_now(run)
        self._catch_up()

    def _cancel_now(self, run: TaskRun) -> None:
        try:
            with self._lock:
                done, control = run.report.done, run.control
                if not done and not run.begun and self._line.has(run):
                    # From here on, whoever mends things ends it.
                    run.dropped = True
                    self._line.remove(run)
                    run.begun, run.beginner = True, threading.get_ident()
            if run.dropped and not done:
                self._over(run, None, _dropped())
            elif control is not None and not done:
                control.cancel()
        except BaseException as problem:
            # The handler of a signal has raised, in the middle of this.
            for _ in range(MOST_RAISED):
                try:
                    self._mend(None, problem)
                    break
                except BaseException:  # noqa: S112 - a second signal; the first is raised
                    continue
            raise


def _dropped() -> UsageError:
    return UsageError("the task was cancelled before it began")
