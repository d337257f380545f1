"""Calls of functions of the embedder's that a guest in a worker makes: made here, and answered there."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

from stockade._outside import call_outside
from stockade.host import CapabilityMissing
from stockade.isolation._frames import Answer, Called, Garbled
from stockade.runner import AwaitedCall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.host import BoundFunction
    from stockade.isolation._hub import WorkerHandle
    from stockade.runner import RunControl
    from stockade.runner.own_loop import OwnLoop

__all__ = ["RemoteCalls"]


class RemoteCalls:
    """The calls of one run. One is made at a time, for its guest waits meanwhile.

    Args:
        functions: The functions, in the order of their numbers.
        control: The control of the run.
        worker: The worker.
        most: How many there may be; None where the policy does not say.

    Attributes:
        count: How many there were.
        raised: What the last one has raised, for whoever asks why the run has ended.
    """

    def __init__(
        self, functions: Sequence[BoundFunction], control: RunControl, worker: WorkerHandle, most: int | None
    ) -> None:
        self._functions = functions
        self._control = control
        self._worker = worker
        self._most = most
        self._awaited: tuple[BoundFunction, AwaitedCall] | None = None
        self._own_loop: OwnLoop | None = None
        self.count = 0
        self.raised: BaseException | None = None

    @property
    def is_awaiting(self) -> bool:
        """Whether a coroutine function is under way."""
        return self._awaited is not None

    def take(self, called: Called) -> None:
        """Makes a call that the guest is said to make, or begins it.

        Raises:
            Garbled: No guest can make it.
            UsageError: The function has returned something else than it is annotated to.
        """
        self.count += 1
        if self._awaited is not None or not 0 <= called.function < len(self._functions):
            raise Garbled("it calls a function that there is not, or two at once")
        if self._most is not None and self.count > self._most:
            raise Garbled("it calls functions more often than the policy lets it")
        function = self._functions[called.function]
        try:
            values = function.checked(called.values)
        except ValueError as problem:
            raise Garbled(f"it calls a function so that {problem}") from None
        if self._control.on_function is not None:
            self._control.on_function(function.label)
        if function.is_awaited:
            self._begin(function, values)
            return
        try:
            result = call_outside(function.function, *values)
        except Exception as problem:
            self._fail(function, problem)
        else:
            self._reply(function, result)

    def _begin(self, function: BoundFunction, values: Sequence[object]) -> None:
        control = self._control
        awaited = AwaitedCall(function.function, values, contextvars.copy_context(), control.wake)
        self._awaited = function, awaited
        if control.awaiter is not None:
            control.awaiter.begin(awaited)
        elif self._own_loop is None:
            from stockade.runner.own_loop import OwnLoop

            self._own_loop = OwnLoop(control)

    def look(self) -> bool:
        """Looks after a coroutine function that is under way; whether it has been answered."""
        if self._awaited is None:
            return False
        function, awaited = self._awaited
        if self._own_loop is not None and self._control.awaiter is None and not awaited.is_over():
            self._own_loop.perform(awaited)
        if not awaited.is_over():
            if not self._control() and self._control.awaiter is not None:
                self._control.awaiter.stop(awaited)
            return False
        self._awaited = None
        if not awaited.has_answered():
            # The run is to end, which its worker knows, or is told.
            return False
        try:
            result = awaited.result()
        except Exception as problem:
            self._fail(function, problem)
        else:
            self._reply(function, result)
        return True

    def _reply(self, function: BoundFunction, result: object) -> None:
        # No function returns a vector, which would be bytes.
        values = tuple(value for value in function.answers(result) if not isinstance(value, bytes))
        self._worker.send(Answer(values=values))

    def _fail(self, function: BoundFunction, problem: Exception) -> None:
        failed = function.failure(problem)
        if isinstance(failed, CapabilityMissing):
            self._worker.send(Answer(problem="a capability is missing", capability=failed.capability))
            return
        self.raised = failed.__cause__
        self._worker.send(Answer(problem=str(failed)))

    def close(self) -> None:
        """Ends what is under way."""
        if self._awaited is not None:
            awaited, self._awaited = self._awaited[1], None
            if self._control.awaiter is not None and not awaited.is_over():
                self._control.awaiter.stop(awaited)
        if self._own_loop is not None:
            self._own_loop.close()
