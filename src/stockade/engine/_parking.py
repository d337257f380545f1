"""Guests that wait: halted in a call to the host, with their stack left as it is, and no thread held.

The guard's one way to wait is a function under the name of `poll_oneoff`, which is bound to an asynchronous host
function here. It says at once that its answer comes later; so the call that runs the guest yields, and the guest goes
on the next time it is polled after its instance was told to wake up.

The library asks whether the answer is there by calling a function with an address: here `strlen`, and at the address
stands a byte that is zero until then. So no Python runs on the guest's stack but a few instructions at the beginning.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import CFUNCTYPE, POINTER, addressof, c_char, c_size_t, c_void_p
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from stockade.engine._callbacks import function_type, running, skip_signal_check
from stockade.engine._failure import error_text
from stockade.errors import EngineError

if TYPE_CHECKING:
    from ctypes import _Pointer
    from typing import Any

__all__ = ["MODULE", "PARKING", "Asked", "ParkingSlot", "define_parking"]

MODULE = b"wasi_snapshot_preview1"
"""The import module of native WASI."""
PARKING = b"poll_oneoff"
"""The name under which guests, and the guard for them, import what halts them."""


class _Continuation(ctypes.Structure):
    """`wasmtime_async_continuation_t`: what the library calls to learn whether an answer is there."""

    _fields_ = (("callback", c_void_p), ("env", c_void_p), ("finalizer", c_void_p))


Asked: TypeAlias = tuple[int, int, int]
"""What is put where when a guard asks for what halts its guest: the linker that has it, the number of the guard's table
of natives, as it stands behind the instance in its handle, and the slot in it."""

_Awake = c_char * 2


# 3.14.0 takes every stack that lies below the thread's own for one that has overflown. Later ones look only whether the
# stack pointer is in the last pages of the thread's own stack, where that of a guest never is.
_ENDS_ON_OTHER_STACKS = sys.version_info[:3] == (3, 14, 0)


class ParkingSlot:
    """Where one instance sleeps.

    Args:
        address: Where the library writes to (`Out`).
        out: The same, byte by byte.
        words: And word by word.

    Raises:
        EngineError: It must not, for this Python would end the process.

    Attributes:
        taken: Whether its guest is halted here.
        asked: What is put where when its guard asks for what halts it (`_asking.py`).
        asks_of: The store whose guard may ask; 0 where none may.
        out: The arguments.
        awake: The byte that says whether it may go on, and a zero.
        continuation: What the library is told when that begins.
    """

    __slots__ = ("asked", "asks_of", "awake", "continuation", "out", "taken")

    def __init__(self, address: int, out: memoryview, words: memoryview) -> None:
        if _ENDS_ON_OTHER_STACKS:
            raise EngineError(
                "guests that may come to wait do not run on Python 3.14.0, which would end this process when one does: "
                "install Python 3.14.1 or later"
            )
        self.taken = False
        self.asked: Asked | None = None
        self.asks_of = 0
        self.out = address, out, words
        # SAFETY: two bytes, the second always zero, so `strlen` stays inside: it returns 0 or 1, of which the library
        # reads the lowest byte as a bool. They live as long as this object, which the instance keeps until its store
        # is gone.
        self.awake = _Awake()
        self.continuation = _Continuation(_strlen(), addressof(self.awake), None)

    def wake(self) -> None:
        """Lets the guest go on when it is polled the next time."""
        self.awake[0] = b"\1"
        self.taken = False


def _park(_: int, caller: int, args: int, count: int, results: int, size: int, trap: int, answer: Any) -> None:  # noqa: ARG001
    # SAFETY: on the guest's stack, of which the engine keeps half a megabyte for the host. No calls and no loops, so no
    # handler of a signal begins here and raises; nor does one where this begins, see `skip_signal_check`. There is room
    # for one level more of Python, for `Instance.poll` has just made a call as deep, and for two of C, for ctypes has
    # just converted the argument of the call into the library. The result is the zero that the library has put there.
    instance: Any = running.innermost[0]
    bed = instance.bed
    bed.taken = True
    bed.awake[0] = b"\0"
    answer[0] = bed.continuation


@cache
def _strlen() -> int:
    address = ctypes.cast(ctypes.PyDLL(None).strlen, c_void_p).value
    assert address is not None
    return address


@cache  # Kept for the life of the process, as the library holds its address.
def _callback() -> tuple[c_void_p, object]:
    skip_signal_check(_park)
    pointer: type[_Pointer[_Continuation]] = POINTER(_Continuation)
    made = CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p, pointer)(_park)
    return ctypes.cast(made, c_void_p), made


def define_parking(api: Any, linker: int) -> None:
    """Binds the guard's way to wait.

    Args:
        api: The C API.
        linker: A linker with native WASI, whose `poll_oneoff` this replaces.

    Raises:
        EngineError: The library does not take it.
    """
    type_ = function_type(api, ("i32",) * 4, ("i32",))
    api.linker_allow_shadowing(linker, True)
    # SAFETY: names and type are borrowed for the call; the callback lives as long as the process. In the callback, the
    # library lends the continuation to be filled in; what it copies from there lives in the instance's `ParkingSlot`.
    error = api.linker_define_async_func(
        linker, MODULE, len(MODULE), PARKING, len(PARKING), type_, _callback()[0], None, None
    )
    api.functype_delete(type_)
    if error:
        raise EngineError(f"guests cannot be made to wait: {error_text(error)}")
