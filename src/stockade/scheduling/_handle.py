"""One task that a scheduler has taken on: what the scheduler knows of it, and what its caller sees."""

from __future__ import annotations

from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stockade._bell import Once
from stockade._text import printable
from stockade.errors import StockadeError, UsageError
from stockade.report import Outcome
from stockade.runner import is_in_coroutine
from stockade.scheduling._task import Task, TaskResult
from stockade.scheduling._tellers import check_may_wait, tell_later

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from stockade.report import Report
    from stockade.runner import Awaiter, RunControl

__all__ = ["TaskHandle", "TaskRun", "when_over"]


class TaskRun:
    """What the scheduler knows of a task.

    Attributes:
        task: The task.
        context: The context of whoever submitted it, which functions of the embedder see.
        report: Becomes its report, or what it raised.
        awaiter: Who awaits coroutine functions of the embedder's: the event loop on which it was submitted; None where
            there was none.
        beginner: The thread that is about to begin it, or to tell that it did not come to that; 0 once the executor
            has it.
        begun: Whether somebody has begun it.
        control: Its control, from its beginning on.
        cancelled: Whether it is not wanted any more.
        dropped: Whether it was cancelled before anything of it had begun.
        completed_at: When it was over, in UTC.
    """

    __slots__ = (
        "awaiter",
        "beginner",
        "begun",
        "cancelled",
        "completed_at",
        "context",
        "control",
        "dropped",
        "report",
        "task",
    )

    def __init__(self, task: Task) -> None:
        self.task = task
        self.context = copy_context()
        self.awaiter = _loop_of_this_thread()
        self.report: Once[Report] = Once()
        self.beginner = 0
        self.begun = False
        self.control: RunControl | None = None
        self.cancelled = self.dropped = False
        self.completed_at: datetime | None = None


def _loop_of_this_thread() -> Awaiter | None:
    if not is_in_coroutine():
        return None
    from stockade.runner.loop import loop_bridge

    return loop_bridge()


class TaskHandle:
    """One task that a scheduler has taken on. It can be waited for, awaited and cancelled."""

    def __init__(self, run: TaskRun, cancel: Callable[[TaskRun], None]) -> None:
        self._run = run
        self._cancel = cancel

    def __repr__(self) -> str:
        return f"<TaskHandle {printable(self.task.id)} {'done' if self.done else 'under way'}>"

    def __await__(self) -> Generator[Any, None, Report]:
        return self._wait().__await__()

    async def _wait(self) -> Report:
        import asyncio

        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def look() -> None:
            if not over.done():
                over.set_result(None)

        def tell() -> None:
            # Of a loop that is closed, nobody waits for anything.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(look)

        self._run.report.when_done(tell)
        try:
            await over
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._run.report.result()

    @property
    def task(self) -> Task:
        """The task."""
        return self._run.task

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self._run.report.done

    @property
    def completed_at(self) -> datetime | None:
        """When it was over, in UTC; None before."""
        return self._run.completed_at if self.done else None

    def result(self, timeout_seconds: float | None = None) -> Report:
        """Waits for the report.

        Args:
            timeout_seconds: The longest to wait; the run goes on all the same.

        Raises:
            TimeoutError: It was not over by then.
            StockadeError: It could not be run at all, or was cancelled before it began.
            EngineError: As of `wait`.
        """
        self.wait(timeout_seconds)
        return self._run.report.result(0)

    def task_result(self, timeout_seconds: float | None = None) -> TaskResult:
        """Waits, and tells what came of the task: also where it could not be run.

        Args:
            timeout_seconds: As in `result`.

        Raises:
            TimeoutError: It was not over by then.
            EngineError: As of `wait`.
        """
        if not self.wait(timeout_seconds):
            raise TimeoutError
        problem = self._run.report.problem
        over = self._run.completed_at or datetime.now(UTC)
        if problem is None:
            return TaskResult.of(self.task.id, self.result(), over)
        if not isinstance(problem, StockadeError):
            raise problem
        outcome = Outcome.CANCELLED if self._run.dropped else None
        return TaskResult.refused(self.task.id, problem, over, outcome)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until it is over; what came of it raises nothing.

        Args:
            timeout_seconds: The longest to wait.

        Returns:
            Whether it is over.

        Raises:
            EngineError: It is not, and this is called by what `on_done` was given, on a thread that tasks need: there
                can be no more threads.
        """
        _check_timeout(timeout_seconds)
        if not self.done:
            check_may_wait()
        return self._run.report.wait(timeout_seconds)

    def cancel(self) -> None:
        """Stops it, whether it waits for its turn, computes or sleeps; no other. What is over stays as it is."""
        self._cancel(self._run)

    def on_done(self, callback: Callable[[TaskHandle], object]) -> None:
        """Has something called when it is over: at once, on this thread, if it is.

        Args:
            callback: Is given the job, on one of a few threads for such calls: it may submit tasks, and wait for them.
                What it raises goes to the log `stockade`, and harms nothing else.
        """
        # Of several who would call it, one has this.
        token = [None]

        def call() -> None:
            try:
                token.pop()
            except IndexError:
                return
            try:
                callback(self)
            except BaseException:
                import logging

                logging.getLogger("stockade").exception("what was to be called when %r was over has raised", self)

        if not callable(callback):
            raise UsageError(f"callback is {type(callback).__name__}: give a function")
        if self.done:
            call()
        else:
            self._run.report.when_done(lambda: tell_later(call))


def when_over(job: TaskHandle, call: Callable[[], object]) -> None:
    """Has something of ours called when a job is over, on the thread that ended it: it is quick, and raises nothing.

    Args:
        job: The job.
        call: What to call. It may be called again where the handler of a signal has raised in the middle of it.
    """
    job._run.report.when_done(_just_once(call))  # noqa: SLF001 - of this module


def _just_once(call: Callable[[], object]) -> Callable[[], object]:
    """A call that is made by whoever comes first: several threads may find at once that something is over."""
    left = [call]

    def first() -> None:
        try:
            whole = left.pop()
        except IndexError:
            return
        try:
            whole()
        except BaseException:
            left.append(whole)
            raise

    return first


def _check_timeout(seconds: object) -> None:
    if seconds is not None and not isinstance(seconds, int | float):
        raise UsageError(f"timeout_seconds is {type(seconds).__name__}: give a number of seconds, or None")
