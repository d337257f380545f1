"""Commands that have begun, and wait for their standard input: for programs that are slow to start.

An interpreter that reads its program from standard input has started when it comes to read it. One that waits there is
given the input of a run, and goes on as if it had had it from the beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.errors import UsageError
from stockade.execution._ready import ReadyPool
from stockade.execution._streams import Streams
from stockade.execution._values import Call
from stockade.runner import RunControl

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.execution._run import Guest
    from stockade.modules import Module
    from stockade.policy import Policy
    from stockade.report import Report
    from stockade.runner import RunCoroutine

__all__ = ["LateStdin", "ParkedPool", "ParkedRun", "check_may_wait"]


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
    """Standard input that is there all at once, but later.

    Attributes:
        waiting: Whether the guest waits for it.
    """

    def __init__(self) -> None:
        super().__init__(self._fetch, wakes=True)
        self.waiting = False
        self._left: memoryview | None = None

    def give(self, stdin: bytes) -> None:
        """Gives the guest all of it."""
        self._left = memoryview(stdin)
        self.waiting = False

    def _fetch(self, size: int) -> bytes | None:
        left = self._left
        if left is None:
            self.waiting = True
            return None
        self._left = left[size:]
        return bytes(left[:size])


class ParkedRun:
    """A command that waits for its standard input.

    Args:
        guest: The guest.
        steps: What it does, up to there.
        stdin: Its standard input.

    Attributes:
        guest: The guest.
    """

    def __init__(self, guest: Guest, steps: RunCoroutine[Report], stdin: LateStdin) -> None:
        self.guest = guest
        self._steps = steps
        self._stdin = stdin

    def resume(self, control: RunControl, stdin: bytes) -> RunCoroutine[Report]:
        """Lets it go on, in steps, with its time from now on.

        Args:
            control: Says when it must stop.
            stdin: Its standard input.
        """
        self.guest.hand_over(control)
        self._stdin.give(stdin)
        return (yield from self._steps)

    def close(self) -> None:
        """Ends it."""
        self._steps.close()
        self.guest.close()


class ParkedPool(ReadyPool[ParkedRun]):
    """Commands that wait for their standard input.

    Args:
        module: The module.
        size: How many wait.
        memory_bytes: How much memory they may have together.
        begin: Makes a guest with its arguments and environment.
        tidy: What is done in pauses, before others are made, as for `ReadyPool`.
    """

    def __init__(
        self,
        module: Module,
        size: int,
        memory_bytes: int,
        begin: Callable[[RunControl, Streams], Guest],
        tidy: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(size, tidy)
        self._module = module
        self._most_bytes = memory_bytes // size
        self._begin = begin

    def _make(self) -> RunCoroutine[ParkedRun]:
        stdin, control = LateStdin(), RunControl()
        guest = self._begin(control, stdin)
        guest.pool = self
        steps = guest.invoke(Call(self._module.command_entry), command=True)
        made = ParkedRun(guest, steps, stdin)
        try:
            while True:
                try:
                    until = next(steps)
                except StopIteration as end:
                    report: Report = end.value
                    raise UsageError(
                        f"{self._module.name} has ended before it has read its standard input "
                        f"({report.summary()}): only a command that comes to read it can wait there"
                    ) from None
                if stdin.waiting:
                    break
                yield until
            self._check(guest)
        except BaseException:
            made.close()
            raise
        return made

    def _check(self, guest: Guest) -> None:
        memory_bytes = guest.used_memory_bytes
        if memory_bytes > self._most_bytes:
            raise UsageError(
                f"{self._module.name} has {memory_bytes:,} bytes of memory when it waits; each of {self._size:,} may "
                f"have {self._most_bytes:,} (memory_bytes)"
            )

    def _free(self, item: ParkedRun) -> None:
        item.close()
