"""What the C library is asked for to map memory."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_long, c_size_t, c_void_p
from functools import cache
from mmap import PAGESIZE
from typing import Final

__all__ = ["MADV_DONTFORK", "MAP_FAILED", "MAP_FIXED", "MAP_NORESERVE", "libc"]

MADV_DONTFORK: Final = 10
MAP_FIXED: Final = 0x10
MAP_NORESERVE: Final = 0x4000

MAP_FAILED: Final = c_void_p(-1).value
"""What `mmap` returns where there is no room."""


class _Libc:
    """The functions of the C library that map memory. But for two, they keep the interpreter lock."""

    def __init__(self) -> None:
        library = ctypes.PyDLL(None, use_errno=True)
        self.mmap = library.mmap
        self.mmap.restype = c_void_p
        self.mmap.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
        self.munmap = library.munmap
        self.munmap.restype = c_int
        self.munmap.argtypes = (c_void_p, c_size_t)
        self.mremap = library.mremap
        self.mremap.restype = c_void_p
        self.mremap.argtypes = (c_void_p, c_size_t, c_size_t, c_int, c_void_p)
        # May copy many pages, or give many back: without the interpreter lock.
        unlocked = ctypes.CDLL(None, use_errno=True)
        self.munmap_long = unlocked.munmap
        self.munmap_long.restype = c_int
        self.munmap_long.argtypes = (c_void_p, c_size_t)
        self.madvise = unlocked.madvise
        self.madvise.restype = c_int
        self.madvise.argtypes = (c_void_p, c_size_t, c_int)
        self.memcmp = library.memcmp
        self.memcmp.restype = c_int
        self.memcmp.argtypes = (c_void_p, c_void_p, c_size_t)
        self.zeros = ctypes.create_string_buffer(PAGESIZE)


@cache
def libc() -> _Libc:
    """Returns them, looked up once."""
    return _Libc()
