"""Runs in worker processes."""

from __future__ import annotations

import itertools
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING, Final, Self

import msgspec

from stockade.errors import IsolationError, UsageError
from stockade.host import MOST_TEXT_BYTES
from stockade.isolation._backend import check
from stockade.isolation._frames import MOST_DESCRIPTORS, Register, Request, sealed_file
from stockade.isolation._hub import hub, stale
from stockade.isolation._remote import RemoteRun
from stockade.runner import ASIDE, FOREVER, blamed, is_cancellation
from stockade.syscalls import calls_removed_by_user
from stockade.system import has_memory_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.execution import Isolation, Plan, PolicyContext, Streams
    from stockade.isolation._backend import Task
    from stockade.report import Report
    from stockade.runner import RunControl, RunCoroutine

__all__ = ["Workers", "workers"]

_MOST_MOUNTS: Final = MOST_DESCRIPTORS - 2
_MOST_WORD: Final = (1 << 64) - 1


class Workers:
    """Runs in worker processes, each in a fresh one."""

    name: Final[Isolation] = "process"

    def available(self) -> str:
        """Says why there are none on this system; "" where there are."""
        return _unavailable()

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

    def check(self) -> frozenset[str]:
        """Runs a command that does nothing; returns the walls that stood around it.

        Raises:
            IsolationError: It did not come to its end.
        """
        return check(self)

    def close(self) -> None:
        """Ends the fork server, and all workers; the next run makes another."""
        hub.end()


workers: Final = Workers()


def _unavailable() -> str:
    if sys.platform != "linux" or not has_memory_files() or not hasattr(os, "pidfd_open"):
        return "runs in a process of their own need Linux 5.4 or later"
    return ""


def _run(context: PolicyContext, control: RunControl, task: Task, tenant: str) -> RunCoroutine[Report]:
    _check(context, task)
    inputs = task.inputs
    request, stdin = _request(context, task)
    if not (yield from context.prepare(task.module, control, tenant)):
        return context.cancelled(task.module)
    plan = context.ready(task.module)
    streams: Streams | None = task.streams or (inputs.streams(control) if inputs.served else None)
    for function in plan.functions:
        if function.wants_call:
            raise IsolationError(
                f"{function.label} takes the call itself, and with it the guest's memory, which is in another process: "
                'let it take str, bytes and numbers, or use isolation="inprocess"'
            )
    if any(not function.is_awaited for function in plan.functions):
        control.calls_out = True
        yield ASIDE
    if streams is not None:
        request = msgspec.structs.replace(request, listens=streams.listening, asks=streams.stdin is not None)
        if streams.calls_out:
            control.calls_out = True
            yield ASIDE
    if not (yield from _place(control)):
        return context.cancelled(task.module)
    begun = time.perf_counter()
    worker = None
    try:
        with _Registration(context, plan) as registration:
            worker = hub.spawn(registration.key, registration.make, request, stdin, control.wake)
        if plan.functions:
            worker.most_bytes += MOST_TEXT_BYTES
        run = RemoteRun(plan, context.info, control, worker, streams, begun)
        return (yield from run.steps())
    except BaseException as problem:
        if is_cancellation(problem):
            raise blamed(problem, "a callback") from problem
        raise
    finally:
        if worker is not None:
            worker.close()
        hub.release()


def _place(control: RunControl) -> RunCoroutine[bool]:
    """Waits for a place for a worker; whether the run has got one, before it was cancelled."""
    wake = control.wake
    while not hub.acquire(wake):
        woken = False
        try:
            woken = yield from _until_woken(control, wake)
        finally:
            if not woken or control.cancelled:
                hub.leave(wake)
        if control.cancelled:
            return False
    return True


def _until_woken(control: RunControl, wake: Callable[[], object]) -> RunCoroutine[bool]:
    """Waits until it is somebody's turn, or its run is cancelled; whether it is the former."""
    while hub.is_waiting(wake):
        if control.cancelled:
            return False
        yield FOREVER
    return True


def _check(context: PolicyContext, task: Task) -> None:
    """Refuses what workers do not do yet."""
    reason = _unavailable()
    if reason:
        raise IsolationError(f'{reason}: use isolation="inprocess"')
    for asked, what in ((context.monitoring, "samples and alerts"), (context.trace, "a trace")):
        if asked:
            raise IsolationError(f'{what} are told of runs with isolation="inprocess" only, in this release')
    if task.saved is not None:
        raise IsolationError('snapshots run with isolation="inprocess" only, in this release')
    if context.policy.network.mode != "none":
        raise IsolationError('guests with a network run with isolation="inprocess" only, in this release')
    calls_removed_by_user()  # where that file is wrong, nothing runs
    if len(context.policy.filesystem.mounts) > _MOST_MOUNTS:
        raise IsolationError(f"a run in a process of its own has {_MOST_MOUNTS} mounts at most")


def _request(context: PolicyContext, task: Task) -> tuple[Request, bytes]:
    """What the worker is told, and the standard input; checked as for runs in this process."""
    from stockade.execution import environment

    inputs = task.inputs
    task.bind()
    env = context.variables(inputs)
    environment(env)
    if task.export is None:
        args: tuple[int | float | str | bytes, ...] = tuple(inputs.arguments())
    else:
        args = tuple(map(_argument, task.args))
    request = Request(export=task.export, args=args, returns=task.returns, env=dict(env))
    return request, inputs.input() if inputs.stdin else b""


def _argument(given: object) -> int | float | str | bytes:
    if isinstance(given, bytearray | memoryview):
        return bytes(given)
    if isinstance(given, int) and given > _MOST_WORD:
        # Only a vector is that large.
        return given.to_bytes(16, "little")
    if not isinstance(given, int | float | str | bytes):
        raise UsageError(f"an argument is {type(given).__name__}")
    return int(given) if isinstance(given, int) else given


_numbers = itertools.count(1)
_known: weakref.WeakKeyDictionary[PolicyContext, int] = weakref.WeakKeyDictionary()


class _Registration:
    """What the fork server has to know of a module under a policy; files that are made for that are closed after it."""

    def __init__(self, context: PolicyContext, plan: Plan) -> None:
        self._context = context
        self._plan = plan
        self._files: list[int] = []
        number = _known.get(context)
        if number is None:
            number = _known[context] = next(_numbers)
            # By a call that is whole, for it is made in the middle of anything; what is meant is done later.
            weakref.finalize(context, stale.append, number).atexit = False
        self.key = (number, plan.module.sha256)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._files:
            os.close(self._files.pop())

    def make(self, number: int) -> tuple[Register, Sequence[int]]:
        """Says what it has to know, and the descriptors that go with it."""
        plan, context = self._plan, self._context
        policy = context.policy
        mounts = tuple(msgspec.structs.replace(mount, host=mount.guest) for mount in policy.filesystem.mounts)
        # Where folders are, and what the host's environment is, is no concern of a worker's.
        policy = policy.replace(mounts=mounts, environment=type(policy.environment)())
        program = plan.program
        order = Register(
            program=number,
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
        )
        for content in (plan.module.data, program.compiled.to_bytes()):
            self._files.append(sealed_file(content))
        return order, (*self._files, *context.mounts.descriptors)
