"""What an instance's memories and globals hold, kept so that new instances begin with it, copy-on-write.

The contents of memories lie in a file that is in memory only (a memfd) and sealed: nobody can change it any more. A new
instance gets them mapped privately over its own memory, so that all instances share what none of them has written to.
Pages of zeros are not kept.

Only instances of engines without a pool are given a mapping: their memories are unmapped whole when they are freed. A
slot of a pool would keep it, and show it to the next guest.
"""

from __future__ import annotations

import ctypes
import os
import re
import weakref
from contextlib import suppress
from ctypes import addressof, c_char
from errno import EBUSY
from itertools import pairwise
from mmap import MAP_ANON, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade.engine._instance import GLOBAL_KINDS
from stockade.engine._libc import MAP_FAILED, MAP_FIXED, MAP_NORESERVE, libc
from stockade.engine._memory_copy import copy_into, place_behind
from stockade.errors import EngineError
from stockade.system import has_memory_files, is_sealed, open_memory_file, seal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from stockade.engine._instance import Instance
    from stockade.engine._memory_copy import LargePages

__all__ = [
    "PAGE_BYTES_OF_HOST",
    "Extent",
    "InstanceState",
    "MemoryImage",
    "SealedFile",
    "in_large_pages",
    "is_global",
    "keep_page_table",
    "populate",
    "put_state",
    "share_state",
    "take_state",
    "touched_pages",
]

_MOST_EXTENTS: Final = 64
"""Stretches of a memory that are copied at a time: each is a mapping of every instance that begins with them."""

_MOST_LAYERED: Final = 192
"""Mappings of a memory of which some are of earlier snapshots; where there would be more, all of it is copied anew."""

_NEAR_BYTES: Final = 1 << 18
"""Zeros between two extents up to this size are kept, for a mapping costs more than they do."""

_GLOBAL_BYTES: Final = 17
"""What is told of a global: the kind of its number, and 16 bytes."""

_ENTRY_BYTES: Final = 8
"""Bytes that `/proc/self/pagemap` has for a page."""

_TABLE: Final = "/proc/self/pagemap"

_kept: Final[list[int]] = []
"""The table of this process, where it was opened while it could be."""

_BLOCK_BYTES: Final = 512
"""What the system counts the room of files in."""

_WORD_BYTES: Final = 8
_HELD: Final = re.compile(rb"\x01+")

_TOUCHED: Final = re.compile(rb"[\x40-\xff]+", re.DOTALL)
_SHARED: Final = re.compile(rb"[\xa0-\xbf]+", re.DOTALL)
_PRIVATE: Final = re.compile(rb"[\x40-\x5f\x80-\x9f\xc0-\xdf]+", re.DOTALL)
"""Runs of pages by the highest bytes of their entries (Documentation/admin-guide/mm/pagemap.rst): bit 7 says that a
page is in memory, bit 6 that it is swapped out, bit 5 that it is one of a file."""

_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23
"""As on Linux from 5.14 on; Python does not name them."""

PAGE_BYTES_OF_HOST: Final = PAGESIZE
"""What the kernel maps and copies at a time."""


def keep_page_table() -> int | None:
    """Opens the kernel's table of this process's pages, for a process that is about to lose all paths.

    Returns:
        Its descriptor, which stays open; None where the kernel has none.
    """
    with suppress(OSError):
        _kept[:] = [os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC)]
    return _kept[0] if _kept else None


def is_global(value: bytes, type_: str) -> bool:
    """Whether something is what `Instance.global_value` may tell of a global.

    Args:
        value: What somebody says that it holds.
        type_: Its type.
    """
    return len(value) == _GLOBAL_BYTES and GLOBAL_KINDS.get(value[0]) == type_


def touched_pages(
    instance: Instance, memories: Sequence[bytes]
) -> tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]] | None:
    """Returns which pages of an instance are its own, and which it shares and has looked at.

    Args:
        instance: The instance, of which nothing runs.
        memories: Its memories, by the names under which the woven module exports them.

    Returns:
        Each page as the place of its memory and its number there; None where the kernel does not tell.
    """
    found: tuple[set[tuple[int, int]], set[tuple[int, int]]] = set(), set()
    for place, name in enumerate(memories):
        pages = _pages(*instance.woven_memory(name).span())
        if pages is None:
            return None
        for pattern, numbers in zip((_PRIVATE, _SHARED), found, strict=True):
            for match in pattern.finditer(pages):
                numbers.update((place, number) for number in range(*match.span()))
    return frozenset(found[0]), frozenset(found[1])


