"""What the library calls back: Python on the stack of a guest, and what makes that sound.

The library calls one function of ours there, the one that halts a guest (`_parking.py`). It finds the instance by the
thread: an instance says here when its guest begins to run, and when it halts.
"""

from __future__ import annotations

import sys
import threading
from ctypes import addressof, c_size_t, c_void_p
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.engine._instance import Instance

__all__ = ["check_stack", "check_stack_to_call_out", "function_type", "running", "skip_signal_check"]

_HALT_LEVELS = 5
"""Calls that a guest which halts needs room for, with some to spare."""

_CALL_LEVELS = 9
"""The same for one that calls functions of the embedder, so that none of them has been called where no reply fits."""

_KINDS = {"i32": 0, "i64": 1, "f32": 2, "f64": 3}


class _Running(threading.local):
    """The instance whose guest runs on this thread, the innermost where there are several; None where there is none."""

    def __init__(self) -> None:
        self.innermost: list[Instance | None] = [None]


running = _Running()


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


class _Room:
    """Asked whether it is true, it asks the next one: calls of Python's through C, which have a limit of their own."""

    __slots__ = ("_beyond",)

    def __init__(self, levels: int) -> None:
        self._beyond = _Room(levels - 1) if levels else ()

    def __bool__(self) -> bool:
        return not self._beyond


def _nested(levels: int) -> tuple[object, ...]:
    return (_nested(levels - 1),) if levels else ()


_room_to_halt = _Room(_HALT_LEVELS)
_deep_type: Any = _nested(_HALT_LEVELS + 1)
_ONE_COUNTER = sys.version_info < (3, 12)
"""Whether Python counts calls through C and its own together. Then `isinstance`, which counts each tuple within
another, asks for as much room, and runs no Python."""

# Without a function of ours between, which would take as long again.
check_stack: Final[Callable[[], object]] = (
    partial(isinstance, None, _deep_type) if _ONE_COUNTER else partial(bool, _room_to_halt)
)
"""Raises RecursionError where there is no room on Python's stack for a run that halts."""

check_stack_to_call_out: Final[Callable[[], object]] = partial(bool, _Room(_CALL_LEVELS))
"""The same for a run that halts to call functions of the embedder."""


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
