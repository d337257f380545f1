"""The kernel, by the C library's `syscall`: what Python has no functions for."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any, Final

from stockade.jail._model import JailError
from stockade.syscalls import load_table, this_platform

__all__ = ["number_of", "syscall"]


@cache
def _libc() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    library.syscall.argtypes = (ctypes.c_long,)
    return library


@cache
def number_of(name: str) -> int:
    """Returns the number of a system call on this machine.

    Raises:
        JailError: The machine is of a kind that is not known.
    """
    platform = this_platform()
    if platform is None or platform == "darwin":
        raise JailError("a jail needs Linux on x86-64 or aarch64: use isolation inprocess here")
    found = load_table().find(name, platform)
    number = None if found is None else found.number(platform)
    assert number is not None, name
    return number


_POINTER: Final = ctypes.c_void_p


def syscall(name: str | int, *arguments: int | ctypes.Array[Any] | ctypes.Structure | None) -> int:
    """Makes a system call.

    Args:
        name: Its name in the table, or its number.
        arguments: Numbers, and memory by what holds it, which is kept until the call returns.

    Raises:
        OSError: It fails.
    """
    number = name if isinstance(name, int) else number_of(name)
    passed = [
        ctypes.c_ulong(given & 0xFFFF_FFFF_FFFF_FFFF)
        if isinstance(given, int)
        else _POINTER(None if given is None else ctypes.addressof(given))
        for given in arguments
    ]
    ctypes.set_errno(0)
    # SAFETY: numbers go as the unsigned words that the kernel takes; memory is held by `arguments` until the call
    # returns, and each caller's structure is as large as the kernel's for that call.
    result: int = _libc().syscall(number, *passed, *(ctypes.c_ulong(0),) * (6 - len(passed)))
    if result < 0:
        problem = ctypes.get_errno()
        raise OSError(problem, os.strerror(problem))
    return result
