"""Guests in worker processes: one for a run, or one for as long as a session is open."""

from __future__ import annotations

import itertools
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING, Final, Self

import msgspec

from stockade.errors import Cancelled, IsolationError, SnapshotError, UsageError
from stockade.execution import does_call_out, environment, with_guest
from stockade.host import MOST_TEXT_BYTES
from stockade.isolation._backend import check
from stockade.isolation._brief import run_briefly
from stockade.isolation._bubblewrap import missing_command
from stockade.isolation._frames import MOST_DESCRIPTORS, sealed_file
from stockade.isolation._hub import hub_of
from stockade.isolation._messages import Open, Register, Request, TraceTold
from stockade.isolation._remote import RemoteGuest, request_of
from stockade.isolation._remote_heard import START_SECONDS
from stockade.isolation._state import told_state
from stockade.runner import ASIDE, FOREVER
from stockade.syscalls import calls_removed_by_user
from stockade.system import has_memory_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.engine import SealedFile
    from stockade.execution import Call, Isolation, OpenGuest, Plan, PolicyContext, Streams
    from stockade.isolation._backend import Task
    from stockade.isolation._handle import WorkerHandle
    from stockade.isolation._hub import Hub
    from stockade.modules import Module
    from stockade.report import Report, Trace
    from stockade.runner import RunControl, RunCoroutine

__all__ = ["Workers", "in_bubblewrap", "workers"]

_MOST_MOUNTS: Final = MOST_DESCRIPTORS - 2

MOST_KEPT: Final = 64
"""Workers that can be had to wait for a module under a policy."""

_LARGE_BYTES: Final = 1 << 20
"""Modules from this size on take long to be made ready."""

_LOOK_SECONDS: Final = 0.05
"""How often it is looked whether a run has taken a worker that somebody waits for."""


class Workers:
    """Runs in worker processes, each in a fresh one.

    Args:
        name: What the isolation is called.
        missing: Says why there are none, where the system has what all workers need; "" where there are.
    """

    def __init__(self, name: Isolation, missing: Callable[[], str] = str) -> None:
        self._name = name
        self._missing = missing

    @property
    def name(self) -> Isolation:
        """What it is called."""
        return self._name

    def available(self) -> str:
        """Says why there are none on this system; "" where there are."""
        return _unavailable() or self._missing()

    def run(self, context: PolicyContext, control: RunControl, task: Task, tenant: str) -> RunCoroutine[Report]:
        """Does a run in a worker, in steps; see `Backend`.

        Args:
            context: The policy made ready.
            control: What tells it to stop.
            task: What is run.
            tenant: For whom.

        Raises:
            IsolationError: There is something to it that workers do not do yet, or there can be none.
            UsageError: What the guest is given does not fit.
        """
        return _run(context, control, task, tenant)

    def run_briefly(
        self, context: PolicyContext, plan: Plan, control: RunControl, call: Call, *, command: bool
    ) -> Report | None:
        """Makes a call of a guest that is given nothing, on this thread, in a worker that waits.

        Args:
            context: The policy made ready.
            plan: What was made of the module, whose runs need nothing set up.
            control: What tells it to stop.
            call: What is called, with numbers.
            command: Whether its result is an exit code.

        Returns:
            The report; None where no worker waits, or runs are given something or looked at: then nothing was begun.
        """
        number = _known.get(context)
        if number is None or context.monitoring is not None or context.provided.has_variables:
            return None
        return run_briefly((number, plan.module.sha256), context, plan, control, call, command=command)

    def open(
        self, context: PolicyContext, control: RunControl, task: Task, tenant: str, *, keeps: bool = True
    ) -> RunCoroutine[OpenGuest]:
        """Opens a guest in a worker, in steps; see `Backend`.

        Args:
            context: The policy made ready.
            control: Its control.
            task: What it is given, and begins with.
            tenant: For whom.
            keeps: Whether it lives on after one run, and snapshots are taken of it.

        Raises:
            IsolationError: There is something to it that workers do not do yet, or there can be none.
            UsageError: What the guest is given does not fit.
        """
        return _open(context, control, task, tenant, keeps=keeps)

    def keep_ahead(self, context: PolicyContext, module: Module, size: int) -> None:
        """Has so many workers wait for runs of a module, and waits until they are ready.

        Args:
            context: The policy made ready.
            module: The module.
            size: How many; 0 for as many as are made anyway.

        Raises:
            IsolationError: There can be no workers, or not so many.
            ModuleError: The module cannot be run.
            UsageError: That is too many.
        """
        if size > MOST_KEPT:
            raise UsageError(f"pool_size is {size:,}: at most {MOST_KEPT} workers wait for a module")
        _check(context)
        hub = hub_of(self._name)
        context.plan(module)
        with _Registration(context, context.ready(module)) as registration:
            made = hub.keep(registration, size)
        why = next(filter(None, (_why_not_ready(hub, worker) for worker in made)), None)
        if why is not None:
            hub.keep(registration, 0)
            raise IsolationError(
                f"no {size} workers can wait for {module.name} ({why}): see that this user may have more processes, "
                "and that there is memory for them"
            )

    def forget(self, context: PolicyContext) -> None:
        """Ends the workers that wait for runs under a policy.

        Args:
            context: The policy made ready.
        """
        number = _known.get(context)
        if number is not None:
            hub_of(self._name).forget(number)

    def check(self) -> frozenset[str]:
        """Runs a command that does nothing; returns the walls that stood around it.

        Raises:
            IsolationError: It did not come to its end.
        """
        return check(self)

    def close(self) -> None:
        """Ends the fork server, and all workers; the next run makes another."""
        hub_of(self._name).end()


