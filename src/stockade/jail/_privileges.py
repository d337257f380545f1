"""What a process is, without what it could become: no new privileges, no capabilities, not to be looked into."""

from __future__ import annotations

import ctypes
import struct
from contextlib import suppress
from typing import Final

from stockade.jail._libc import syscall
from stockade.system import forgo_privileges, prctl

__all__ = ["drop_capabilities", "forgo_new_privileges", "has_no_new_privileges", "hide_memory", "is_hidden"]

_PR_GET_DUMPABLE, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 3, 4, 24
_PR_GET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 39, 47
_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION: Final = 0x2008_0522
_MOST_CAPABILITIES: Final = 64
_NONE_LEFT: Final = "none are left"


def forgo_new_privileges() -> str:
    """Has this process gain nothing by what it executes, which seccomp and Landlock ask for.

    Raises:
        OSError: The kernel does not do so.
    """
    forgo_privileges()
    return "programs that it executes gain no privileges"


def has_no_new_privileges() -> bool:
    """Whether that is so."""
    return prctl(_PR_GET_NO_NEW_PRIVS) == 1


def drop_capabilities() -> str:
    """Gives up all capabilities, for good.

    Raises:
        OSError: The kernel does not do so, or some are left.
    """
    if not _has_capabilities():
        return _NONE_LEFT
    for number in range(_MOST_CAPABILITIES):
        try:
            prctl(_PR_CAPBSET_DROP, number)
        except OSError:
            break  # It is the last one, or this process may not drop any: what it executes gains none all the same.
    with suppress(OSError):  # kernels before 4.3 have none of these
        prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION, 0), 8)
    nothing = ctypes.create_string_buffer(24)
    # SAFETY: this version of the header goes with two structures of three words.
    syscall("capset", header, nothing)
    if _has_capabilities():
        raise OSError(0, "capabilities are left")
    return _NONE_LEFT


def _has_capabilities() -> bool:
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION, 0), 8)
    found = ctypes.create_string_buffer(b"\xff" * 24, 24)
    # SAFETY: this version of the header goes with two structures of three words, which the kernel writes.
    syscall("capget", header, found)
    return any(found.raw)


def hide_memory() -> str:
    """Has no process of the same user look into this one, nor the kernel write its memory to a file.

    Raises:
        OSError: The kernel does not do so.
    """
    prctl(_PR_SET_DUMPABLE, 0)
    return "no core file, and not to be traced by processes of the same user"


def is_hidden() -> bool:
    """Whether that is so."""
    return prctl(_PR_GET_DUMPABLE) == 0
