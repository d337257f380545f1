"""The one path that every run takes: instantiate, write the policy, call, read, report.

`run`, `call`, sessions and the command line all come here. A `Guest` is one live instance; `invoke` calls into it and
makes the report; whoever opened it closes it.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from stockade._pages import PAGE_BYTES
from stockade._wasi import MODULE
from stockade.engine import OUT_OF_FUEL, Failure, Instance
from stockade.errors import EngineError, UsageError
from stockade.execution._budget import Budget
from stockade.execution._classify import GuestStopped, StopReason, classify, tell_event
from stockade.execution._plan import SLACK_BYTES, WHOLE_CORE_PERCENT
from stockade.execution._reentry import Reentry
from stockade.execution._snapshot import put_guest_state, take_guest_state
from stockade.execution._string_calls import MEMORY
from stockade.execution._throttle import Throttle
from stockade.execution._timekeeper import Timekeeper
from stockade.execution._usage import progress_of, usage_of
from stockade.execution._values import bind_arguments
from stockade.guard import ELEMENT_BYTES, PROGRAM_NAME, Mailbox, State, Wait, mailbox_words, place_inputs
from stockade.host import CapabilityMissing, HostCall, HostFunctionFailed
from stockade.report import (
    FuelStatistics,
    Outcome,
    PolicyInfo,
    Progress,
    Report,
    Timings,
    Truncated,
    note_cause,
)
from stockade.runner import FOREVER, GO_ON, GRACE_SECONDS, AwaitedCall, blamed, is_cancellation, run_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stockade.engine import HaltedMemory, InstanceState, Memory, Number
    from stockade.execution._mounts import OpenMounts
    from stockade.execution._plan import Plan
    from stockade.execution._snapshot import GuestState
    from stockade.execution._streams import Streams
    from stockade.execution._string_calls import Returns
    from stockade.execution._values import Argument, Call
    from stockade.execution._warm import WarmPool
    from stockade.execution.loop_calls import AskedCall
    from stockade.guard import GuardViolation, Woven
    from stockade.host import BoundFunction
    from stockade.modules import Module
    from stockade.policy import Policy
    from stockade.report import Value
    from stockade.runner import RunControl, RunCoroutine
    from stockade.runner.own_loop import OwnLoop

__all__ = ["Guest"]

_CLOSED = StopReason()

_NO_VARIABLES: Final[Mapping[bytes, bytes]] = MappingProxyType({})

_MOST_DOUBLINGS = 10
"""How often an open that is interrupted may take twice as long the next time: up to 20 seconds."""

_LOOK_SECONDS = 0.01
"""How often to look at everything where a guest calls functions of the embedder again and again."""


_around: ContextVar[tuple[weakref.ref[Guest], AwaitedCall] | None] = ContextVar("_around", default=None)
"""The call of a coroutine host function in whose context this is, and the guest that has made it."""


async def _ask(awaited: AwaitedCall, wake: Callable[[], object], call: Call) -> Report:
    """Has an export called, within a coroutine host function. What waits for that keeps no guest.

    Raises:
        UsageError: The call of the host function is over.
    """
    from stockade.execution.loop_calls import AskedCall

    if awaited.is_over() or awaited.is_stopped():
        raise UsageError("the call of the host function is over, and its guest is not halted in it any more")
    return await AskedCall(call, wake).report(awaited.asked)


async def _call_back_async(
    module: Module,
    awaited: AwaitedCall,
    wake: Callable[[], object],
    export: str,
    args: Sequence[Argument],
    returns: Returns | None,
) -> Value:
    report = await _ask(awaited, wake, bind_arguments(module, export, args, returns))
    return report.check().value


class Guest:
    """One live instance of a module under a policy. For one thread at a time.

    Args:
        plan: What to run, and under which policy.
        policy_info: The policy's name and digest, for reports.
        grants: What it may reach, held open until it is closed.
        control: Says when it must stop.
        args: Arguments for the guest, after its own name.
        env: Its environment.
        stdin: Its standard input, unless `streams` has a callback for it.
        streams: Callbacks for output and input while it runs.
        warm: Instances for it that were made ahead.

    Raises:
        EngineError: There is no room for an instance.
        UsageError: The inputs do not fit.

    Attributes:
        halted_memory: Its memory for functions of the embedder, while it is halted in a call of one; None where it
            exports none, or calls no function that is given something of it.
    """

    halted_memory: HaltedMemory | None = None
    # As every guest begins; most never come to have another.
    _instance: Instance | None = None
    _state: State | None = None
    _streams: Streams | None = None
    _warm: WarmPool | None = None
    _grants: OpenMounts | None = None
    _started = True
    _ending: StopReason | None = None
    _budget: Budget | None = None
    _throttle: Throttle | None = None
    _timekeeper: Timekeeper | None = None
    _mailbox: Mailbox | None = None
    _reentry: Reentry | None = None
    _own_loop: OwnLoop | None = None
    _problem = ""
    _raised: BaseException | None = None
    _timed = False
    _begun = _cpu_mark = _resumed = 0.0
    _instantiate_seconds = _wall_seconds = _cpu_seconds = _rested_seconds = 0.0
    _used_bytes = math.inf
    _below: InstanceState | None = None
    _begins = False
    _halted = 0.0
    _looked_at: threading.RLock | None = None

    def __init__(
        self,
        plan: Plan,
        policy_info: PolicyInfo,
        grants: OpenMounts,
        control: RunControl,
        *,
        args: Sequence[bytes] = (),
        env: Mapping[bytes, bytes] = _NO_VARIABLES,
        stdin: bytes = b"",
        streams: Streams | None = None,
        warm: WarmPool | None = None,
    ) -> None:
        if warm is not None:
            self._warm = warm
        self._made = begun = time.perf_counter()
        self._plan = plan
        self._policy_info = policy_info
        self._grants = grants
        self._limits = limits = plan.policy.limits
        self._control = control
        placed = plan.bare
        if streams is not None:
            self._streams = streams
            given = None if streams.stdin is not None else stdin
            arguments = [PROGRAM_NAME, *args]
            placed = place_inputs(plan.state, limits, arguments, env, given, listening=streams.listening)
        elif args or env or stdin:
            placed = place_inputs(plan.state, limits, [PROGRAM_NAME, *args], env, stdin)
        self._placed = placed
        woven = plan.program.woven
        if woven.start_export is not None:
            self._started = False
        if plan.begins_too_large:
            # Not instantiated at all: the module asks for more than it may have.
            self._ending = StopReason.too_large(woven, limits, restored=plan.held is not None)
            return
        is_bare = placed is plan.bare and streams is None and plan.is_bare
        # Whoever comes to drop the guest, at whatever moment, frees the instance with it: its store has one owner.
        ready = None if warm is None else warm.take()
        waiting = self._instance = None if ready is None else ready[0]
        instance = self._instance = waiting or plan.instantiate(0 if is_bare else self._guard_bytes)
        try:
            if instance.failure is not None:
                self._ending = StopReason(failure=instance.failure)
            elif is_bare:
                self._write_state(instance)
            else:
                self._restore(instance, waiting)
                self._set_up(instance, woven)
        except BaseException:
            self.close()
            raise
        self._instantiate_seconds = time.perf_counter() - begun

    @property
    def _guard_bytes(self) -> int:
        """How large the guard's memory may become, in whole pages."""
        return -(-(self._placed.end_bytes + SLACK_BYTES) // PAGE_BYTES) * PAGE_BYTES

    @property
    def calls_out(self) -> bool:
        """Whether functions of the embedder are called while it runs, on the thread that drives it."""
        return self._plan.calls_out or (self._streams is not None and self._streams.calls_out)

    @property
    def policy(self) -> Policy:
        """The policy that it runs under."""
        return self._plan.policy

    def _restore(self, instance: Instance, waiting: Instance | None) -> None:
        """Sees to it that the guest begins with what another one held, where it is to."""
        plan, held = self._plan, self._plan.held
        if held is None:
            return
        if waiting is None:
            put_guest_state(plan, instance, held)
        else:
            # It was made before it was known what this guest is given.
            instance.limit(*plan.instance_limits(self._guard_bytes))
        self._below = held.instance

    def _set_up(self, instance: Instance, woven: Woven) -> None:
        plan, limits = self._plan, self._limits
        if plan.directories:
            instance.watch(self)
        if limits.fuel_refill:
            self._measure_fuel(instance)
        if woven.state_export is not None:
            state = self._write_state(instance)
            if plan.functions:
                self._make_mailbox(instance, state)
            if woven.collects or self._guard_bytes > limits.memory or len(woven.natives) > limits.table_elements:
                # The engine knows one limit for all memories. So the guard's gets what it can come to need, and then
                # the limit is the guest's: it holds for growth, too, that the guard should not have seen.
                state.memory.grow_to(self._guard_bytes)
                self._limit_memories(instance)
        elif woven.collects:
            self._limit_memories(instance)
        if woven.natives_export is not None:
            # What takes a microsecond is lent where it can come to be needed.
            natives = plan.natives if self._streams is None else plan.natives_for_streams
            if natives:
                instance.lend(woven.natives_export, natives, MODULE.encode())

    def _write_state(self, instance: Instance) -> State:
        program = self._plan.program
        format_, export = program.state_format, program.woven.state_export
        assert export is not None
        state = self._state = State(instance.woven_memory(export, format_.memory_bytes), format_, program.calls)
        state.write(self._placed)
        return state

    def _make_mailbox(self, instance: Instance, state: State) -> None:
        mailbox = self._mailbox = Mailbox(state.memory)
        self._reentry = Reentry(self._plan.program.woven, mailbox)
        # Found before any call is halted in which it could be asked for.
        with suppress(KeyError):
            self.halted_memory = instance.memory(MEMORY).while_halted(mailbox.memory_bytes)

    def _limit_memories(self, instance: Instance, *, growing: bool = False) -> None:
        """Tells the engine how large any memory may become, the heap of the guest's objects included.

        Args:
            instance: The guest.
            growing: Whether nothing but a memory can grow before this is said again.
        """
        plan = self._plan
        largest = plan.heap_bytes if plan.program.woven.collects and not growing else plan.memories_bytes
        instance.limit(largest, self._limits.table_elements)

    @property
    def ended(self) -> bool:
        """Whether the guest has come to its end, so that it can not be called again."""
        return self._ending is not None

    def attempt(self, call: Call, *, command: bool = False) -> Report | None:
        """Calls an exported function, and lets the guest run until it halts for the first time. Most are over by then.

        Args:
            call: The function, and what is passed.
            command: Whether its result is an exit code.

        Returns:
            The report; None where there is more to be done: `invoke` does it, and is told that this was called.
        """
        instance, plan = self._instance, self._plan
        if instance is None or self._timed or self._streams is not None or call.exchange is not None:
            return None
        if not (plan.is_plain and self._started and self._ending is None):
            return None
        control, entry = self._control, call.entry
        self._timed = self._begins = True
        mark = time.thread_time()
        begun = self._begun = time.perf_counter()
        wall = 0.0
        try:
            try:
                if control.cancelled:
                    # Before its turn had come.
                    raise GuestStopped(StopReason(cancelled=True))
                instance.begin(entry.name, call.given if call.numbers else (), entry.type.results)
                if not instance.poll():
                    self._begin_to_wait(mark)
                    return None
                results = instance.results()
                wall = self._wall_seconds = time.perf_counter() - begun
                most = self._limits.wall_time
                is_late = most is not None and wall >= most
                if results is None or is_late or control.cancelled:
                    control.start(most, wall)
                    results = self._judged(instance, results)
            except GuestStopped as end:
                self._ending = end.ending.unless_late(control)
                results = None
        except BaseException:
            self._ending = StopReason(cancelled=True)
            raise
        self._begins = False
        self._cpu_seconds = time.thread_time() - mark
        return self._report(results, command)

    def _begin_to_wait(self, mark: float) -> None:
        """Counts what the guest has used until it halted for the first time, from when its deadline holds."""
        self._halted = time.perf_counter()
        self._cpu_seconds = time.thread_time() - mark
        self._control.start(self._limits.wall_time, self._halted - self._begun)

    def invoke(self, call: Call, *, command: bool = False, attempted: bool = False) -> RunCoroutine[Report]:
        """Calls an exported function and reports on it, in steps.

        What was the module's start function runs before the first call, under the same limits; so does what passes
        texts to the function and from it.

        Args:
            call: The function, and what is passed.
            command: Whether its result is an exit code.
            attempted: Whether `attempt` was called for it, and has not brought it to its end.
        """
        if not attempted:
            report = self.attempt(call, command=command)
            if report is not None:
                return report
        now = time.perf_counter()
        self._cpu_mark = time.thread_time()
        results: Sequence[Number | str] | None = None
        instance = self._instance
        if self._begins:
            begun = self._begun
            self._rested_seconds += now - self._halted
        else:
            begun = now
        if instance is not None and self._ending is None:
            if self._timed:
                # It shares the time of the call before it, which may have been over before anybody looked at the clock.
                if self._control.deadline == FOREVER:
                    self._control.start(self._limits.wall_time, now - self._begun)
            else:
                # From the guest's first instruction on, and once: an initializer and the call after it share the time.
                self._timed = True
                if self._limits.cpu_percent < WHOLE_CORE_PERCENT:
                    yield from self._take_share()
                    begun = time.perf_counter()
                    self._cpu_mark = time.thread_time()
                self._control.start(self._limits.wall_time)
                if self._budget is not None:
                    self._budget.start()
            self._begun = begun
            try:
                try:
                    if self._begins:
                        self._begins = False
                        yield from self._poll_until_done(instance)
                        results = self._results(instance)
                    elif call.exchange is None and self._started:
                        # Not by way of `_call`: the guest may call functions of the embedder, for which there must be
                        # room on the stack.
                        if not self._begin(instance, call.entry.name, call.given, call.entry.type.results):
                            yield from self._poll_until_done(instance)
                        results = self._results(instance)
                    else:
                        results = yield from self._call(instance, call)
                except GuestStopped as end:
                    self._ending = end.ending.unless_late(self._control)
                if self._streams is not None:
                    yield from self._finish(self._streams)
                    if self._ending is not None and self._ending.from_outside:
                        results = None
            except BaseException as problem:
                # Stopped in the middle by something of the host's: what is left of the guest is not to be trusted.
                self._ending = StopReason(cancelled=True)
                if is_cancellation(problem):
                    raise blamed(problem, "a callback or a host function") from problem
                raise
        self._wall_seconds += time.perf_counter() - self._begun
        self._cpu_seconds += time.thread_time() - self._cpu_mark
        if self._throttle is not None:
            self._throttle.settle(self._cpu_seconds)
        report = self._report(results, command)
        if self._raised is not None:
            note_cause(report, self._raised)
            self._raised = None
        return report

    def _finish(self, streams: Streams) -> RunCoroutine[None]:
        """Passes the last output on. A run whose output was not taken in its time is over like one that did not end."""
        finishing = streams.finish(self._state)
        while True:
            try:
                until = next(finishing)
            except StopIteration as end:
                was_taken: bool = end.value
                break
            yield from self._pause(until)
        if not was_taken:
            late = StopReason(cancelled=self._control.cancelled, too_late=True)
            self._ending = late if self._ending is None else self._ending.unless_late(self._control)

    def keep(self) -> None:
        """Sees to it that its instance is freed after all that could look at it, where it is dropped and not closed."""
        if self._instance is not None:
            self._instance.keep()

    def final_report(self) -> Report:
        """Reports on a guest that had ended before anything of it was called."""
        return self._report(None, command=False)

    def _call(self, instance: Instance, call: Call) -> RunCoroutine[Sequence[Number | str]]:
        """Makes a call that is more than one of the guest's functions."""
        if not self._started:
            self._started = True
            export = self._plan.program.woven.start_export
            assert export is not None
            yield from self._enter(export, (), ())
        entry = call.entry
        if call.exchange is not None:
            memory = instance.memory(MEMORY)
            return (yield from call.exchange.perform(call, memory, self._enter, self._limits.stdout))
        return (yield from self._enter(entry.name, call.given, entry.type.results))

    def _enter(
        self, export: bytes, arguments: Sequence[tuple[str, Number]], results: Sequence[str]
    ) -> RunCoroutine[list[Number]]:
        """Calls one function of the guest."""
        instance = self._instance
        assert instance is not None
        if not self._begin(instance, export, arguments, results):
            yield from self._poll_until_done(instance)
        return self._results(instance)

    def _begin(
        self, instance: Instance, export: bytes, arguments: Sequence[tuple[str, Number]], results: Sequence[str]
    ) -> bool:
        """Lets the guest run for the first time; says whether it has come to its end."""
        if self._control.cancelled:
            # Before its turn had come.
            raise GuestStopped(StopReason(cancelled=True))
        instance.begin(export, arguments, results)
        return instance.poll()

    def _poll_until_done(self, instance: Instance) -> RunCoroutine[None]:
        """Lets it run again and again, until it has."""
        try:
            if not (yield from self._drive(instance)):
                raise EngineError("the guard says that an export has returned, and none was called")
        finally:
            instance.abandon()

    def _drive(self, instance: Instance) -> RunCoroutine[bool]:
        """Lets a guest that has halted run on, until its call is over or an export that was called within has returned.

        Returns:
            Whether its call is over.
        """
        mailbox, reentry, returned = self._mailbox, self._reentry, mailbox_words().returned
        looks_at = FOREVER if mailbox is None else time.monotonic() + _LOOK_SECONDS
        while True:
            if mailbox is not None and instance.is_parked and (number := mailbox.said):
                assert reentry is not None
                if number == returned:
                    return False
                function = self._called(number)
                if function.is_awaited:
                    yield from self._await_answer(mailbox, function)
                    instance.wake()
                    yield from self._look(instance)
                else:
                    reentry.here = True
                    try:
                        self._answer(mailbox, function)
                    finally:
                        reentry.here = False
                    if reentry.ended is not None:
                        reentry.check()
                    instance.wake()
                    if (now := time.monotonic()) >= looks_at:
                        # Such calls may follow one another for ever.
                        looks_at = now + _LOOK_SECONDS
                        yield from self._look(instance)
                    elif not self._control():
                        raise GuestStopped(StopReason(cancelled=self._control.cancelled))
            else:
                yield from self._on_yield(instance)
            if instance.poll():
                return True

    # -- exports called while the guest is halted in a host function ---------------------------------------------------

    @property
    def is_in_function(self) -> bool:
        """Whether a plain host function is called just now, on the thread that drives the guest."""
        return self._reentry is not None and self._reentry.here

    def call_back(self, export: str, args: Sequence[Argument], returns: Returns | None) -> Value:
        """Calls an export within a plain host function, on its thread; returns its value.

        Raises:
            GuestError: The guest has ended in it.
            LinkError: There is no such function.
            UsageError: The call cannot be made.
        """
        return self.call_within(bind_arguments(self._plan.module, export, args, returns)).check().value

    def call_within(self, call: Call) -> Report:
        """Makes a call within a plain host function, on its thread.

        Raises:
            UsageError: It cannot be made.
        """
        return run_blocking(self._within(call), self._control)

    async def await_within(self, awaited: AwaitedCall, call: Call) -> Report:
        """Makes a call within a coroutine host function.

        Args:
            awaited: The call of the host function.
            call: The call of the export.

        Raises:
            UsageError: It cannot be made.
        """
        return await _ask(awaited, self._control.wake, call)

    def awaited_here(self) -> AwaitedCall | None:
        """Returns the call of a coroutine host function in whose context this is; None where there is none such."""
        found = _around.get()
        return None if found is None or found[0]() is not self or not self._is_under_way(found[1]) else found[1]

    def _is_under_way(self, awaited: AwaitedCall) -> bool:
        return self._instance is not None and self._ending is None and not awaited.is_over()

    def _within(self, call: Call) -> RunCoroutine[Report]:
        """Makes a call while the guest is halted in one of a host function.

        Raises:
            UsageError: It cannot be made.
        """
        reentry, plan = self._reentry, self._plan
        assert reentry is not None
        before = reentry.begin()
        problem: BaseException | None = None
        try:
            if call.exchange is None:
                results: Sequence[Number | str] = yield from self._enter_within(
                    call.entry.name, call.given, call.entry.type.results
                )
            else:
                assert self.halted_memory is not None, "it was looked for when the texts were bound"
                results = yield from call.exchange.perform(
                    call, self.halted_memory, self._enter_within, self._limits.stdout
                )
        except GuestStopped as end:
            ending = reentry.ended = end.ending.unless_late(self._control)
        except BaseException as raised:
            problem = raised
            raise
        else:
            value: Value = results[0] if len(results) == 1 else list(results) or None
            return Report(outcome=Outcome.OK, value=value, module=plan.info, policy=self._policy_info)
        finally:
            reentry.over(before, problem)
            del problem
        verdict = classify(
            plan=plan,
            ending=ending,
            reading=None if self._state is None else self._state.read(),
            noted=[],
            results=None,
            command=False,
            fuel=None,
            wall_seconds=time.perf_counter() - self._begun,
        )
        return Report(
            outcome=verdict.outcome,
            exit_code=verdict.exit_code,
            violations=verdict.violations,
            trap=verdict.trap,
            module=plan.info,
            policy=self._policy_info,
        )

    def _enter_within(
        self, export: bytes, arguments: Sequence[tuple[str, Number]], results: Sequence[str]
    ) -> RunCoroutine[list[Number]]:
        """Calls one function of a guest that is halted in a call of a host function."""
        instance, reentry = self._instance, self._reentry
        assert instance is not None
        assert reentry is not None
        if not self._control():
            raise GuestStopped(StopReason(cancelled=self._control.cancelled))
        reentry.say(export, arguments)
        instance.wake()
        if instance.poll() or (yield from self._drive(instance)):
            if instance.results() is not None:
                raise EngineError("a guest has returned out of the middle of a call")
            raise GuestStopped(self._end(instance))
        return reentry.returned(results)

    # -- functions of the embedder ------------------------------------------------------------------------------------

    def _called(self, number: int) -> BoundFunction:
        """Returns the function that the guest calls, by its number in the mailbox.

        Raises:
            EngineError: There is no such function.
        """
        functions = self._plan.functions
        if not 0 < number <= len(functions):
            raise EngineError(f"the guard asks for host function {number:,}, and there are {len(functions):,}")
        return functions[number - 1]

    def _answer(self, mailbox: Mailbox, function: BoundFunction) -> None:
        """Answers a call of a plain function of the embedder's.

        Raises:
            Ended: The policy does not grant what the function needs.
        """
        try:
            function.serve(mailbox, self)
        except (CapabilityMissing, HostFunctionFailed) as problem:
            self._fail(mailbox, problem)

    def _fail(self, mailbox: Mailbox, problem: CapabilityMissing | HostFunctionFailed) -> None:
        """Ends the run for what a function of the embedder has raised.

        Raises:
            Ended: The policy does not grant what the function needs.
        """
        if self._reentry is not None and self._reentry.ended is not None:
            # The run is over for that, whatever the function has made of it.
            return
        if isinstance(problem, CapabilityMissing):
            raise GuestStopped(StopReason.without_capability(problem.capability, problem.function)) from None
        # The guest traps where it is, so that the report tells where that was.
        self._problem, self._raised = str(problem), problem.__cause__
        mailbox.say(mailbox_words().end)

    def _await_answer(self, mailbox: Mailbox, function: BoundFunction) -> RunCoroutine[None]:
        """Has a coroutine function of the embedder awaited on an event loop, and answers the guest's call.

        Raises:
            Ended: The policy does not grant what the function needs, or it took too long.
        """
        call = HostCall(self, awaited=True)
        awaited = None
        try:
            try:
                given = function.given(mailbox, call)
            except Exception as problem:
                self._fail(mailbox, function.failure(problem))
                return
            context = copy_context()
            awaited = AwaitedCall(function.function, given, context, self._control.wake)
            del given
            context.run(_around.set, (weakref.ref(self), awaited))
            call.asks(partial(_call_back_async, self._plan.module, awaited, self._control.wake))
            try:
                yield from self._until_awaited(awaited)
            except GuestStopped:
                # The memory goes first: what the coroutine does from now on is of no concern for the guest.
                call.end()
                yield from self._stop(awaited)
                raise
            try:
                result = awaited.result()
            except Exception as problem:
                self._fail(mailbox, function.failure(problem))
                return
            function.reply(mailbox, result)
        finally:
            call.end()
            if awaited is not None and self._control.awaiter is not None and not awaited.is_over():
                self._control.awaiter.stop(awaited)

    def _until_awaited(self, awaited: AwaitedCall) -> RunCoroutine[None]:
        """Waits until a coroutine is done.

        Raises:
            Ended: The time of the run is up before, or it is cancelled.
        """
        control, reentry = self._control, self._reentry
        assert reentry is not None
        if control.awaiter is not None:
            control.awaiter.begin(awaited)
        elif self._own_loop is None:
            from stockade.runner.own_loop import OwnLoop

            self._own_loop = OwnLoop(control)
        while not awaited.is_over() and control():
            self._serve()
            if control.awaiter is None:
                assert self._own_loop is not None
                self._own_loop.perform(awaited)
            elif not awaited.asked:
                yield from self._pause(control.deadline)
            while awaited.asked and reentry.ended is None:
                yield from self._answer_asked(awaited.asked.popleft())
            if reentry.ended is not None:
                reentry.check()
        if not awaited.has_answered():
            raise GuestStopped(StopReason(cancelled=control.cancelled))

    def _answer_asked(self, asked: AskedCall) -> RunCoroutine[None]:
        """Makes a call that a coroutine function asks for."""
        try:
            report = yield from self._within(asked.call)
        except Exception as problem:
            asked.answer(None, problem)
        else:
            asked.answer(report, None)

    def _stop(self, awaited: AwaitedCall) -> RunCoroutine[None]:
        """Has a coroutine cancelled, and waits for a moment until it has come to its end."""
        awaiter = self._control.awaiter
        if awaiter is not None and not awaited.is_over():
            awaiter.stop(awaited)
            last = time.monotonic() + GRACE_SECONDS
            while not awaited.is_over() and time.monotonic() < last:
                yield from self._pause(last)

    def _results(self, instance: Instance) -> list[Number]:
        """Returns what it returned.

        Raises:
            Ended: It did not, or not before it had to end.
        """
        return self._judged(instance, instance.results())

    def _judged(self, instance: Instance, found: list[Number] | None) -> list[Number]:
        if found is None:
            raise GuestStopped(self._end(instance))
        if not self._control():
            # A function of the host's, or one native call, may have taken longer than was left.
            raise GuestStopped(StopReason(cancelled=self._control.cancelled, too_late=True))
        return found

    # -- while the guest is halted ------------------------------------------------------------------------------------

    def _on_yield(self, instance: Instance) -> RunCoroutine[None]:
        """Does what is to be done whenever the guest has halted, and returns when it may go on.

        Raises:
            Ended: It may not.
        """
        if not instance.is_parked:
            yield from self._look(instance)
            return
        control = self._control
        if self._plan.fuel is not None:
            (self._budget or self._measure_fuel(instance)).look()
        yield from self._wait()
        instance.wake()
        # Waits, too, cost the host something: who does nothing but that is held to its share all the same.
        if (until := self._within_share()) != GO_ON:
            yield from self._wait_until(until)
        if not control():
            raise GuestStopped(StopReason(cancelled=control.cancelled))
        self._note_time()

    def _look(self, instance: Instance) -> RunCoroutine[None]:
        """Does what is to be done every now and then while the guest computes; others have their turn.

        Raises:
            Ended: It may not go on.
        """
        control = self._control
        if self._plan.fuel is not None:
            (self._budget or self._measure_fuel(instance)).look()
        self._serve()
        yield from self._wait_until(self._within_share())
        if not control():
            raise GuestStopped(StopReason(cancelled=control.cancelled))
        self._note_time()

    def _wait(self) -> RunCoroutine[None]:
        """Waits until one of the reasons holds for which the guest is parked, or it has to end.

        Raises:
            Ended: It has waited for longer than it may.
        """
        state = self._state
        assert state is not None
        wait = state.wait()
        if wait.grows or wait.has_grown:
            assert self._instance is not None
            self._limit_memories(self._instance, growing=wait.grows)
        begun = time.monotonic()
        until = FOREVER if wait.seconds is None else begun + wait.seconds
        most = self._limits.idle_time
        idle_until = begun + most - wait.waited_seconds if wait.is_idle and most is not None else FOREVER
        try:
            while True:
                self._serve()
                self._note_time()
                again = self._next_look(state, wait, until)
                if again == GO_ON or not self._control():
                    return
                if time.monotonic() >= idle_until:
                    raise GuestStopped(StopReason.idle(wait.call, most, wait.waited_seconds + time.monotonic() - begun))
                yield from self._pause(min(again, idle_until, self._control.deadline))
        finally:
            if wait.is_idle:
                state.add_idle(time.monotonic() - max(begun, self._resumed))

    def _next_look(self, state: State, wait: Wait, until: float) -> float:
        """Says when to look again whether a reason holds; `GO_ON` where one does."""
        streams = self._streams
        again = until
        if wait.stdin and streams is not None:
            if streams.answer(state):
                return GO_ON
            again = min(again, time.monotonic() + streams.retry_seconds)
        if wait.at_once:
            return GO_ON
        if wait.tokens is not None:
            assert self._timekeeper is not None
            again = min(again, self._timekeeper.due(wait.tokens, wait.amount))
        if wait.room and streams is not None and not streams.clogged:
            return GO_ON
        return GO_ON if again <= time.monotonic() else again

    def _take_share(self) -> RunCoroutine[None]:
        """Waits until the guest is within its share of a core, of which its last call may have used too much.

        Its time has not begun yet.
        """
        if self._throttle is None:
            self._throttle = Throttle(self._limits.cpu_percent)
            return
        # That of its last call may be over.
        self._control.start(None)
        until = self._throttle.begin()
        while time.monotonic() < until and not self._control.cancelled:
            yield until

    def _within_share(self) -> float:
        """Says when the guest is within its share of a core."""
        percent = self._limits.cpu_percent
        if percent == WHOLE_CORE_PERCENT:
            return GO_ON
        assert self._throttle is not None
        return self._throttle.until(self._cpu_seconds + time.thread_time() - self._cpu_mark)

    def _wait_until(self, until: float) -> RunCoroutine[None]:
        """Waits, but not beyond the deadline; `GO_ON` only lets others have their turn."""
        if until == GO_ON:
            yield from self._pause(GO_ON)
            return
        while time.monotonic() < until and self._control():
            yield from self._pause(min(until, self._control.deadline))

    def _pause(self, until: float) -> RunCoroutine[None]:
        """Halts; another thread may go on."""
        self._cpu_seconds += time.thread_time() - self._cpu_mark
        begun = time.monotonic()
        yield until
        self._cpu_mark = time.thread_time()
        rested = time.monotonic() - max(begun, self._resumed)
        self._rested_seconds += rested
        if self._budget is not None:
            self._budget.rested(rested)

    def _serve(self) -> None:
        """Passes output on, fetches input, and tells how far the guest is, for whoever asked."""
        if self._streams is not None:
            self._streams.serve(self._state, self.progress)

    def _note_time(self) -> None:
        """Tells the guard what time it is."""
        if self._timekeeper is None:
            if self._state is None:
                return
            # One for the life of the guest: its time must not run backwards from one call to the next.
            self._timekeeper = Timekeeper(self._state, self._made, self._plan.rates)
        self._timekeeper.look()

    def _measure_fuel(self, instance: Instance) -> Budget:
        plan = self._plan
        assert plan.fuel is not None
        self._budget = Budget(instance, plan.fuel, plan.overdraft, plan.fuel_most, self._limits)
        self._budget.start()
        return self._budget

    def _end(self, instance: Instance) -> StopReason:
        """Why the guest did not return."""
        problem, self._problem = self._problem, ""
        if not problem:
            return StopReason(failure=instance.failure)
        failure = instance.failure or Failure(None, "", ())
        return StopReason(failure=failure._replace(code=None, message=problem))

    def renew(self) -> None:
        """Gives the guest a fresh budget of fuel and fresh counters, for the next call of a session."""
        if self._instance is None or self._ending is not None:
            return
        self._timed = False
        self._wall_seconds = self._cpu_seconds = self._rested_seconds = 0.0
        # What it owes of its share of a core stays.
        self._budget = None
        if self._plan.fuel is not None:
            self._instance.set_fuel(self._plan.fuel + self._plan.overdraft)
            if self._limits.fuel_refill:
                self._measure_fuel(self._instance)
        if self._state is not None:
            self._state.renew(self._placed.block)

    def begin_turn(self) -> None:
        """Begins another turn of a call whose guest is parked: a fresh budget, fresh counters, and its time from now.

        What has passed since the last turn was over counts for nobody.
        """
        self.renew()
        self._timed = True
        self._begun, self._resumed = time.perf_counter(), time.monotonic()
        self._control.start(self._limits.wall_time)

    def hand_over(self, control: RunControl) -> None:
        """Gives a guest that is parked in its call to another run, whose time begins now.

        What it has done before counts, but for the time that it has waited.

        Args:
            control: The control of that run.
        """
        # A step that is under way still asks the old one.
        self._control.start(None)
        self._control = control
        self._begun, self._resumed = time.perf_counter(), time.monotonic()
        control.start(self._limits.wall_time)

    @property
    def used_memory_bytes(self) -> int:
        """How large its memories and tables are, as the guard counts them."""
        state = self._state
        return self._plan.program.woven.initial_memory_bytes if state is None else state.get("memory_used", "<Q")

    def end_turn(self) -> Report:
        """Reports on a turn of a call that goes on later, while its guest is parked."""
        self._wall_seconds += time.perf_counter() - self._begun
        if self._throttle is not None:
            self._throttle.settle(self._cpu_seconds)
        return self._report((), command=False)

    def _report(self, results: Sequence[Number | str] | None, command: bool) -> Report:
        begun = time.perf_counter()
        wall = self._wall_seconds
        plan, state = self._plan, self._state
        statistics = fuel = reading = None
        stdout = stderr = b""
        noted: Sequence[GuardViolation] = ()
        # What most reports do not have.
        told: dict[str, Any] = {}
        if plan.fuel is not None:
            statistics = self._fuel_statistics(plan.fuel, wall - self._rested_seconds)
            fuel = statistics.consumed
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
            told["violations"] = violations
        compiled, instantiated = plan.compile_seconds, self._instantiate_seconds
        report: Report = Report(
            outcome=outcome,
            exit_code=exit_code,
            value=value,
            stdout=stdout,
            stderr=stderr,
            usage=usage_of(reading, plan, fuel, wall, self._cpu_seconds),
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
        )
        return msgspec.structs.replace(report, **told) if told else report

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

    def progress(self) -> Progress | None:
        """Tells how far the guest is; None where it has been closed. May be called from any thread, at any time."""
        with self._looking():
            # First: whoever frees the guest takes the instance away before it.
            state = self._state
            if self._instance is None:
                return None
            # The guest may be running: each counter is one aligned word, so it is either old or new.
            reading = None if state is None else state.read()
        fuel = None if self._plan.fuel is None else 0 if self._budget is None else self._budget.known
        return progress_of(reading, self._plan, fuel, time.perf_counter() - self._begun if self._begun else 0.0)

    def _looking(self) -> threading.RLock:
        """Returns what is held while somebody looks at the guest from another thread, or in the middle of anything.

        Made where it is wanted, which is seldom. Whoever frees the guest first takes the instance away, and then waits
        for those who look; so whoever has this and finds an instance may look at it. Reentrant, for the handler of a
        signal may look while its thread does.
        """
        lock: threading.RLock = vars(self).setdefault("_looked_at", threading.RLock())
        return lock

    def patience(self) -> int | None:
        """Says how many ticks a path that the guest opens may take, before that is interrupted; None: it opens none.

        Twice as many each time, for there are file systems that take long and begin anew when they are interrupted; but
        none where the run is to end. May be called from any thread, at any time.
        """
        with self._looking():
            state = self._state
            times = 0 if state is None or self._instance is None else int(state.get("opening", "<I"))
        if not times:
            return None
        return 2 << min(times - 1, _MOST_DOUBLINGS) if self._control() else 0

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

    @property
    def is_restored(self) -> bool:
        """Whether it began with what another guest held, so that it is not to be initialized."""
        return self._plan.held is not None

    def take_state(self) -> GuestState:
        """Takes what it holds, between two calls.

        Raises:
            UsageError: It has ended.
            SnapshotError: There is more to it than can be taken.
            EngineError: There is no room for a snapshot.
        """
        instance = self._instance
        if instance is None or self._ending is not None:
            raise UsageError("the guest has ended, so there is nothing to take a snapshot of. Open a new session")
        held, self._below = take_guest_state(self._plan, instance, self._state, self._below, started=self._started)
        return held

    def close(self) -> None:
        """Frees everything. Closing twice is harmless."""
        if self._own_loop is not None:
            self._own_loop.close()
        instance = self._instance
        if instance is not None:
            self._instance = self._state = self._mailbox = self.halted_memory = None
            looked_at = self._looked_at
            if looked_at is not None:
                # Whoever comes later finds nothing to look at.
                with looked_at:
                    pass
            if self._warm is not None and self._warm.learns and self._ending is None:
                self._warm.learn(instance)
            instance.close(self._used_bytes)
        self._grants = None
        if self._ending is None:
            self._ending = _CLOSED
