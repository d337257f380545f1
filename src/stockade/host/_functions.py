"""Functions of the embedder, typed from their annotations."""

from __future__ import annotations

import math
from collections.abc import Coroutine
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from stockade._locks import new_lock
from stockade._outside import call_outside
from stockade._text import printable
from stockade._wasi import MODULE
from stockade.engine import F32_OVERFLOW, INTEGER_BITS
from stockade.errors import UsageError
from stockade.guard import MOST_VALUES, values_format
from stockade.host._guest import CallRefused, CapabilityMissing, HostCall
from stockade.wasm import FuncType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from inspect import Parameter
    from types import TracebackType

    from stockade.engine import Number
    from stockade.guard import Mailbox
    from stockade.host._guest import HaltedGuest
    from stockade.policy import Policy

__all__ = [
    "F32",
    "F64",
    "HTTP_MODULE",
    "I32",
    "I64",
    "MOST_TEXT_BYTES",
    "U32",
    "U64",
    "BoundFunction",
    "HostFunctionFailed",
    "HostFunctions",
    "Signature",
    "ToldFailure",
    "annotated",
]


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

_MISSING = object()
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_RESERVED = "stockade:"

HTTP_MODULE = "stockade:http"
"""Where guests import what makes requests."""

_VALUES = 8
"""Where values stand in a mailbox."""

_ANSWERED = 0
"""What is said in it when results are there."""

_PLAIN = {int: _Type("i32"), bool: _Type("i32"), float: _Type("f64")}


class Signature(msgspec.Struct, frozen=True):
    """How a function of the embedder is called, for another process in which it is not.

    Attributes:
        module: The import module.
        name: Its name there.
        takes: What becomes of its parameters: `str`, `bytes`, `bool`, or the type of a number, as `i32` or `u32`.
        returns: The types of its results.
        requires: The capability that it needs.
    """

    module: str
    name: str
    takes: tuple[str, ...]
    returns: tuple[str, ...]
    requires: str | None = None


class ToldFailure(Exception):  # noqa: N818 - says what happened; never leaves the run path
    """A function of the embedder has failed in another process, which says how."""


_READERS: dict[str, type[str | bytes | bool] | _Type] = {
    "str": str,
    "bytes": bytes,
    "bool": bool,
    **{name: _Type(name) for name in ("i32", "i64", "f32", "f64")},
    **{f"u{bits}": _Type(f"i{bits}", signed=False) for bits in (32, 64)},
}


def _reader_name(reader: type[str | bytes | bool] | _Type) -> str:
    return next(name for name, known in _READERS.items() if known == reader)


class HostFunction:
    """A function of the embedder that guests may import.

    Args:
        module: The import module.
        name: Its name there.
        function: What to call.
        requires: A custom capability that a policy must grant for it to be called.
        is_brief: Whether it is over within a moment, as Stockade's own are.

    Raises:
        UsageError: It cannot be registered: an annotation is missing, or is of no type that can cross.

    Attributes:
        function: What to call.
        is_awaited: Whether it is a coroutine function.
        is_brief: Whether it is over within a moment.
        requires: The capability.
        label: What it is called in messages.
        wants_call: Whether it takes the call itself.
        readers: What becomes of its other parameters, one by one.
        results: The types of its results.
        type: Its type as guests see it.
    """

    def __init__(
        self, module: str, name: str, function: Callable[..., object], requires: str | None, *, is_brief: bool = False
    ) -> None:
        import inspect

        self.module, self.name = module, name
        self.function = function
        self.is_awaited = inspect.iscoroutinefunction(annotated(function))
        self.is_brief = is_brief
        self.requires = requires
        self.label = f"{printable(module)}.{printable(name)}"
        hints, parameters = _declaration(function, self.label)
        self.wants_call = bool(parameters) and hints.get(parameters[0].name) is HostCall
        self.readers: list[type[str | bytes | bool] | _Type] = []
        params: list[str] = []
        for parameter in parameters[self.wants_call :]:
            hint = hints.get(parameter.name)
            if hint is str or hint is bytes:
                self.readers.append(hint)
                params += ["i32", "i32"]
                continue
            type_ = _type(hint)
            if type_ is None:
                raise UsageError(
                    f"{self.label}: the annotation of {parameter.name} is {_told(hint)}: it must be int, float, bool, "
                    "str, bytes, or one of stockade.host.I32, U32, I64, U64, F32, F64"
                )
            self.readers.append(bool if hint is bool else type_)
            params.append(type_.name)
        self.results = self._result_types(hints.get("return", _MISSING))
        for what, many in (("parameters", len(params)), ("results", len(self.results))):
            if many > MOST_VALUES:
                raise UsageError(
                    f"{self.label}: it has {many:,} {what}, and a function of a guest's has {MOST_VALUES:,}"
                )
        self.type = FuncType(tuple(params), tuple(type_.name for type_ in self.results))

    @classmethod
    def described(cls, signature: Signature, function: Callable[..., object]) -> HostFunction:
        """Returns a function in the place of one that is in another process.

        Args:
            signature: How it is called.
            function: What to call.
        """
        self = cls.__new__(cls)
        self.module, self.name, self.requires = signature.module, signature.name, signature.requires
        self.function, self.is_awaited, self.is_brief, self.wants_call = function, False, False, False
        self.label = f"{printable(self.module)}.{printable(self.name)}"
        self.readers = [_READERS[name] for name in signature.takes]
        self.results = [_Type(name) for name in signature.returns]
        params: list[str] = []
        for reader in self.readers:
            params += [reader.name] if isinstance(reader, _Type) else ["i32"] * (1 if reader is bool else 2)
        self.type = FuncType(tuple(params), signature.returns)
        return self

    @property
    def signature(self) -> Signature:
        """How it is called."""
        takes = tuple(map(_reader_name, self.readers))
        return Signature(self.module, self.name, takes, tuple(type_.name for type_ in self.results), self.requires)

    def _result_types(self, hint: object) -> list[_Type]:
        if hint is None or hint is type(None):
            return []
        hints = get_args(hint) if get_origin(hint) is tuple else (hint,)
        types = [_type(entry) for entry in hints]
        if None in types:
            raise UsageError(
                f"{self.label}: the annotation of its result is {_told(hint)}: it must be None, int, float, bool, one "
                "of stockade.host.I32, U32, I64, U64, F32, F64, or a tuple of these"
            )
        return [type_ for type_ in types if type_ is not None]

    def bound(self, policy: Policy) -> BoundFunction:
        """Returns the function as guests under a policy call it.

        Args:
            policy: The policy.
        """
        return BoundFunction(self, policy)


