"""What is told of a guest: how far it is, and the report on its call."""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec

from stockade.engine import OUT_OF_FUEL, Failure
from stockade.errors import EngineError
from stockade.execution._classify import StopReason, classify, returned, tell_event
from stockade.execution._guest import LiveGuest
from stockade.guard import ELEMENT_BYTES, HOST_CALLS
from stockade.report import (
    FuelStatistics,
    Progress,
    QuotaUse,
    Report,
    Timings,
    Truncated,
    Usage,
    Violation,
    ViolationEvent,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade.egress import GuestNetwork
    from stockade.engine import Number
    from stockade.execution._monitoring import Monitoring
    from stockade.execution._tracing import TraceTaker
    from stockade.guard import Glance, GuardViolation, StateReading, Woven
    from stockade.report import Outcome, Value

    _Told: TypeAlias = tuple[Outcome, int | None, Value, bytes, bytes, Usage, Mapping[str, Any]]

__all__ = ["ReportingGuest", "with_earlier", "with_network"]

_Record = TypeVar("_Record", Violation, ViolationEvent)

_NOTHING_ELSE: Final[Mapping[str, Any]] = MappingProxyType({})


class ReportingGuest(LiveGuest):
    """A guest that is reported on."""

    def progress(self) -> Progress | None:
        """Tells how far the guest is; None where it has been closed. May be called from any thread, at any time."""
        with self._looking():
            # First: whoever frees the guest takes the instance away before it.
            state, instance = self._state, self._instance
            if instance is None:
                return None
            # The guest may be running: each counter is one aligned word, so it is either old or new.
            reading = None if state is None else state.read()
            waits = instance.is_parked
        plan = self._plan
        # What has been reported on is over; the next call of a session has not begun.
        used = self._usage
        is_idle = used is not None or not self._begun
        fuel = 0 if self._budget is None else self._budget.known
        told = {
            "seconds": 0.0 if is_idle else time.perf_counter() - self._begun,
            "cpu_seconds": self._cpu_seconds,
            "fuel": None if plan.fuel is None else fuel if used is None else used.fuel,
            "state": "idle" if is_idle else "waiting" if waits else "running",
            "module": plan.info.name,
            "policy": self._policy_info.name,
            "limits": plan.run_limits,
            "earlier": self._earlier,
        }
        return _progress(reading, plan.program.woven, told)

    def watch(self, monitoring: Monitoring) -> None:
        """Has samples taken, and alerts told, from now on."""
        # Most runs are not watched.
        from stockade.execution._monitoring import RunMonitor

        self._monitor = RunMonitor(monitoring)

    def _begin_anew(self) -> None:
        """Has what was used until now belong to earlier calls of the session."""
        used = self._usage
        if used is not None:
            self._memory_before = used.memory_bytes
            self._earlier = with_earlier(self._earlier, used)
            self._usage = None
        self._longest_wait = 0.0
        if self._monitor is not None:
            self._monitor.begin()

    def final_report(self) -> Report:
        """Reports on a guest that had ended before anything of it was called."""
        return self._report(None, command=False)

    def _report(self, results: Sequence[Number | str] | None, command: bool) -> Report:
        begun = time.perf_counter()
        plan, state, wall = self._plan, self._state, self._wall_seconds
        statistics = fuel = glance = None
        if plan.fuel is not None:
            statistics = self._fuel_statistics(plan.fuel, wall - self._rested_seconds)
            fuel = statistics.consumed
        if plan.is_plain and state is not None and results is not None and self._ending is None:
            glance = state.glance()
        if glance is None or results is None:
            outcome, exit_code, value, stdout, stderr, usage, told = self._whole(results, command, fuel)
        else:
            outcome, exit_code, value, stdout, stderr, usage, told = self._plain(glance, results, command, fuel)
        if self._network is not None:
            usage, told = with_network(self._network, usage, told)
        compiled, instantiated = plan.compile_seconds, self._instantiate_seconds
        if self._tracer is not None:
            told = {**told, **self._traced(self._tracer)}
        report: Report = Report(
            outcome=outcome,
            exit_code=exit_code,
            value=value,
            stdout=stdout,
            stderr=stderr,
            usage=usage,
            fuel=statistics,
            module=plan.info,
            policy=self._policy_info,
            timings=Timings(
                compile=compiled,
                instantiate=instantiated,
                run=wall,
                total=compiled + instantiated + wall + time.perf_counter() - begun,
                cache_hit=plan.was_compiled,
            ),
            limits=plan.run_limits,
            earlier=self._earlier,
        )
        if told:
            report = msgspec.structs.replace(report, **told)
        self._usage = usage
        if self._control.gate is not None:
            report = self._control.gate.release(report)
        return report if self._monitor is None else self._monitor.finish(report, self._control.name)

    def _traced(self, tracer: TraceTaker) -> Mapping[str, Any]:
        """What is told of the calls that were traced."""
        if self._state is not None:
            # Of a turn that is over while its call goes on; else nothing is left.
            tracer.drain(self._state, self._control.gate)
        calls, lost = tracer.take(self._state)
        return {"trace_calls": calls, "trace_lost": lost}

    def _whole(self, results: Sequence[Number | str] | None, command: bool, fuel: int | None) -> _Told:
        """What is told of any guest."""
        self._was_plain, plan, state, wall = False, self._plan, self._state, self._wall_seconds
        reading = None
        stdout = stderr = b""
        noted: Sequence[GuardViolation] = ()
        # What most reports do not have.
        told: dict[str, Any] = {}
        if state is None:
            self._used_bytes = plan.program.woven.initial_memory_bytes
        else:
            reading = state.read()
            number = reading.number
            written_out, written_err = number.stdout_total, number.stderr_total
            # Its own memory, and the guard's: what it was given and what it left.
            self._used_bytes = number.memory_used + written_out + written_err + len(self._placed.block)
            if number.event_count:
                noted = state.violations(reading)
                events = told["events"] = tuple(map(tell_event, state.events(reading)))
                told["events_dropped"] = number.event_count - len(events)
                told["violations_dropped"] = number.violations_dropped
            dropped_out = dropped_err = 0
            if written_out:
                stdout, dropped_out = state.output(reading, "stdout")
            if written_err:
                stderr, dropped_err = state.output(reading, "stderr")
            if dropped_out or dropped_err:
                told["truncated"] = Truncated(dropped_out, dropped_err)
            if results is not None and plan.grows:
                self._check_growth(number.memory_used)
        outcome, exit_code, value, trap, violations = classify(
            plan, self._ending, reading, noted, results, command, fuel, wall
        )
        if trap is not None:
            told["trap"] = trap
        if violations:
            # The guard tells the time since the guest was made, which in a session may be long ago.
            since = self._begun - self._made
            told["violations"] = tuple(_into_the_call(violation, since) for violation in violations)
            told["events"] = tuple(_into_the_call(event, since) for event in told.get("events", ()))
        usage = self._told_usage(reading, fuel)
        return outcome, exit_code, value, stdout, stderr, usage, told

    def _plain(self, glance: Glance, results: Sequence[Number | str], command: bool, fuel: int | None) -> _Told:
        """What is told of a guest that has returned, of which the guard tells nothing but what it used and wrote."""
        memory_bytes, elements, stdout, stderr, calls = glance
        self._was_plain, self._used_bytes = True, memory_bytes + len(stdout) + len(stderr) + len(self._placed.block)
        if self._plan.grows:
            self._check_growth(memory_bytes)
        outcome, exit_code, value = returned(results, command)
        usage = Usage(
            fuel=fuel,
            wall_seconds=self._wall_seconds,
            cpu_seconds=self._cpu_seconds,
            memory_bytes=memory_bytes,
            memory_peak_bytes=memory_bytes,
            memory_grown_bytes=memory_bytes - self._began_bytes,
            table_elements=elements,
            calls=calls,
            stdout_bytes=len(stdout),
            stderr_bytes=len(stderr),
        )
        return outcome, exit_code, value, stdout, stderr, usage, _NOTHING_ELSE

    def _told_usage(self, reading: StateReading | None, fuel: int | None) -> Usage:
        """Tells what a run used.

        Args:
            reading: The guard's counters; None for a module without a guard.
            fuel: Units that it consumed; None where it was not metered.
        """
        wall, cpu, woven = self._wall_seconds, self._cpu_seconds, self._plan.program.woven
        if reading is None:
            size = woven.initial_memory_bytes
            return Usage(
                fuel=fuel,
                wall_seconds=wall,
                cpu_seconds=cpu,
                memory_bytes=size,
                memory_peak_bytes=size,
                table_elements=woven.initial_table_elements,
            )
        number = reading.number
        memory = number.memory_used
        grown = memory - self._began_bytes
        if not (reading.has_files or number.open_now or HOST_CALLS in reading.calls):
            # What most runs do not have is left out: to say it takes longer than the guest may have run.
            return Usage(
                fuel=fuel,
                wall_seconds=wall,
                cpu_seconds=cpu,
                memory_bytes=memory,
                memory_peak_bytes=memory,
                memory_grown_bytes=grown,
                table_elements=number.table_used,
                calls=reading.calls,
                denied=reading.denied,
                stdout_bytes=number.stdout_total,
                stderr_bytes=number.stderr_total,
            )
        host_calls = reading.calls.pop(HOST_CALLS, 0)
        if host_calls:
            reading.denied.pop(HOST_CALLS, None)
        return Usage(
            fuel=fuel,
            wall_seconds=wall,
            cpu_seconds=cpu,
            idle_seconds=number.idle / 1e9,
            # The guard counts in whole nanoseconds.
            idle_longest_seconds=min(self._longest_wait, number.idle / 1e9),
            memory_bytes=memory,
            memory_peak_bytes=memory,
            memory_grown_bytes=grown,
            table_elements=number.table_used,
            host_calls=host_calls,
            calls=reading.calls,
            denied=reading.denied,
            read_bytes=number.read,
            written_bytes=number.written,
            stdout_bytes=number.stdout_total,
            stderr_bytes=number.stderr_total,
            files_opened=number.opened,
            files_open_peak=max(number.open_peak, number.open_now),
            files_created=number.created,
            files_deleted=number.deleted,
            random_bytes=number.random,
        )

    @property
    def _began_bytes(self) -> int:
        """What its memories and tables had when the call began."""
        before = self._memory_before
        return self._plan.program.woven.initial_memory_bytes if before is None else before

    def _check_growth(self, counted_bytes: int) -> None:
        """Checks that what the guest can grow is no larger than the guard knows, where the guest has returned.

        A guest that ended otherwise may have ended within the guard, between growing and counting.

        Raises:
            EngineError: It is.
        """
        instance, woven = self._instance, self._plan.program.woven
        if instance is None:
            return
        has = woven.fixed_memory_bytes
        has += sum(instance.woven_memory(name).size_bytes for name in woven.grown_memories)
        has += sum(instance.table_size(name) * ELEMENT_BYTES for name in woven.grown_tables)
        if has > counted_bytes:
            raise EngineError(
                f"the guest has {has:,} bytes of memories and tables, and the guard has counted {counted_bytes:,}: "
                "what it did cannot be told. Report this, with the module"
            )

    def _fuel_statistics(self, initial: int, seconds: float) -> FuelStatistics:
        instance, plan = self._instance, self._plan
        left, exact = initial, True
        if instance is not None:
            left, exact = instance.fuel_left() - plan.overdraft, instance.exact
            if left <= 0 or self._budget is not None:
                if left < 0 and self._ending is None:
                    # It came to its end with more than it had: the engine looks at loops and calls, not at the last
                    # block.
                    self._ending = StopReason(failure=Failure(OUT_OF_FUEL, "", ()))
                statistics = (self._budget or self._measure_fuel(instance)).statistics(seconds)
                plan.history.append((statistics.consumed, seconds))
                return statistics
        # Most runs end within their first slice: there is nothing to compare.
        spent = initial - left
        plan.history.append((spent, seconds))
        return FuelStatistics(initial, spent, left, exact, seconds, spent / seconds if seconds > 0 else 0.0)


def with_network(network: GuestNetwork, usage: Usage, told: Mapping[str, Any]) -> tuple[Usage, Mapping[str, Any]]:
    """Adds what a guest has used of the network, and what it was refused there. What is under way is over.

    Args:
        network: The network as it has it.
        usage: What else it has used.
        told: What else its report says.
    """
    network.end()
    sent, received, connections = network.take_use()
    usage = msgspec.structs.replace(
        usage, network_sent_bytes=sent, network_received_bytes=received, network_connections=connections
    )
    found, dropped = network.take_violations()
    before = told.get("violations", ())
    # What has ended the run is told as its end already.
    found = tuple(violation for violation in found if not any(_is_same(violation, other) for other in before))
    if found:
        told = {**told, "violations": (*found, *before)}
    if dropped:
        told = {**told, "violations_dropped": told.get("violations_dropped", 0) + dropped}
    return usage, told


def _is_same(one: Violation, other: Violation) -> bool:
    return (one.kind, one.subject, one.field, one.action) == (other.kind, other.subject, other.field, other.action)


def _progress(reading: StateReading | None, woven: Woven, told: dict[str, Any]) -> Progress:
    """Tells how far a run is.

    Args:
        reading: The guard's counters; None for a module without a guard.
        woven: What the weaver tells of the module.
        told: What the guard does not count.
    """
    if reading is None:
        elements = woven.initial_table_elements
        return Progress(memory_bytes=woven.initial_memory_bytes, table_elements=elements, **told)
    number = reading.number
    return Progress(
        idle_seconds=number.idle / 1e9,
        memory_bytes=number.memory_used,
        table_elements=number.table_used,
        stdout_bytes=number.stdout_total,
        stderr_bytes=number.stderr_total,
        calls=sum(reading.calls.values()),
        open_files=number.open_now,
        files_created=number.created,
        read_bytes=number.read,
        written_bytes=number.written,
        random_bytes=number.random,
        violations=number.event_count + reading.refused_growths,
        **told,
    )


def _into_the_call(record: _Record, since: float) -> _Record:
    """Tells the time of a record from the beginning of the call."""
    if record.at is None:
        return record
    return msgspec.structs.replace(record, at=max(0.0, record.at - since))


def with_earlier(earlier: QuotaUse, used: Usage) -> QuotaUse:
    """Adds what one more call used of the limits that hold for all of them to what earlier ones did."""
    calls = sum(used.calls.values()) + used.host_calls
    if not (calls or used.read_bytes or used.written_bytes or used.random_bytes or used.files_created):
        return earlier
    return QuotaUse(
        calls=earlier.calls + calls,
        read_bytes=earlier.read_bytes + used.read_bytes,
        written_bytes=earlier.written_bytes + used.written_bytes,
        random_bytes=earlier.random_bytes + used.random_bytes,
        files_created=earlier.files_created + used.files_created,
    )
