"""The only code on a guest's stack that is ours: a few instructions of the machine, so that no Python runs there.

Python does not know the stacks that guests have. It would take its lock there and look for signals, and from 3.14 on it
ends a process whose stack is none of the thread's. So what the library calls when a guest waits is written here as the
machine takes it: for every machine for which the library is made.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from ctypes import c_int, c_long, c_size_t, c_void_p
from functools import cache
from typing import NamedTuple

from stockade.engine._capi import machine_name
from stockade.errors import EngineError

__all__ = ["INSTRUCTIONS", "Routines", "routines"]

INSTRUCTIONS = {
    "x86_64": (
        # park: RDI is the table, RSI the caller, the continuation to be filled in lies on the stack as the eighth.
        ("53", "push rbx"),
        ("55", "push rbp"),
        ("48 83 ec 08", "sub rsp, 8"),
        ("48 89 fd", "mov rbp, rdi"),
        ("48 8b 5c 24 28", "mov rbx, qword ptr [rsp + 40]"),
        ("48 89 f7", "mov rdi, rsi"),
        ("ff 55 00", "call qword ptr [rbp + 0]"),
        ("48 89 c7", "mov rdi, rax"),
        ("ff 55 08", "call qword ptr [rbp + 8]"),
        ("c6 40 18 00", "mov byte ptr [rax + 24], 0"),
        ("48 8b 08", "mov rcx, qword ptr [rax]"),
        ("48 8b 50 08", "mov rdx, qword ptr [rax + 8]"),
        ("48 89 0b", "mov qword ptr [rbx], rcx"),
        ("48 89 53 08", "mov qword ptr [rbx + 8], rdx"),
        ("48 83 c4 08", "add rsp, 8"),
        ("5d", "pop rbp"),
        ("5b", "pop rbx"),
        ("c3", "ret"),
        # is_awake: RDI is the byte.
        ("0f b6 07", "movzx eax, byte ptr [rdi]"),
        ("c3", "ret"),
    ),
    "aarch64": (
        # park: X0 is the table, X1 the caller, X7 the continuation to be filled in.
        ("fd 7b be a9", "stp x29, x30, [sp, #-32]!"),
        ("fd 03 00 91", "mov x29, sp"),
        ("f3 53 01 a9", "stp x19, x20, [sp, #16]"),
        ("f3 03 07 aa", "mov x19, x7"),
        ("f4 03 00 aa", "mov x20, x0"),
        ("e0 03 01 aa", "mov x0, x1"),
        ("88 02 40 f9", "ldr x8, [x20]"),
        ("00 01 3f d6", "blr x8"),
        ("88 06 40 f9", "ldr x8, [x20, #8]"),
        ("00 01 3f d6", "blr x8"),
        ("1f 60 00 39", "strb wzr, [x0, #24]"),
        ("08 24 40 a9", "ldp x8, x9, [x0]"),
        ("68 26 00 a9", "stp x8, x9, [x19]"),
        ("f3 53 41 a9", "ldp x19, x20, [sp, #16]"),
        ("fd 7b c2 a8", "ldp x29, x30, [sp], #32"),
        ("c0 03 5f d6", "ret"),
        # is_awake: X0 is the byte.
        ("00 00 40 39", "ldrb w0, [x0]"),
        ("c0 03 5f d6", "ret"),
    ),
}
"""For each machine the instructions of `park`, then the two of `is_awake`: bytes, and what they say.

`park(table, caller, …, continuation)` asks the two functions of `table`, one after the other, for the store of `caller`
and what the embedder has put there: the address of a `ParkingSlot`. It takes its first two words over into
`continuation`, and sets the byte behind its first three to zero. `is_awake(byte)` returns the byte.
"""

_IS_AWAKE_INSTRUCTIONS = 2
_FAILED = 2**64 - 1
"""What `mmap` returns where it fails."""


class Routines(NamedTuple):
    """Addresses of what the library may call.

    Attributes:
        park: A `wasmtime_func_async_callback_t`.
        is_awake: A `wasmtime_func_async_continuation_callback_t`.
    """

    park: int
    is_awake: int


@cache
def routines() -> Routines:
    """Puts the instructions into memory, on first use; they stay for the life of the process.

    Raises:
        EngineError: There are none for this machine, or the system runs no code that a process has made.
    """
    machine = machine_name()
    if machine not in INSTRUCTIONS or os.name != "posix":
        raise EngineError(f"guests cannot be made to wait on {machine or 'this machine'} under {os.name}")
    pieces = [bytes.fromhex(code) for code, _ in INSTRUCTIONS[machine]]
    first = _make_executable(b"".join(pieces))
    return Routines(first, first + sum(map(len, pieces[:-_IS_AWAKE_INSTRUCTIONS])))


def _make_executable(code: bytes) -> int:
    libc = ctypes.PyDLL(None, use_errno=True)
    reserve, protect = libc.mmap, libc.mprotect
    reserve.restype, reserve.argtypes = c_void_p, (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
    protect.restype, protect.argtypes = c_int, (c_void_p, c_size_t, c_int)
    # SAFETY: pages of our own, which nobody gives back: a guest may wait as long as the process lives. They are never
    # writable and executable at once. They become executable after they were written and before they are first run,
    # where the kernel sees to it that processors do not run what was there before.
    pages = reserve(None, len(code), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if pages is None or pages == _FAILED:
        raise EngineError(f"there is no memory for guests that wait: {os.strerror(ctypes.get_errno())}")
    ctypes.memmove(pages, code, len(code))
    if protect(pages, len(code), mmap.PROT_READ | mmap.PROT_EXEC):
        raise EngineError(
            f"the system lets this process run no code that it has made ({os.strerror(ctypes.get_errno())}): without "
            "that no WebAssembly runs. Look for what forbids it, such as SELinux or systemd's MemoryDenyWriteExecute"
        )
    return int(pages)
