"""What a memory holds, as stretches of files that are in memory only and that nobody can change."""

from __future__ import annotations

import os
from mmap import PAGESIZE
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade._dropped import OwnedDescriptor
from stockade._locks import new_lock
from stockade.errors import EngineError
from stockade.system import has_memory_files, is_sealed, own_memory_file, seal, seal_against_mapping

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stockade.engine._memory_map import Room

__all__ = [
    "BLOCK_BYTES",
    "Extent",
    "InstanceState",
    "MemoryFile",
    "MemoryImage",
    "SealedFile",
    "is_wasteful",
    "overlaid",
    "stored_bytes",
]

BLOCK_BYTES: Final = 512
"""What the system counts the room of files in."""

_SPARE_BYTES: Final = 8 << 20
"""Files are made of large pages, so that one of a small memory takes more than the memory."""


class SealedFile:
    """A file in memory that nobody can change. It is closed with the last reference to it.

    Args:
        file: The file, which is sealed here.
        aside: Where pages of it are that could be written to, if it is sealed but for that.
        is_sealed: Whether it is sealed already.

    Attributes:
        descriptor: The file.
        size_bytes: How long it is.
        stored_bytes: What it takes: less, where there are holes in it.
    """

    __slots__ = ("__weakref__", "_aside", "_file", "_lock", "descriptor", "size_bytes", "stored_bytes")

    def __init__(self, file: OwnedDescriptor, aside: list[Room] | None = None, *, is_sealed: bool = False) -> None:
        self._file = file
        descriptor = self.descriptor = file.number
        self._aside = aside
        self._lock = None if aside is None else new_lock()
        if not is_sealed:
            seal(descriptor)
        status = os.fstat(descriptor)
        self.size_bytes = status.st_size
        # There may be holes.
        self.stored_bytes = status.st_blocks * BLOCK_BYTES

    @classmethod
    def of(cls, file: MemoryFile, aside: list[Room]) -> SealedFile:
        """Returns what the file of a memory has become, which nobody writes to any more.

        Args:
            file: The file, mapped to be written to nowhere but where it is said here.
            aside: Where the kernel still knows of pages that could be written to, but nobody else does.

        Raises:
            EngineError: It cannot be sealed.
        """
        try:
            try:
                seal_against_mapping(file.descriptor)
            except OSError:
                # On Linux before 5.1.
                aside.clear()
                seal(file.descriptor)
        except OSError as problem:
            raise EngineError(f"a snapshot cannot be sealed: {problem.strerror}") from None
        return cls(file.file, aside, is_sealed=True)

    @classmethod
    def received(cls, descriptor: int) -> SealedFile:
        """Returns a file that another process has made, and says that it has sealed.

        Args:
            descriptor: The file, which is ours from now on.

        Raises:
            EngineError: It is none in memory, or not sealed.
        """
        file = OwnedDescriptor.of(descriptor)
        try:
            if not is_sealed(descriptor):
                raise EngineError("the file of a snapshot is not sealed")
        except OSError:
            raise EngineError("the file of a snapshot is none in memory") from None
        return cls(file, is_sealed=True)

    @property
    def is_settled(self) -> bool:
        """Whether nothing of it is aside."""
        return self._aside is None

    def settle(self) -> None:
        """Gives back what is aside: then the kernel, too, tells whoever asks that nobody can change the file.

        Raises:
            EngineError: Somebody could: the process was just forked, and its child has the file mapped for a moment.
        """
        if self._lock is None:
            return
        with self._lock:
            if self._aside is not None:
                self._aside.clear()
                try:
                    seal(self.descriptor)
                except OSError as problem:
                    # In a forked child: its parent may have done so.
                    if not is_sealed(self.descriptor):
                        raise EngineError(f"a snapshot cannot be sealed: {problem.strerror}") from None
                self._aside = None

    @staticmethod
    def new() -> OwnedDescriptor:
        """Makes a file in memory, empty and not sealed yet.

        Raises:
            EngineError: The system has none.
        """
        if not has_memory_files():
            raise EngineError("snapshots need files in memory (memfd_create), which this system does not have")
        try:
            return own_memory_file("stockade snapshot")
        except OSError as problem:
            raise EngineError(f"no file in memory can be made for a snapshot: {problem.strerror}") from None


