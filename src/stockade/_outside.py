"""Calls of the embedder's functions: which threads are in one, and how what they raise keeps nobody alive."""

from __future__ import annotations

from collections.abc import Coroutine
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = ["await_outside", "call_outside", "outside"]

_Result = TypeVar("_Result")

outside: set[int] = set()
"""The numbers of threads that are in one: how long they stay there is not for us to say. Each thread adds and removes
its own, in calls that are whole, so that it needs no lock."""


class _Call(Generic[_Result]):
    """A call, and what has become of it."""

    __slots__ = ("arguments", "function", "problem", "result")

    result: _Result

    def __init__(self, function: Callable[..., _Result], arguments: tuple[object, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.problem: BaseException | None = None


def _make_calls() -> Generator[None, _Call[Any], NoReturn]:
    """Makes one call after the other."""
    while True:
        call = yield
        try:
            call.result = call.function(*call.arguments)
        except BaseException as problem:
            call.problem = problem
        # While it is halted, it holds nothing.
        del call


_callers: list[Generator[None, _Call[Any], NoReturn]] = []
"""Those that are halted."""


def call_outside(function: Callable[..., _Result], *arguments: object) -> _Result:
    """Calls a function of the embedder.

    An exception that it raises may be kept. It knows the function's frame, and that frame who called it, and so on up
    to the embedder's own, each with all that it holds: a guest, and the report that the exception is kept in. So a
    generator makes the call: as soon as it has halted, its frame was called by nobody.

    Args:
        function: The function.
        *arguments: What it is given.
    """
    me = get_ident()
    # It may run another guest here, which calls another function.
    within = me in outside
    call = _Call(function, arguments)
    outside.add(me)
    try:
        try:
            caller = _callers.pop()
        except IndexError:
            caller = _make_calls()
            next(caller)
        caller.send(call)
        _callers.append(caller)
    finally:
        if not within:
            outside.discard(me)
    if call.problem is None:
        return call.result
    try:
        raise call.problem
    finally:
        # The exception knows this frame, too.
        del call, arguments


async def await_outside(function: Callable[..., Awaitable[_Result]], *arguments: object) -> _Result:
    """Awaits a coroutine function of the embedder: each of its steps is a call of `call_outside`.

    Args:
        function: The function.
        *arguments: What it is given.
    """
    begun = call_outside(function, *arguments)
    return await _Steps(begun if isinstance(begun, Coroutine) else _awaiting(begun))


async def _awaiting(awaitable: Awaitable[_Result]) -> _Result:
    return await awaitable


class _Steps(Generic[_Result]):
    """The steps of a coroutine, to be taken once."""

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, _Result]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, _Result]:
        coroutine = self._coroutine
        # What is thrown in comes to know this frame, which must not keep it.
        steps: list[tuple[Callable[..., Any], object]] = [(coroutine.send, None)]
        while True:
            try:
                waits_for = call_outside(*steps.pop())
            except StopIteration as end:
                result: _Result = end.value
                return result
            try:
                answer = yield waits_for
            except BaseException as problem:
                steps.append((coroutine.throw, problem))
            else:
                steps.append((coroutine.send, answer))
