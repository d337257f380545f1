"""Functions of the embedder that guests may import: how the engine comes to call them.

The library calls one trampoline for all of them. It finds the function by the number that it was registered under, and
the instance by the thread: an instance says here when its guest begins to run, and when it halts.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import weakref
from ctypes import CFUNCTYPE, addressof, c_size_t, c_void_p
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from stockade.engine._capi import Value, capi
from stockade.engine._failure import error_text
from stockade.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.engine._engine import Engine
    from stockade.engine._instance import Instance, Memory, Number

__all__ = ["FindMemory", "Lending", "Lent", "check_stack", "function_type", "running", "skip_signal_check"]

FindMemory: TypeAlias = "Callable[[bytes], Memory]"
"""Finds an exported memory of the guest that calls; good during the call only. Raises KeyError."""


class Lent(NamedTuple):
    """A function for guests to import.

    Attributes:
        module: The import module.
        name: Its name there.
        params: The types of its parameters: `i32`, `i64`, `f32` or `f64`.
        results: The types of its results.
        call: What to call: with the instance that calls, a way to its memories, and the arguments.
    """

    module: bytes
    name: bytes
    params: tuple[str, ...]
    results: tuple[str, ...]
    call: Callable[[Instance, FindMemory, list[Number]], Sequence[Number]]


_KINDS = {"i32": 0, "i64": 1, "f32": 2, "f64": 3}
_MEMBERS = ("i32", "i64", "f32", "f64")
_VALUE_BYTES = ctypes.sizeof(Value)
_TRAPPED = b"ended by a host function"
_CALLBACK_LEVELS = 8

_numbers = itertools.count(1)
_lent: dict[int, Lent] = {}


class _Running(threading.local):
    """The instances whose guests run on this thread, the innermost last."""

    def __init__(self) -> None:
        self.instances: list[Instance] = []


running = _Running()


def _trampoline(number: int, caller: int, arguments: int, count: int, results: int, _: int) -> int | None:
    # Nothing may pass through the library's frames: ctypes would print it and return what lies on the stack, which the
    # library would free as a trap. So all is caught, twice, for a signal's handler may raise while the first is noted.
    try:
        try:
            instance = running.instances[-1]
            lent = _lent[number]
            # SAFETY: the library lends both arrays for this call; they are as long as the type says, which it has
            # checked.
            given = (Value * count).from_address(arguments) if count else ()
            values: list[Number] = [getattr(value.of, _MEMBERS[value.kind]) for value in given]
            context = capi().caller_context(caller)
            answers = lent.call(instance, lambda name: instance.memory_of_caller(context, name), values)
            for place, (type_, answer) in enumerate(zip(lent.results, answers, strict=True)):
                value = Value.from_address(results + place * _VALUE_BYTES)
                value.kind = _KINDS[type_]
                setattr(value.of, type_, answer)
        except BaseException as problem:
            # It is raised again where the call began.
            instance.problem = problem
            # SAFETY: the library takes the trap that is returned.
            return int(capi().trap_new(_TRAPPED, len(_TRAPPED)))
    except BaseException as problem:
        running.instances[-1].problem = problem
        # SAFETY: as above; a trap that was made and not returned is lost, a few bytes.
        return int(capi().trap_new(_TRAPPED, len(_TRAPPED)))
    return None


def skip_signal_check(function: Callable[..., object]) -> None:
    """Has a function begin without looking for signals, before any `try` of it could catch what they raise.

    Python looks for them at the instruction RESUME, unless its argument says that it follows a `yield from`.
    """
    from dis import get_instructions
    from types import FunctionType

    assert isinstance(function, FunctionType)
    code = function.__code__
    steps = get_instructions(code)
    # Cells for its variables are made before.
    at = next(step.offset for step in steps if step.opname == "RESUME")
    changed = bytearray(code.co_code)
    changed[at + 1] = 2
    function.__code__ = code.replace(co_code=bytes(changed))


def check_stack(levels: int = _CALLBACK_LEVELS) -> int:
    """Checks that calls from the library into Python will find room on Python's stack, which they cannot do without.

    Args:
        levels: How many calls deep they go before they can catch an error.

    Raises:
        RecursionError: There is none.
    """
    # By a function in C, for calls through C have a limit of their own.
    return min((levels - 1,), key=check_stack) if levels else 0


@cache  # Kept for the life of the process, as the library holds its address.
def _callback() -> c_void_p:
    skip_signal_check(_trampoline)
    made = CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t)(_trampoline)
    _callbacks.append(made)
    return ctypes.cast(made, c_void_p)


_callbacks: list[object] = []


class Lending:
    """A linker with native WASI and functions of an embedder.

    Args:
        engine: The engine that it is for.
        functions: The functions.

    Raises:
        EngineError: The engine does not take one of them.
    """

    def __init__(self, engine: Engine, functions: Sequence[Lent]) -> None:
        api = capi()
        # SAFETY: the clone is ours and holds its own references; it is freed when the last one to hold this object is
        # gone: a module linked with it holds it, and every instance its module.
        self.linker: int = api.linker_clone(engine.linker)
        numbers: list[int] = []
        weakref.finalize(self, _let_go, self.linker, numbers).atexit = False
        for function in functions:
            number = next(_numbers)
            _lent[number] = function
            numbers.append(number)
            type_ = function_type(api, function.params, function.results)
            # SAFETY: names and type are borrowed for the call; the number is no pointer, and needs no finalizer.
            error = api.linker_define_func(
                self.linker,
                function.module,
                len(function.module),
                function.name,
                len(function.name),
                type_,
                _callback(),
                number,
                None,
            )
            api.functype_delete(type_)
            if error:
                raise EngineError(f"a host function cannot be lent: {error_text(error)}")


def _let_go(linker: int, numbers: list[int]) -> None:
    capi().linker_delete(linker)
    for number in numbers:
        _lent.pop(number, None)


def function_type(api: Any, params: Sequence[str], results: Sequence[str]) -> int:
    """Makes a `wasm_functype_t`, which is the caller's to delete.

    Args:
        api: The C API.
        params: The types of its parameters.
        results: The types of its results.
    """
    vectors = []
    for types in (params, results):
        kinds = (c_void_p * len(types))(*(api.valtype_new(_KINDS[name]) for name in types))
        vector = (c_size_t * 2)()
        # SAFETY: the vector takes the types; the array that held their addresses is ours.
        api.valtype_vec_new(addressof(vector), len(types), addressof(kinds))
        vectors.append(vector)
    # SAFETY: the function type takes both vectors' contents.
    return int(api.functype_new(addressof(vectors[0]), addressof(vectors[1])))
