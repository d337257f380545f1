"""Tools: functions of the embedder that code calls as `tools.name(...)`, with JSON between the two."""

from __future__ import annotations

import asyncio
import errno
import inspect
import time
from typing import TYPE_CHECKING, Any, Final, get_type_hints

import msgspec

from stockade._json import JsonRecord
from stockade._text import printable
from stockade.errors import UsageError
from stockade.host import annotated
from stockade.runner import is_in_coroutine
from stockade.runner.loop import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stockade.execution import OpenGuest
    from stockade.guests._network import NetworkDesk, PendingAnswer

__all__ = ["MOST_CALLS_LISTED", "NETWORK_MARK", "Tool", "ToolCall", "Toolbox"]

MOST_CALLS_LISTED = 1_000
"""How many calls of one piece of code are listed; all are counted."""

_MOST_TEXT = 1_000

_UNKNOWN: Final = "unknown tool"

_Denied: Final = type(OSError(errno.EACCES, ""))
"""What Python raises where access is denied."""

NETWORK_MARK: Final = b"\1"
"""What messages about the network begin with: one line of JSON, and bytes."""

_FRAME = b"\0"
"""What pieces of frames begin with. Requests are JSON, which begins with none."""


class ToolCall(msgspec.Struct, JsonRecord, frozen=True):
    """A call of a tool.

    Attributes:
        name: The tool, as the code has named it; `unknown tool` where there is none of that name, and a gate looks at
            what leaves.
        ok: Whether it returned.
        error: The type of what it raised, or why it was not called; empty where it returned.
        seconds: How long it took.
    """

    name: str
    ok: bool
    error: str
    seconds: float

    def to_json(self) -> str:
        """Returns the call as JSON."""
        return msgspec.json.encode(self).decode()


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What code asks for."""

    name: str
    args: list[Any]
    named: dict[str, Any]


class Tool:
    """A function that code may call.

    Args:
        function: The function, plain or a coroutine function, with annotations.
        name: What it is called.
        requires: A custom capability that the policy must grant.

    Raises:
        UsageError: Its annotations are missing, or are not for JSON.
    """

    def __init__(self, function: Callable[..., object], name: str, requires: str | None) -> None:
        if not callable(function):
            raise UsageError(f"the tool is {type(function).__name__}: give a function")
        self.name = name
        self.requires = requires
        self.function = function
        self.is_awaited = inspect.iscoroutinefunction(annotated(function))
        if not name.isidentifier() or name.startswith("_"):
            raise UsageError(f"the tool {printable(name)!r} has no name that code can call: give it one")
        try:
            self._hints: Mapping[str, Any] = get_type_hints(annotated(function), include_extras=True)
            self._signature = inspect.signature(function)
        except Exception as problem:  # Annotations are evaluated, and raise what they like.
            raise UsageError(f"the annotations of the tool {name} cannot be read: {printable(str(problem))}") from None
        for parameter in self._signature.parameters.values():
            if parameter.name not in self._hints:
                raise UsageError(f"the tool {name} has no annotation for {parameter.name}: say what it takes")
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise UsageError(f"the tool {name} takes any number of arguments: name each of them")
        if "return" not in self._hints:
            raise UsageError(f"the tool {name} has no annotation for what it returns")
        # As types, whether they were written as such or as text.
        self._signature = self._signature.replace(
            parameters=[
                parameter.replace(annotation=self._hints[parameter.name])
                for parameter in self._signature.parameters.values()
            ],
            return_annotation=self._hints["return"],
        )
        for what, hint in self._hints.items():
            try:
                msgspec.json.schema(hint)
            except TypeError:
                raise UsageError(f"the tool {name}: {what} is of a type that JSON does not know") from None

    def described(self) -> dict[str, str]:
        """Returns what code is told of it; `positional`, where there is more, is how many arguments go by place."""
        doc = inspect.getdoc(annotated(self.function)) or ""
        told = {"name": self.name, "signature": str(self._signature), "doc": doc}
        parameters = self._signature.parameters.values()
        named = sum(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
        return {**told, "positional": str(len(parameters) - named)} if named else told

    def bound(self, request: _Request) -> inspect.BoundArguments:
        """Returns the arguments of a call, as the annotations want them.

        Raises:
            TypeError: They do not fit.
            ValidationError: One is of another type.
        """
        bound = self._signature.bind(*request.args, **request.named)
        for name, value in bound.arguments.items():
            try:
                bound.arguments[name] = msgspec.convert(value, self._hints[name], strict=True)
            except msgspec.ValidationError as problem:
                raise TypeError(f"{name}: {problem}") from None
        return bound

    def answer(self, value: object, most_integer: int | None = None) -> bytes:
        """Returns what it returned as JSON, once it is as the annotation says.

        Args:
            value: What it returned.
            most_integer: The largest integer that the code can hold.

        Raises:
            TypeError: It is not, or the code cannot hold it.
        """
        plain = msgspec.to_builtins(value)
        try:
            msgspec.convert(plain, self._hints["return"], strict=False)
        except msgspec.ValidationError as problem:
            raise TypeError(f"the tool returned something else than it says: {problem}") from None
        if most_integer is not None and (large := _larger(plain, most_integer)) is not None:
            raise TypeError(
                f"the tool returned {hex(large)}, which no number of the code's can hold: return it as text"
            )
        return msgspec.json.encode({"value": plain})


def _larger(plain: object, most: int) -> int | None:
    """Returns an integer of JSON that is larger than another; None where there is none."""
    if isinstance(plain, int):
        return plain if abs(plain) > most else None
    inner = plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list | tuple) else ()
    return next((found for one in inner if (found := _larger(one, most)) is not None), None)


class Toolbox:
    """The tools of one interpreter; the calls of the piece of code that runs there, and what it hands over.

    Args:
        tools: The tools, by their names.
        grants: Says whether the policy grants a capability.
        most_bytes: How many bytes it may hand over.
        most_integer: The largest integer that the code can hold; None where it holds any.
        network: Serves requests over the network; None where the policy permits none.

    Attributes:
        most_bytes: How many bytes it may hand over.
        network: The same.
        on_call: Is told the name of each tool that is called; None where nobody asks.
        calls: The calls so far.
        count: How many there were.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        grants: Callable[[str], bool],
        most_bytes: int,
        most_integer: int | None = None,
        network: NetworkDesk | None = None,
    ) -> None:
        self._tools = tools
        self.network = network
        self._most_integer = most_integer
        self._grants = grants
        self.most_bytes = most_bytes
        self.on_call: Callable[[str], object] | None = None
        self._frame: bytearray | None = None
        self.calls: list[ToolCall] = []
        self.count = 0

    def __bool__(self) -> bool:
        return bool(self._tools)

    @property
    def serves(self) -> bool:
        """Whether there is anything that code may ask for."""
        return bool(self._tools) or self.network is not None

    @property
    def awaits(self) -> bool:
        """Whether what code asks for may have to be awaited."""
        return self.network is not None or any(tool.is_awaited for tool in self._tools.values())

    def reach(self, guest: OpenGuest) -> None:
        """Has requests over the network made as those of a guest, where any are made.

        Args:
            guest: The guest.
        """
        if self.network is not None:
            self.network.reach(guest.network)

    def asked(self, request: bytes) -> PendingAnswer | None:
        """Begins a request over the network; returns None where it is none.

        Args:
            request: What the code asks for.
        """
        if self.network is None or request[:1] != NETWORK_MARK:
            return None
        return self.network.begin(request)

    def begin(self) -> None:
        """Begins counting anew."""
        self.calls, self.count = [], 0
        self._frame = None

    def forget_unknown(self) -> None:
        """Has the names of tools that there are not, which the code has chosen, told no more."""
        self.calls = [
            call if call.name in self._tools else msgspec.structs.replace(call, name=_UNKNOWN) for call in self.calls
        ]

    def keep(self, request: bytes) -> bool:
        """Keeps what is no request but a piece of a frame; returns whether it is.

        Args:
            request: What the code has called the host with.
        """
        if request[:1] != _FRAME:
            return False
        if self._frame is None:
            self._frame = bytearray()
        # One byte more than it may have says that it was too much.
        self._frame += request[1 : 2 + self.most_bytes - len(self._frame)]
        return True

    def take_frame(self) -> bytes | None:
        """Returns the frame that was handed over, if any; of one that is too long more than there may be."""
        frame, self._frame = self._frame, None
        return None if frame is None else bytes(frame)

    def serve(self, request: bytes) -> bytes:
        """Answers a request. What a tool raises is told by its type and text, without its traceback.

        Args:
            request: What the code asks for.

        Raises:
            UsageError: A tool is to be awaited, and the event loop of this thread cannot.
        """
        begun = time.perf_counter()
        tool, bound, refusal = self._read(request)
        if bound is None or tool is None:
            return refusal
        if tool.is_awaited and is_in_coroutine():
            raise UsageError(
                f"the code calls the coroutine function {tool.name}, and the event loop of this thread waits for the "
                "code: await run_async, or call what blocks by asyncio.to_thread"
            )
        try:
            value = tool.function(*bound.args, **bound.kwargs)
            if inspect.iscoroutine(value):
                # Whoever serves here has no event loop.
                value = asyncio.run(value)
            return self._done(tool.name, begun, tool.answer(value, self._most_integer))
        except Exception as problem:
            return self._failed(tool.name, begun, problem)

    async def serve_async(self, request: bytes) -> bytes:
        """Answers a request; coroutine functions are awaited, plain ones called on another thread.

        Raises:
            CallRefused: The policy ends the run for what was asked of the network.
        """
        pending = self.asked(request)
        if pending is not None:
            await wait_until(pending.is_ready, pending.waiters)
            return pending.answer()
        begun = time.perf_counter()
        tool, bound, refusal = self._read(request)
        if bound is None or tool is None:
            return refusal
        try:
            if tool.is_awaited:
                awaited: Any = tool.function(*bound.args, **bound.kwargs)
                value = await awaited
            else:
                value = await asyncio.to_thread(tool.function, *bound.args, **bound.kwargs)
            return self._done(tool.name, begun, tool.answer(value, self._most_integer))
        except Exception as problem:
            return self._failed(tool.name, begun, problem)

    def _read(self, data: bytes) -> tuple[Tool | None, inspect.BoundArguments | None, bytes]:
        begun = time.perf_counter()
        name = "?"
        try:
            request = msgspec.json.decode(data, type=_Request)
            name = printable(request.name)
            tool = self._tools.get(request.name)
            if tool is None:
                raise AttributeError(f"there is no tool {name}")
            if tool.requires is not None and not self._grants(tool.requires):
                raise _Denied(f"the policy does not grant {tool.requires}, which the tool {name} needs")
            bound = tool.bound(request)
        except (msgspec.MsgspecError, RecursionError, AttributeError, _Denied, TypeError) as problem:
            return None, None, self._failed(name, begun, problem)
        if self.on_call is not None:
            self.on_call(tool.name)
        return tool, bound, b""

    def _done(self, name: str, begun: float, answer: bytes) -> bytes:
        self._note(ToolCall(name, ok=True, error="", seconds=time.perf_counter() - begun))
        return answer

    def _failed(self, name: str, begun: float, problem: Exception) -> bytes:
        kind = type(problem).__name__
        self._note(ToolCall(name, ok=False, error=kind, seconds=time.perf_counter() - begun))
        try:
            # What is missing is told as it is; the code's own KeyError puts quotes around it.
            key = problem.args[0] if isinstance(problem, KeyError) and len(problem.args) == 1 else problem
            text = str(key)[:_MOST_TEXT]
        except Exception:  # Its own method failed.
            text = "(it cannot be told)"
        return msgspec.json.encode({"error": kind, "message": text.encode("utf-8", "replace").decode()})

    def _note(self, call: ToolCall) -> None:
        self.count += 1
        if len(self.calls) < MOST_CALLS_LISTED:
            self.calls.append(call)
