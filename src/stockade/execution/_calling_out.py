"""Calls that a guest makes of functions of the embedder's, and exports that these call meanwhile."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stockade.errors import EngineError
from stockade.execution._asked import awaited_call, awaited_of
from stockade.execution._classify import GuestStopped, StopReason, classify
from stockade.execution._halted import HaltedGuest
from stockade.guard import Mailbox, mailbox_words
from stockade.host import CallRefused, CapabilityMissing, HostCall, HostFunctionFailed
from stockade.report import Outcome, Report
from stockade.runner import FOREVER, GRACE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import Instance, Number
    from stockade.execution._values import Call
    from stockade.execution.loop_calls import AskedCall
    from stockade.host import BoundFunction
    from stockade.report import Value
    from stockade.runner import AwaitedCall, RunCoroutine

__all__ = ["CallingGuest"]

_LOOK_SECONDS = 0.01
"""How often to look at everything where a guest calls functions of the embedder again and again."""


class CallingGuest(HaltedGuest):
    """A guest that calls functions of the embedder's while it is driven."""

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
                if self._control.on_function is not None:
                    self._control.on_function(function.label)
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

    def awaited_here(self) -> AwaitedCall | None:
        """Returns the call of a coroutine host function in whose context this is; None where there is none such."""
        found = awaited_of(self)
        return None if found is None or not self._is_under_way(found) else found

    def _is_under_way(self, awaited: AwaitedCall) -> bool:
        return self._instance is not None and self._ending is None and not awaited.is_over()

    def within(self, call: Call) -> RunCoroutine[Report]:
        """Makes a call while the guest is halted in one of a host function, in steps.

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
            Ended: The policy does not grant what the function needs, or does not permit what it was asked.
        """
        try:
            function.serve(mailbox, self)
        except (CallRefused, CapabilityMissing, HostFunctionFailed) as problem:
            self._fail(mailbox, problem)

    def _fail(self, mailbox: Mailbox, problem: CallRefused | CapabilityMissing | HostFunctionFailed) -> None:
        """Ends the run for what a function of the embedder has raised.

        Raises:
            Ended: The policy does not grant what the function needs, or does not permit what it was asked.
        """
        if self._reentry is not None and self._reentry.ended is not None:
            # The run is over for that, whatever the function has made of it.
            return
        if isinstance(problem, CallRefused):
            raise GuestStopped(StopReason(refused=problem.violation)) from None
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
            awaited = awaited_call(function.function, given, self, self._plan.module, self._control.wake, call)
            del given
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
            report = yield from self.within(asked.call)
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
