"""A run in steps: it says until when it may wait, and whoever drives it does the waiting.

What runs a guest is a generator. It yields whenever the guest has halted: with the time (of `time.monotonic`) at which
it wants to go on, `GO_ON` for as soon as others have had their turn. It may be asked to go on before its time, and
looks for itself whether there is a reason. So runs on the caller's thread and runs on shared ones differ in who waits,
and in nothing else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from stockade._bell import Bell
from stockade.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.gate import GateRun
    from stockade.report import Finding, Progress
    from stockade.runner._awaited import Awaiter

__all__ = [
    "ASIDE",
    "FOREVER",
    "GO_ON",
    "RunControl",
    "RunCoroutine",
    "blamed",
    "is_cancellation",
    "is_in_coroutine",
    "run_blocking",
]

_Result = TypeVar("_Result")

RunCoroutine: TypeAlias = Generator[float, None, _Result]
"""What runs in steps, and comes to a result."""

GO_ON: Final = 0.0
"""The time that is over already."""

ASIDE: Final = -1.0
"""As `GO_ON`, after the control has come to say that functions of the embedder are called."""

FOREVER: Final = float("inf")
"""The time that never comes."""


class RunControl:
    """What is known of a run from outside: whether it may go on, and who is to be told when something happened to it.

    Attributes:
        abandoned: Says whether nobody can await it any more; None where nobody does.
        awaiter: Who begins calls of coroutine functions of the embedder's; None where the run has to have a loop of its
            own for them.
        awaited: Whether `thread` awaits it, and others take its steps.
        calls_out: Whether the guest may call functions of the embedder, which take as long as they like.
        cancelled: Whether it is to end.
        deadline: When it has to end, by `time.monotonic`.
        frames: Whether what the guest returns is a message for the host, not for whoever has begun the run.
        gate: What looks at what leaves the run; None where nothing is looked for.
        name: What the run is called, while it is on a list.
        on_found: Is told what a gate has found in what code gives when its run is over, where somebody asks.
        on_function: Is told the name of each function of the embedder's that the guest calls, where somebody asks.
        on_tool: The same for tools that code calls.
        on_wake: What is called, from any thread, when the run should look around before its time.
        progress: Says how far the run is; None before and after.
        walls: What was found to stand around the guest, where it runs in a process of its own.
        thread: The thread that takes all its steps, or awaits it; 0 where there is none such.
    """

    # As every run begins; most never come to have another.
    abandoned: Callable[[], bool] | None = None
    awaited = False
    awaiter: Awaiter | None = None
    calls_out = False
    cancelled = False
    deadline: float = FOREVER
    frames = False
    gate: GateRun | None = None
    name: str | None = None
    on_found: Callable[[Sequence[Finding]], object] | None = None
    on_function: Callable[[str], object] | None = None
    on_tool: Callable[[str], object] | None = None
    on_wake: Callable[[], object] | None = None
    progress: Callable[[], Progress | None] | None = None
    thread = 0
    walls: tuple[str, ...] = ()

    def start(self, seconds: float | None, passed: float = 0.0) -> None:
        """Sets the deadline; an old cancellation stays in force.

        Args:
            seconds: When, counted from the beginning; None for never.
            passed: How long ago that was.
        """
        self.deadline = FOREVER if seconds is None else time.monotonic() + (seconds - passed)

    def cancel(self) -> None:
        """Stops the guest: within a slice while it computes, at once while it waits. May be called from any thread."""
        self.cancelled = True
        self.wake()

    def wake(self) -> None:
        """Has the run look around, if it waits. May be called from any thread."""
        on_wake = self.on_wake
        if on_wake is not None:
            on_wake()

    def __call__(self) -> bool:
        """Says whether the guest may go on."""
        if self.abandoned is not None and self.abandoned():
            self.cancelled = True
        return not self.cancelled and time.monotonic() < self.deadline


def is_cancellation(problem: BaseException) -> bool:
    """Whether something is `asyncio.CancelledError`, which would cancel the task that awaits a run."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(problem, asyncio.CancelledError)


def is_in_coroutine() -> bool:
    """Whether an event loop runs on this thread, so that whoever waits here blocks it."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def blamed(problem: BaseException, who: str) -> UsageError:
    """Returns what is raised in the place of a cancellation that the embedder's own code has raised.

    As it is, it would cancel the task that awaits the run, and nobody would know why.

    Args:
        problem: What it raised.
        who: What it is called in messages.
    """
    told = UsageError(
        f"{who} raised CancelledError, which ended the run; it is no way to cancel the task that awaits the run. Stop "
        "a run with Sandbox.cancel, or by cancelling its task"
    )
    told.__cause__ = problem
    return told


def run_blocking(steps: RunCoroutine[_Result], control: RunControl) -> _Result:
    """Takes all steps, on this thread. Who takes other steps of the same control around them goes on afterwards.

    Args:
        steps: What to do.
        control: Its control.

    Returns:
        What it came to.
    """
    woken: Bell | None = None
    around: Callable[[], object] | None = None
    try:
        # The loop is not the first that stands here: in Python 3.11 and 3.12, what the handler of a signal raises as a
        # loop goes back to where a `try` begins is raised outside of it, and the steps would never be closed.
        until = GO_ON
        while True:
            try:
                until = next(steps)
            except StopIteration as end:
                result: _Result = end.value
                return result
            if until <= GO_ON:
                continue
            if woken is None:
                # It is asked once more before the first wait: what happened before now had nobody to tell.
                woken = Bell()
                around, control.on_wake = control.on_wake, woken.ring
                continue
            # Whatever came until it returns is seen in the next step.
            woken.wait(None if until == FOREVER else until - time.monotonic())
    finally:
        try:
            # First: what the steps hold is let go of whatever a handler of a signal raises.
            steps.close()
        finally:
            if woken is not None:
                # Who was refused, for another thread has the session, has never had it: it is for the other to be told.
                control.on_wake = around
