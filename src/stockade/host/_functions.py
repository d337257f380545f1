"""Functions of the embedder, typed from their annotations."""

from __future__ import annotations

import math
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, get_args, get_origin, get_type_hints

from stockade._outside import call_outside
from stockade._text import printable
from stockade._wasi import MODULE
from stockade.engine import F32_OVERFLOW, INTEGER_BITS, FindMemory, Instance, Lent, Number
from stockade.errors import UsageError
from stockade.host._guest import CapabilityMissing, HostCall
from stockade.wasm import FuncType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from inspect import Parameter

    from stockade.policy import Policy

__all__ = ["F32", "F64", "I32", "I64", "MOST_TEXT_BYTES", "U32", "U64", "HostFunctionFailed", "HostFunctions"]


class _Type(NamedTuple):
    """How a Python value crosses: its WebAssembly type, and whether its numbers are signed."""

    name: str
    signed: bool = True


I32 = Annotated[int, _Type("i32")]
"""A 32-bit integer, -2^31 to 2^31 - 1: what `int` stands for, too."""

U32 = Annotated[int, _Type("i32", signed=False)]
"""A 32-bit integer, 0 to 2^32 - 1: fit for addresses and sizes."""

I64 = Annotated[int, _Type("i64")]
"""A 64-bit integer, -2^63 to 2^63 - 1."""

U64 = Annotated[int, _Type("i64", signed=False)]
"""A 64-bit integer, 0 to 2^64 - 1."""

F32 = Annotated[float, _Type("f32")]
"""A 32-bit float."""

F64 = Annotated[float, _Type("f64")]
"""A 64-bit float: what `float` stands for, too."""

MOST_TEXT_BYTES = 16 << 20
"""What all `str` and `bytes` parameters of one call may have together. A guest chooses their sizes, may name the same
bytes for each, and text in Python takes up to four times its bytes."""

_ADDRESS_BITS = 0xFFFF_FFFF

_MISSING = object()

_PLAIN = {int: _Type("i32"), bool: _Type("i32"), float: _Type("f64")}


class _Caller(Protocol):
    """What an instance belongs to."""

    @property
    def policy(self) -> Policy: ...


class HostFunction:
    """A function of the embedder that guests may import.

    Args:
        module: The import module.
        name: Its name there.
        function: What to call.
        requires: A custom capability that a policy must grant for it to be called.

    Raises:
        UsageError: It cannot be lent: an annotation is missing, or is of no type that can cross.

    Attributes:
        type: Its type as guests see it.
    """

    def __init__(self, module: str, name: str, function: Callable[..., object], requires: str | None) -> None:
        self.module, self.name = module, name
        self._function = function
        self._requires = requires
        self._label = f"{printable(module)}.{printable(name)}"
        hints, parameters = _declaration(function, self._label)
        self._wants_call = bool(parameters) and hints.get(parameters[0].name) is HostCall
        self._readers: list[type[str | bytes | bool] | _Type] = []
        params: list[str] = []
        for parameter in parameters[self._wants_call :]:
            hint = hints.get(parameter.name)
            if hint is str or hint is bytes:
                self._readers.append(hint)
                params += ["i32", "i32"]
                continue
            type_ = _type(hint)
            if type_ is None:
                raise UsageError(
                    f"{self._label}: the annotation of {parameter.name} is {_told(hint)}: it must be int, float, bool, "
                    "str, bytes, or one of stockade.host.I32, U32, I64, U64, F32, F64"
                )
            self._readers.append(bool if hint is bool else type_)
            params.append(type_.name)
        self._results = self._result_types(hints.get("return", _MISSING))
        self.type = FuncType(tuple(params), tuple(type_.name for type_ in self._results))

    def _result_types(self, hint: object) -> list[_Type]:
        if hint is None or hint is type(None):
            return []
        hints = get_args(hint) if get_origin(hint) is tuple else (hint,)
        types = [_type(entry) for entry in hints]
        if None in types:
            raise UsageError(
                f"{self._label}: the annotation of its result is {_told(hint)}: it must be None, int, float, bool, one "
                "of stockade.host.I32, U32, I64, U64, F32, F64, or a tuple of these"
            )
        return [type_ for type_ in types if type_ is not None]

    def lent(self) -> Lent:
        """Returns the function as the engine takes it."""
        return Lent(self.module.encode(), self.name.encode(), self.type.params, self.type.results, self._serve)

    def _serve(self, instance: Instance, find_memory: FindMemory, values: list[Number]) -> Sequence[Number]:
        assert instance.owner is not None
        # It is there: it runs the instance that calls.
        owner: Any = instance.owner()
        caller: _Caller = owner
        call = HostCall(caller.policy, find_memory)
        try:
            if self._requires is not None:
                call.require(self._requires)
            return self._answer(call_outside(self._function, *self._arguments(call, values)))
        except CapabilityMissing as missing:
            failed: Exception = CapabilityMissing(missing.capability, self._label)
        except Exception as problem:
            failed = HostFunctionFailed(self._label, problem)
        finally:
            call.end()
        # Not in the handler, and a new one: what the function raised knows its frames, and these all that it was given.
        try:
            raise failed
        finally:
            # This frame, too, is in a traceback: the two would keep each other, and the instance.
            del failed

    def _arguments(self, call: HostCall, values: list[Number]) -> list[object]:
        arguments: list[object] = [call] if self._wants_call else []
        given = iter(values)
        left = MOST_TEXT_BYTES
        for reader in self._readers:
            if reader is str or reader is bytes:
                address, size = int(next(given)) & _ADDRESS_BITS, int(next(given)) & _ADDRESS_BITS
                if size > left and address + size <= call.memory.size_bytes:
                    raise ValueError(
                        f"its str and bytes parameters are more than {MOST_TEXT_BYTES:,} bytes together: take address "
                        "and size as U32, and read pieces with HostCall.memory"
                    )
                left -= size
                data = call.memory.read(address, size)
                arguments.append(data.decode() if reader is str else data)
            elif reader is bool:
                arguments.append(next(given) != 0)
            else:
                assert isinstance(reader, _Type)
                arguments.append(_incoming(next(given), reader))
        return arguments

    def _answer(self, result: object) -> list[Number]:
        if len(self._results) == 1:
            return [_outgoing(result, self._results[0])]
        answers: tuple[object, ...] = () if result is None else result if isinstance(result, tuple) else (result,)
        if len(answers) != len(self._results):
            raise ValueError(f"it returned {len(answers)} values, and is annotated to return {len(self._results)}")
        return [_outgoing(answer, type_) for answer, type_ in zip(answers, self._results, strict=True)]