def populate(
    instance: Instance,
    memories: Sequence[bytes],
    written: Collection[tuple[int, int]],
    read: Collection[tuple[int, int]],
) -> None:
    """Gives an instance copies of pages of its own before it writes to them, and maps those that it will look at.

    What its memories hold stays as it is.

    Args:
        instance: The instance, of which nothing runs.
        memories: Its memories, by the names under which the woven module exports them.
        written: The pages that it gets copies of, as `touched_pages` tells them.
        read: The pages that are mapped.
    """
    spans = [instance.woven_memory(name).span() for name in memories]
    advise = libc().madvise
    for pages, advice in ((read, _MADV_POPULATE_READ), (written, _MADV_POPULATE_WRITE)):
        for place, (address, size) in enumerate(spans):
            numbers = sorted(number * PAGESIZE for at, number in pages if at == place)
            for start, end in _joined(((number, number + PAGESIZE) for number in numbers), 0):
                if end <= size:
                    # SAFETY: the stretch lies inside a memory of a live instance, which may be read and written. The
                    # kernel does what a read or a write that changes nothing would make it do; where it does not know
                    # the advice, nothing happens, and the guest's first accesses do the same.
                    advise(address + start, end - start, advice)


class SealedFile:
    """A file in memory that nobody can change. It is closed with the last reference to it.

    Args:
        descriptor: The file, which is sealed here, and closed by this object.

    Attributes:
        descriptor: The file.
        size_bytes: How long it is.
        stored_bytes: What it takes: less, where there are holes in it.
    """

    __slots__ = ("__weakref__", "descriptor", "size_bytes", "stored_bytes")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False
        seal(descriptor)
        self._measure()

    @classmethod
    def received(cls, descriptor: int) -> SealedFile:
        """Returns a file that another process has made, and says that it has sealed.

        Args:
            descriptor: The file, which is closed by what is returned, or here.

        Raises:
            EngineError: It is none in memory, or not sealed.
        """
        try:
            if not is_sealed(descriptor):
                raise EngineError("the file of a snapshot is not sealed")
            found = cls.__new__(cls)
            found.descriptor = descriptor
            found._measure()  # noqa: SLF001 - it is one of ours
        except BaseException as problem:
            os.close(descriptor)
            if isinstance(problem, OSError):
                raise EngineError("the file of a snapshot is none in memory") from None
            raise
        weakref.finalize(found, os.close, descriptor).atexit = False
        return found

    def _measure(self) -> None:
        status = os.fstat(self.descriptor)
        self.size_bytes = status.st_size
        # There may be holes.
        self.stored_bytes = status.st_blocks * _BLOCK_BYTES

    @staticmethod
    def new() -> int:
        """Makes a file in memory, empty and not sealed yet.

        Raises:
            EngineError: The system has none.
        """
        if not has_memory_files():
            raise EngineError("snapshots need files in memory (memfd_create), which this system does not have")
        try:
            return open_memory_file("stockade snapshot")
        except OSError as problem:
            raise EngineError(f"no file in memory can be made for a snapshot: {problem.strerror}") from None


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
        return sum(
            {id(part.file): part.file.stored_bytes for image in self.memories for part in image.extents}.values()
        )


# -- taking ------------------------------------------------------------------------------------------------------------


def take_state(
    instance: Instance,
    memories: Sequence[bytes],
    globals_: Sequence[bytes],
    initial_bytes: Sequence[int],
    base: InstanceState | None = None,
) -> InstanceState:
    """Copies what an instance holds, of which nothing runs.

    Args:
        instance: The instance.
        memories: Its memories, by the names under which the woven module exports them.
        globals_: Its mutable globals, likewise.
        initial_bytes: How large each memory is in a new instance.
        base: What was put into the instance, if anything was: of that, only what has changed is copied.

    Raises:
        EngineError: There is no memory to keep it in, or no file descriptor.
    """
    numbers = tuple(instance.global_value(name) for name in globals_)
    spans = [instance.woven_memory(name).span() for name in memories]
    below = base.memories if base is not None else (None,) * len(spans)
    images = None
    if base is not None:
        changed = [_changed(*span) for span in spans]
        if all(runs is not None for runs in changed):
            images = _written(spans, [_near(runs or ()) for runs in changed])
            images = [
                MemoryImage(size, _overlaid(under.extents, over.extents))
                for (_, size), under, over in zip(spans, base.memories, images, strict=True)
            ]
    if images is None or any(len(image.extents) > _MOST_LAYERED for image in images):
        found = [
            _near(_nonzero(address, _touched(address, size, initial, under)))
            for (address, size), initial, under in zip(spans, initial_bytes, below, strict=True)
        ]
        images = _written(spans, found)
    state = InstanceState(tuple(images), numbers)
    state.check()
    return state


