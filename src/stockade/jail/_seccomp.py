"""Seccomp: the kernel runs a program of ours over each system call (Documentation/userspace-api/seccomp_filter.rst)."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Final

from stockade.jail._filter import FilterOptions, build_filter
from stockade.jail._libc import syscall
from stockade.jail._model import JailError
from stockade.syscalls import load_table, this_platform
from stockade.system import prctl

if TYPE_CHECKING:
    from stockade.jail._model import Jail
    from stockade.syscalls import Platform

__all__ = ["filter_mode", "install_filter", "prepare_filters"]

_SET_MODE_FILTER: Final = 1
_PR_GET_SECCOMP: Final = 21
_FILTERED: Final = 2


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def prepare_filters(jail: Jail) -> None:
    """Makes the programs that processes forked from this one are going to install.

    Args:
        jail: What is allowed.
    """
    for trial in (True, False):
        _program(jail, trial=trial)


def install_filter(jail: Jail, *, trial: bool) -> None:
    """Has the kernel look at each system call of this process from now on.

    Args:
        jail: What is allowed.
        trial: Whether calls that would end the process fail instead, and another filter may follow.

    Raises:
        OSError: The kernel does not do so.
    """
    _install(_program(jail, trial=trial))


def _program(jail: Jail, *, trial: bool) -> bytes:
    table = load_table().without(jail.remove) if jail.remove else load_table()
    options = FilterOptions(
        executable=jail.executable,
        may_tighten=trial,
        on_forbidden=not trial and jail.on_forbidden == "kill",
        on_unlisted=not trial and jail.on_unlisted == "kill",
    )
    return build_filter(table, _platform(), options, os.getpid())


def filter_mode() -> bool:
    """Whether a filter stands."""
    return prctl(_PR_GET_SECCOMP) == _FILTERED


def _install(program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    # SAFETY: the kernel copies the program before the call returns; `buffer` outlives the call.
    syscall("seccomp", _SET_MODE_FILTER, 0, _Program(len(program) // 8, ctypes.addressof(buffer)))


def _platform() -> Platform:
    platform = this_platform()
    if platform not in ("linux-x86_64", "linux-aarch64"):
        raise JailError("a jail needs Linux on x86-64 or aarch64: use isolation inprocess here")
    return platform
