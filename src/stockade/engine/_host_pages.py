"""Which pages of a memory there are, whose they are, and which hold anything but zeros."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from ctypes import addressof, c_char
from itertools import pairwise
from mmap import PAGESIZE
from typing import TYPE_CHECKING, Final

from stockade.engine._libc import libc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from stockade.engine._memory_image import MemoryImage

__all__ = [
    "MOST_EXTENTS",
    "NEAR_BYTES",
    "PAGE_BYTES_OF_HOST",
    "PRIVATE",
    "SHARED",
    "changed",
    "joined",
    "keep_page_table",
    "near",
    "nonzero",
    "page_table",
    "runs_of",
    "touched",
]

MOST_EXTENTS: Final = 64
"""Stretches of a memory that are copied at a time: each is a mapping of every instance that begins with them."""

NEAR_BYTES: Final = 1 << 18
"""Zeros between two extents up to this size are kept, for a mapping costs more than they do."""

_ENTRY_BYTES: Final = 8
"""Bytes that `/proc/self/pagemap` has for a page."""

_TABLE: Final = "/proc/self/pagemap"

_kept: Final[list[int]] = []
"""The table of this process, where it was opened while it could be."""

_WORD_BYTES: Final = 8
_HELD: Final = re.compile(rb"\x01+")

_TOUCHED: Final = re.compile(rb"[\x40-\xff]+", re.DOTALL)
SHARED: Final = re.compile(rb"[\xa0-\xbf]+", re.DOTALL)
PRIVATE: Final = re.compile(rb"[\x40-\x5f\x80-\x9f\xc0-\xdf]+", re.DOTALL)
"""Runs of pages by the highest bytes of their entries (Documentation/admin-guide/mm/pagemap.rst): bit 7 says that a
page is in memory, bit 6 that it is swapped out, bit 5 that it is one of a file."""

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


def page_table(address: int, size: int) -> bytes | None:
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


def runs_of(pattern: re.Pattern[bytes], pages: bytes | bytearray) -> list[tuple[int, int]]:
    return [(match.start() * PAGESIZE, match.end() * PAGESIZE) for match in pattern.finditer(pages)]


def touched(address: int, size: int, initial: int, under: MemoryImage | None) -> list[tuple[int, int]]:
    """Where a memory may hold anything but zeros: what it began with, and pages that there are."""
    runs = [(0, initial)] if under is None else [(0, initial), *((part.start, part.end) for part in under.extents)]
    # Everything else is anonymous memory of the engine's, in which a page that is not there is one of zeros.
    pages = page_table(address, size)
    runs += [(0, size)] if pages is None else runs_of(_TOUCHED, pages)
    return joined(sorted(runs), 0)


def changed(address: int, size: int) -> list[tuple[int, int]] | None:
    """Where a memory into which a state was put has been written to since; None where the kernel does not tell."""
    pages = page_table(address, size)
    return None if pages is None else runs_of(PRIVATE, pages)


def nonzero(address: int, runs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
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
        yield from ((start + first, start + last) for first, last in runs_of(_HELD, held))


def near(found: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins stretches that lie near each other, and more of them where there are too many."""
    runs = list(found)
    gaps = sorted((after[0] - before[1] for before, after in pairwise(runs)), reverse=True)
    return joined(runs, max(NEAR_BYTES, *gaps[MOST_EXTENTS - 1 : MOST_EXTENTS], 0))


def joined(runs: Iterable[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Joins stretches, in order of where they begin, that overlap or have no more than a gap between them."""
    out: list[tuple[int, int]] = []
    for start, end in runs:
        if out and start - out[-1][1] <= gap:
            out[-1] = out[-1][0], max(out[-1][1], end)
        elif start < end:
            out.append((start, end))
    return out