def _written(spans: Sequence[tuple[int, int]], found: Sequence[Sequence[tuple[int, int]]]) -> list[MemoryImage]:
    """Copies stretches of memories into a file.

    Raises:
        EngineError: There is no room.
    """
    stretches = [
        (address, start, stop - start) for (address, _), runs in zip(spans, found, strict=True) for start, stop in runs
    ]
    stored = iter(_stored_at(stretches, "soon"))
    return [MemoryImage(size, tuple(next(stored) for _ in runs)) for (_, size), runs in zip(spans, found, strict=True)]


def in_large_pages(state: InstanceState) -> InstanceState:
    """Copies a state into large pages, however long it takes; where there is no room for it, it stays as it is.

    Args:
        state: The state, with which many instances will begin.
    """
    library = libc()
    extents = [part for image in state.memories for part in image.extents]
    mapped: list[tuple[int, int]] = []
    try:
        for part in extents:
            # SAFETY: a mapping of our own of a sealed file, somewhere, that nobody else knows.
            flags = MAP_PRIVATE | MAP_NORESERVE
            address = library.mmap(None, part.size, PROT_READ, flags, part.file.descriptor, part.offset)
            if address in {None, MAP_FAILED}:
                return state
            mapped.append((address, part.size))
        stretches = [(at - part.start, part.start, part.size) for (at, _), part in zip(mapped, extents, strict=True)]
        stored = iter(_stored_at(stretches, "always"))
    except EngineError:
        return state
    finally:
        for address, size in mapped:
            # SAFETY: one of those from above.
            library.munmap(address, size)
    memories = (MemoryImage(image.size_bytes, tuple(next(stored) for _ in image.extents)) for image in state.memories)
    made = state._replace(memories=tuple(memories))
    made.check()
    return made


def _stored_at(stretches: Sequence[tuple[int, int, int]], large_pages: LargePages) -> list[Extent]:
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
    descriptor = SealedFile.new()
    try:
        os.ftruncate(descriptor, size)
        for part in parts:
            copy_into(descriptor, *part, large_pages)
    except OSError as problem:
        os.close(descriptor)
        raise EngineError(f"there is no room for a snapshot: {problem.strerror}") from None
    except BaseException:
        os.close(descriptor)
        raise
    try:
        return SealedFile(descriptor)
    except OSError as problem:
        # While memory was copied by a mapping of the file, the process was forked, and its child has that, too.
        if problem.errno == EBUSY:
            return None
        raise


def _overlaid(below: Sequence[Extent], above: Sequence[Extent]) -> tuple[Extent, ...]:
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


def _pages(address: int, size: int) -> bytes | None:
    """Returns the highest byte of the entry of each page in the kernel's table; None where it does not tell."""
    where = size // PAGESIZE * _ENTRY_BYTES, address // PAGESIZE * _ENTRY_BYTES
    try:
        if _kept:
            entries = os.pread(_kept[0], *where)
        else:
            with open(_TABLE, "rb", buffering=0) as table:  # noqa: PTH123 - not buffered
                entries = os.pread(table.fileno(), *where)
    except OSError:
        return None
    return entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES] if len(entries) == size // PAGESIZE * _ENTRY_BYTES else None


def _runs(pattern: re.Pattern[bytes], pages: bytes | bytearray) -> list[tuple[int, int]]:
    return [(match.start() * PAGESIZE, match.end() * PAGESIZE) for match in pattern.finditer(pages)]


