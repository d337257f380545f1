"""How interpreters are driven: what a guest is given, and which of its functions are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from stockade.execution import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.execution import Guest
    from stockade.guests._task import Task
    from stockade.modules import Module
    from stockade.report import Report
    from stockade.runner import RunCoroutine

__all__ = ["CommandDriver", "Driver"]


class Driver(Protocol):
    """One kind of interpreter.

    Attributes:
        stack_bytes: The stack that it needs.
    """

    stack_bytes: int

    def arguments(self, task: Task) -> Sequence[str]:
        """Returns the guest's arguments."""

    def job(self, task: Task) -> bytes:
        """Returns what stands on its standard input before the task's own."""

    def start(self, guest: Guest, module: Module, task: Task) -> RunCoroutine[Report]:
        """Lets a guest run a task, in steps."""


class CommandDriver:
    """An interpreter that is a command, and reads its job from its standard input."""

    stack_bytes = 512 << 10

    def start(self, guest: Guest, module: Module, task: Task) -> RunCoroutine[Report]:  # noqa: ARG002 - it reads the task
        """Lets a guest run a task, in steps."""
        return guest.invoke(Call(module.command_entry), command=True)
