"""What is told of a guest in a worker: how far it is, and reports, also those on workers that are lost."""

from __future__ import annotations

import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from stockade._locks import new_lock
from stockade.execution import OpenGuest, tracer_of, with_network
from stockade.isolation._calls import RemoteCalls
from stockade.isolation._frames import Garbled
from stockade.isolation._messages import (
    Cancel,
    Entered,
    Finished,
    Input,
    Looked,
    Request,
    Returned,
    Taken,
)
from stockade.isolation._sound import check_value, most_output_bytes, returned_report, sound_report
from stockade.report import Outcome, Progress, QuotaUse, Report, Timings, TrapInfo, Usage, Violation, note_cause

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade.egress import Client, GuestNetwork
    from stockade.engine import Number, SealedFile
    from stockade.errors import StockadeError
    from stockade.execution import Call, Isolation, Monitoring, Plan, RunMonitor, Streams
    from stockade.guard import TraceEntry
    from stockade.isolation._handle import WorkerHandle
    from stockade.report import PolicyInfo
    from stockade.runner import RunControl, RunCoroutine

__all__ = ["OUTPUT_BYTES", "Ending", "Streamed", "ToldGuest", "let_go"]

OUTPUT_BYTES: Final = 1 << 16
"""What a piece of output has at most."""

_NO_NETWORK: Final = dict.fromkeys(("network_sent_bytes", "network_received_bytes", "network_connections"), 0)

_ALIKE: Final = (
    "fuel",
    "memory_bytes",
    "table_elements",
    "stdout_bytes",
    "stderr_bytes",
    "files_created",
    "read_bytes",
    "written_bytes",
    "random_bytes",
    "cpu_seconds",
    "idle_seconds",
)
"""What is told of a session between two calls as its last report tells it."""


class Streamed:
    """The guard's state as far as streams need it: pieces of output that have come, and a way for input to go.

    Args:
        worker: The worker.
        control: The control of the run.
    """

    def __init__(self, worker: WorkerHandle, control: RunControl) -> None:
        self._worker = worker
        self._control = control
        self.pieces: deque[tuple[str, bytes]] = deque()
        self.wanted = False

    def take_output(self) -> tuple[str, bytes] | None:
        return self.pieces.popleft() if self.pieces else None

    def give_stdin(self, piece: bytes) -> None:
        self.wanted = False
        if self._control.cancelled:
            # By whoever was asked for input: the guest has no part in what comes after.
            self._worker.send(Cancel())
        self._worker.send(Input(), piece)


class Ending(NamedTuple):
    """Why there is no report by the worker.

    Attributes:
        outcome: How the run has ended.
        why: What happened to the worker.
    """

    outcome: Outcome
    why: str = ""


def let_go(worker: WorkerHandle) -> None:
    """Ends a worker, and gives back its place, which it has: once, however often this is called."""
    if worker.close():
        worker.hub.release()