def _touched(address: int, size: int, initial: int, under: MemoryImage | None) -> list[tuple[int, int]]:
    """Where a memory may hold anything but zeros: what it began with, and pages that there are."""
    runs = [(0, initial)] if under is None else [(0, initial), *((part.start, part.end) for part in under.extents)]
    # Everything else is anonymous memory of the engine's, in which a page that is not there is one of zeros.
    pages = _pages(address, size)
    runs += [(0, size)] if pages is None else _runs(_TOUCHED, pages)
    return _joined(sorted(runs), 0)


def _changed(address: int, size: int) -> list[tuple[int, int]] | None:
    """Where a memory into which a state was put has been written to since; None where the kernel does not tell."""
    pages = _pages(address, size)
    return None if pages is None else _runs(_PRIVATE, pages)


def _nonzero(address: int, runs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Of some stretches of a memory, those pages that do not hold zeros only."""
    library = libc()
    compare, zeros = library.memcmp, addressof(library.zeros)
    for start, end in runs:
        # SAFETY: a stretch of the memory of an instance that the caller keeps, of which nothing runs.
        view = memoryview((c_char * (end - start)).from_address(address + start)).cast("B")
        # Of most pages the first word tells.
        held = bytearray(map(bool, view.cast("Q")[:: PAGESIZE // _WORD_BYTES]))
        page = held.find(0)
        while page >= 0:
            # SAFETY: a page of the memory is compared with a page of zeros.
            held[page] = bool(compare(address + start + page * PAGESIZE, zeros, PAGESIZE))
            page = held.find(0, page + 1)
        yield from ((start + first, start + last) for first, last in _runs(_HELD, held))


def _near(found: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins stretches that lie near each other, and more of them where there are too many."""
    runs = list(found)
    gaps = sorted((after[0] - before[1] for before, after in pairwise(runs)), reverse=True)
    return _joined(runs, max(_NEAR_BYTES, *gaps[_MOST_EXTENTS - 1 : _MOST_EXTENTS], 0))


def _joined(runs: Iterable[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Joins stretches, in order of where they begin, that overlap or have no more than a gap between them."""
    out: list[tuple[int, int]] = []
    for start, end in runs:
        if out and start - out[-1][1] <= gap:
            out[-1] = out[-1][0], max(out[-1][1], end)
        elif start < end:
            out.append((start, end))
    return out


# -- putting -----------------------------------------------------------------------------------------------------------


def put_state(
    instance: Instance,
    memories: Sequence[bytes],
    globals_: Sequence[bytes],
    initial_bytes: Sequence[int],
    state: InstanceState,
) -> None:
    """Puts into a new instance what another one of the same module held.

    Args:
        instance: The instance, of an engine without a pool; nothing of it has run.
        memories: Its memories, by the names under which the woven module exports them.
        globals_: Its mutable globals, likewise.
        initial_bytes: How large each memory is in a new instance.
        state: What the other one held.

    Raises:
        EngineError: There is no memory for it, or no memory map.
    """
    assert not instance.is_pooled
    for name, initial, image in zip(memories, initial_bytes, state.memories, strict=True):
        memory = instance.woven_memory(name)
        memory.grow_to(image.size_bytes)
        address, size = memory.span()
        assert size == image.size_bytes
        _map(address, initial, image)
    for name, value in zip(globals_, state.globals, strict=True):
        instance.set_global(name, value)


def share_state(
    instance: Instance, memories: Sequence[bytes], initial_bytes: Sequence[int], state: InstanceState
) -> None:
    """Has an instance, of an engine without a pool, share what was just taken of it with those that get it.

    Args:
        instance: The instance, of which nothing has run since.
        memories: Its memories, by the names under which the woven module exports them.
        initial_bytes: How large each memory is in a new instance.
        state: What was taken.

    Raises:
        EngineError: There is no memory map for it.
    """
    assert not instance.is_pooled
    for name, initial, image in zip(memories, initial_bytes, state.memories, strict=True):
        address, _ = instance.woven_memory(name).span()
        _map(address, initial, image)


def _map(address: int, initial: int, image: MemoryImage) -> None:
    """Maps contents over a memory."""
    at = 0
    for start, size, file, offset in image.extents:
        if at < min(start, initial):
            _map_over(address + at, min(start, initial) - at, -1, 0)
        _map_over(address + start, size, file.descriptor, offset)
        at = start + size
    if at < initial:
        _map_over(address + at, initial - at, -1, 0)


def _map_over(address: int, size: int, descriptor: int, offset: int) -> None:
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