workers: Final = Workers("process")
in_bubblewrap: Final = Workers("bubblewrap", missing_command)


def _unavailable() -> str:
    if sys.platform != "linux" or not has_memory_files() or not hasattr(os, "pidfd_open"):
        return "runs in a process of their own need Linux 5.4 or later"
    return ""


def _why_not_ready(hub: Hub, worker: WorkerHandle) -> str | None:
    """Waits until a worker waits; says why it does not, None where it does, or a run has taken it already."""
    until = time.monotonic() + START_SECONDS
    while not worker.wait(_LOOK_SECONDS) and hub.has_ahead(worker):
        if time.monotonic() >= until:
            return f"one was not ready within {START_SECONDS:g} s"
    if worker.refused:
        return f"the system's error {worker.refused}"
    return None if worker.status is None else f"one has ended, with {worker.status}"


def _run(context: PolicyContext, control: RunControl, task: Task, tenant: str) -> RunCoroutine[Report]:
    call = task.bind()
    is_command = task.export is None
    request = request_of(call, command=is_command, initializes=not is_command)
    guest = yield from _made(context, control, task, tenant, request, keeps=False)
    if guest is None:
        return context.cancelled(task.module)
    steps = guest.invoke(call, command=is_command, initializes=not is_command)
    return (yield from with_guest(guest, control, steps))


def _open(
    context: PolicyContext, control: RunControl, task: Task, tenant: str, *, keeps: bool
) -> RunCoroutine[OpenGuest]:
    guest = yield from _made(context, control, task, tenant, keeps=keeps)
    if guest is None:
        report = context.cancelled(task.module)
        raise Cancelled(f"{task.module.name}: {report.summary()}", report)
    try:
        yield from guest.opened()
    except BaseException:
        guest.close()
        raise
    return guest


def _made(
    context: PolicyContext,
    control: RunControl,
    task: Task,
    tenant: str,
    call: Request | None = None,
    *,
    keeps: bool,
) -> RunCoroutine[RemoteGuest | None]:
    """Has a worker made with a guest in it, which is not waited for; None where the run was cancelled before.

    Args:
        context: The policy made ready.
        control: What tells it to stop.
        task: What is run.
        tenant: For whom.
        call: What is called first, where that is known already.
        keeps: Whether its guest is called any number of times.
    """
    _check(context)
    inputs = task.inputs
    given, stdin, files = _given(context, task, call)
    if not (yield from context.prepare(task.module, control, tenant)):
        return None
    plan = context.ready(task.module)
    streams: Streams | None = task.streams or (inputs.streams(control) if inputs.served else None)
    if context.gates is not None:
        context.gates.begin(control, streams)
    if streams is not None:
        given = msgspec.structs.replace(given, listens=streams.listening, asks=streams.stdin is not None)
    if does_call_out(plan, streams, context.monitoring):
        # Before there is a worker, which calls functions as soon as it can.
        control.calls_out = True
        yield ASIDE
    hub = hub_of(context.isolation)
    if control.cancelled or not (yield from _place(hub, control)):
        return None
    begun = time.perf_counter()
    worker = guest = None
    try:
        whole = given, stdin, files or ()
        with _Registration(context, plan) as registration:
            worker = hub.spawn(registration, whole, control.wake, keeps=keeps)
        if plan.functions:
            worker.most_bytes += MOST_TEXT_BYTES
        guest = RemoteGuest(
            plan, context.info, context.isolation, control, worker, streams, files, begun, context.client, keeps=keeps
        )
        if call is not None:
            guest.was_told(call, at_once=given.gives_nothing and not stdin)
        if context.monitoring is not None:
            guest.watch(context.monitoring)
    finally:
        # Else whoever drops the guest gives the place back.
        if guest is None:
            if worker is not None:
                worker.close()
            hub.release()
    return guest


