"""Calls of functions of the embedder's that a guest in a worker makes: made here, and answered there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from stockade._outside import call_outside
from stockade.engine import check_stack_to_call_out
from stockade.execution import awaited_call
from stockade.host import CallRefused, CapabilityMissing, HostCall, HostFunctionFailed
from stockade.isolation._frames import Garbled
from stockade.isolation._messages import Answer, Called, Cancel
from stockade.runner import FOREVER, GRACE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.execution import Call
    from stockade.host import BoundFunction, HaltedGuest
    from stockade.isolation._messages import ToWorker
    from stockade.modules import Module
    from stockade.report import Report
    from stockade.runner import AwaitedCall, RunControl, RunCoroutine
    from stockade.runner.own_loop import OwnLoop

    class CallingGuest(HaltedGuest, Protocol):
        """A guest that calls, as these know it."""

        def within(self, call: Call) -> RunCoroutine[Report]:
            """Makes a call while it is halted in one of a host function, in steps."""

        def check_whole(self) -> None:
            """Checks that it can go on, after a function is done: what has stopped a call within stops it all."""

        def send(self, message: ToWorker) -> None:
            """Tells its worker something."""


__all__ = ["RemoteCalls"]


class _Awaiting:
    """A coroutine function that is under way.

    Args:
        function: The function.
        call: The call, as it may see it.
        awaited: The same, as a loop awaits it.

    Attributes:
        last: Until when it may come to its end, once it was cancelled.
    """

    def __init__(self, function: BoundFunction, call: HostCall, awaited: AwaitedCall) -> None:
        self.function = function
        self.call = call
        self.awaited = awaited
        self.last: float | None = None


class RemoteCalls:
    """The calls of one guest. It waits while one is made; the next is made by an export that a function calls.

    Args:
        functions: The functions, in the order of their numbers.
        control: The control of the guest.
        module: Its module.
        most: How many there may be; None where the policy does not say.

    Attributes:
        count: How many there were in the call under way.
        here: Whether a plain function is called just now, on the thread that takes the steps.
        raised: What the last one has raised, for whoever asks why the run has ended.
    """

    def __init__(
        self, functions: Sequence[BoundFunction], control: RunControl, module: Module, most: int | None
    ) -> None:
        self._functions = functions
        self._control = control
        self._module = module
        self._most = most
        self._total = 0
        # Those that have not been answered; None stands for a plain function.
        self._open: list[_Awaiting | None] = []
        self._own_loop: OwnLoop | None = None
        self.count = 0
        self.here = False
        self.raised: BaseException | None = None

    def take(self, called: Called, guest: CallingGuest, depth: int) -> None:
        """Makes a call that the guest is said to make, or begins it.

        Args:
            called: The call.
            guest: The guest.
            depth: How many calls of its exports are under way within such calls.

        Raises:
            Garbled: No guest can make it.
            UsageError: The function has returned something else than it is annotated to.
        """
        self.count += 1
        self._total += 1
        if len(self._open) != depth or not 0 <= called.function < len(self._functions):
            raise Garbled("it calls a function that there is not, or two at once")
        if self._most is not None and self._total > self._most:
            raise Garbled("it calls functions more often than the policy lets it")
        function = self._functions[called.function]
        try:
            values = function.checked(called.values)
        except ValueError as problem:
            raise Garbled(f"it calls a function so that {problem}") from None
        if self._control.cancelled:
            # While it was on its way here.
            self._answer(guest, Answer(late=True))
            return
        if self._control.on_function is not None:
            self._control.on_function(function.label)
        call = HostCall(guest, awaited=function.is_awaited)
        given = (call, *values) if function.wants_call else values
        if function.is_awaited:
            self._begin(function, given, guest, call)
            return
        # None is called where there is no room on the stack to answer the guest.
        check_stack_to_call_out()
        before, self.here = self.here, True
        self._open.append(None)
        try:
            result = call_outside(function.function, *given)
        except Exception as problem:
            self._open.pop()
            guest.check_whole()
            self._fail(guest, function, problem)
        else:
            self._open.pop()
            guest.check_whole()
            self._reply(guest, function, result)
        finally:
            call.end()
            self.here = before

    def _begin(self, function: BoundFunction, given: Sequence[object], guest: CallingGuest, call: HostCall) -> None:
        control = self._control
        awaited = awaited_call(function.function, given, guest, self._module, control.wake, call)
        self._open.append(_Awaiting(function, call, awaited))
        if control.awaiter is not None:
            control.awaiter.begin(awaited)
        elif self._own_loop is None:
            from stockade.runner.own_loop import OwnLoop

            self._own_loop = OwnLoop(control)

    def look(self, guest: CallingGuest, depth: int) -> RunCoroutine[bool]:
        """Looks after a coroutine function that is under way.

        Args:
            guest: The guest.
            depth: As for `take`.

        Returns:
            Whether there is more to hear: it was answered, or an export was called for it.
        """
        waiting = self._open[-1] if len(self._open) == depth + 1 else None
        if waiting is None:
            return False
        awaited = waiting.awaited
        if self._own_loop is not None and self._control.awaiter is None and not awaited.is_over():
            self._own_loop.perform(awaited)
        if awaited.asked and not awaited.is_over():
            asked = awaited.asked.popleft()
            try:
                report = yield from guest.within(asked.call)
            except Exception as problem:
                asked.answer(None, problem)
                guest.check_whole()
            else:
                asked.answer(report, None)
            return True
        if not awaited.is_over() and self._may_go_on(waiting):
            return False
        self._open.pop()
        waiting.call.end()
        if not awaited.has_answered():
            self._answer(guest, Answer(late=True))
            return True
        try:
            result = awaited.result()
        except Exception as problem:
            self._fail(guest, waiting.function, problem)
        else:
            self._reply(guest, waiting.function, result)
        return True

    def _may_go_on(self, waiting: _Awaiting) -> bool:
        """Whether a coroutine function is waited for; once the run is to end, it is for a moment, and was cancelled."""
        if self._control():
            return True
        awaiter = self._control.awaiter
        if awaiter is None:
            return False
        if waiting.last is None:
            # The memory goes first: what the coroutine does from now on is of no concern for the guest.
            waiting.call.end()
            awaiter.stop(waiting.awaited)
            waiting.last = time.monotonic() + GRACE_SECONDS
        return time.monotonic() < waiting.last

    @property
    def waits_until(self) -> float:
        """Until when to wait at most: for a coroutine function that was cancelled."""
        waiting = self._open[-1] if self._open else None
        return FOREVER if waiting is None or waiting.last is None else waiting.last

    def is_under_way(self, awaited: AwaitedCall) -> bool:
        """Whether a call of a coroutine function has not been answered."""
        return any(waiting is not None and waiting.awaited is awaited for waiting in self._open)

    def _reply(self, guest: CallingGuest, function: BoundFunction, result: object) -> None:
        # No function returns a vector, which would be bytes.
        values = tuple(value for value in function.answers(result) if not isinstance(value, bytes))
        self._answer(guest, Answer(values=values))

    def _fail(self, guest: CallingGuest, function: BoundFunction, problem: Exception) -> None:
        failed = function.failure(problem)
        if isinstance(failed, CapabilityMissing):
            self._answer(guest, Answer(problem="a capability is missing", capability=failed.capability))
            return
        if isinstance(failed, CallRefused):
            self._answer(guest, Answer(refused=failed.violation))
            return
        if isinstance(failed, HostFunctionFailed):
            self.raised = failed.__cause__
        self._answer(guest, Answer(problem=str(failed)))

    def _answer(self, guest: CallingGuest, answer: Answer) -> None:
        if self._control.cancelled:
            # By the function: the guest has no part in what comes after.
            guest.send(Cancel())
        guest.send(answer)

    def over(self) -> None:
        """Ends what is under way: the call of the guest is over."""
        while self._open:
            waiting = self._open.pop()
            if waiting is None:
                continue
            waiting.call.end()
            if self._control.awaiter is not None and not waiting.awaited.is_over():
                self._control.awaiter.stop(waiting.awaited)
        self.count = 0

    def close(self) -> None:
        """Ends it, and what was made for it."""
        self.over()
        if self._own_loop is not None:
            own, self._own_loop = self._own_loop, None
            own.close()
