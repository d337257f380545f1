"""What the library calls back: Python on the stack of a guest, and what makes that sound.

The library calls one function of ours there, the one that halts a guest (`_parking.py`). It finds the instance by the
thread: an instance says here when its guest begins to run, and when it halts.
"""

from __future__ import annotations

import threading
from ctypes import addressof, c_size_t, c_void_p
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.engine._instance import Instance

__all__ = ["check_stack", "function_type", "running", "skip_signal_check"]

_CALL_LEVELS = 8

_KINDS = {"i32": 0, "i64": 1, "f32": 2, "f64": 3}


class _Running(threading.local):
    """The instances whose guests run on this thread, the innermost last."""

    def __init__(self) -> None:
        self.instances: list[Instance] = []


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


def check_stack(levels: int = _CALL_LEVELS) -> int:
    """Checks that there is room on Python's stack for a run that halts, maybe to call functions of the embedder.

    Args:
        levels: How many calls deep it goes, so that none of them has been called where that does not fit.

    Raises:
        RecursionError: There is none.
    """
    # By a function in C, for calls through C have a limit of their own.
    return min((levels - 1,), key=check_stack) if levels else 0


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
