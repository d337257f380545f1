"""Guests that wait: halted in a call to the host, with their stack left as it is, and no thread held.

The guard's one way to wait is a function under the name of `poll_oneoff`, which is bound to an asynchronous host
function here. It says at once that its answer comes later; so the call that runs the guest yields, and the guest goes
on the next time it is polled after its instance was told to wake up.

That function, and the one by which the library asks whether the answer is there, are machine code (`_machine_code.py`):
no Python runs on the guest's stack.
"""

from __future__ import annotations

import ctypes
from ctypes import addressof, c_uint8, c_void_p
from functools import cache
from typing import TYPE_CHECKING

from stockade.engine._callbacks import function_type
from stockade.engine._failure import error_text
from stockade.engine._machine_code import routines
from stockade.errors import EngineError

if TYPE_CHECKING:
    from typing import Any

__all__ = ["PARKING", "ParkingSlot", "define_parking"]

_MODULE = b"wasi_snapshot_preview1"
PARKING = b"poll_oneoff"
"""The name under which guests, and the guard for them, import what halts them."""


class ParkingSlot(ctypes.Structure):
    """Where one instance sleeps: its store's data, so that a guest that goes to sleep is led here.

    It begins with a `wasmtime_async_continuation_t`, which the library is given when that happens. So it must not be
    moved or freed before its store is.
    """

    # Where machine code looks for them.
    _fields_ = (("callback", c_void_p), ("env", c_void_p), ("finalizer", c_void_p), ("awake", c_uint8))

    awake: int
    """Zero while its guest sleeps; else 1. The library reads it as a bool."""

    def make_ready(self) -> None:
        """Makes it fit to be slept in. Its guest is awake."""
        self.callback = routines().is_awake
        self.env = addressof(self) + ParkingSlot.awake.offset  # type: ignore[attr-defined] # the field's descriptor
        self.awake = 1

    def wake(self) -> None:
        """Lets the guest go on when it is polled the next time."""
        self.awake = 1


@cache  # Kept for the life of the process, as the library holds its address.
def _table(api: Any) -> ctypes.Array[c_void_p]:
    """What `park` asks for the store of a caller, and for that store's data."""
    return (c_void_p * 2)(*(ctypes.cast(f, c_void_p).value for f in (api.caller_context, api.context_get_data)))


def define_parking(api: Any, linker: int) -> None:
    """Binds the guard's way to wait.

    Args:
        api: The C API.
        linker: A linker with native WASI, whose `poll_oneoff` this replaces.

    Raises:
        EngineError: The library does not take it, or the system does not.
    """
    park = routines().park
    type_ = function_type(api, ("i32",) * 4, ("i32",))
    api.linker_allow_shadowing(linker, True)
    # SAFETY: names and type are borrowed for the call; the table lives as long as the process. When a guest calls, the
    # library lends `park` its caller and a continuation to be filled in: all stores of this engine have a `ParkingSlot`
    # as their data, which lives as long as they do. The result is the zero that the library has put there.
    error = api.linker_define_async_func(
        linker, _MODULE, len(_MODULE), PARKING, len(PARKING), type_, park, addressof(_table(api)), None
    )
    api.functype_delete(type_)
    if error:
        raise EngineError(f"guests cannot be made to wait: {error_text(error)}")
