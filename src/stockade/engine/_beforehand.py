"""What is done with guests before their run, where nothing of them may run yet: in a process that waits for it."""

from __future__ import annotations

import ctypes
from mmap import PAGESIZE
from typing import TYPE_CHECKING, Any, Final

from stockade.engine._capi import Extern, Value, capi
from stockade.engine._failure import Failure, error_text
from stockade.engine._libc import libc
from stockade.engine._parking import MODULE
from stockade.engine._store import Out

if TYPE_CHECKING:
    from stockade.engine._compiled import CompiledModule
    from stockade.engine._instance import Instance

__all__ = ["hold_still", "make_stack", "map_code"]

_MADV_POPULATE_READ: Final = 22
"""As on Linux from 5.14 on; Python does not name it."""

_NATIVE: Final = b"sched_yield"
"""A native function that does nothing: it finds no memory of a guest that it could answer to."""

_TRAP_WORD: Final = Out.trap.offset // 8
_ERROR_WORD: Final = Out.error.offset // 8


class _Still:
    """The C API, but that a call is over before anything of its guest has run.

    Args:
        api: The C API.
    """

    def __init__(self, api: Any) -> None:
        self._api = api

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def call_future_poll_long(self, future: int) -> bool:  # noqa: ARG002 - nobody looks at it
        """Says that a call is over, which is not begun."""
        # SAFETY: nothing is called. Whoever is told so deletes the future, which nobody has polled, and reads results
        # from memory of his own, which holds zeros.
        return self._api.call_future_poll_long is not None


def hold_still(instance: Instance) -> None:
    """Sees to it that nothing of a guest ever runs: its calls are over when they begin, and return zeros.

    Args:
        instance: The guest, of which nothing has run.
    """
    instance._api = _Still(instance._api)  # noqa: SLF001 - there is no other way to what it calls


def make_stack(instance: Instance) -> None:
    """Has the library make the stack of a guest, which it keeps for the guest's first call. Nothing of the guest runs.

    Args:
        instance: The guest, of which nothing has run.
    """
    # fmt: off
    api, place, context, base = instance._api, instance._place, instance._context, instance._base  # noqa: SLF001
    linked = instance._linked  # noqa: SLF001
    # fmt: on
    _, linker, _ = linked.native or linked.asking or linked.link()
    result = Value()
    function = base + Out.lent.offset
    # SAFETY: linker and store belong to one engine; the function lands in `out.lent`, and is one of native WASI. The
    # future borrows what is in `out`, and our value, until it is deleted here. Nothing of the guest's is called: the
    # function is given no memory, for its caller is no guest, and says so by an error, which is freed.
    if not api.linker_get(linker, context, MODULE, len(MODULE), _NATIVE, len(_NATIVE), function):
        return
    given = context, function + Extern.of.offset, None, 0, ctypes.addressof(result), 1
    future = place.future = api.func_call_async(*given, base + Out.trap.offset, base + Out.error.offset)
    api.call_future_poll(future)
    place.end_call()
    words = place.words
    trap, words[_TRAP_WORD] = words[_TRAP_WORD], 0
    error, words[_ERROR_WORD] = words[_ERROR_WORD], 0
    if trap:
        Failure.from_trap(trap)
    if error:
        error_text(error)


def map_code(compiled: CompiledModule) -> None:
    """Has the system map all pages of machine code, which it does else where each is first run.

    Args:
        compiled: The machine code, which lies in a file.
    """
    bounds = (ctypes.c_size_t * 2)()
    place = ctypes.addressof(bounds)
    # SAFETY: the module is alive, and with it what lies between the two addresses that are written into our places.
    capi().module_image_range(compiled.module, place, place + ctypes.sizeof(ctypes.c_size_t))
    start, end = bounds
    start -= start % PAGESIZE
    # SAFETY: that is mapped, and may be read. Where the kernel does not know the advice, nothing happens.
    libc().madvise(start, end - start, _MADV_POPULATE_READ)
