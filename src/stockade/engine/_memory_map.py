"""Contents mapped over the memory of a live instance."""

from __future__ import annotations

import ctypes
import os
from itertools import compress, cycle, repeat, starmap
from mmap import MAP_ANON, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from operator import add
from typing import TYPE_CHECKING, Any, Final

from stockade._dropped import when_dropped
from stockade.engine._libc import MADV_DONTFORK, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, libc
from stockade.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine._memory_image import MemoryImage

__all__ = ["Room", "map_clear", "map_file", "map_image", "map_in_place", "map_over", "new_room", "put_aside"]

_MREMAP_MAYMOVE: Final = 1
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
        size: How many bytes.
        get: A function in C that returns where it is, or that nothing could be had: `mmap`, `mremap`.
        *arguments: What it is called with.
        piece: How much is given back at a time: nobody else in the process can map anything meanwhile.

    Raises:
        EngineError: There is none.

    Attributes:
        address: Where it is.
    """

    __slots__ = ("__del__", "address")

    def __init__(self, size: int, get: Callable[..., int | None], *arguments: int | None, piece: int) -> None:
        got, held = starmap(get, (arguments,)), list[Any]()
        offsets = range(0, size, piece)
        sizes = [min(piece, size - offset) for offset in offsets]
        # What is mapped there in a child is somebody else's.
        is_ours = map(os.getpid().__eq__, starmap(os.getpid, repeat(())))
        # SAFETY: nobody else knows it, and all of it is mapped until then, so nobody else comes to be there. Without
        # the interpreter lock, for there may be much to give back.
        pieces = compress(zip(map(add, cycle(held), offsets), sizes, strict=False), is_ours)
        self.__del__ = when_dropped(starmap(libc().munmap_long, pieces))
        # By an operator: signals are looked for behind calls.
        held += got
        self.address: int = held[0]
        if self.address in {None, MAP_FAILED}:
            held.clear()
            raise EngineError(f"there is no address space: {os.strerror(ctypes.get_errno())}")


def map_file(descriptor: int, offset: int, size: int) -> Room:
    """Maps a file somewhere, to be read.

    Args:
        descriptor: The file, which nobody shortens.
        offset: Where what is mapped begins there.
        size: How many bytes of it.

    Raises:
        EngineError: There is no room.
    """
    # SAFETY: it replaces nothing.
    return Room(
        size, libc().mmap, None, size, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, descriptor, offset, piece=_TABLE_BYTES
    )


def new_room(size: int) -> Room | None:
    """Returns address space in which nothing can be read or written; None where there is none.

    Args:
        size: How many bytes.
    """
    try:
        # SAFETY: it replaces nothing.
        return Room(size, libc().mmap, None, size, 0, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0, piece=size)
    except EngineError:
        return None


def put_aside(address: int, size: int) -> Room | None:
    """Moves what the kernel knows of the pages of a file that is mapped, and leaves the mapping as it is.

    Whatever is mapped there next, there is nothing to give back first. What is read there before is found anew.

    Args:
        address: Where a mapping begins.
        size: How many bytes of it.

    Returns:
        Where it is now; None where the kernel does not do so.
    """
    # Tables are moved whole where both begin at the same place within one. So it is found out where there is room for
    # that, and the kernel takes the hint, or another place where somebody has come to be there since. Told that it must
    # be there (`MREMAP_FIXED`), it would give back what is there first, even if it then refuses, as it does for files
    # on Linux before 5.13. There others could come to be, and lose what they have when the room is dropped.
    hole = new_room(size + _TABLE_BYTES)
    if hole is None:
        return None
    place = hole.address + (address - hole.address) % _TABLE_BYTES
    del hole
    library = libc()
    flags = _MREMAP_MAYMOVE | _MREMAP_DONTUNMAP
    try:
        # SAFETY: the pages of one mapping of a file, shared, come to lie where nothing is instead. The old mapping
        # stays where it is, and finds them in the file again: nobody sees a change. A guest reaches its own
        # reservation only, so not this room; and no forked child gets it.
        room = Room(size, library.mremap, address, size, size, flags, place, piece=_TABLE_BYTES)
    except EngineError:
        return None
    library.madvise(room.address, size, MADV_DONTFORK)
    return room
