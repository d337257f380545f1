"""A run in a worker, in steps, as the host sees it: it listens, serves, and ends what does not end by itself."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade.errors import IsolationError
from stockade.isolation._calls import RemoteCalls
from stockade.isolation._frames import (
    FAILURES,
    Called,
    Cancel,
    Failed,
    Finished,
    FromWorker,
    Garbled,
    Gone,
    Input,
    Output,
    Started,
    Told,
    Wants,
)
from stockade.isolation._sound import check_numbers, most_output_bytes, sound_report
from stockade.report import Outcome, Progress, Report, Timings, TrapInfo, Usage, Violation, note_cause
from stockade.runner import FOREVER, GO_ON
from stockade.worker import signal_name

if TYPE_CHECKING:
    from stockade.execution import Plan, Streams
    from stockade.isolation._hub import WorkerHandle
    from stockade.report import PolicyInfo
    from stockade.runner import RunControl, RunCoroutine

__all__ = ["GRACE_SECONDS", "RemoteRun"]

GRACE_SECONDS: Final = 0.5
"""How long after its deadline, or after it was cancelled, a worker may take to come to its end by itself."""

START_SECONDS: Final = 60.0
"""How long it may take until a worker is ready, on a machine that is very busy."""

_STATUS_SECONDS: Final = 2.0
"""How long to wait to be told how a worker has ended that says nothing any more."""

_ABANDONED_SECONDS: Final = 0.2
"""How often it is looked whether anybody still awaits a run."""

_MOST_MESSAGES: Final = 64
"""Messages that are heard before anything else is looked at."""

_MOST_PIECES: Final = 16
"""Pieces of output that are taken before they are passed on."""

_OUTPUT_BYTES: Final = 1 << 16
"""What a piece of output has at most."""


class _Streamed:
    """The guard's state as far as streams need it: pieces of output that have come, and a way for input to go.

    Args:
        worker: The worker.
    """

    def __init__(self, worker: WorkerHandle) -> None:
        self._worker = worker
        self.pieces: deque[tuple[str, bytes]] = deque()
        self.wanted = False

    def take_output(self) -> tuple[str, bytes] | None:
        return self.pieces.popleft() if self.pieces else None

    def give_stdin(self, piece: bytes) -> None:
        self.wanted = False
        self._worker.send(Input(), piece)


class _Ending(NamedTuple):
    """Why there is no report by the worker.

    Attributes:
        outcome: How the run has ended.
        why: What happened to the worker.
    """

    outcome: Outcome
    why: str = ""


class RemoteRun:
    """A run in a worker.

    Args:
        plan: What runs.
        policy: The policy, as reports say it.
        control: The control of the run.
        worker: The worker, which somebody else closes.
        streams: Who serves the guest; None where nobody does.
        begun: When the run began, by `time.perf_counter`.
    """

    def __init__(
        self,
        plan: Plan,
        policy: PolicyInfo,
        control: RunControl,
        worker: WorkerHandle,
        streams: Streams | None,
        begun: float,
    ) -> None:
        self._plan = plan
        self._policy = policy
        self._control = control
        self._worker = worker
        self._streams = streams
        self._begun = begun
        self._state = _Streamed(worker)
        self._calls = RemoteCalls(plan.functions, control, worker, plan.limits.calls)
        self._most_blob = max(most_output_bytes(plan), _OUTPUT_BYTES)
        self._started: float | None = None
        self._asked_at = time.monotonic()
        self._told_cancel: float | None = None
        self._gone: float | None = None
        self._has_more = False
        self._progress: Progress | None = None
        self._finished: tuple[Finished, bytes] | None = None

    def progress(self) -> Progress | None:
        """Tells how far the run is, as the worker told last. May be called from any thread."""
        return self._progress

    def steps(self) -> RunCoroutine[Report]:
        """Does what is to be done until the run is over.

        Raises:
            StockadeError: Something went wrong that is not the guest's doing.
        """
        self._control.progress = self.progress
        try:
            # The loop is a function of its own: what the handler of a signal raises as it begins anew is seen here.
            return (yield from self._until_over())
        finally:
            self._control.progress = None
            self._calls.close()

    def _until_over(self) -> RunCoroutine[Report]:
        streams = self._streams
        while True:
            ending = self._hear()
            if self._calls.look():
                continue
            if streams is not None:
                streams.serve(self._state, self.progress)
                if self._state.wanted and streams.answer(self._state):
                    continue
            if self._finished is not None:
                return (yield from self._finish(*self._finished))
            if ending is None:
                ending = self._late()
            if ending is not None:
                self._worker.kill()
                return self._report(ending)
            yield GO_ON if self._has_more else self._next_look()

    # -- what the worker says ------------------------------------------------------------------------------------------

    def _hear(self) -> _Ending | None:
        """Takes what the worker says; how the run has ended, if it has ended without a report."""
        self._has_more = False
        try:
            return self._take_all()
        except Garbled as problem:
            return self._killed() or _Ending(Outcome.CRASHED, f"the worker says what makes no sense: {problem}")
        except Gone:
            return self._over()

    def _take_all(self) -> _Ending | None:
        streams, count = self._streams, 0
        while self._finished is None and not (streams is not None and streams.clogged):
            count += 1
            if count > _MOST_MESSAGES or len(self._state.pieces) >= _MOST_PIECES:
                # A worker may say more than anybody can hear: what has come is passed on, and the clock looked at.
                self._has_more = True
                return None
            # Asked first: what it has said before it ended is there by then.
            has_ended = self._worker.status is not None
            found = self._worker.receive(self._most_blob)
            if found is None:
                return self._over() if has_ended else None
            self._take(*found)
            if self._has_more:
                # Such calls may follow one another for ever.
                return None
        return None

    def _take(self, message: FromWorker, blob: bytes) -> None:
        if isinstance(message, Finished):
            if self._started is None:
                raise Garbled("it has ended before it began")
            self._finished = message, blob
            return
        if isinstance(message, Output):
            if self._streams is None or not self._streams.listening or not 0 < len(blob) <= self._most_blob:
                raise Garbled("there is output that nobody asked for")
            self._state.pieces.append((message.stream, blob))
            return
        if blob:
            raise Garbled("something stands behind it")
        if isinstance(message, Started):
            if self._started is not None:
                raise Garbled("it has begun twice")
            self._started = time.monotonic()
            self._control.walls = message.walls
            self._control.start(self._plan.limits.wall_time)
        elif isinstance(message, Wants):
            if self._streams is None or self._streams.stdin is None:
                raise Garbled("it wants input that there is not")
            self._state.wanted = True
        elif isinstance(message, Called):
            if self._started is None:
                raise Garbled("it calls a function before it has begun")
            self._calls.take(message)
            self._has_more = True
        elif isinstance(message, Told):
            check_numbers(message.progress)
            self._progress = message.progress
        elif isinstance(message, Failed):
            check_numbers(message.message)
            raise FAILURES[message.kind](message.message)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _late(self) -> _Ending | None:
        """How a run has ended whose worker does not end it in its time."""
        control, now = self._control, time.monotonic()
        if self._started is None and now >= self._asked_at + START_SECONDS:
            return _Ending(Outcome.CRASHED, f"no worker was ready within {START_SECONDS:g} s")
        if self._worker.refused:
            raise IsolationError(
                f"there can be no worker for this run (the system's error {self._worker.refused}): see that this user "
                "may have more processes, and that there is memory for them"
            )
        if control():
            return None
        if self._told_cancel is None:
            self._told_cancel = now
            if control.cancelled:
                self._worker.send(Cancel())
        if now < self._told_cancel + GRACE_SECONDS:
            return None
        return self._killed()

    def _killed(self) -> _Ending | None:
        """How the run has ended if it should have been over by now."""
        if self._told_cancel is None and self._control():
            return None
        return _Ending(Outcome.CANCELLED if self._control.cancelled else Outcome.TIMEOUT)

    def _over(self) -> _Ending | None:
        """How the run has ended whose worker is gone; None while it is not known what became of it."""
        now = time.monotonic()
        if self._gone is None:
            self._gone = now
        status = self._worker.status
        if status is None and not self._worker.refused and now < self._gone + _STATUS_SECONDS:
            return None
        if self._worker.refused:
            return None
        return _Ending(Outcome.CRASHED, _why_gone(status))

    def _next_look(self) -> float:
        """Says until when to wait, and has somebody wake the run before."""
        if self._gone is not None:
            return self._gone + _STATUS_SECONDS
        streams, until = self._streams, FOREVER
        if streams is None or not streams.clogged:
            self._worker.listen()
        if self._state.wanted and streams is not None:
            until = time.monotonic() + streams.retry_seconds
        if self._control.abandoned is not None:
            # Nobody wakes a run when whoever awaits it goes away.
            until = min(until, time.monotonic() + _ABANDONED_SECONDS)
        if self._told_cancel is not None:
            return min(until, self._told_cancel + GRACE_SECONDS)
        if self._started is None:
            return min(until, self._asked_at + START_SECONDS)
        return min(until, self._control.deadline)

    # -- reports -------------------------------------------------------------------------------------------------------

    def _finish(self, finished: Finished, blob: bytes) -> RunCoroutine[Report]:
        """Returns the report of the worker, once all output was taken."""
        assert self._started is not None
        seconds = time.monotonic() - self._asked_at
        timings = self._timings(finished.report.usage.wall_seconds)
        try:
            report = sound_report(finished, blob, self._plan, self._policy, seconds, timings)
            if report.usage.host_calls < self._calls.count:
                raise Garbled("it has made more calls than it says")
        except Garbled as problem:
            return self._report(_Ending(Outcome.CRASHED, f"the worker reports what makes no sense: {problem}"))
        if report.fuel is not None:
            self._plan.history.append((report.fuel.consumed, report.fuel.seconds))
        if self._streams is not None and not (yield from self._streams.finish(self._state)):
            return self._report(_Ending(Outcome.CANCELLED if self._control.cancelled else Outcome.TIMEOUT))
        if self._calls.raised is not None and report.outcome is Outcome.TRAP:
            note_cause(report, self._calls.raised)
        return report

    def _timings(self, wall: float) -> Timings:
        """How long everything took.

        Args:
            wall: How long the guest has run: what a worker says may be anything, and is looked at later.
        """
        plan, total = self._plan, time.perf_counter() - self._begun
        run = min(wall, total) if wall >= 0 else 0.0
        return Timings(
            compile=plan.compile_seconds,
            instantiate=total - run,
            run=run,
            total=plan.compile_seconds + total,
            cache_hit=plan.was_compiled,
        )

    def _report(self, ending: _Ending) -> Report:
        """Reports on a run whose worker has not. It has used at least what it had when it was last heard of."""
        plan = self._plan
        wall = 0.0 if self._started is None else time.monotonic() - self._started
        told = self._progress or Progress(seconds=0.0)
        violations: tuple[Violation, ...] = ()
        if ending.outcome is Outcome.TIMEOUT:
            field = "limits.wall_time"
            violations = (
                Violation(
                    kind="timeout",
                    subject=field,
                    limit=plan.limits.wall_time,
                    observed=wall,
                    action="stop",
                    field=field,
                ),
            )
        return Report(
            outcome=ending.outcome,
            trap=TrapInfo("worker", ending.why) if ending.why else None,
            usage=Usage(
                fuel=None if plan.fuel is None else told.fuel or 0,
                wall_seconds=wall,
                cpu_seconds=told.cpu_seconds,
                idle_seconds=told.idle_seconds,
                memory_bytes=told.memory_bytes,
                memory_peak_bytes=told.memory_bytes,
                table_elements=told.table_elements,
                read_bytes=told.read_bytes,
                written_bytes=told.written_bytes,
                stdout_bytes=told.stdout_bytes,
                stderr_bytes=told.stderr_bytes,
                files_created=told.files_created,
                random_bytes=told.random_bytes,
                host_calls=self._calls.count,
            ),
            violations=violations,
            module=plan.info,
            policy=self._policy,
            timings=self._timings(wall),
            limits=plan.run_limits,
        )


def _why_gone(status: int | None) -> str:
    if status is None:
        return "the worker says nothing any more, and nobody knows what became of it"
    if status < 0:
        return f"the worker was ended by {signal_name(status)}"
    return f"the worker ended with exit status {status} and without a report"
