"""What is done while a guest is halted: it waits for something, its time is up, or others have their turn."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stockade.engine import Failure, Instance
from stockade.execution._classify import GuestStopped, StopReason
from stockade.execution._plan import WHOLE_CORE_PERCENT
from stockade.execution._reporting import ReportingGuest
from stockade.execution._throttle import Throttle
from stockade.execution._timekeeper import Timekeeper
from stockade.runner import FOREVER, GO_ON

if TYPE_CHECKING:
    from typing import Self

    from stockade.egress import Client
    from stockade.engine import Number
    from stockade.guard import State, Wait
    from stockade.runner import RunCoroutine

__all__ = ["HaltedGuest"]


class HaltedGuest(ReportingGuest):
    """A guest that halts, and goes on when it may."""

    def reach(self, client: Client | None) -> Self:
        """Has its requests made by a client; returns the guest.

        Args:
            client: The client; None where it may make none.
        """
        self._client = client
        return self

    def _seconds(self) -> float:
        return max(0.0, time.perf_counter() - self._begun)

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

    def _end(self, instance: Instance) -> StopReason:
        """Why the guest did not return."""
        problem, self._problem = self._problem, ""
        if not problem:
            return StopReason(failure=instance.failure)
        failure = instance.failure or Failure(None, "", ())
        return StopReason(failure=failure._replace(code=None, message=problem))

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
                seconds = time.monotonic() - max(begun, self._resumed)
                state.add_idle(seconds)
                self._longest_wait = max(self._longest_wait, wait.waited_seconds + seconds)

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
        """Passes the trace and output on, fetches input, and tells how far the guest is, for whoever asked."""
        if self._tracer is not None and self._state is not None:
            self._tracer.drain(self._state, self._control.gate)
        if self._streams is not None:
            self._streams.serve(self._state, self.progress)
        if self._monitor is not None:
            self._monitor.look(self.progress, self._control.name)

    def _note_time(self) -> None:
        """Tells the guard what time it is."""
        if self._timekeeper is None:
            if self._state is None:
                return
            # One for the life of the guest: its time must not run backwards from one call to the next.
            self._timekeeper = Timekeeper(self._state, self._made, self._plan.rates)
        self._timekeeper.look()
