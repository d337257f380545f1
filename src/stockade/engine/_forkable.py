"""Memory of an instance that lies in a file of its own from the beginning, so that a fork copies none of it.

What is mapped from the file is written to in place (a shared mapping), so the file holds what the guest has written. To
take that, the mapping is replaced by a private one: from then on the file does not change any more, and both the guest
and whoever begins with it have copies of what they write to. What lies elsewhere goes to a new file.

To replace a mapping, the kernel gives back every page of it by itself, which takes it as long as a sixth of a copy. So
its page tables are moved aside first, which is done for two megabytes at a time, and given back later (`SealedFile`).

The first write to a page takes the kernel twice as long as of other memory: only who asks for this has it.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from errno import ENXIO
from functools import cache
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stockade._pages import PAGE_BYTES
from stockade.engine._host_pages import NEAR_BYTES, PRIVATE, near, nonzero, page_table, runs_of
from stockade.engine._memory_copy import copy_into, stored_at
from stockade.engine._memory_image import (
    BLOCK_BYTES,
    Extent,
    MemoryFile,
    MemoryImage,
    SealedFile,
    is_wasteful,
    overlaid,
    stored_bytes,
)
from stockade.engine._memory_map import map_clear, map_in_place, map_over, put_aside
from stockade.errors import EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stockade.engine._instance import Instance

__all__ = ["ForkableMemory", "make_forkable"]

_MOST_BYTES: Final = 4 << 30
"""What the engine reserves for each memory at least."""

_MOST_EXTENTS: Final = 96
"""Stretches that a memory is made of. Where there would be more, all of it is copied anew."""

_MOST_ASIDE: Final = 16
"""Stretches of which the page tables are moved aside, the largest."""

_NEVER_OVERCOMMITTED: Final = "2"
"""How the kernel says that it promises no memory that it has not (Documentation/mm/overcommit-accounting.rst)."""

_live: Final[set[weakref.ref[ForkableMemory]]] = set()
"""No `WeakSet`: where a memory was dropped, that would lose what the handler of a signal raises (`_dropped.py`)."""


@cache
def _has_room_for_sure() -> bool:
    """Whether a page of a file that is written to first is always had, as one of other memory is.

    Else the process would be ended by a SIGBUS where other memory is refused as it grows.
    """
    try:
        told = Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii")
    except OSError:
        return False
    return told.strip() != _NEVER_OVERCOMMITTED


def make_forkable(
    instance: Instance,
    memories: Sequence[bytes],
    initial_bytes: Sequence[int],
    most_bytes: int,
    below: Sequence[MemoryImage] | None,
) -> None:
    """Has the memories of a new instance lie in files of their own; where that cannot be had, they stay as they are.

    Args:
        instance: The instance, of an engine without a pool; nothing of it has run.
        memories: Its memories, by the names under which the woven module exports them.
        initial_bytes: How large each memory is in a new instance.
        most_bytes: How large each may become.
        below: What was put into them, if anything was.

    Raises:
        EngineError: There is no memory map for it.
    """
    assert not instance.is_pooled
    most = -(-most_bytes // PAGE_BYTES) * PAGE_BYTES
    if most > _MOST_BYTES or not _has_room_for_sure():
        return
    images: Sequence[MemoryImage | None] = (None,) * len(memories) if below is None else below
    made, sizes = [], []
    try:
        for name, initial, image in zip(memories, initial_bytes, images, strict=True):
            address, size = instance.woven_memory(name).span()
            if size > most:
                return
            held = near(nonzero(address, [(0, initial)])) if image is None else []
            made.append(ForkableMemory(address, most, () if image is None else image.extents, held))
            sizes.append(size)
    except (EngineError, OSError):
        # There is no descriptor for a file, or no room.
        return
    instance.forkable = made
    for memory, size in zip(made, sizes, strict=True):
        memory.begin(size)


class ForkableMemory:
    """A memory in a file of its own. For one thread at a time.

    Args:
        address: Where it lies.
        most: How large it may become: so much of the address space is the engine's, and reserved for it.
        extents: What is mapped privately over it.
        held: What else may be in it but zeros.

    Raises:
        EngineError: There is no file for it.
        OSError: There is no room.
    """

    __slots__ = ("__weakref__", "_address", "_extents", "_file", "_is_left", "_is_whole", "_last", "_most", "_process")

    def __init__(
        self, address: int, most: int, extents: tuple[Extent, ...], held: Sequence[tuple[int, int]] = ()
    ) -> None:
        self._address = address
        self._most = most
        self._extents = extents
        file = self._file = MemoryFile(most)
        for start, end in held:
            copy_into(file.descriptor, address + start, end - start, start, "never")
        # Whether all but the extents is mapped from the file, and nothing else is. Not while that changes, nor where a
        # handler of a signal has put an end to it: then all is copied.
        self._is_whole = False
        self._last: weakref.ref[SealedFile] | None = None
        self._process = os.getpid()
        self._is_left = False

    def check_process(self) -> None:
        """Checks that it is of this process: the guest of a forked one must not run in its child.

        Raises:
            UsageError: It is of a process from which this one was forked.
        """
        if self._process != os.getpid():
            raise UsageError(
                "the session was opened with forks=True before this process was forked, and goes on in its parent: "
                "open one here"
            )

    def check_apart(self) -> None:
        """Checks that what is read and written here is of this process: its own, or what it has of its parent's.

        Raises:
            UsageError: It could not be set apart as this process was forked.
        """
        if not self._is_left and self._process != os.getpid():
            raise UsageError(
                "the session was opened with forks=True before this process was forked, and its memory could not be "
                "set apart here, for the kernel had no memory maps left: open one here"
            )

    def begin(self, size: int) -> None:
        """Has it lie in its file.

        Args:
            size: How large it is.

        Raises:
            EngineError: There is no memory map for it.
        """
        _live.add(weakref.ref(self, _live.discard))
        self._lay((), self._extents, size, self._file)

    def take(self, size: int) -> MemoryImage | None:
        """Takes what it holds, and has it go on with a new file.

        Args:
            size: How large it is.

        Returns:
            What it holds; None where that has to be copied, and given to `lay`.

        Raises:
            EngineError: There is no room.
        """
        file = self._file
        if not self._is_whole:
            return None
        changed: list[tuple[int, int]] = []
        if self._extents:
            pages = page_table(self._address, size)
            if pages is None:
                return None
            changed = near(_inside(runs_of(PRIVATE, pages), self._extents))
        gaps = [(start, min(end, size)) for start, end in _between(self._extents, size)]
        held = [run for gap in gaps for run in near(_with_data(file.descriptor, *gap))]
        copied = stored_at([(self._address, start, end - start) for start, end in changed], "soon") if changed else []
        kept = overlaid(self._extents, copied)
        if len(kept) + len(held) > _MOST_EXTENTS:
            return None
        stored = os.fstat(file.descriptor).st_blocks * BLOCK_BYTES if held else 0
        if is_wasteful(stored_bytes(kept) + stored, size):
            return None
        last = None if self._last is None else self._last()
        if last is not None:
            # Else there would be no end to what is aside.
            with suppress(EngineError):
                last.settle()
        following = self._new_file()
        # From here on, nothing tells what the file holds until it is done.
        self._is_whole = False
        used = [(end - start, start) for start, end in gaps if any(start <= at < end for at, _ in held)]
        rooms = [put_aside(self._address + at, length) for length, at in nlargest(_MOST_ASIDE, used)]
        for start, end in held:
            map_over(self._address + start, end - start, file.descriptor, start)
        found = self._extents
        if held:
            # Nobody else has it mapped before it is sealed.
            sealed = SealedFile.of(file, [room for room in rooms if room is not None])
            self._last = weakref.ref(sealed)
            found = (*found, *(Extent(start, end - start, sealed, start) for start, end in held))
        extents = overlaid(found, copied)
        self._lay(copied, extents, size, following)
        return MemoryImage(size, extents)

    def lay(self, image: MemoryImage) -> None:
        """Has it share what was copied of it with those that begin with that.

        Args:
            image: What it holds.

        Raises:
            EngineError: There is no room.
        """
        self._is_whole = False
        self._lay(image.extents, image.extents, image.size_bytes, self._new_file())

    def leave_to_parent(self) -> None:
        """Sees to it, in a forked child, that nothing that is written here reaches the parent's guest.

        No guest runs here. Functions of the host that are under way may still look at the memory, if it could be done.

        Raises:
            EngineError: There is no memory map for it.
        """
        file = self._file
        if self._is_whole:
            for start, end in _between(self._extents, self._most):
                map_over(self._address + start, end - start, file.descriptor, start)
        else:
            map_clear(self._address, self._most)
        self._is_left = True

    def _new_file(self) -> MemoryFile:
        try:
            return MemoryFile(self._most)
        except OSError as problem:
            raise EngineError(f"there is no room for a snapshot: {problem.strerror}") from None

    def _lay(self, changed: Sequence[Extent], extents: tuple[Extent, ...], size: int, file: MemoryFile) -> None:
        """Maps what has changed of the extents, and the file in between."""
        for start, length, part, offset in changed:
            map_over(self._address + start, length, part.descriptor, offset)
        for start, end in _between(extents, self._most):
            # The guest may write up to its size, and the engine makes more accessible as it grows.
            if start < size:
                map_in_place(self._address + start, min(end, size) - start, file.descriptor, start, accessible=True)
            if end > size:
                at = max(start, size)
                map_in_place(self._address + at, end - at, file.descriptor, at, accessible=False)
        self._extents, self._file = extents, file
        self._is_whole = True


def _between(extents: Sequence[Extent], most: int) -> Iterator[tuple[int, int]]:
    """What lies between extents, and up to an end."""
    at = 0
    for extent in extents:
        if at < min(extent.start, most):
            yield at, min(extent.start, most)
        at = max(at, extent.end)
    if at < most:
        yield at, most


def _inside(runs: Sequence[tuple[int, int]], extents: Sequence[Extent]) -> list[tuple[int, int]]:
    """What of some stretches lies in extents; both are in order."""
    found, left = [], iter(extents)
    extent = next(left, None)
    for start, end in runs:
        while extent is not None and extent.end <= start:
            extent = next(left, None)
        while extent is not None and extent.start < end:
            found.append((max(start, extent.start), min(end, extent.end)))
            if extent.end > end:
                break
            extent = next(left, None)
    return found


def _with_data(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where a stretch of a file is no hole. Small holes are taken for zeros: to find out takes longer for each page."""
    while start < end:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as problem:
            if problem.errno != ENXIO:
                raise
            return
        if start < end:
            yield start, min(start + NEAR_BYTES, end)
        start += NEAR_BYTES


def _after_fork() -> None:
    found = [kept() for kept in list(_live)]
    # What a child of this one has of them then, it has of this one.
    _live.clear()
    for memory in found:
        if memory is not None:
            # Where it is refused, nobody comes to use it here (`check_apart`).
            with suppress(EngineError):
                memory.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
