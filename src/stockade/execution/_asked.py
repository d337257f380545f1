"""Calls of coroutine functions of the embedder's, and how these have exports of their guest called meanwhile."""

from __future__ import annotations

import weakref
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING

from stockade.errors import UsageError
from stockade.execution._values import bind_arguments
from stockade.runner import AwaitedCall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.execution._string_calls import Returns
    from stockade.execution._values import Argument, Call
    from stockade.host import HostCall
    from stockade.modules import Module
    from stockade.report import Report, Value

__all__ = ["ask", "awaited_call", "awaited_of"]

_around: ContextVar[tuple[weakref.ref[object], AwaitedCall] | None] = ContextVar("_around", default=None)
"""The call of a coroutine host function in whose context this is, and the guest that has made it."""


async def ask(awaited: AwaitedCall, wake: Callable[[], object], call: Call) -> Report:
    """Has an export called, within a coroutine host function. What waits for that keeps no guest.

    Args:
        awaited: The call of the host function.
        wake: Has the steps of the guest look at it.
        call: The call of the export.

    Raises:
        UsageError: The call of the host function is over.
    """
    from stockade.execution.loop_calls import AskedCall

    if awaited.is_over() or awaited.is_stopped():
        raise UsageError("the call of the host function is over, and its guest is not halted in it any more")
    return await AskedCall(call, wake).report(awaited.asked)


async def _call_back(
    module: Module,
    awaited: AwaitedCall,
    wake: Callable[[], object],
    export: str,
    args: Sequence[Argument],
    returns: Returns | None,
) -> Value:
    report = await ask(awaited, wake, bind_arguments(module, export, args, returns))
    return report.check().value


def awaited_call(
    function: Callable[..., object],
    given: Sequence[object],
    guest: object,
    module: Module,
    wake: Callable[[], object],
    call: HostCall,
) -> AwaitedCall:
    """Returns the call of a coroutine host function, which nobody has begun yet.

    Args:
        function: The function.
        given: What it is called with.
        guest: The guest that calls it.
        module: The guest's module.
        wake: Has the steps of the guest look at what it has come to.
        call: The call, as the function may see it.
    """
    context = copy_context()
    awaited = AwaitedCall(function, given, context, wake)
    context.run(_around.set, (weakref.ref(guest), awaited))
    call.asks(partial(_call_back, module, awaited, wake))
    return awaited


def awaited_of(guest: object) -> AwaitedCall | None:
    """Returns the call of a coroutine host function in whose context this is, if the guest has made it.

    Args:
        guest: The guest.
    """
    found = _around.get()
    return None if found is None or found[0]() is not guest else found[1]