class HostFunctionFailed(Exception):  # noqa: N818 - says what happened; never leaves the run path
    """A host function raised something, which ends the run that called it."""

    def __init__(self, label: str, problem: Exception) -> None:
        super().__init__(f"{label} raised {type(problem).__name__}: {_text(problem)}")


def _declaration(function: Callable[..., object], label: str) -> tuple[Mapping[str, object], Sequence[Parameter]]:
    """Reads a function's annotations and parameters."""
    import inspect

    if inspect.iscoroutinefunction(function):
        raise UsageError(f"{label}: it is a coroutine function, which cannot be lent: the guest waits for its result")
    try:
        hints = get_type_hints(function, include_extras=True)
        parameters = list(inspect.signature(function).parameters.values())
    except Exception as problem:  # Annotations are evaluated, and raise what they like.
        raise UsageError(f"{label}: its annotations cannot be read: {_text(problem)}") from None
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise UsageError(f"{label}: {parameter.name} must be a plain parameter, not * or keyword-only")
    return hints, parameters


def _text(problem: Exception) -> str:
    try:
        return printable(str(problem), 400)
    except Exception:  # Its own method failed.
        return "(it cannot be told)"


def _type(hint: object) -> _Type | None:
    if isinstance(hint, type):
        return _PLAIN.get(hint)
    if get_origin(hint) is Annotated:
        return next((extra for extra in get_args(hint)[1:] if isinstance(extra, _Type)), None)
    return None


def _told(hint: object) -> str:
    if hint is None or hint is _MISSING:
        return "missing"
    return printable(hint.__name__ if isinstance(hint, type) else str(hint))


def _incoming(value: Number, type_: _Type) -> Number:
    bits = INTEGER_BITS.get(type_.name)
    return value if bits is None or type_.signed else int(value) & ((1 << bits) - 1)


def _outgoing(value: object, type_: _Type) -> Number:
    bits = INTEGER_BITS.get(type_.name)
    if bits is None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"it returned {printable(repr(value))}, which is no number ({type_.name})")
        number = float(value)
        if type_.name == "f32" and math.isfinite(number) and abs(number) >= F32_OVERFLOW:
            raise ValueError(f"it returned {number}, which does not fit f32")
        return number
    if not isinstance(value, int):
        raise TypeError(f"it returned {printable(repr(value))}, which is no whole number ({type_.name})")
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise ValueError(f"it returned a number that does not fit {type_.name}")
    return int(value)


class HostFunctions:
    """The functions that a sandbox lends. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._functions: dict[tuple[bytes, bytes], HostFunction] = {}

    def add(self, module: str, name: str, function: Callable[..., object], requires: str | None) -> None:
        """Lends a function from now on.

        Args:
            module: The import module.
            name: Its name there.
            function: What to call, with annotations.
            requires: A custom capability that a policy must grant for it to be called.

        Raises:
            UsageError: It cannot be lent.
        """
        if sys.version_info >= (3, 14):
            raise UsageError(
                "host functions need Python 3.11 to 3.13: later releases do not run on the stacks that guests have"
            )
        if module == MODULE:
            raise UsageError(f"{MODULE} is WASI's own: lend functions under another name, such as env")
        try:
            key = (module.encode(), name.encode())
        except UnicodeEncodeError:
            raise UsageError(f"{printable(module)}.{printable(name)} is no text that UTF-8 can hold") from None
        made = HostFunction(module, name, function, requires)
        with self._lock:
            if key in self._functions:
                raise UsageError(f"{printable(module)}.{printable(name)} is lent already: choose another name")
            self._functions[key] = made

    def types(self) -> Mapping[tuple[bytes, bytes], FuncType]:
        """Returns the types of all functions, by import module and name."""
        with self._lock:
            return {key: function.type for key, function in self._functions.items()}

    def lent(self, wanted: set[tuple[bytes, bytes]]) -> list[Lent]:
        """Returns some functions as the engine takes them."""
        with self._lock:
            return [function.lent() for key, function in self._functions.items() if key in wanted]