class BoundFunction:
    """A function of the embedder as guests under one policy call it. Safe to share between threads.

    Args:
        function: The function.
        policy: The policy.

    Attributes:
        function: What to call.
        is_awaited: Whether it is a coroutine function.
        is_brief: Whether it is over within a moment.
        label: What it is called in messages.
        wants_call: Whether it takes the call itself, with the guest's memory.
        signature: How it is called.
    """

    __slots__ = (
        "_answer",
        "_arguments",
        "_missing",
        "_of",
        "_readers",
        "_results",
        "_wants_call",
        "function",
        "is_awaited",
        "is_brief",
        "label",
    )

    def __init__(self, function: HostFunction, policy: Policy) -> None:
        self._of = function
        self.function = function.function
        self.is_awaited, self.is_brief = function.is_awaited, function.is_brief
        self.label = function.label
        self._wants_call = function.wants_call
        requires = function.requires
        self._missing = requires if requires is not None and not policy.grants(requires) else None
        self._results = function.results
        unsigned: list[bool] = []
        for reader in function.readers:
            unsigned += [not reader.signed] if isinstance(reader, _Type) else [True] * (1 if reader is bool else 2)
        arguments = values_format(function.type.params, unsigned)
        answer = values_format(function.type.results, [True] * len(function.type.results), said=True)
        # No function has more values than there is room for.
        assert arguments is not None
        assert answer is not None
        self._arguments, self._answer = arguments, answer
        # Numbers are passed as they come.
        numbers = all(isinstance(reader, _Type) for reader in function.readers)
        self._readers = () if numbers else tuple(function.readers)

    @property
    def wants_call(self) -> bool:
        """Whether it takes the call itself."""
        return self._wants_call

    @property
    def signature(self) -> Signature:
        """How it is called."""
        return self._of.signature

    def checked(self, values: Sequence[object]) -> Sequence[object]:
        """Returns what the function is called with, where another process says that a guest calls it.

        Args:
            values: What that process says.

        Raises:
            ValueError: The function cannot be called so by any guest under its policy.
        """
        readers = self._of.readers
        if self._missing is not None or len(values) != len(readers):
            raise ValueError("it may not be called, or takes another number of arguments")
        left = MOST_TEXT_BYTES
        for value, reader in zip(values, readers, strict=True):
            if not isinstance(reader, _Type):
                if type(value) is not reader:
                    raise ValueError("an argument is of another type")
                if isinstance(value, str | bytes):
                    left -= len(value)
            elif reader.name in INTEGER_BITS:
                bits = INTEGER_BITS[reader.name]
                least, most = (-(1 << bits - 1), 1 << bits - 1) if reader.signed else (0, 1 << bits)
                if type(value) is not int or not least <= value < most:
                    raise ValueError("an argument is out of its range")
            elif type(value) is not float:
                raise ValueError("an argument is of another type")
        if left < 0:
            raise ValueError("its texts are too long")
        return values

    def serve(self, mailbox: Mailbox, guest: HaltedGuest) -> None:
        """Answers a call of a plain function, on this thread.

        Args:
            mailbox: Has the arguments, and is given the results.
            guest: The guest, which is halted until this has returned.

        Raises:
            CallRefused: The policy ends the run for what it was asked.
            CapabilityMissing: The policy does not grant what the function needs.
            HostFunctionFailed: It has raised an exception.
            UsageError: It has returned something else than it is annotated to.
        """
        if self._missing is not None:
            raise CapabilityMissing(self._missing, self.label)
        values: Sequence[object] = self._arguments.unpack_from(mailbox.bytes, _VALUES)
        call = None
        try:
            if self._wants_call or self._readers:
                call = HostCall(guest)
                values = self._read(call, values)
            result = call_outside(self.function, *values)
        except Exception as problem:
            failed = self.failure(problem)
        else:
            self.reply(mailbox, result)
            return
        finally:
            if call is not None:
                call.end()
        # Not in the handler, and a new one: what the function raised knows its frames, and these all that it was given.
        try:
            raise failed
        finally:
            # This frame, too, is in a traceback: the two would keep each other, and the instance.
            del failed

    def given(self, mailbox: Mailbox, call: HostCall) -> Sequence[object]:
        """Returns what a coroutine function is to be called with.

        Args:
            mailbox: Has the arguments.
            call: The call, which ends when the function is done.

        Raises:
            CapabilityMissing: The policy does not grant what the function needs.
        """
        if self._missing is not None:
            raise CapabilityMissing(self._missing, self.label)
        values: Sequence[object] = self._arguments.unpack_from(mailbox.bytes, _VALUES)
        return self._read(call, values) if self._wants_call or self._readers else values

    def failure(self, problem: Exception) -> CallRefused | CapabilityMissing | HostFunctionFailed:
        """Returns what is said of an exception that the function has raised."""
        if isinstance(problem, CallRefused):
            return CallRefused(problem.violation)
        if isinstance(problem, CapabilityMissing):
            return CapabilityMissing(problem.capability, self.label)
        if isinstance(problem, ToldFailure):
            return HostFunctionFailed.told(str(problem))
        failed = HostFunctionFailed(self.label, problem)
        # For whoever wrote the function: where it failed, and not how it came to be called.
        failed.__cause__ = problem.with_traceback(_own_part(problem.__traceback__))
        return failed

    def _read(self, call: HostCall, values: Sequence[Any]) -> Sequence[object]:
        """Makes of the values in the mailbox what the function is called with."""
        arguments: list[object] = [call] if self._wants_call else []
        if not self._readers:
            return [*arguments, *values]
        given = iter(values)
        left = MOST_TEXT_BYTES
        for reader in self._readers:
            if reader is str or reader is bytes:
                address, size = int(next(given)), int(next(given))
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
                arguments.append(next(given))
        return arguments

    def reply(self, mailbox: Mailbox, result: object) -> None:
        """Puts what the function has returned into the mailbox.

        Raises:
            UsageError: It is something else than it is annotated to return.
        """
        self._answer.pack_into(mailbox.bytes, 0, _ANSWERED, *self.answers(result))

    def answers(self, result: object) -> list[Number]:
        """Returns what the function has returned as a guest gets it.

        Raises:
            UsageError: It is something else than it is annotated to return.
        """
        types = self._results
        if len(types) == 1:
            return [self._outgoing(result, types[0])]
        given: tuple[object, ...] = () if result is None else result if isinstance(result, tuple) else (result,)
        if len(given) != len(types):
            raise UsageError(f"{self.label} returned {len(given)} values, and is annotated to return {len(types)}")
        return [self._outgoing(answer, type_) for answer, type_ in zip(given, types, strict=True)]

    def _outgoing(self, value: object, type_: _Type) -> Number:
        bits = INTEGER_BITS.get(type_.name)
        if bits is None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UsageError(f"{self.label} returned {_shown(value)}, which is no number ({type_.name})")
            try:
                number = float(value)
            except OverflowError:
                raise UsageError(f"{self.label} returned a number that does not fit {type_.name}") from None
            if type_.name == "f32" and math.isfinite(number) and abs(number) >= F32_OVERFLOW:
                raise UsageError(f"{self.label} returned {number}, which does not fit f32")
            return number
        if not isinstance(value, int):
            raise UsageError(f"{self.label} returned {_shown(value)}, which is no whole number ({type_.name})")
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise UsageError(f"{self.label} returned a number that does not fit {type_.name}")
        return int(value) & ((1 << bits) - 1)


