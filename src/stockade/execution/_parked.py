"""Commands that have begun, and wait for their standard input: for programs that are slow to start.

An interpreter that reads its program from standard input has started when it comes to read it. One that waits there is
given the input of a run, and goes on as if it had had it from the beginning.

A run that finds none waiting takes the one that is being made, if there is one, and goes on with it from where it is;
else it has one made for itself. So it is never later than about a run that knows of no pool.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from stockade._bell import MOST_RAISED
from stockade.errors import UsageError
from stockade.execution._ready import ReadyPool
from stockade.execution._starts import starts
from stockade.execution._streams import Streams
from stockade.execution._values import Call
from stockade.runner import FOREVER, RunControl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.execution._run import Guest
    from stockade.modules import Module
    from stockade.policy import Policy
    from stockade.report import Report
    from stockade.runner import RunCoroutine

__all__ = ["LateStdin", "ParkedPool", "ParkedRun", "check_may_wait"]


_LOOKS_SECONDS: Final = 0.001
"""How often it is looked whether a step is over, by who is to end and cannot be told."""


def check_may_wait(policy: Policy) -> None:
    """Checks that a command may begin ahead of its run.

    Args:
        policy: The policy of the run.

    Raises:
        UsageError: It may not.
    """
    if policy.reproducible:
        raise UsageError(
            "under this policy (clock and random) runs are equal to the last unit of fuel, and one that has waited "
            "is not: run the command without"
        )


class LateStdin(Streams):
    """Standard input that is there all at once, but later; and hints that come before it.

    Attributes:
        waiting: Whether the guest waits for it.
    """

    def __init__(self) -> None:
        super().__init__(self._fetch, wakes=True)
        self.waiting = False
        self._left = memoryview(b"")
        self._is_all = False

    def give(self, data: bytes, *, is_all: bool = True) -> None:
        """Gives the guest more of it.

        Args:
            data: What comes behind what it was given before.
            is_all: Whether there is no more.
        """
        self._left = memoryview(bytes(self._left) + data)
        self._is_all = is_all
        self.waiting = False

    def _fetch(self, size: int) -> bytes | None:
        if not self._left and not self._is_all:
            self.waiting = True
            return None
        piece, self._left = bytes(self._left[:size]), self._left[size:]
        return piece


class ParkedRun:
    """A command that waits for its standard input, or that has not come there yet.

    Whoever makes it ahead takes its steps one by one. Between any two of them a run can take it.

    Args:
        guest: The guest.
        steps: What it does.
        stdin: Its standard input.

    Attributes:
        guest: The guest.
        is_urgent: Whether its run has to wait until it has started.
        steps_taken: How far it is.
        stdin: Its standard input.
    """

    def __init__(self, guest: Guest, steps: RunCoroutine[Report], stdin: LateStdin) -> None:
        self.guest = guest
        self.stdin = stdin
        self.is_urgent = False
        self.steps_taken = 0
        # Whoever has taken what is in it may do what it stands for: take a step, and be the run that it is for. To take
        # it is one call of the interpreter's own, so that of two, one has it.
        self._steps = deque([steps])
        self._claims = deque([None])
        self._taker: RunControl | None = None

    @property
    def is_claimed(self) -> bool:
        """Whether a run has it, or will."""
        return not self._claims

    def claim(self) -> bool:
        """Has it be a certain run's; says whether it was nobody's before."""
        try:
            self._claims.pop()
        except IndexError:
            return False
        return True

    def step(self) -> float | None:
        """Takes a step for nobody's run; returns until when the next may wait, None where a run has it.

        Raises:
            UsageError: It has ended.
        """
        if self.is_claimed:
            return None
        try:
            steps = self._steps.pop()
        except IndexError:
            return None
        until: float | None = None
        problem: BaseException | None = None
        try:
            until = next(steps)
        except StopIteration as end:
            report: Report = end.value
            steps = _ended(report)
            problem = UsageError(
                f"{report.module.name} has ended before it has read its standard input ({report.summary()}): only a "
                "command that comes to read it can wait there"
            )
        except BaseException as raised:
            steps, problem = _failed(raised), raised
        self.steps_taken += 1
        self._steps.append(steps)
        taker = self._taker
        if taker is not None:
            taker.wake()
        if problem is None:
            return until
        if self.claim():
            self.close()
            raise problem
        return None

    def resume(self, control: RunControl, stdin: bytes) -> RunCoroutine[Report]:
        """Lets it go on, in steps, with its time from now on. It is claimed.

        Args:
            control: Says when it must stop.
            stdin: Its standard input.
        """
        others = starts()
        if self.is_urgent:
            others.begin_urgent(self)
        try:
            steps = yield from self._taken(control)
            self.guest.hand_over(control)
            self.stdin.give(stdin)
            return (yield from steps)
        finally:
            if self.is_urgent:
                others.end_urgent(self)

    def _taken(self, control: RunControl) -> RunCoroutine[RunCoroutine[Report]]:
        """Takes its steps from whoever makes it, when the one that is under way is over."""
        self._taker = control
        try:
            while True:
                try:
                    return self._steps.pop()
                except IndexError:
                    # We are told when it is.
                    yield FOREVER
        except BaseException:
            # Whoever drops the run frees the guest, in which nothing may run then.
            self._wait_for_step()
            raise

    def _wait_for_step(self) -> None:
        for _ in range(MOST_RAISED):
            try:
                self._look_for_step()
                break
            except BaseException:  # noqa: S112 - a second signal; the first is raised
                continue

    def _look_for_step(self) -> None:
        while not self._steps:
            time.sleep(_LOOKS_SECONDS)

    def close(self) -> None:
        """Ends it. Nobody takes a step of it."""
        while self._steps:
            self._steps.pop().close()
        self.guest.close()


def _ended(report: Report) -> RunCoroutine[Report]:
    """What is left of one that is over."""
    yield from ()
    return report


def _failed(problem: BaseException) -> RunCoroutine[Report]:
    """What is left of one whose host has failed."""
    yield from ()
    raise problem


class ParkedPool(ReadyPool[ParkedRun]):
    """Commands that wait for their standard input.

    Args:
        module: The module.
        size: How many wait.
        memory_bytes: How much memory they may have together.
        begin: Makes a guest with its arguments and environment.
        tidy: What is done in pauses, before others are made, as for `ReadyPool`.
        hints: What a command is given to read once it waits, piece by piece, before it waits for the input of a run: it
            does what makes that shorter. One that a run takes before does without.
    """

    def __init__(
        self,
        module: Module,
        size: int,
        memory_bytes: int,
        begin: Callable[[RunControl, Streams], Guest],
        tidy: Callable[[], object] | None = None,
        hints: Sequence[bytes] = (),
    ) -> None:
        super().__init__(size, tidy)
        self._module = module
        self._most_bytes = memory_bytes // size
        self._begin = begin
        self._hints = hints
        self._made: ParkedRun | None = None

    @property
    def steps_taken(self) -> int:
        """How far the one is that is being made, and that a run can take; 0 where there is none."""
        made = self._made
        return 0 if made is None or made.is_claimed else made.steps_taken

    def take(self) -> ParkedRun:
        """Returns one that is the caller's: one that waits, else the one that is being made, else a fresh one."""
        found = super().take()
        if found is not None and found.claim():
            return found
        made = self._made
        if made is not None and made.claim():
            control = self._control
            if control is not None:
                # Whoever makes it has nothing to do here any more.
                control.wake()
        else:
            made = self._begun()
            made.claim()
        made.is_urgent = True
        return made

    def _begun(self) -> ParkedRun:
        stdin = LateStdin()
        guest = self._begin(RunControl(), stdin)
        guest.pool = self
        return ParkedRun(guest, guest.invoke(Call(self._module.command_entry), command=True), stdin)

    def _make(self, control: RunControl | None) -> RunCoroutine[ParkedRun | None]:
        try:
            if control is not None:
                yield from starts().turn(control)
            made = self._begun()
            is_ready = False
            try:
                if control is not None:
                    self._made = made
                is_ready = yield from self._bring_to_wait(made, control)
            finally:
                self._made = None
                if not is_ready and made.claim():
                    made.close()
            return made if is_ready else None
        finally:
            if control is not None:
                starts().over(control)

    def _bring_to_wait(self, made: ParkedRun, control: RunControl | None) -> RunCoroutine[bool]:
        """Takes steps until it waits for the input of a run; returns whether it does, and no run has it."""
        hints = deque(self._hints)
        while control is None or not control.cancelled:
            until = made.step()
            if until is None:
                break
            if not made.stdin.waiting:
                yield until
            elif hints:
                made.stdin.give(hints.popleft(), is_all=False)
            else:
                self._check(made.guest)
                return True
            if control is not None:
                yield from starts().turn(control)
        return False

    def _check(self, guest: Guest) -> None:
        memory_bytes = guest.used_memory_bytes
        if memory_bytes > self._most_bytes:
            raise UsageError(
                f"{self._module.name} has {memory_bytes:,} bytes of memory when it waits; each of {self._size:,} may "
                f"have {self._most_bytes:,} (memory_bytes)"
            )

    def _free(self, item: ParkedRun) -> None:
        item.close()