class MemoryFile:
    """A file in memory that a guest's memory lies in, and that nobody else has.

    Args:
        size: How long it is; what nobody writes to takes no room.

    Raises:
        EngineError: The system has no such files.
        OSError: There is no room, or no descriptor.

    Attributes:
        file: The file, which may come to be that of others.
        descriptor: The same.
    """

    __slots__ = ("descriptor", "file")

    def __init__(self, size: int) -> None:
        self.file = SealedFile.new()
        self.descriptor = self.file.number
        os.ftruncate(self.descriptor, size)


class Extent(NamedTuple):
    """A stretch of a memory, and where its contents lie. All numbers are multiples of a page of the host's.

    Attributes:
        start: Its address in the memory.
        size: How many bytes it has.
        file: The file.
        offset: Where it begins there.
    """

    start: int
    size: int
    file: SealedFile
    offset: int

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.start + self.size


class MemoryImage(NamedTuple):
    """The contents of a memory: zeros wherever there is no extent.

    Attributes:
        size_bytes: How large the memory is.
        extents: What is in it, in order, without overlaps.
    """

    size_bytes: int
    extents: tuple[Extent, ...]

    @property
    def maps(self) -> int:
        """How many mappings it takes, at most: its extents, what lies between those that do not touch, and the rest."""
        ends = (0, *(extent.end for extent in self.extents))
        return 1 + sum(1 + (extent.start > end) for extent, end in zip(self.extents, ends, strict=False))


class InstanceState(NamedTuple):
    """What an instance holds.

    Attributes:
        memories: Its memories, in order.
        globals: Its mutable globals, in order: for each, the kind of its number and 16 bytes.
    """

    memories: tuple[MemoryImage, ...]
    globals: tuple[bytes, ...]

    def check(self) -> None:
        """Checks that what is mapped by it lies inside its memories and its files, in whole pages of this host.

        Raises:
            EngineError: It does not.
        """
        for image in self.memories:
            at = 0
            for start, size, file, offset in image.extents:
                inside = at <= start and size > 0 and start + size <= image.size_bytes
                if not inside or offset < 0 or offset + size > file.size_bytes or (start | size | offset) % PAGESIZE:
                    raise EngineError("a snapshot does not fit its memories")
                at = start + size

    @property
    def maps(self) -> int:
        """How many mappings an instance with this state has beyond those of any other, at most."""
        return sum(memory.maps for memory in self.memories)

    @property
    def stored_bytes(self) -> int:
        """How much of it is kept in files; instances share this as long as they do not write to it."""
        return stored_bytes(part for image in self.memories for part in image.extents)


def stored_bytes(extents: Iterable[Extent]) -> int:
    """Returns what the files of some extents take, each of which is kept whole as long as one of them is.

    Args:
        extents: The extents.
    """
    return sum({id(part.file): part.file.stored_bytes for part in extents}.values())


def is_wasteful(stored: int, size: int) -> bool:
    """Says whether files take so much more than what they are kept for that it is to be copied anew.

    Else a guest that writes to nearly all of its memory before each fork would have the host keep a file for each.

    Args:
        stored: What they take.
        size: How large the memories are.
    """
    return stored > 2 * size + _SPARE_BYTES


def overlaid(below: Sequence[Extent], above: Sequence[Extent]) -> tuple[Extent, ...]:
    """Puts extents over others."""
    out = list(above)
    for part in below:
        at = part.start
        for over in above:
            if over.end <= at or over.start >= part.end:
                continue
            if over.start > at:
                out.append(_cut(part, at, over.start))
            at = over.end
        if at < part.end:
            out.append(_cut(part, at, part.end))
    return tuple(sorted(out, key=lambda extent: extent.start))


def _cut(part: Extent, start: int, end: int) -> Extent:
    return Extent(start, end - start, part.file, part.offset + start - part.start)