class HostFunctionFailed(Exception):  # noqa: N818 - says what happened; never leaves the run path
    """A host function raised something, which ends the run that called it."""

    def __init__(self, label: str, problem: Exception) -> None:
        super().__init__(f"{label} raised {type(problem).__name__}: {_text(problem)}")

    @classmethod
    def told(cls, text: str) -> HostFunctionFailed:
        """Returns what another process says of it.

        Args:
            text: What that says.
        """
        failed = cls.__new__(cls)
        failed.args = (text,)
        return failed


_OURS = str(Path(__file__).parents[1])


def _own_part(traceback: TracebackType | None) -> TracebackType | None:
    """Returns a traceback without the frames at its beginning that are Stockade's own."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_OURS):
        traceback = traceback.tb_next
    return traceback


def annotated(function: object) -> Any:
    """Returns what has the annotations of something that can be called: of a `partial`, or an object with `__call__`.

    Args:
        function: What somebody wants to be called.
    """
    import functools
    import inspect

    while isinstance(function, functools.partial):
        function = function.func
    is_plain = inspect.isroutine(function) or isinstance(function, type) or not callable(function)
    return function if is_plain else type(function).__call__


def _declaration(function: Callable[..., object], label: str) -> tuple[Mapping[str, object], Sequence[Parameter]]:
    """Reads a function's annotations and parameters."""
    import inspect

    if not callable(function):
        raise UsageError(f"{label} is {printable(type(function).__name__)}: give a function")
    try:
        hints = get_type_hints(annotated(function), include_extras=True)
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


