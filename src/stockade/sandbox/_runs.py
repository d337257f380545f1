"""What is done in a run, in steps: load, compile, instantiate, call."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

from stockade.errors import Cancelled
from stockade.execution import NO_INPUTS, Call, Inputs, bind_arguments, with_guest
from stockade.isolation import Task, backend, workers_of
from stockade.modules import Module
from stockade.runner import run_blocking
from stockade.sandbox._snapshot import load_source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.execution import Argument, Guest, OpenGuest, PolicyContext, Returns, SavedGuest, Streams
    from stockade.modules import Source
    from stockade.report import Report
    from stockade.runner import RunControl, RunCoroutine
    from stockade.sandbox._snapshot import Snapshot

__all__ = [
    "Program",
    "attempt_call",
    "attempt_run",
    "call_here",
    "call_steps",
    "drive_steps",
    "open_here",
    "open_steps",
    "prepare_steps",
    "run_here",
    "run_steps",
]

_Result = TypeVar("_Result")

Program: TypeAlias = "Callable[[OpenGuest], RunCoroutine[_Result]]"
"""What is done with a guest, in steps: calls of its functions, and what is written to its memory between them."""


def run_here(control: RunControl, context: PolicyContext, module: Source | Snapshot, inputs: Inputs) -> Report:
    """Runs a WASI command on this thread.

    Args:
        control: What tells it to stop.
        context: The policy made ready.
        module: The module.
        inputs: What the guest is given.
    """
    loaded, saved = (module, None) if isinstance(module, Module) else load_source(context, module)
    plan = context.find(loaded)
    if plan is None or plan.command is None or not plan.is_plain or (inputs is not NO_INPUTS and inputs.served):
        apart = context.find_apart(loaded) if plan is None and inputs is NO_INPUTS and saved is None else None
        if apart is not None and apart.command is not None:
            report = workers_of(context.isolation).run_briefly(context, apart, control, apart.command, command=True)
            if report is not None:
                return report
        return run_blocking(run_steps(context, control, module, inputs), control)
    if inputs is NO_INPUTS and saved is None:
        guest = context.bare_guest(plan, control)
    else:
        guest = context.guest(loaded, control, inputs, None, saved)
    return _here(guest, control, plan.command, command=True)


def call_here(
    control: RunControl,
    context: PolicyContext,
    module: Source | Snapshot,
    export: str,
    args: Sequence[Argument],
    returns: Returns | None,
) -> Report:
    """Calls an export on this thread; a reactor is initialized first.

    Args:
        control: What tells it to stop.
        context: The policy made ready.
        module: The module.
        export: The function.
        args: What it is passed.
        returns: What its result is read as.
    """
    loaded, saved = (module, None) if isinstance(module, Module) else load_source(context, module)
    plan = context.find(loaded)
    if plan is None or not plan.is_plain or loaded.initializer is not None:
        apart = context.find_apart(loaded) if plan is None and saved is None else None
        if apart is not None and loaded.initializer is None:
            call = bind_arguments(loaded, export, args, returns)
            if call.exchange is None:
                report = workers_of(context.isolation).run_briefly(context, apart, control, call, command=False)
                if report is not None:
                    return report
        return run_blocking(call_steps(context, control, module, export, args, returns), control)
    call = bind_arguments(loaded, export, args, returns)
    guest = context.bare_guest(plan, control) if saved is None else context.guest(loaded, control, saved=saved)
    return _here(guest, control, call, command=False)


def _here(guest: Guest, control: RunControl, call: Call, *, command: bool) -> Report:
    """Makes a call on this thread, and frees the guest after it: without steps, where it is over before it halts."""
    try:
        control.progress = guest.progress
        report = guest.attempt(call, command=command)
        if report is None:
            report = run_blocking(guest.invoke(call, command=command, attempted=True), control)
        return report
    finally:
        control.progress = None
        guest.close()


def attempt_run(
    control: RunControl, context: PolicyContext, module: Source | Snapshot
) -> Report | RunCoroutine[Report] | None:
    """Begins a WASI command on this thread, which is given nothing.

    Args:
        control: What tells it to stop.
        context: The policy made ready.
        module: The module.

    Returns:
        The report; steps that do the rest where the guest has halted; None where nothing was begun, as it may take long
    """
    plan = context.find_brief(module)
    if plan is None or plan.command is None:
        return None
    return _attempt(context.bare_guest(plan, control), control, plan.command, command=True)


def attempt_call(
    control: RunControl,
    context: PolicyContext,
    module: Source | Snapshot,
    export: str,
    args: Sequence[Argument],
    returns: Returns | None,
) -> Report | RunCoroutine[Report] | None:
    """Begins a call of an export on this thread, as `attempt_run` does.

    Args:
        control: What tells it to stop.
        context: The policy made ready.
        module: The module.
        export: The function.
        args: What it is passed.
        returns: What its result is read as.
    """
    plan = context.find_brief(module)
    if plan is None or plan.module.initializer is not None:
        return None
    call = bind_arguments(plan.module, export, args, returns)
    return _attempt(context.bare_guest(plan, control), control, call, command=False)


def _attempt(guest: Guest, control: RunControl, call: Call, *, command: bool) -> Report | RunCoroutine[Report]:
    """Lets a guest run on this thread until it halts; then somebody else takes its steps."""
    control.progress = guest.progress
    halted = False
    try:
        report = guest.attempt(call, command=command)
        halted = report is None
    finally:
        if not halted:
            control.progress = None
            guest.close()
    return report or with_guest(guest, control, guest.invoke(call, command=command, attempted=True))


def prepare_steps(
    context: PolicyContext, control: RunControl, module: Source | Snapshot, tenant: str
) -> RunCoroutine[tuple[Module, SavedGuest | None]]:
    """Loads and compiles a module.

    Args:
        context: The policy made ready.
        control: What tells it to stop.
        module: The module.
        tenant: For whom.

    Returns:
        The module; and what its guests begin with, where it is a snapshot's.

    Raises:
        Cancelled: It was told to stop.
    """
    loaded, saved = load_source(context, module)
    if not (yield from context.prepare(loaded, control, tenant)):
        report = context.cancelled(loaded)
        raise Cancelled(f"{loaded.name}: {report.summary()}", report)
    return loaded, saved


def open_here(
    context: PolicyContext,
    control: RunControl,
    module: Module,
    inputs: Inputs,
    streams: Streams | None = None,
    saved: SavedGuest | None = None,
) -> OpenGuest:
    """Opens a guest, and waits for it on this thread.

    Args:
        context: The policy made ready.
        control: Its control.
        module: The module.
        inputs: What the guest is given.
        streams: What serves its output and input in the place of the callbacks among its inputs.
        saved: What it begins with, where that is not what the module begins with.
    """
    if context.isolation == "inprocess":
        return context.guest(module, control, inputs, streams, saved)
    return run_blocking(open_steps(context, control, module, inputs, streams, saved), control)


def open_steps(
    context: PolicyContext,
    control: RunControl,
    module: Module,
    inputs: Inputs,
    streams: Streams | None = None,
    saved: SavedGuest | None = None,
    tenant: str = "",
) -> RunCoroutine[OpenGuest]:
    """Opens a guest, in steps; so are the arguments, and for whom it is.

    Args:
        context: The policy made ready.
        control: Its control.
        module: The module.
        inputs: What the guest is given.
        streams: What serves its output and input in the place of the callbacks among its inputs.
        saved: What it begins with, where that is not what the module begins with.
        tenant: For whom.
    """
    task = Task(module, inputs, streams, saved=saved)
    return backend(context.isolation).open(context, control, task, tenant)


def run_steps(
    context: PolicyContext,
    control: RunControl,
    module: Source | Snapshot,
    inputs: Inputs,
    streams: Streams | None = None,
    tenant: str = "",
) -> RunCoroutine[Report]:
    """Runs a WASI command.

    Args:
        context: The policy made ready.
        control: What tells it to stop.
        module: The module.
        inputs: What the guest is given.
        streams: What serves its output and input in the place of the callbacks among its inputs.
        tenant: For whom.
    """
    loaded, saved = load_source(context, module)
    if saved is None and streams is None and (parked := context.parked(loaded, inputs)) is not None:
        return (yield from with_guest(parked.guest, control, parked.resume(control, inputs.input())))
    task = Task(loaded, inputs, streams, saved=saved)
    return (yield from backend(context.isolation).run(context, control, task, tenant))


def call_steps(
    context: PolicyContext,
    control: RunControl,
    module: Source | Snapshot,
    export: str,
    args: Sequence[Argument],
    returns: Returns | None = None,
    tenant: str = "",
    inputs: Inputs = NO_INPUTS,
    streams: Streams | None = None,
) -> RunCoroutine[Report]:
    """Calls an export; a reactor is initialized first.

    Args:
        context: The policy made ready.
        control: What tells it to stop.
        module: The module.
        export: The function.
        args: What it is passed.
        returns: What its result is read as.
        tenant: For whom.
        inputs: What the guest is given.
        streams: What serves its output and input in the place of the callbacks among its inputs.
    """
    loaded, saved = load_source(context, module)
    loaded.function_entry(export)  # None would be taken for a command
    task = Task(loaded, inputs, streams, export, args, returns, saved)
    return (yield from backend(context.isolation).run(context, control, task, tenant))


def drive_steps(
    context: PolicyContext,
    control: RunControl,
    module: Source | Snapshot,
    program: Program[_Result],
    inputs: Inputs,
    streams: Streams | None = None,
    tenant: str = "",
) -> RunCoroutine[_Result]:
    """Does with a guest what a program says.

    Args:
        context: The policy made ready.
        control: What tells it to stop.
        module: The module.
        program: What is done.
        inputs: What the guest is given.
        streams: What serves its output and input in the place of the callbacks among its inputs.
        tenant: For whom.

    Raises:
        Cancelled: It was told to stop before there was a guest.
    """
    loaded, held = yield from prepare_steps(context, control, module, tenant)
    task = Task(loaded, inputs, streams, saved=held)
    guest = yield from backend(context.isolation).open(context, control, task, tenant, keeps=False)
    return (yield from with_guest(guest, control, program(guest)))