def _place(hub: Hub, control: RunControl) -> RunCoroutine[bool]:
    """Waits for a place for a worker; whether the run has got one, before it was cancelled."""
    wake = control.wake
    while not hub.acquire(wake):
        woken = False
        try:
            woken = yield from _until_woken(hub, control, wake)
        finally:
            if not woken or control.cancelled:
                hub.leave(wake)
        if control.cancelled:
            return False
    return True


def _until_woken(hub: Hub, control: RunControl, wake: Callable[[], object]) -> RunCoroutine[bool]:
    """Waits until it is somebody's turn, or its run is cancelled; whether it is the former."""
    while hub.is_waiting(wake):
        if control.cancelled:
            return False
        yield FOREVER
    return True


def _check(context: PolicyContext) -> None:
    """Refuses what workers do not do yet."""
    reason = (in_bubblewrap if context.isolation == "bubblewrap" else workers).available()
    if reason:
        raise IsolationError(f'{reason}: use isolation="inprocess"')
    calls_removed_by_user()  # where that file is wrong, nothing runs
    if len(context.policy.filesystem.mounts) > _MOST_MOUNTS:
        raise IsolationError(f"a run in a process of its own has {_MOST_MOUNTS} mounts at most")


def _given(context: PolicyContext, task: Task, call: Request | None) -> tuple[Open, bytes, Sequence[SealedFile] | None]:
    """What the guest is given, its standard input, and the files of what it begins with; checked as in this process."""
    inputs, saved = task.inputs, task.saved
    env = environment(context.provided.variables(inputs))
    told = files = None
    if saved is not None:
        told, files = told_state(saved.state.instance, started=saved.state.started)
        for file in files:
            file.settle()
        if len(files) >= MOST_DESCRIPTORS:
            raise SnapshotError(
                f"the snapshot is in {len(files):,} files, one for each fork that it comes from, and a worker takes "
                f"{MOST_DESCRIPTORS - 1:,}: save it, and load it again"
            )
    watched = context.monitoring is not None
    given = Open(args=tuple(inputs.arguments()), env=env, watched=watched, saved=told, call=call)
    return given, context.provided.input(inputs), files


def _trace_told(trace: Trace | None) -> TraceTold | None:
    if trace is None:
        return None
    return TraceTold(tuple(trace.calls), trace.string_bytes, trace.durations, trace.on_overflow)


_numbers = itertools.count(1)
_known: weakref.WeakKeyDictionary[PolicyContext, int] = weakref.WeakKeyDictionary()


class _Registration:
    """What a template has to know of a module under a policy; files that are made for that are closed after it.

    Attributes:
        key: By which it is known that it knows it.
        code: The machine code: what its template has of that is not sent again.
        is_large: Whether to make it ready takes longer than many runs.
    """

    def __init__(self, context: PolicyContext, plan: Plan) -> None:
        self._context = context
        self._plan = plan
        self._files: list[int] = []
        number = _known.get(context)
        if number is None:
            number = _known[context] = next(_numbers)
            # By a call that is whole, for it is made in the middle of anything; what is meant is done later.
            weakref.finalize(context, hub_of(context.isolation).stale.append, number).atexit = False
        self.key = (number, plan.module.sha256)
        self.code = plan.program.compiled
        self.is_large = len(plan.module.data) > _LARGE_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._files:
            os.close(self._files.pop())

    def make(self, number: int, like: int | None) -> tuple[Register, Sequence[int]]:
        """Says what it has to know, and the descriptors that go with it.

        Args:
            number: The number by which the host calls it from now on.
            like: The number of the same module and machine code under another policy; None where it knows none.
        """
        plan, context = self._plan, self._context
        policy = context.policy
        mounts = tuple(msgspec.structs.replace(mount, host=mount.guest) for mount in policy.filesystem.mounts)
        # Where folders are, and what the host's environment is, is no concern of a worker's. What leaves
        # it is looked at by the host. And it is where it has to be.
        policy = policy.replace(
            mounts=mounts,
            environment=type(policy.environment)(),
            gate=type(policy.gate)(),
            isolation="inprocess",
        )
        program = plan.program
        order = Register(
            program=number,
            like=like,
            name=plan.module.name,
            sha256=plan.module.sha256,
            policy=policy,
            config=dict(program.compiled.engine.config._asdict()),
            woven=program.woven,
            figures=program.figures,
            features=policy.features,
            units=plan.fuel_most,
            functions=tuple(function.signature for function in plan.functions),
            removed=tuple(sorted(calls_removed_by_user())),
            trace=_trace_told(plan.trace),
        )
        if like is None:
            for content in (plan.module.data, program.compiled.to_bytes()):
                self._files.append(sealed_file(content))
        return order, (*self._files, *context.mounts.descriptors)
