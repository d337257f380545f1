"""Contents mapped over the memory of a live instance."""

from __future__ import annotations

import ctypes
import os
from mmap import MAP_ANON, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from typing import TYPE_CHECKING, Final

from stockade.engine._libc import MADV_DONTFORK, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, libc
from stockade.errors import EngineError

if TYPE_CHECKING:
    from stockade.engine._memory_image import MemoryImage

__all__ = ["Room", "map_clear", "map_image", "map_in_place", "map_over", "put_aside"]

_MREMAP_MAYMOVE: Final = 1
_MREMAP_FIXED: Final = 2
_MREMAP_DONTUNMAP: Final = 4
"""As on Linux from 5.13 on for files; Python does not name them."""

_TABLE_BYTES: Final = 2 << 20
"""What a page of a page table covers."""


def map_image(address: int, initial: int, image: MemoryImage) -> None:
    """Maps contents over a memory."""
    at = 0
    for start, size, file, offset in image.extents:
        if at < min(start, initial):
            map_over(address + at, min(start, initial) - at, -1, 0)
        map_over(address + start, size, file.descriptor, offset)
        at = start + size
    if at < initial:
        map_over(address + at, initial - at, -1, 0)


def map_over(address: int, size: int, descriptor: int, offset: int) -> None:
    flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE | (MAP_ANON if descriptor < 0 else 0)
    # SAFETY: the stretch lies inside [base, base + size) of a memory of a live instance, which was grown to that size
    # before; it begins and ends with pages of the host's, for memories have pages of 64 KiB. So it replaces only
    # what the guest could read and write before, with the same protection; the engine's guard pages and what it has
    # reserved behind the memory stay as they are. Memories never move (`memory_may_move` is off), and grow by making
    # accessible what is reserved behind them. An engine without a pool unmaps the whole reservation when the
    # instance is freed, whatever is mapped there; it clears and keeps nothing. Nothing of the instance runs meanwhile.
    # The file is sealed, so nobody shortens it: no access ends in a SIGBUS.
    found = libc().mmap(address, size, PROT_READ | PROT_WRITE, flags, descriptor, offset)
    if found != address:
        raise EngineError(f"a snapshot cannot be mapped: {os.strerror(ctypes.get_errno())}")


def map_in_place(address: int, size: int, descriptor: int, offset: int, *, accessible: bool) -> None:
    """Maps a file over a stretch of a memory, to be written to in place.

    Args:
        address: Where.
        size: How many bytes.
        descriptor: The file, which reaches to the end of that, and which nobody else has.
        offset: Where it begins there.
        accessible: Whether the guest may use it; else it is what the memory may grow by.

    Raises:
        EngineError: There is no memory map for it.
    """
    rights = PROT_READ | PROT_WRITE if accessible else 0
    # SAFETY: as in `map_over`, but that it may lie behind the memory, in what the engine has reserved for it to grow,
    # where it stays inaccessible until the engine says otherwise. Nobody shortens the file: its descriptor is ours, and
    # before it is given to others it is sealed.
    found = libc().mmap(address, size, rights, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, descriptor, offset)
    if found != address:
        raise EngineError(f"a file cannot be mapped for a memory: {os.strerror(ctypes.get_errno())}")


def map_clear(address: int, size: int) -> None:
    """Maps zeros over all of a memory that no guest uses any more, and over what is reserved for it.

    Args:
        address: Where.
        size: How many bytes.

    Raises:
        EngineError: There is no memory map for it.
    """
    map_over(address, size, -1, 0)


class Room:
    """Address space of our own, given back when this is dropped. A forked child does not have it.

    Args:
        address: Where.
        size: How many bytes.
    """

    __slots__ = ("_address", "_process", "_size")

    def __init__(self, address: int, size: int) -> None:
        self._address = address
        self._size = size
        self._process = os.getpid()

    def __del__(self) -> None:
        if self._process != os.getpid():
            # What is mapped there in a child is somebody else's.
            return
        # Piece by piece, for nobody else in the process can map anything while one is given back.
        for at in range(0, self._size, _TABLE_BYTES):
            # SAFETY: nobody else knows it. Without the interpreter lock, for there may be much to give back.
            libc().munmap_long(self._address + at, min(_TABLE_BYTES, self._size - at))


def put_aside(address: int, size: int) -> Room | None:
    """Moves what the kernel knows of the pages of a file that is mapped, and leaves the mapping as it is.

    Whatever is mapped there next, there is nothing to give back first. What is read there before is found anew.

    Args:
        address: Where a mapping begins.
        size: How many bytes of it.

    Returns:
        Where it is now; None where the kernel does not do so.
    """
    library = libc()
    whole = size + _TABLE_BYTES
    # SAFETY: address space of our own that nobody else knows.
    begun = library.mmap(None, whole, 0, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0)
    if begun in {None, MAP_FAILED}:
        return None
    room = Room(begun, whole)
    # Tables are moved whole where both begin at the same place within one.
    place = begun + (address - begun) % _TABLE_BYTES
    # SAFETY: the pages of one mapping of a file, shared, come to lie in that room instead, which has space for them.
    # The old mapping stays where it is, and finds them in the file again: nobody sees a change. A guest reaches its own
    # reservation only, so not this room; and no forked child gets it.
    flags = _MREMAP_MAYMOVE | _MREMAP_FIXED | _MREMAP_DONTUNMAP
    if library.mremap(address, size, size, flags, place) != place:
        return None
    library.madvise(begun, whole, MADV_DONTFORK)
    return room
