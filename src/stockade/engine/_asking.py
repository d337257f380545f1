"""Natives that a guard asks for when it needs them, so that no other run pays for having them.

Only an import can be bound ahead of all runs, and the function that halts guests must not be: what imports a function
that may halt takes a longer way to be instantiated. So it is lent through a table, which takes two calls into the
library for each instance. Most guests never wait. So where the guest has an import that nothing calls natively, the
guard calls that when it finds the table empty, and then its place in the table.

Such an import is `fd_write` or `fd_read` where nothing is mounted: standard streams are the guard's, and there is
nothing else that could be read or written.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_size_t, c_void_p
from functools import cache, partial
from itertools import starmap
from typing import TYPE_CHECKING, Final

from stockade.engine._callbacks import function_type, running, skip_signal_check
from stockade.engine._capi import Value
from stockade.engine._failure import error_text
from stockade.engine._parking import MODULE, PARKING
from stockade.engine._store import FUNCREF, Out
from stockade.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from ctypes import Array
    from typing import Any

__all__ = ["ASKING", "define_asking"]

ASKING: Final = ("fd_write", "fd_read")
"""Imports by which a guard may ask, where nothing is mounted. All are of the type of `poll_oneoff`."""

_EBADF: Final = 8
"""What they return, should anybody mean to write or read all the same."""

_LENT: Final[int] = Out.lent.offset
_ITEM_WORD: Final = Out.item.offset // 8
_MODULE_BYTES: Final = len(MODULE)
_PARKING_BYTES: Final = len(PARKING)


def _quiet(function: Callable[..., object]) -> Any:
    """Returns a function of the library as something to be subscripted with its arguments, in a tuple of one tuple.

    What comes of that holds the result. Python looks for signals after a call, and nowhere here.
    """
    return type("_Quiet", (), {"__slots__": (), "__getitem__": staticmethod(partial(starmap, function))})()


def _lender(api: Any) -> Callable[..., None]:
    """Makes the function that a guard asks."""
    context_of, find, put = _quiet(api.caller_context), _quiet(api.linker_get), _quiet(api.table_set)

    def lend(_: int, caller: int, args: int, count: int, results: Array[Value], size: int) -> None:  # noqa: ARG001
        # SAFETY: on the guest's stack, with room as for `_park`, and for three of C more, as `check_stack` has seen. No
        # handler of a signal begins here, where what it raises would be lost: there is no call but of the library's
        # functions, which is none to Python, and no loop; and none begins where this begins (`skip_signal_check`). Nor
        # does another thread get the interpreter lock meanwhile.
        results[0].of.i32 = _EBADF
        instance: Any = running.innermost[0]
        bed = instance.bed
        # SAFETY: the library lends us the caller for this call, and with it the store, which so may be used. It is the
        # one that is meant, or nothing is done: the guard finds the table empty again, and traps.
        (context,) = context_of[((caller,),)]
        if context != bed.asks_of:
            return
        linker, number, slot = bed.asked
        base, out, words = bed.out
        lent = base + _LENT
        # SAFETY: as in `_lend` (`_instance.py`). The call under way borrows other places of `out` than these two.
        (found,) = find[((linker, context, MODULE, _MODULE_BYTES, PARKING, _PARKING_BYTES, lent),)]
        # Once: each time takes room in the store.
        bed.asks_of = 0
        if found:
            out[_LENT] = FUNCREF
            words[_ITEM_WORD] = number
            # What cannot be put there leaves an error behind, a few bytes, and a table that is empty, as before.
            (_,) = put[((context, base, slot, lent),)]

    skip_signal_check(lend)
    return lend


@cache  # Kept for the life of the process, as the library holds its address.
def _callback(api: Any) -> tuple[c_void_p, object]:
    values: Any = POINTER(Value)
    made = CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, values, c_size_t)(_lender(api))
    return ctypes.cast(made, c_void_p), made


def define_asking(api: Any, linker: int) -> None:
    """Binds what guards ask by.

    Args:
        api: The C API.
        linker: A linker with native WASI, whose reads and writes this replaces.

    Raises:
        EngineError: The library does not take it.
    """
    for name in map(str.encode, ASKING):
        type_ = function_type(api, ("i32",) * 4, ("i32",))
        # SAFETY: names and type are borrowed for the call; the callback lives as long as the process.
        error = api.linker_define_func(
            linker, MODULE, _MODULE_BYTES, name, len(name), type_, _callback(api)[0], None, None
        )
        api.functype_delete(type_)
        if error:
            raise EngineError(f"guards cannot be made to ask for what they need: {error_text(error)}")
