"""Runs that are given nothing, where a worker waits for one: most are over within a moment, and nobody takes steps.

The thread that asks for the run tells the worker itself, and waits for its answer itself. What is not needed to tell it
is done after that, while it works, or not at all. A run that is not over within a moment, or of which there is more
to be told, goes on in steps, as every other run in a worker does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from stockade.execution import with_guest
from stockade.isolation._frames import Garbled, Gone, packed
from stockade.isolation._hub import hub_of
from stockade.isolation._messages import Open, Ready, Request, Returned
from stockade.isolation._remote import RemoteGuest, request_of
from stockade.isolation._remote_told import OUTPUT_BYTES, let_go
from stockade.isolation._sound import most_output_bytes, returned_report
from stockade.report import Timings
from stockade.runner import run_blocking

if TYPE_CHECKING:
    from stockade.execution import Call, Plan, PolicyContext
    from stockade.isolation._handle import WorkerHandle
    from stockade.modules import Entry
    from stockade.report import Report
    from stockade.runner import RunControl

__all__ = ["run_briefly"]

_MOST_ORDERS: Final = 64
"""Orders that are kept, for what is called again and again."""

_orders: dict[tuple[Entry, bool], tuple[Request, bytes]] = {}


def _order_of(call: Call, *, command: bool) -> tuple[Request, bytes]:
    """Returns what a worker is told to call, and the message that says so."""
    key = call.entry, command
    # By numbers nothing is found again: there are two zeros, which are equal.
    found = None if call.numbers else _orders.get(key)
    if found is None:
        request = request_of(call, command=command, initializes=not command)
        found = request, b"".join(packed(Open(call=request)))
        if not call.numbers:
            if len(_orders) >= _MOST_ORDERS:
                _orders.clear()
            _orders[key] = found
    return found


def run_briefly(
    key: tuple[int, str], context: PolicyContext, plan: Plan, control: RunControl, call: Call, *, command: bool
) -> Report | None:
    """Makes a call in a worker that waits, on this thread.

    Args:
        key: By which the fork server knows what is to run.
        context: The policy made ready.
        plan: What was made of the module, whose runs need nothing set up.
        control: What tells it to stop.
        call: What is called, with numbers.
        command: Whether its result is an exit code.

    Returns:
        The report; None where no worker waits, or none can be told: then nothing was begun.
    """
    begun = time.perf_counter()
    request, told = _order_of(call, command=command)
    # Whatever the handler of a signal raises, the worker that was taken is in here, or there is none.
    taken: list[WorkerHandle] = []
    try:
        if not hub_of(context.isolation).tell_waiting(key, told, control.wake, taken):
            return None
        asked_at = time.monotonic()
        (worker,) = taken
        if context.gates is not None:
            context.gates.begin(control, None)
        ready_at, report = _heard(worker, context, plan, control, call, begun, asked_at)
        if report is not None:
            return report if control.gate is None else control.gate.release(report)
        given = context.info, context.isolation, control, worker, None, None, begun, context.client
        guest = RemoteGuest(plan, *given, keeps=False)
        # From now on it is let go of with that.
        taken.clear()
    finally:
        while taken:
            let_go(taken.pop())
    guest.was_told(request, at_once=True, asked_at=asked_at, ready_at=ready_at)
    steps = guest.invoke(call, command=command, initializes=not command)
    return run_blocking(with_guest(guest, control, steps), control)


def _heard(
    worker: WorkerHandle,
    context: PolicyContext,
    plan: Plan,
    control: RunControl,
    call: Call,
    begun: float,
    asked_at: float,
) -> tuple[float | None, Report | None]:
    """Waits for the answer of a worker.

    Args:
        worker: The worker, which has been told what to call.
        context: The policy made ready.
        plan: What runs.
        control: What tells it to stop.
        call: What is called.
        begun: When it was asked for, by `time.perf_counter`.
        asked_at: When the worker was told, by `time.monotonic`.

    Returns:
        When it was first heard that it has begun, None where it was not; and the report. That is None where it is not
        over within a moment, or there is more to be told, or less that makes sense: then all of it is heard again.
    """
    most_blob = max(most_output_bytes(plan), OUTPUT_BYTES)
    try:
        found = worker.receive_soon(most_blob)
        if found is None:
            return None, None
        message, blob, _ = found
        if type(message) is not Ready or blob:
            worker.put_back(found)
            return None, None
        ready_at, ready = time.monotonic(), found
        control.walls = message.walls
        found = worker.receive_soon(most_blob)
        worker.put_back(ready)
        if found is None:
            return ready_at, None
        worker.put_back(found)
    except (Garbled, Gone) as problem:
        worker.put_back(problem)
        return None, None
    message, blob, _ = found
    if type(message) is not Returned:
        return ready_at, None
    total, wall = time.perf_counter() - begun, message.wall_seconds
    run = min(wall, total)
    timings = Timings(instantiate=total - run, run=run, total=total, cache_hit=True)
    seconds = time.monotonic() - asked_at
    try:
        report = returned_report(message, blob, call, plan, context.info, context.isolation, seconds, timings)
    except Garbled:
        return ready_at, None
    if report.fuel is not None:
        plan.history.append((report.fuel.consumed, report.fuel.seconds))
    return ready_at, report