class ToldGuest(OpenGuest):
    """A live instance in a worker. For one thread at a time, but for what says otherwise.

    Args:
        plan: What runs.
        policy: The policy, as reports say it.
        isolation: Where it lives.
        control: Its control.
        worker: The worker, which has a place, and is closed with this.
        streams: Who serves the guest; None where nobody does.
        files: Files of what it begins with; None where it begins as its module does.
        begun: When it was asked for, by `time.perf_counter`.
        client: What makes its requests; None where it may make none.
        keeps: Whether it lives on after one run; if not, another worker is made for the next one.
    """

    def __init__(
        self,
        plan: Plan,
        policy: PolicyInfo,
        isolation: Isolation,
        control: RunControl,
        worker: WorkerHandle,
        streams: Streams | None,
        files: Sequence[SealedFile] | None,
        begun: float,
        client: Client | None = None,
        *,
        keeps: bool = True,
    ) -> None:
        # First: whoever drops it, at whatever moment, ends the worker.
        self._finish = weakref.finalize(self, let_go, worker)
        self._finish.atexit = False
        self._plan = plan
        self._policy = policy
        self._isolation = isolation
        self._control = control
        self._worker = worker
        self._streams = streams
        self._files = tuple(files or ())
        self._is_restored = files is not None
        self._opened = begun
        # What the worker was told to call, when it was told what the guest is given.
        self._told: Request | None = None
        self._begins_at_once = False
        # When it was told so, and when it was heard that it has begun, where that was before this was made.
        self._told_at: float | None = None
        self._ready_at: float | None = None
        self._is_ready = False
        # Whether no other worker has been made for the next run: where it is over soon, that is done after it.
        self._wants_more = not keeps
        self._client = client
        self._network: GuestNetwork | None = None
        self._monitor: RunMonitor | None = None
        self._has_news = False
        self._state = Streamed(worker, control)
        # Where the policy only takes note, there may be more.
        most = None if plan.policy.on_violation == "audit" else plan.limits.calls
        self._calls = RemoteCalls(plan.functions, control, plan.module, most)
        self._most_blob = max(most_output_bytes(plan), OUTPUT_BYTES)
        # Who looks at its memory may be on another thread than who takes its steps.
        self._lock = new_lock()
        self._started: float | None = None
        self._over_at_once = False
        self._open_seconds = 0.0
        self._called: float | None = None
        # When the call under way was asked for, and when the budget was that it is held to.
        self._asked_at = self._since = time.monotonic()
        self._renews = False
        # What earlier calls have used of the limits that hold for all of them.
        self._earlier = QuotaUse()
        self._timed = False
        self._depth = 0
        self._told_cancel: float | None = None
        self._gone: float | None = None
        self._has_more = False
        self._progress: Progress | None = None
        self._used: Report | None = None
        self._ending: Ending | None = None
        # What has stopped a call within one of a function of the embedder's; and what the worker has failed with.
        self._broken: BaseException | None = None
        self._failed: StockadeError | None = None
        self._ended = False
        self._closed = False
        # What was said, and is waited for.
        self._finished: tuple[Finished | Returned, bytes] | None = None
        self._returned: tuple[Finished | Returned, bytes] | None = None
        self._entered: Entered | None = None
        self._looked: tuple[Looked, bytes] | None = None
        self._taken: tuple[Taken, tuple[int, ...]] | None = None
        # Who is told of the calls that are traced; what the worker has handed over of them, None at the guest's end;
        # and how many of these have begun, and not returned.
        self._tracer = None if plan.trace is None else tracer_of(plan, plan.trace)
        self._traced: deque[list[TraceEntry] | None] = deque()
        self._calls_open = 0
        self._expects: type[Entered | Looked | Taken] | None = None

    # -- what is known of it -------------------------------------------------------------------------------------------

    @property
    def is_restored(self) -> bool:
        """Whether it began with what another guest held, so that it is not to be initialized."""
        return self._is_restored

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, so that it can not be called again."""
        return self._ended

    def _seconds(self) -> float:
        return 0.0 if self._called is None else time.monotonic() - self._called

    def watch(self, monitoring: Monitoring) -> None:
        """Has it looked at in its course.

        Args:
            monitoring: What is asked for.
        """
        from stockade.execution import RunMonitor

        self._monitor = RunMonitor(monitoring)

    def _seen(self, report: Report) -> Report:
        """Returns a report as it may leave, with what was seen of the call in its course."""
        gate = self._control.gate
        report = report if gate is None else gate.release(report)
        return report if self._monitor is None else self._monitor.finish(report, self._control.name)

    def progress(self) -> Progress | None:
        """Tells how far it is, as the worker told last. May be called from any thread."""
        if self._closed or self._started is None:
            return None
        told, used, plan = self._progress, self._used, self._plan
        if used is None:
            if told is not None:
                return told
            woven = plan.program.woven
            found = Progress(
                seconds=0.0, fuel=None if plan.fuel is None else 0, memory_bytes=woven.initial_memory_bytes
            )
            found = msgspec.structs.replace(found, table_elements=woven.initial_table_elements)
        else:
            usage = used.usage
            shared = {name: getattr(usage, name) for name in _ALIKE}
            found = Progress(seconds=0.0, calls=sum(usage.calls.values()), earlier=used.earlier, **shared)
        state = "idle" if self._called is None else "running"
        told_of = {"module": plan.info.name, "policy": self._policy.name, "limits": plan.run_limits}
        return msgspec.structs.replace(found, state=state, **told_of)

    def keep(self) -> None:
        """Sees to it that it is freed after all that could look at it, where it is dropped: it is, in any case."""

    def close(self) -> None:
        """Ends the worker. Closing twice is harmless."""
        self._closed = self._ended = True
        self._calls.close()
        if self._network is not None:
            self._network.end()
        # What these know may know this: the collector would have to come.
        self._used = self._broken = self._failed = self._calls.raised = None
        self._finish()

    # -- how it has ended ----------------------------------------------------------------------------------------------

    def _crash(self, why: str) -> None:
        """Ends the worker, for what it has done."""
        self._end(Ending(Outcome.CRASHED, why))
        self._worker.kill()

    def _end(self, ending: Ending) -> None:
        self._ended = True
        if self._ending is None:
            self._ending = ending

    # -- reports -------------------------------------------------------------------------------------------------------

    def _finish_call(
        self, finished: Finished | Returned, blob: bytes, call: Call, results: Sequence[Number | str | bytes] | None
    ) -> RunCoroutine[Report]:
        """Returns the report of the worker, once all output was taken."""
        report = self._checked(finished, blob, call)
        if self._ending is not None:
            return report
        if self._streams is not None and not (yield from self._streams.finish(self._state)):
            self._ended = True
            ended = self._report(Ending(Outcome.CANCELLED if self._control.cancelled else Outcome.TIMEOUT))
            return msgspec.structs.replace(ended, trace_calls=report.trace_calls, trace_lost=report.trace_lost)
        if self._calls.raised is not None and report.outcome is Outcome.TRAP:
            note_cause(report, self._calls.raised)
            self._calls.raised = None
        if results is not None and report.outcome is Outcome.OK:
            value: Any = results[0] if len(results) == 1 else list(results) or None
            report = msgspec.structs.replace(report, value=value)
        return report

    def _checked(
        self, finished: Finished | Returned, blob: bytes, call: Call | None = None, *, is_within: bool = False
    ) -> Report:
        """Returns the report of the worker as far as it makes sense; else that on its end."""
        seconds = time.monotonic() - self._since
        plan, policy, isolation = self._plan, self._policy, self._isolation
        try:
            if isinstance(finished, Returned):
                if call is None or call.exchange is not None or is_within:
                    raise Garbled("it tells too little of its run")
                timings = self._timings(finished.wall_seconds)
                told = finished, blob, call, plan, policy, isolation, seconds, timings
                report = returned_report(*told, earlier=self._earlier)
            else:
                timings = self._timings(finished.report.usage.wall_seconds)
                report = sound_report(finished, blob, plan, policy, isolation, seconds, timings, is_within=is_within)
                if call is not None:
                    check_value(report.value, call)
                elif report.value is not None:
                    raise Garbled("it has a value where no call is over")
            if not is_within and report.usage.host_calls < self._calls.count:
                raise Garbled("it has made more calls than it says")
        except Garbled as problem:
            self._crash(f"the worker reports what makes no sense: {problem}")
            assert self._ending is not None
            return self._report(self._ending)
        if not is_within:
            report = self._with_trace(self._with_network(report))
            self._used = report
            self._ended = finished.over or report.outcome not in (Outcome.OK, Outcome.EXIT)
            if report.fuel is not None:
                self._plan.history.append((report.fuel.consumed, report.fuel.seconds))
        return report

    def _timings(self, wall: float) -> Timings:
        """How long everything took.

        Args:
            wall: How long the guest has run: what a worker says may be anything, and is looked at later.
        """
        plan = self._plan
        if self._open_seconds:
            total = time.monotonic() - self._asked_at
            run, made = (min(wall, total) if wall >= 0 else 0.0), self._open_seconds
        else:
            total = time.perf_counter() - self._opened
            run = min(wall, total) if wall >= 0 else 0.0
            made = total - run
        return Timings(
            compile=plan.compile_seconds,
            instantiate=made,
            run=run,
            total=plan.compile_seconds + made + run,
            cache_hit=plan.was_compiled,
        )

    def _report(self, ending: Ending) -> Report:
        """Reports on a run whose worker has not. It has used at least what it had when it was last heard of."""
        plan = self._plan
        wall = 0.0 if self._called is None or self._started is None else time.monotonic() - self._called
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
        report = Report(
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
            isolation=self._isolation,
            timings=self._timings(wall),
            limits=plan.run_limits,
            earlier=told.earlier,
        )
        self._traced.append(None)
        return self._with_trace(self._with_network(report))

    def _tell_trace(self) -> None:
        """Tells of the calls that the worker has handed over."""
        tracer = self._tracer
        while tracer is not None and self._traced:
            entries = self._traced.popleft()
            if entries is None:
                tracer.finish()
            else:
                tracer.tell(entries, self._control.gate)

    def _with_trace(self, report: Report) -> Report:
        """Adds the calls that were traced and kept, which only the host knows."""
        if self._tracer is None:
            return report
        self._tell_trace()
        calls, left_out = self._tracer.take(None)
        return msgspec.structs.replace(report, trace_calls=calls, trace_lost=report.trace_lost + left_out)

    def _with_network(self, report: Report) -> Report:
        """Adds what it has used of the network, which only the host knows."""
        usage = msgspec.structs.replace(report.usage, **_NO_NETWORK)
        told: Mapping[str, Any] = {"violations": report.violations, "violations_dropped": report.violations_dropped}
        if self._network is not None:
            usage, told = with_network(self._network, usage, told)
        return msgspec.structs.replace(report, usage=usage, **told)
