"""Guests that open a FIFO, or whatever else opens when somebody does something about it, and maybe never.

Native WASI opens what it is told to, on a thread of its own, out of reach of any deadline. To look at each path before
it is opened would take longer than opening it, and what was seen may be something else by then. So an open that takes
long is interrupted: the thread that is in it is sent a signal, for which a handler stands that does nothing. The system
then gives up the open (EINTR, signal(7)), wherever its path leads by now, and the guard goes on: it refuses what is
neither a file nor a folder, and opens anew what is.

The signals are two that the system ignores where no handler stands, so that one that comes too late does nothing. One
that the program has a handler for is left to it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["can_interrupt_opens", "forgo_interrupts", "interrupt_opens", "let_interrupts_in"]


class _Numbers(NamedTuple):
    """The numbers of system calls on one machine."""

    openat: int
    openat2: int
    tgkill: int


_SYSCALLS: Final = {"x86_64": _Numbers(257, 437, 234), "aarch64": _Numbers(56, 437, 131)}

_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGURG", "SIGWINCH") if hasattr(signal, name))
"""Signals that are ignored by default, the one that a program is least likely to use first."""

_OPENER: Final = b"tokio"
"""How the names of native WASI's threads begin. What other threads open is no business of ours."""

_TASKS: Final = Path("/proc/self/task")

_NOBODYS: Final = (0, 1)
"""SIG_DFL and SIG_IGN: where one of these stands, nothing happens at these signals."""

_SA_ONSTACK: Final = 0x08000000


class _Action(ctypes.Structure):
    """`struct sigaction` of the C libraries, for machines with 64 bits."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _nothing() -> int:
    """The address of a function that takes a number and does nothing that anybody could see: abs(3)."""
    address = ctypes.cast(_library().abs, ctypes.c_void_p).value
    assert address is not None
    return address


def _handler(number: int) -> int:
    """What stands as a handler of a signal. Python does not know of those that it has not put there."""
    action = _Action()
    # SAFETY: without a new action, the old one is written into a structure of ours.
    if _library().sigaction(number, None, ctypes.byref(action)):
        raise OSError(ctypes.get_errno(), "sigaction")
    return action.handler or 0


def _is_ours(number: int) -> bool:
    """Whether a signal is free to be used here; then a handler that does nothing stands for it."""
    handler = _handler(number)
    if handler in _NOBODYS:
        # Not SA_RESTART, so that what it interrupts is not begun anew. The guest's own stack may be small.
        action = _Action(_nothing(), flags=_SA_ONSTACK)
        # SAFETY: copied by the call. The handler is code of the C library, may interrupt anything, and stays.
        return not _library().sigaction(number, ctypes.byref(action), None)
    return handler == _nothing()


def _can_be_ours(number: int) -> bool:
    return _handler(number) in (*_NOBODYS, _nothing())


@cache
def _tells_calls() -> bool:
    """Whether the system tells in which call a thread is (proc_pid_syscall(5))."""
    if sys.platform != "linux" or platform.machine() not in _SYSCALLS:
        return False
    try:
        return bool(Path("/proc/thread-self/syscall").read_bytes())
    except OSError:
        return False


_forgone = False


def forgo_interrupts() -> None:
    """Has no opens interrupted in this process, nor in jailed ones that it forks: there the system tells no calls."""
    global _forgone
    _forgone = True


def can_interrupt_opens() -> bool:
    """Whether the system tells in which call a thread is, and the program leaves a signal to be used."""
    return not _forgone and _tells_calls() and any(_can_be_ours(number) for number in _SIGNALS)


def let_interrupts_in() -> None:
    """Has this thread take the signals, and the threads that native WASI starts from it: they do what it does.

    Nobody else misses one: where the program has no handler, they are ignored wherever they are not held up.
    """
    if _tells_calls():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(_SIGNALS)
        if free := {number for number in blocked if _can_be_ours(number)}:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, free)


def interrupt_opens() -> None:
    """Interrupts native WASI wherever it is opening something right now."""
    numbers = _SYSCALLS[platform.machine()]
    ours = None
    for task in os.listdir(_TASKS):  # noqa: PTH208 - names are all that is wanted
        # A thread may be gone, or out of its call, at any moment.
        with suppress(OSError, ValueError, IndexError):
            call = int((_TASKS / task / "syscall").read_bytes().split()[0])
            if call in (numbers.openat, numbers.openat2) and (_TASKS / task / "comm").read_bytes().startswith(_OPENER):
                if ours is None:
                    ours = next((number for number in _SIGNALS if _is_ours(number)), 0)
                if ours:
                    # SAFETY: numbers only. Should the thread be gone, this is an error; should another one have got its
                    # number, or be out of its call, then a function that does nothing is called there.
                    _library().syscall(ctypes.c_long(numbers.tgkill), os.getpid(), int(task), int(ours))
