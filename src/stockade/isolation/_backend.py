"""Where runs happen: backends behind one small interface."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from stockade._text import printable
from stockade.errors import Cancelled, IsolationError, UsageError
from stockade.execution import (
    NO_INPUTS,
    Call,
    Inputs,
    PolicyContext,
    bind_arguments,
    initialized,
    with_guest,
)
from stockade.runner import RunControl, run_blocking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.execution import Argument, Isolation, OpenGuest, Returns, SavedGuest, Streams
    from stockade.isolation._process import Workers
    from stockade.modules import Module
    from stockade.report import Report
    from stockade.runner import RunCoroutine

__all__ = ["BACKENDS", "Backend", "InProcess", "Task", "at_least", "backend", "best", "check", "strength", "workers_of"]

_TINY: Final = b"\0asm\1\0\0\0\1\4\1`\0\0\3\2\1\0\7\n\1\6_start\0\0\n\4\1\2\0\x0b"
"""A command that does nothing."""


class Task(NamedTuple):
    """A run.

    Attributes:
        module: The module.
        inputs: What the guest is given.
        streams: What serves its output and input in the place of the callbacks among its inputs.
        export: The function that is called; None for a command.
        args: What it is passed.
        returns: What its result is read as.
        saved: What its guest begins with, where that is not what the module begins with.
    """

    module: Module
    inputs: Inputs = NO_INPUTS
    streams: Streams | None = None
    export: str | None = None
    args: Sequence[Argument] = ()
    returns: Returns | None = None
    saved: SavedGuest | None = None

    def bind(self) -> Call:
        """Returns what is called.

        Raises:
            LinkError: There is no such function, or nothing to run.
            UsageError: The arguments do not fit.
        """
        if self.export is None:
            return Call(self.module.command_entry)
        return bind_arguments(self.module, self.export, self.args, self.returns)


class Backend(Protocol):
    """Where runs happen. Any thread may use it, and in any state: what it needs, it makes; closing twice is harmless.

    Attributes:
        name: What policies and sandboxes call it.
    """

    @property
    def name(self) -> Isolation:
        """What it is called."""

    def available(self) -> str:
        """Says why there is none on this system; "" where there is."""

    def run(self, context: PolicyContext, control: RunControl, task: Task, tenant: str) -> RunCoroutine[Report]:
        """Does a run, in steps.

        Args:
            context: The policy made ready.
            control: What tells it to stop.
            task: What is run.
            tenant: For whom.
        """

    def open(
        self, context: PolicyContext, control: RunControl, task: Task, tenant: str, *, keeps: bool = True
    ) -> RunCoroutine[OpenGuest]:
        """Opens a guest, to be called any number of times, in steps. Whoever asks closes it.

        Args:
            context: The policy made ready.
            control: Its control.
            task: What it is given, and begins with; which function is called does not matter.
            tenant: For whom.
            keeps: Whether it lives on after one run, and snapshots are taken of it.

        Raises:
            Cancelled: It was told to stop before.
        """

    def check(self) -> frozenset[str]:
        """Runs a command that does nothing.

        Returns:
            The walls that stood around it, as it has found out itself.

        Raises:
            IsolationError: It did not come to its end.
        """

    def close(self) -> None:
        """Ends what it has made, and the runs that are under way in it. The next run makes it anew."""


class InProcess:
    """Runs in this process."""

    name: Final[Isolation] = "inprocess"

    def available(self) -> str:
        """Says why there is none on this system: there always is."""
        return ""

    def run(self, context: PolicyContext, control: RunControl, task: Task, tenant: str) -> RunCoroutine[Report]:
        """Does a run, in steps; see `Backend`.

        Args:
            context: The policy made ready.
            control: What tells it to stop.
            task: What is run.
            tenant: For whom.
        """
        module, export, call = task.module, task.export, task.bind()
        if not (yield from context.prepare(module, control, tenant)):
            return context.cancelled(module)
        guest = context.guest(module, control, task.inputs, task.streams, task.saved)
        steps = guest.invoke(call, command=True) if export is None else initialized(module, guest, call)
        return (yield from with_guest(guest, control, steps))

    def open(
        self,
        context: PolicyContext,
        control: RunControl,
        task: Task,
        tenant: str,
        *,
        keeps: bool = True,
    ) -> RunCoroutine[OpenGuest]:
        """Opens a guest, in steps; see `Backend`.

        Args:
            context: The policy made ready.
            control: Its control.
            task: What it is given, and begins with.
            tenant: For whom.
            keeps: Whether it lives on after one run.

        Raises:
            Cancelled: It was told to stop before.
        """
        if not (yield from context.prepare(task.module, control, tenant)):
            report = context.cancelled(task.module)
            raise Cancelled(f"{task.module.name}: {report.summary()}", report)
        guest = context.guest(task.module, control, task.inputs, task.streams, task.saved)
        if not keeps and task.saved is not None:
            guest.begin_with(task.saved.pages)
        return guest

    def check(self) -> frozenset[str]:
        """Runs a command that does nothing; no walls stand around it."""
        return check(self)

    def close(self) -> None:
        """Ends nothing: there is nothing to be ended."""


def check(backend: Backend) -> frozenset[str]:
    """Runs a command that does nothing.

    Args:
        backend: Where.

    Returns:
        The walls that stood around it.

    Raises:
        IsolationError: It did not come to its end.
    """
    from stockade.host import HostFunctions
    from stockade.modules import Module
    from stockade.policy import Policy

    context = PolicyContext(Policy.preset("strict"), HostFunctions(), isolation=backend.name)
    control = RunControl()
    report = run_blocking(backend.run(context, control, Task(Module.load(_TINY)), ""), control)
    if not report.ok:
        raise IsolationError(f'isolation "{backend.name}" does not work here: {report.summary()}')
    return frozenset(control.walls)


@cache
def workers_of(name: Isolation) -> Workers:
    """Returns the backend of an isolation that has workers.

    Args:
        name: What it is called.
    """
    # Most programs have no use for it, and it loads what speaks with other processes.
    from stockade.isolation._process import in_bubblewrap, workers

    return in_bubblewrap if name == "bubblewrap" else workers


BACKENDS: Final[tuple[Isolation, ...]] = ("inprocess", "process", "bubblewrap")
"""The names of all there are: the weakest first, and of those that are equal the simplest."""

MOST_STRENGTH: Final = 20
"""What all walls give together."""

_in_process = InProcess()


def backend(name: Isolation) -> Backend:
    """Returns a backend.

    Args:
        name: What it is called.

    Raises:
        IsolationError: There is none of that name.
    """
    if name not in BACKENDS:
        raise IsolationError(
            f'there is no isolation {printable(str(name))}: use "inprocess", "process" or "bubblewrap"'
        )
    return _in_process if name == "inprocess" else workers_of(name)


def strength(found: Backend) -> int:
    """Returns what a backend gives to the score of any policy, from 0 to 20: for the walls that were found to stand.

    Args:
        found: The backend; it runs a command to find out.

    Raises:
        IsolationError: It does not work here.
    """
    from stockade.policy import Policy

    reasons = Policy().score(found.name, found.check()).reasons
    return next(reason.points for reason in reasons if reason.control == "process")


def at_least(least: int) -> Backend:
    """Returns the weakest backend that is as strong as that.

    Args:
        least: What it is to give to a score, from 0 to 20.

    Raises:
        IsolationError: There is none here.
        UsageError: It is no number.
    """
    if isinstance(least, bool) or not isinstance(least, int | float):
        raise UsageError(
            f"least is {printable(repr(least))}: it must be a number from 0 to 20, and backend() takes a name"
        )
    told = []
    for name in BACKENDS:
        found = backend(name)
        try:
            reason = found.available()
            if not reason:
                given = strength(found)
                if given >= least:
                    return found
                reason = f"gives {given}"
        except IsolationError as problem:
            reason = str(problem)
        told.append(f"{name}: {reason}")
    raise IsolationError(
        f"no isolation of strength {least} is available here ({'; '.join(told)}): stockade doctor tells what to change"
    )


def best() -> Backend:
    """Returns the strongest backend that works here; of those that are equal the simplest."""
    found: Backend = _in_process
    most = 0
    for name in BACKENDS[1:]:
        other = backend(name)
        try:
            given = 0 if other.available() or most == MOST_STRENGTH else strength(other)
        except IsolationError:
            continue
        if given > most:
            found, most = other, given
    return found
