"""How interpreters are driven: what a guest is given, and which of its functions are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from stockade.execution import Call
from stockade.guests._turns import CalledTurns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.execution import OpenGuest
    from stockade.guests._task import Task
    from stockade.guests._tools import Toolbox
    from stockade.guests._turns import JobStreams, Turns
    from stockade.modules import Module
    from stockade.policy import Mount
    from stockade.report import Report
    from stockade.runner import RunCoroutine
    from stockade.sandbox import Sandbox

__all__ = ["CalledDriver", "CommandDriver", "Driver", "PlainDriver"]


class Driver(Protocol):
    """One kind of interpreter.

    Attributes:
        stack_bytes: The stack that it needs.
        has_base: Whether it begins with a snapshot, taken once it was made ready.
        has_files: Whether code in it can read and write files.
        waits: Whether it is a command that waits for its job on its standard input.
        calls_tools: Whether code in it can call tools.
        exchanges: Whether it does so by way of a file and its standard input.
        hints: What one that waits is given to read before its job, where there is time: what jobs need, it imports.
    """

    stack_bytes: int
    has_base: bool
    has_files: bool
    waits: bool
    calls_tools: bool
    exchanges: bool
    hints: Sequence[bytes]

    def mounts(self) -> Sequence[Mount]:
        """Returns the folders that it needs itself."""

    def lend(self, box: Sandbox, toolbox: Toolbox) -> None:
        """Lends what it imports."""

    def boot(self, guest: OpenGuest, module: Module, preload: str, paths: Sequence[str]) -> RunCoroutine[Report]:
        """Makes an interpreter ready for tasks, in steps."""

    def prepare(self, ask: Callable[[Sequence[str]], bytes | None], *, is_often: bool) -> None:
        """Makes ready, ahead of the next interpreter, what all of them are given that begin as their module does.

        Args:
            ask: Runs the interpreter with arguments, and returns what it has written to stdout; None where it fails.
            is_often: Whether many interpreters are to be expected.
        """

    def turns(self, guest: OpenGuest, module: Module, streams: JobStreams, answered: Callable[[], bool]) -> Turns:
        """Returns how it is given one task after another."""

    def arguments(self, task: Task) -> Sequence[str]:
        """Returns the guest's arguments."""

    def job(self, task: Task) -> bytes:
        """Returns what stands on its standard input before the task's own."""

    def start(self, guest: OpenGuest, module: Module, task: Task) -> RunCoroutine[Report]:
        """Lets a guest run a task, in steps."""


class PlainDriver:
    """What interpreters have in common that need nothing but themselves, and begin as their module does."""

    stack_bytes = 512 << 10
    has_base = False
    has_files = True
    waits = False
    calls_tools = False
    exchanges = False
    hints: Sequence[bytes] = ()

    def mounts(self) -> Sequence[Mount]:
        """Returns the folders that it needs itself."""
        return ()

    def lend(self, box: Sandbox, toolbox: Toolbox) -> None:
        """Lends what it imports."""

    def boot(self, guest: OpenGuest, module: Module, preload: str, paths: Sequence[str]) -> RunCoroutine[Report]:
        """Makes an interpreter ready for tasks, in steps: there is nothing to do before the first."""
        raise NotImplementedError

    def prepare(self, ask: Callable[[Sequence[str]], bytes | None], *, is_often: bool) -> None:
        """Makes ready, ahead of the next interpreter, what all of them are given."""


class CalledDriver(PlainDriver):
    """An interpreter that is called for each job. It begins where a snapshot was taken."""

    has_base = True
    calls_tools = True

    def arguments(self, task: Task) -> Sequence[str]:  # noqa: ARG002 - they are in the job
        """Returns the guest's arguments."""
        return ()

    def job(self, task: Task) -> bytes:  # noqa: ARG002 - it is given by calls
        """Returns what stands on its standard input before the task's own."""
        return b""

    def turns(self, guest: OpenGuest, module: Module, streams: JobStreams, answered: Callable[[], bool]) -> Turns:  # noqa: ARG002 - it has no need of them
        """Returns how it is given one task after another: by calls, so there is nothing on its standard input."""
        streams.end()
        return CalledTurns(guest, module, self)

    def start(self, guest: OpenGuest, module: Module, task: Task) -> RunCoroutine[Report]:
        """Lets a guest run a task, in steps."""
        raise NotImplementedError


class CommandDriver(PlainDriver):
    """An interpreter that is a command, and reads its job from its standard input."""

    waits = True
    calls_tools = True
    exchanges = True

    def start(self, guest: OpenGuest, module: Module, task: Task) -> RunCoroutine[Report]:  # noqa: ARG002 - it reads the task
        """Lets a guest run a task, in steps."""
        return guest.invoke(Call(module.command_entry), command=True)
