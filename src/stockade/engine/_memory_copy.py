"""Memory copied into a file that is in memory only: in large pages, where the kernel has some.

To find and enter 25,600 pages takes the kernel six times as long as to copy what they hold. Fifty large ones take it
next to nothing, and whoever maps the file then has all of one for a single fault. The kernel makes large pages of
what lies in a file when it is asked to (`MADV_COLLAPSE`), whatever it does by itself.
"""

from __future__ import annotations

import os
import time
from ctypes import c_char, memmove
from errno import EBUSY
from functools import cache
from math import inf
from mmap import MAP_SHARED, PROT_READ, PROT_WRITE
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from stockade.engine._libc import MADV_DONTFORK, MAP_FIXED, MAP_NORESERVE, libc
from stockade.engine._memory_image import Extent, SealedFile
from stockade.engine._memory_map import new_room
from stockade.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LargePages", "copy_into", "large_page_bytes", "place_behind", "stored_at"]

LargePages: TypeAlias = Literal["never", "soon", "always"]
"""When large pages are made."""

_MADV_COLLAPSE: Final = 25
"""As on Linux from 6.1 on; Python does not name it."""

_MOST_LARGE_PAGE_BYTES: Final = 32 << 20

_AT_ONCE: Final = 4
"""Large pages that are asked for together, once the first one has been had in time."""

_WORTH_SECONDS: Final = 0.6e-3
"""What a large page may take, of this thread's processor time: what as many small ones take. It is a third of that, but
where the host of a virtual machine has to find the memory first, which it then does for each small page of it."""

_SPARE_SECONDS: Final = 0.4e-3
"""What all of them may take more."""


@cache
def large_page_bytes() -> int:
    """Returns how large the kernel's large pages are; 0 where there are none, or none of a useful size."""
    try:
        size = int(Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
    return size if 0 < size <= _MOST_LARGE_PAGE_BYTES else 0


def place_behind(end: int, start: int, size: int) -> int:
    """Returns where in a file a stretch of a memory is put.

    Whoever maps a large page has it as one only where it begins at a multiple of its size both in the file and in the
    process. Memories begin at one.

    Args:
        end: Where the stretch before it ends in the file.
        start: Where it begins in its memory.
        size: How long it is.
    """
    large = large_page_bytes()
    return end + (start - end) % large if large and size >= large else end


def copy_into(descriptor: int, address: int, size: int, offset: int, large_pages: LargePages = "soon") -> None:
    """Copies memory of this process into a file in memory.

    Args:
        descriptor: The file, which reaches to the end of what is copied.
        address: Where it begins; nothing changes it meanwhile.
        size: How many bytes there are.
        offset: Where they begin in the file.
        large_pages: Whether it is to be in large pages: `soon` where they are at hand, `always` however long they take.
            They take a mapping of the file that may be written to.

    Raises:
        OSError: There is no room.
    """
    large, done = 0 if large_pages == "never" else large_page_bytes(), 0
    if large and size >= large:
        first = -offset % large
        whole = (size - first) // large * large
        if whole > 0:
            _write(descriptor, address, first, offset)
            spare = _SPARE_SECONDS if large_pages == "soon" else inf
            done = first + _copy_in_large_pages(descriptor, address + first, whole, offset + first, large, spare)
    _write(descriptor, address + done, size - done, offset + done)


def _write(descriptor: int, address: int, size: int, offset: int) -> None:
    # SAFETY: the bytes are inside memory that the caller keeps, and that nothing changes; the view is gone before this
    # returns.
    view = memoryview((c_char * size).from_address(address)).cast("B")
    done = 0
    while done < size:
        done += os.pwrite(descriptor, view[done:], offset + done)


def _copy_in_large_pages(descriptor: int, address: int, size: int, offset: int, large: int, spare: float) -> int:
    """Copies large pages, as long as they are had in time. Returns how many bytes were copied."""
    library, begun = libc(), time.thread_time()
    room = new_room(size + large)
    if room is None:
        return 0
    place = -(-room.address // large) * large
    # SAFETY: it lies inside that room, which is given back as this returns. A forked child does not get it: it could
    # write to the file.
    flags = MAP_SHARED | MAP_FIXED | MAP_NORESERVE
    if library.mmap(place, size, PROT_READ | PROT_WRITE, flags, descriptor, offset) != place:
        return 0
    library.madvise(place, size, MADV_DONTFORK)
    return _filled(descriptor, address, size, offset, large, place, begun + spare)


def _filled(descriptor: int, address: int, size: int, offset: int, large: int, place: int, since: float) -> int:
    """Makes one large page after the other, and copies what belongs there, until it takes too long.

    Args:
        descriptor: The file.
        address: What is copied.
        size: How many bytes, of whole large pages.
        offset: Where they begin in the file.
        large: How large such a page is.
        place: Where that part of the file is mapped.
        since: From when on the processor time of this thread counts.

    Returns:
        How many bytes were copied.
    """
    library = libc()
    done, piece = 0, large
    while done < size:
        piece = min(piece, size - done)
        for at in range(done, done + piece, large):
            # A large page is made of a small one that is there.
            os.pwrite(descriptor, b"\0", offset + at)
        # SAFETY: a stretch of that mapping. Where the kernel does not know the advice, or has no large pages, it says
        # so, and what the file holds has not changed.
        if library.madvise(place + done, piece, _MADV_COLLAPSE):
            break
        # SAFETY: so many bytes of what the caller gave are copied to as many of that mapping, which are there.
        memmove(place + done, address + done, piece)
        done += piece
        if time.thread_time() - since > _WORTH_SECONDS * (done // large):
            break
        piece = _AT_ONCE * large
    return done


def stored_at(stretches: Sequence[tuple[int, int, int]], large_pages: LargePages) -> list[Extent]:
    """Copies stretches of memories into a file.

    Args:
        stretches: Of each where its memory lies in this process, where it begins there, and its size.
        large_pages: When the file is in large pages.

    Raises:
        EngineError: There is no room.
    """
    offsets, end = [], 0
    for _, start, size in stretches:
        offsets.append(place_behind(end, start, size))
        end = offsets[-1] + size
    parts = [(address + start, size, offset) for (address, start, size), offset in zip(stretches, offsets, strict=True)]
    file = _stored(parts, end, large_pages) or _stored(parts, end, "never")
    if file is None:
        raise EngineError("a snapshot cannot be sealed: somebody may write to it")
    return [Extent(start, size, file, offset) for (_, start, size), offset in zip(stretches, offsets, strict=True)]


def _stored(parts: Sequence[tuple[int, int, int]], size: int, large_pages: LargePages) -> SealedFile | None:
    """Copies memory into a new file.

    Args:
        parts: Of each stretch its address, its size, and where in the file it is put.
        size: How large the file is.
        large_pages: When it is in large pages.

    Returns:
        The file; None where somebody could write to it.

    Raises:
        EngineError: There is no room.
    """
    file = SealedFile.new()
    try:
        os.ftruncate(file.number, size)
        for part in parts:
            copy_into(file.number, *part, large_pages)
    except OSError as problem:
        raise EngineError(f"there is no room for a snapshot: {problem.strerror}") from None
    try:
        return SealedFile(file)
    except OSError as problem:
        # While memory was copied by a mapping of the file, the process was forked, and its child has that, too.
        if problem.errno == EBUSY:
            return None
        raise
