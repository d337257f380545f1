"""The one path that every run takes: instantiate, write the policy, call, read, report.

`run`, `call`, sessions and the command line all come here. A `Guest` is one live instance; `invoke` calls into it and
makes the report; whoever opened it closes it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stockade._wasi import MODULE
from stockade.engine import Failure, Instance
from stockade.errors import UsageError
from stockade.execution._ending import Ended, Ending, conclude, tell_event
from stockade.execution._state import HOST_CALLS, PROGRAM_NAME, State, place_inputs
from stockade.execution._texts import MEMORY
from stockade.execution._throttle import Throttle
from stockade.execution._timekeeper import Timekeeper
from stockade.host import CapabilityMissing, HostFunctionFailed
from stockade.report import PolicyInfo, Report, Timings, Truncated, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stockade.engine import Memory, Number
    from stockade.execution._mounts import Grants
    from stockade.execution._plan import Plan
    from stockade.execution._state import GuardViolation, StateReading
    from stockade.execution._streams import Streams
    from stockade.execution._values import Call
    from stockade.policy import Policy
    from stockade.report import Event

__all__ = ["Guest", "Watch"]

_NOTHING_DROPPED = Truncated()
_CLOSED = Ending()

_WHOLE_CORE = 100
"""Percent."""

_SLACK_BYTES = 256 << 10
"""Room above the guard's buffers for copies of one poll's subscriptions."""


class Watch:
    """Says at every tick whether the guest may go on: until its deadline, or until it is cancelled."""

    __slots__ = ("cancelled", "deadline")

    def __init__(self) -> None:
        self.cancelled = False
        self.deadline = float("inf")

    def start(self, seconds: float | None) -> None:
        """Sets the deadline, counted from now; an old cancellation stays in force."""
        self.deadline = float("inf") if seconds is None else time.monotonic() + seconds

    def cancel(self) -> None:
        """Stops the guest at the next tick. May be called from any thread."""
        self.cancelled = True

    def __call__(self) -> bool:
        return not self.cancelled and time.monotonic() < self.deadline


def _nothing() -> None:
    """Serves no streams."""


class Guest:
    """One live instance of a module under a policy. For one thread at a time.

    Args:
        plan: What to run, and under which policy.
        policy_info: The policy's name and digest, for reports.
        grants: What it may reach, held open until it is closed.
        args: Arguments for the guest, after its own name.
        env: Its environment.
        stdin: Its standard input, unless `streams` has a callback for it.
        watch: Says when it must stop.
        streams: Callbacks for output and input while it runs.

    Raises:
        EngineError: There is no room for an instance.
        UsageError: The inputs do not fit.
    """

    def __init__(
        self,
        plan: Plan,
        policy_info: PolicyInfo,
        grants: Grants,
        *,
        args: Sequence[bytes],
        env: Mapping[bytes, bytes],
        stdin: bytes,
        watch: Watch,
        streams: Streams | None = None,
    ) -> None:
        begun = time.perf_counter()
        self._plan = plan
        self._policy_info = policy_info
        self._grants: Grants | None = grants
        self._limits = limits = plan.policy.limits
        self._watch = watch
        self._timed = False
        self._timekeeper: Timekeeper | None = None
        self._streams = streams
        if streams is not None:
            given = None if streams.stdin is not None else stdin
            arguments = [PROGRAM_NAME, *args]
            placed = place_inputs(plan.state, limits, arguments, env, given, listening=streams.listening)
        elif args or env or stdin:
            placed = place_inputs(plan.state, limits, [PROGRAM_NAME, *args], env, stdin)
        else:
            placed = plan.bare
        self._placed = placed
        woven = plan.program.woven
        self._instance: Instance | None = None
        self._state: State | None = None
        self._ending: Ending | None = None
        self._started = woven.start_export is None
        self._wall_seconds = self._cpu_seconds = 0.0
        if woven.initial_memory_bytes > limits.memory or woven.initial_table_elements > limits.table_elements:
            # Not instantiated at all: the module asks for more than it may have.
            self._ending = Ending.too_large(woven, limits)
            self._instantiate_seconds = 0.0
            return
        instance = self._instance = Instance(
            plan.linked,
            fuel=limits.fuel,
            memory_bytes=max(limits.memory, placed.end_bytes + _SLACK_BYTES),
            table_elements=max(limits.table_elements, len(woven.natives)),
            directories=plan.directories,
        )
        try:
            if instance.failure is not None:
                self._ending = Ending(failure=instance.failure)
            else:
                self._furnish(instance)
        except BaseException:
            self.close()
            raise
        self._instantiate_seconds = time.perf_counter() - begun

    @property
    def policy(self) -> Policy:
        """The policy that it runs under."""
        return self._plan.policy

    def _furnish(self, instance: Instance) -> None:
        instance.owner = self
        woven = self._plan.program.woven
        if woven.state_export is not None:
            program = self._plan.program
            self._state = State(instance.memory(woven.state_export), program.state_format, program.calls)
            self._state.write(self._placed)
        if woven.natives_export is not None and self._plan.natives:
            instance.lend(woven.natives_export, self._plan.natives, MODULE.encode())

    @property
    def ended(self) -> bool:
        """Whether the guest has come to its end, so that it can not be called again."""
        return self._ending is not None

    def invoke(self, call: Call, *, command: bool = False) -> Report:
        """Calls an exported function and reports on it.

        What was the module's start function runs before the first call, under the same limits; so does what passes
        texts to the function and from it.

        Args:
            call: The function, and what is passed.
            command: Whether its result is an exit code.
        """
        begun = time.perf_counter()
        cpu = time.thread_time()
        results: Sequence[Number | str] | None = None
        instance = self._instance
        if instance is not None and self._ending is None:
            if not self._timed:
                # From the guest's first instruction on, and once: an initializer and the call after it share the time.
                self._timed = True
                self._watch.start(self._limits.wall_time)
            ticker = self._plan.linked.engine.ticker
            may_go_on, serve = self._attention()
            ticker.enter()
            try:
                try:
                    results = self._call(instance, call, may_go_on)
                except Ended as end:
                    self._ending = end.ending
                serve()
            except BaseException:
                # Stopped in the middle by something of the host's: what is left of the guest is not to be trusted.
                self._ending = Ending(cancelled=True)
                raise
            finally:
                ticker.leave()
        self._wall_seconds += time.perf_counter() - begun
        self._cpu_seconds += time.thread_time() - cpu
        return self._report(results, command)

    def obituary(self) -> Report:
        """Reports on a guest that had ended before anything of it was called."""
        return self._report(None, command=False)

    def _attention(self) -> tuple[Callable[[], bool], Callable[[], None]]:
        """What is done whenever the guest yields, and what is left to do when it has ended."""
        streams, state, watch = self._streams, self._state, self._watch
        percent = self._limits.cpu_percent
        # What is not there at all costs no run anything.
        if percent == _WHOLE_CORE and (state is None or (streams is None and not self._plan.needs_time)):
            return watch, _nothing
        throttle = Throttle(percent) if percent < _WHOLE_CORE else None
        # One for the life of the guest: its time must not run backwards from one call to the next.
        timekeeper = self._timekeeper = self._timekeeper or Timekeeper()

        def serve() -> None:
            if streams is not None and state is not None:
                streams.serve(state.memory)

        def look() -> bool:
            serve()
            if throttle is not None:
                throttle.serve(watch)
            if state is not None:
                timekeeper.serve(state.memory, watch)
            return watch()

        return look, serve

    def _call(self, instance: Instance, call: Call, may_go_on: Callable[[], bool]) -> Sequence[Number | str]:
        def enter(export: bytes, arguments: Sequence[tuple[str, Number]], results: Sequence[str]) -> list[Number]:
            found = instance.call(export, arguments, results, may_go_on)
            if found is None:
                raise Ended(self._end(instance))
            return found

        if not self._started:
            self._started = True
            export = self._plan.program.woven.start_export
            assert export is not None
            enter(export, (), ())
        if call.exchange is not None:
            return call.exchange.perform(call, instance.memory(MEMORY), enter, self._limits.stdout)
        entry = call.entry
        return enter(entry.name, list(zip(entry.type.params, call.numbers, strict=True)), entry.type.results)

    def _end(self, instance: Instance) -> Ending:
        """Why the guest did not return."""
        problem = instance.problem
        if problem is None:
            return Ending(failure=instance.failure, cancelled=self._watch.cancelled)
        if isinstance(problem, CapabilityMissing):
            return Ending.without_capability(problem.capability, problem.function)
        if not isinstance(problem, HostFunctionFailed):
            # KeyboardInterrupt and its like are for whoever began the call.
            raise problem
        failure = instance.failure or Failure(None, "", ())
        return Ending(failure=failure._replace(message=str(problem)))

    def renew(self) -> None:
        """Gives the guest a fresh budget of fuel and fresh counters, for the next call of a session."""
        if self._instance is None or self._ending is not None:
            return
        self._timed = False
        self._wall_seconds = self._cpu_seconds = 0.0
        if self._limits.fuel is not None:
            self._instance.set_fuel(self._limits.fuel)
        if self._state is not None:
            self._state.renew(self._placed.block)

    def _report(self, results: Sequence[Number | str] | None, command: bool) -> Report:
        begun = time.perf_counter()
        wall = self._wall_seconds
        plan, state = self._plan, self._state
        reading = state.read() if state is not None else None
        fuel = None
        if self._limits.fuel is not None:
            fuel = 0 if self._instance is None else self._limits.fuel - self._instance.fuel_left()
        noted: list[GuardViolation] = []
        events: tuple[Event, ...] = ()
        events_dropped = violations_dropped = 0
        stdout = stderr = b""
        truncated = _NOTHING_DROPPED
        if state is not None and reading is not None:
            if reading.number.event_count:
                noted = state.violations(reading)
                events = tuple(map(tell_event, state.events(reading)))
                events_dropped = reading.number.event_count - len(events)
                violations_dropped = reading.number.violations_dropped
            stdout, dropped_out = state.output(reading, "stdout")
            stderr, dropped_err = state.output(reading, "stderr")
            if dropped_out or dropped_err:
                truncated = Truncated(dropped_out, dropped_err)
        verdict = conclude(plan, self._ending, reading, noted, results, command, fuel, wall)
        return Report(
            outcome=verdict.outcome,
            exit_code=verdict.exit_code,
            value=verdict.value,
            stdout=stdout,
            stderr=stderr,
            truncated=truncated,
            usage=_usage(reading, plan, fuel, wall, self._cpu_seconds),
            violations=verdict.violations,
            events=events,
            events_dropped=events_dropped,
            violations_dropped=violations_dropped,
            trap=verdict.trap,
            module=plan.info,
            policy=self._policy_info,
            timings=Timings(
                compile=plan.compile_seconds,
                instantiate=self._instantiate_seconds,
                run=wall,
                total=plan.compile_seconds + self._instantiate_seconds + wall + time.perf_counter() - begun,
                cache_hit=plan.was_compiled,
            ),
        )

    def memory(self, name: bytes) -> Memory:
        """Returns an exported memory of the guest.

        Raises:
            UsageError: It has none of that name, or has ended.
        """
        if self._instance is None or self._ending is not None:
            raise UsageError("the guest has ended: its memory is gone. Open a new session")
        try:
            return self._instance.memory(name)
        except KeyError:
            raise UsageError("the guest exports no memory") from None

    def close(self) -> None:
        """Frees everything. Closing twice is harmless."""
        if self._instance is not None:
            self._instance.close()
            self._instance = self._state = None
        self._grants = None
        if self._ending is None:
            self._ending = _CLOSED


def _usage(reading: StateReading | None, plan: Plan, fuel: int | None, wall: float, cpu: float) -> Usage:
    if reading is None:
        size = plan.program.woven.initial_memory_bytes
        return Usage(
            fuel=fuel,
            wall_seconds=wall,
            cpu_seconds=cpu,
            memory_bytes=size,
            memory_peak_bytes=size,
            table_elements=plan.program.woven.initial_table_elements,
        )
    number = reading.number
    memory = number.memory_used
    host_calls = reading.calls.pop(HOST_CALLS, 0)
    if host_calls:
        reading.denied.pop(HOST_CALLS, None)
    return Usage(
        fuel=fuel,
        wall_seconds=wall,
        cpu_seconds=cpu,
        idle_seconds=number.idle / 1e9,
        memory_bytes=memory,
        memory_peak_bytes=memory,
        table_elements=number.table_used,
        host_calls=host_calls,
        calls=reading.calls,
        denied=reading.denied,
        read_bytes=number.read,
        written_bytes=number.written,
        stdout_bytes=number.stdout_total,
        stderr_bytes=number.stderr_total,
        files_opened=number.opened,
        files_open_peak=number.open_peak,
        files_created=number.created,
        files_deleted=number.deleted,
        random_bytes=number.random,
    )