def _shown(value: object) -> str:
    if isinstance(value, Coroutine):
        # Else Python would warn that nobody has awaited it.
        value.close()
        return "a coroutine"
    try:
        return printable(repr(value), 400)
    except Exception:  # Its own method failed.
        return f"something of type {printable(type(value).__name__)}"


class HostFunctions:
    """The host functions of a sandbox. Safe to share between threads.

    Args:
        own: Stockade's own, by their import modules: what returns the functions of one, each with its name, when a
            guest imports it.

    Attributes:
        count: How many there are of the embedder's.
    """

    def __init__(self, own: Mapping[str, Callable[[], Iterable[tuple[str, Callable[..., object]]]]] = _NOTHING) -> None:
        self._lock = new_lock()
        self._functions: dict[tuple[bytes, bytes], HostFunction] = {}
        self._own = dict(own)
        # Not of the class: it is looked at for each run.
        self.count = 0

    def provide(self, modules: Iterable[bytes]) -> None:
        """Has those of Stockade's own there which a guest imports.

        Args:
            modules: Import modules.
        """
        for module in {name.decode("utf-8", "replace") for name in modules} & self._own.keys():
            with self._lock:
                make = self._own.pop(module, None)
                for name, function in () if make is None else make():
                    self._functions[module.encode(), name.encode()] = HostFunction(
                        module, name, function, None, is_brief=True
                    )

    def add(self, module: str, name: str, function: Callable[..., object], requires: str | None) -> None:
        """Lends a function from now on.

        Args:
            module: The import module.
            name: Its name there.
            function: What to call, with annotations.
            requires: A custom capability that a policy must grant for it to be called.

        Raises:
            UsageError: It cannot be registered.
        """
        if module == MODULE:
            raise UsageError(f"{MODULE} is WASI's own: register functions under another name, such as env")
        if module.startswith(_RESERVED):
            raise UsageError(
                f"{printable(module)} is Stockade's own: register functions under another name, such as env"
            )
        try:
            key = (module.encode(), name.encode())
        except UnicodeEncodeError:
            raise UsageError(f"{printable(module)}.{printable(name)} is no text that UTF-8 can hold") from None
        made = HostFunction(module, name, function, requires)
        with self._lock:
            if key in self._functions:
                raise UsageError(f"{printable(module)}.{printable(name)} is already registered: choose another name")
            self._functions[key] = made
            self.count += 1

    @classmethod
    def described(cls, signatures: Sequence[Signature], make: Callable[[int], Callable[..., object]]) -> HostFunctions:
        """Returns functions in the place of those of another process.

        Args:
            signatures: How they are called.
            make: Returns what is called, by its place among them.
        """
        found = cls()
        for place, signature in enumerate(signatures):
            key = signature.module.encode(), signature.name.encode()
            found._functions.setdefault(key, HostFunction.described(signature, make(place)))
        found.count = len(found._functions)
        return found

    def types(self) -> Mapping[tuple[bytes, bytes], FuncType]:
        """Returns the types of all functions, by import module and name."""
        with self._lock:
            return {key: function.type for key, function in self._functions.items()}

    def bound(self, imports: Sequence[tuple[bytes, bytes]], policy: Policy) -> tuple[BoundFunction, ...]:
        """Returns functions as guests under a policy call them.

        Args:
            imports: Import module and name of each.
            policy: The policy.
        """
        with self._lock:
            return tuple(self._functions[key].bound(policy) for key in imports)
