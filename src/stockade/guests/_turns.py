"""One live interpreter that is given one piece of code after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from stockade.execution import GuestStopped, StopReason, Streams
from stockade.host import CallRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.execution import OpenGuest
    from stockade.guests._driver import Driver
    from stockade.guests._network import PendingAnswer
    from stockade.guests._task import Task
    from stockade.guests._tools import Toolbox
    from stockade.modules import Module
    from stockade.report import Report
    from stockade.runner import RunCoroutine

__all__ = ["CalledTurns", "JobStreams", "ParkedTurns", "Turns"]


class Turns(Protocol):
    """How an interpreter is given its turns.

    Attributes:
        over: Whether there can be no more of them.
    """

    over: bool

    def turn(self, task: Task) -> RunCoroutine[Report]:
        """Lets it run a piece of code, in steps; its report is on this piece alone."""

    def close(self) -> None:
        """Stops it, where it is in the middle of something."""


class JobStreams(Streams):
    """Standard input that jobs come on, one for each turn.

    Args:
        stdout: Is given stdout in pieces as they are written.
        stderr: The same for stderr.
        take_request: Takes what the guest has left for a tool, if anything.
        toolbox: The tools.

    Attributes:
        waiting: Whether the guest has taken all that there was, and waits for more.
    """

    def __init__(
        self,
        stdout: Callable[[bytes], object] | None,
        stderr: Callable[[bytes], object] | None,
        take_request: Callable[[], bytes | None],
        toolbox: Toolbox,
    ) -> None:
        super().__init__(self._fetch, stdout, stderr, wakes=True)
        self._take_request = take_request
        self._toolbox = toolbox
        # A tool takes as long as it likes.
        self.calls_out = bool(toolbox)
        self.waiting = False
        self._left = memoryview(b"")
        self._ended = False
        self._pending: PendingAnswer | None = None
        self._wake: Callable[[], object] | None = None

    def wake_by(self, wake: Callable[[], object]) -> None:
        """Says how the run is woken that waits for an answer.

        Args:
            wake: Wakes it. May be called from any thread.
        """
        self._wake = wake

    def beside(self, output: Streams | None) -> Streams:
        """Returns streams whose standard input is this one's, and whose output somebody else takes.

        Args:
            output: Who takes it; None for whoever this was made for.
        """
        if output is None:
            return self
        output.stdin, output.retry_seconds = self._fetch, self.retry_seconds
        output.calls_out = output.calls_out or self.calls_out
        return output

    def put(self, job: bytes) -> None:
        """Gives the guest a job."""
        self._left = memoryview(job)
        self.waiting = False

    def end(self) -> None:
        """Gives it the end of its standard input."""
        self._ended = True
        self.waiting = False

    def _fetch(self, size: int) -> bytes | None:
        if self._pending is None and not self._left and self._toolbox.serves:
            self._take()
        if self._pending is not None:
            if not self._pending.is_ready():
                return None
            pending, self._pending = self._pending, None
            try:
                self._answer(pending.answer())
            except CallRefused as problem:
                raise GuestStopped(StopReason(refused=problem.violation)) from None
        if self._left:
            piece, self._left = bytes(self._left[:size]), self._left[size:]
            return piece
        if self._ended:
            return b""
        self.waiting = True
        return None

    def _take(self) -> None:
        """Takes what the guest has asked for, if anything."""
        request = self._take_request()
        if request is None:
            return
        self._pending = self._toolbox.asked(request)
        if self._pending is None:
            self._answer(self._toolbox.serve(request))
        elif self._wake is not None:
            self._pending.waiters.append(self._wake)

    def _answer(self, answer: bytes) -> None:
        self._left = memoryview(len(answer).to_bytes(8, "little") + answer)


class ParkedTurns:
    """An interpreter that waits on its standard input between turns: parked, in the middle of one long call.

    Args:
        guest: The guest.
        module: Its module.
        driver: How it is driven.
        streams: Its standard input.
        answered: Says whether it has left the frame of the turn.
    """

    def __init__(
        self, guest: OpenGuest, module: Module, driver: Driver, streams: JobStreams, answered: Callable[[], bool]
    ) -> None:
        self._guest = guest
        self._module = module
        self._driver = driver
        self._streams = streams
        self._answered = answered
        self._steps: RunCoroutine[Report] | None = None
        self.over = False

    def turn(self, task: Task) -> RunCoroutine[Report]:
        """Lets it run a piece of code, in steps; its report is on this piece alone."""
        # What a piece has seeded stays seeded for the next.
        self._streams.put(self._driver.job(task._replace(reseed=task.reseed and self._steps is None)))
        if self._steps is None:
            self._steps = self._driver.start(self._guest, self._module, task)
        else:
            self._guest.begin_turn()
        while True:
            try:
                until = next(self._steps)
            except StopIteration as end:
                self.over = True
                report: Report = end.value
                return report
            except BaseException:
                self.over = True
                raise
            if not self._streams.waiting:
                yield until
            elif self._answered():
                return self._guest.end_turn()
            else:
                # The code itself reads what jobs come on: there is nothing for it, and no more turn.
                self._streams.end()

    def close(self) -> None:
        """Stops it, where it is in the middle of something."""
        if self._steps is not None:
            self._steps.close()


class CalledTurns:
    """An interpreter whose function is called for each turn.

    Args:
        guest: The guest.
        module: Its module.
        driver: How it is driven.
    """

    def __init__(self, guest: OpenGuest, module: Module, driver: Driver) -> None:
        self._guest = guest
        self._module = module
        self._driver = driver
        self._begun = False
        self.over = False

    def turn(self, task: Task) -> RunCoroutine[Report]:
        """Lets it run a piece of code, in steps; its report is on this piece alone."""
        self._guest.renew()
        # As above.
        task = task._replace(reseed=task.reseed and not self._begun)
        self._begun = True
        return self._driver.start(self._guest, self._module, task)

    def close(self) -> None:
        """Stops it: between two calls there is nothing to stop."""
