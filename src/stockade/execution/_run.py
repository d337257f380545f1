"""The one path that every run takes: instantiate, write the policy, call, read, report.

`run`, `call`, sessions and the command line all come here. A `Guest` is one live instance; `invoke` calls into it and
makes the report; whoever opened it closes it. It stands on four others, each of which knows one more thing: `LiveGuest`
is made and freed, `ReportingGuest` is told of, `HaltedGuest` waits, and `CallingGuest` calls the embedder's functions.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from stockade.errors import EngineError
from stockade.execution._calling_out import CallingGuest
from stockade.execution._classify import GuestStopped, StopReason
from stockade.execution._first_pages import memories_of
from stockade.execution._pace import BRIEF_SECONDS
from stockade.execution._plan import WHOLE_CORE_PERCENT
from stockade.execution._string_calls import MEMORY
from stockade.execution._values import Call
from stockade.report import Report, note_cause
from stockade.runner import ASIDE, FOREVER, GO_ON, blamed, is_cancellation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import Instance, Number
    from stockade.execution._first_pages import FirstPages
    from stockade.execution._open import OpenGuest
    from stockade.execution._streams import Streams
    from stockade.modules import Module
    from stockade.runner import RunControl, RunCoroutine

__all__ = ["Guest", "initialized", "with_guest"]

_Result = TypeVar("_Result")

_AT_ONCE_SECONDS = 0.0001
"""A run that is over so soon is told to have had the processor for all of its time."""

_AT_A_TIME = 256
"""How many functions are called before others have their turn."""


class Guest(CallingGuest):
    """One live instance of a module under a policy, to call into. For one thread at a time."""

    # How many functions were called for calls that are made of several.
    _entered = 0

    def begin_with(self, pages: FirstPages) -> None:
        """Gives a guest that is for one run the pages that every such run writes to, or has it tell which it has.

        Args:
            pages: The pages of what it begins with.
        """
        instance = self._instance
        if instance is None or self._ending is not None or not self._shares_all:
            return
        if pages.learned:
            pages.give_common(instance, memories_of(self._plan.program.woven))
        elif self.pool is None:
            self._learns = pages

    @property
    def told_little(self) -> bool:
        """Whether the last report says of the call that it has returned, what it used in all, and nothing else."""
        return (
            self._was_plain
            and self._budget is None
            and self._tracer is None
            and self._network is None
            and self._earlier is Guest._earlier  # nothing, as every guest begins
        )

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
        if self._tracer is not None:
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
                    self._begin_to_wait(mark, waits=instance.is_parked)
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
        # To ask for the processor's time takes longer than such a run can have been off it.
        cpu = self._cpu_seconds = wall if wall < _AT_ONCE_SECONDS else time.thread_time() - mark
        if cpu > BRIEF_SECONDS or plan.pace.wary:
            plan.pace.note(cpu)
        return self._report(results, command)

    def _begin_to_wait(self, mark: float, *, waits: bool) -> None:
        """Counts what the guest has used until it halted for the first time, from when its deadline holds."""
        self._halted = time.perf_counter()
        self._cpu_seconds = time.thread_time() - mark
        if waits:
            # Where it does not, a tick of the clock has come, which says nothing of the guest.
            self._plan.pace.note(FOREVER)
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
                if self._tracer is not None and self._state is not None:
                    self._tracer.drain(self._state, self._control.gate)
                    self._tracer.finish()
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
        else:
            # It had ended before, and has taken no time.
            self._begun = begun
        self._wall_seconds += time.perf_counter() - self._begun
        self._cpu_seconds += time.thread_time() - self._cpu_mark
        if self._cpu_seconds > BRIEF_SECONDS:
            self._plan.pace.note(self._cpu_seconds)
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
            return (yield from call.exchange.perform(call, memory, self._enter_one, self._limits.stdout))
        return (yield from self._enter(entry.name, call.given, entry.type.results))

    def _enter_one(
        self, export: bytes, arguments: Sequence[tuple[str, Number]], results: Sequence[str]
    ) -> RunCoroutine[list[Number]]:
        """Calls one function of the guest of several that a call is made of.

        How many they are may be for the guest to say. Each may be over before anybody looks whether its time is up, and
        whether others wait for their turn; so that is done here.
        """
        if not self._control():
            raise GuestStopped(StopReason(cancelled=self._control.cancelled))
        self._entered += 1
        if self._entered % _AT_A_TIME == 0:
            yield GO_ON
        return (yield from self._enter(export, arguments, results))

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

    def renew(self) -> None:
        """Gives the guest a fresh budget of fuel and fresh counters, for the next call of a session."""
        if self._instance is None or self._ending is not None:
            return
        self._timed = False
        self._wall_seconds = self._cpu_seconds = self._rested_seconds = 0.0
        self._begin_anew()
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
        if self._control.gate is not None:
            control.gate = self._control.gate.renewed(frames=control.frames)
        self._control = control
        self._begun, self._resumed = time.perf_counter(), time.monotonic()
        if self._monitor is not None:
            self._monitor.begin()
        control.start(self._limits.wall_time)

    def end_turn(self) -> Report:
        """Reports on a turn of a call that goes on later, while its guest is parked."""
        if self._streams is not None:
            self._streams.pass_rest()
        self._wall_seconds += time.perf_counter() - self._begun
        if self._throttle is not None:
            self._throttle.settle(self._cpu_seconds)
        return self._report((), command=False)


def initialized(module: Module, guest: Guest, call: Call) -> RunCoroutine[Report]:
    """Calls an export; a reactor is initialized first.

    Args:
        module: The module.
        guest: A guest of it.
        call: The call.
    """
    initializer = module.initializer
    if initializer is not None and not guest.is_restored and initializer.name != call.entry.name:
        report = yield from guest.invoke(Call(initializer))
        if not report.ok or guest.ended:
            return report
    return (yield from guest.invoke(call))


def with_guest(guest: OpenGuest, control: RunControl, steps: RunCoroutine[_Result]) -> RunCoroutine[_Result]:
    """Takes steps with a guest that is freed after them.

    Args:
        guest: The guest.
        control: The control of the run.
        steps: What is done.
    """
    try:
        if guest.calls_out and not control.calls_out:
            control.calls_out = True
            yield ASIDE
        control.progress = guest.progress
        return (yield from steps)
    finally:
        control.progress = None
        guest.close()
