"""Machine code kept on disk, so that a module is compiled once and not once a process.

An entry is run as it is, so each carries a keyed MAC under a secret of the user, and is believed only after the MAC was
checked over every byte of it. The folder must be ours alone, and everything in it is reached through its descriptor,
without following links. Whatever is wrong (no folder, someone else's, a torn or changed entry, a full disk) costs time:
the module is compiled again.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stockade.errors import EngineError
from stockade.system import (
    NEW_SUFFIX,
    cache_folder,
    has_memory_files,
    new_file,
    open_file,
    open_private,
    own_memory_file,
    seal,
    state_folder,
    sweep,
    user_secret,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from stockade._dropped import OwnedDescriptor

__all__ = ["Cache", "CacheEntry", "CacheHit"]

_MAGIC = b"stockade machine code 2\n"
_MAC_BYTES = 32
_LENGTH_BYTES = 8
_HEAD_BYTES = len(_MAGIC) + _MAC_BYTES + _LENGTH_BYTES
_SUFFIX = ".code"

_MOST_TOLD_BYTES = 64 << 20
"""More is not read only to be shown."""

DEFAULT_LIMIT_BYTES = 2 << 30
"""What all entries may take together."""


class CacheEntry(NamedTuple):
    """An entry of the cache.

    Attributes:
        name: Its key.
        size_bytes: What it takes.
        used: When it was last used, in seconds since 1970.
    """

    name: str
    size_bytes: int
    used: float


class Cache:
    """A folder with machine code. Safe to share between threads and processes.

    Args:
        folder: Where it is; by default, the user's.
        state: Where the secret is; by default, the user's.
        limit_bytes: What all entries may take together; those unused for longest go first.
    """

    def __init__(
        self, folder: Path | None = None, state: Path | None = None, *, limit_bytes: int = DEFAULT_LIMIT_BYTES
    ) -> None:
        self.folder = folder or cache_folder()
        self.state = state or state_folder()
        self.limit_bytes = limit_bytes
        self.problem = ""
        """Why the cache is not used, if it is not."""

    def get(self, name: str) -> CacheHit | None:
        """Returns what was kept under a key; None where there is nothing that can be believed.

        Args:
            name: The key: letters and digits.

        Returns:
            The entry, to be closed.
        """
        with self._opened() as here:
            if here is None:
                return None
            kept = self._read(here, name)
            if kept is not None:
                # What is used stays; removal goes by this time.
                with suppress(OSError):
                    os.utime(name + _SUFFIX, dir_fd=here.folder, follow_symlinks=False)
            return kept

    def put(self, name: str, told: bytes, code: bytes) -> bool:
        """Keeps machine code under a key, all or nothing.

        Args:
            name: The key: letters and digits.
            told: What is told of the code.
            code: The machine code.

        Returns:
            Whether it was kept.
        """
        assert name.isalnum(), name
        with self._opened() as here:
            if here is None or _HEAD_BYTES + len(told) + len(code) > self.limit_bytes:
                return False
            try:
                with new_file(here.folder) as (temporary, file):
                    file.write(_MAGIC + here.mac(name, told, code) + len(told).to_bytes(_LENGTH_BYTES, "little"))
                    file.write(told)
                    file.write(code)
                    file.flush()
                    os.rename(temporary, name + _SUFFIX, src_dir_fd=here.folder, dst_dir_fd=here.folder)
            except OSError as problem:
                self.problem = f"{self.folder} cannot be written: {problem.strerror}"
                return False
            self._make_room(here)
            return True

    def entries(self) -> list[CacheEntry]:
        """Returns all entries, the one used last first."""
        with self._opened() as here:
            return [] if here is None else sorted(_entries(here), key=lambda entry: -entry.used)

    def has(self, name: str) -> bool:
        """Whether something is kept under a key; it is not checked."""
        with self._opened() as here:
            if here is None:
                return False
            try:
                os.stat(name + _SUFFIX, dir_fd=here.folder, follow_symlinks=False)
            except OSError:
                return False
            return True

    def told(self, name: str) -> bytes:
        """Returns what is told of the code that is kept under a key, unchecked: to be shown, not to be believed."""
        with self._opened() as here:
            if here is None:
                return b""
            try:
                with open_file(name + _SUFFIX, here.folder) as file:
                    head = file.read(_HEAD_BYTES) or b""
                    size = int.from_bytes(head[-_LENGTH_BYTES:], "little")
                    if len(head) < _HEAD_BYTES or head[: len(_MAGIC)] != _MAGIC or size > _MOST_TOLD_BYTES:
                        return b""
                    return file.read(size) or b""
            except OSError:
                return b""

    def verify(self) -> list[str]:
        """Checks every entry, and removes those that cannot be believed.

        Returns:
            Their keys.
        """
        with self._opened() as here:
            if here is None:
                return []
            bad = []
            for entry in _entries(here):
                kept = self._read(here, entry.name)
                if kept is None:
                    bad.append(entry.name)
                else:
                    kept.close()
            for name in bad:
                with suppress(OSError):
                    os.unlink(name + _SUFFIX, dir_fd=here.folder)
            return bad

    def clear(self) -> int:
        """Removes all entries.

        Returns:
            How many there were.
        """
        with self._opened() as here:
            if here is None:
                return 0
            removed = 0
            for name in _names(here.folder):
                if name.endswith((_SUFFIX, NEW_SUFFIX)):
                    with suppress(OSError):
                        os.unlink(name, dir_fd=here.folder)
                        removed += name.endswith(_SUFFIX)
            return removed

    def _opened(self) -> _Opened:
        return _Opened(self)

    def _read(self, here: _Place, name: str) -> CacheHit | None:
        try:
            with open_file(name + _SUFFIX, here.folder) as file:
                status = os.fstat(file.fileno())
                if status.st_uid != os.geteuid() or status.st_size > self.limit_bytes:
                    return None
                head = file.read(_HEAD_BYTES) or b""
                size = int.from_bytes(head[-_LENGTH_BYTES:], "little")
                if len(head) < _HEAD_BYTES or head[: len(_MAGIC)] != _MAGIC or size > status.st_size - _HEAD_BYTES:
                    return None
                told = file.read(size) or b""
                kept = CacheHit(told, file, status.st_size - _HEAD_BYTES - size)
        except OSError:
            return None
        expected = head[len(_MAGIC) : -_LENGTH_BYTES]
        with kept.looked_at() as code:
            right = hmac.compare_digest(expected, here.mac(name, told, code))
        if right:
            return kept
        kept.close()
        return None

    def _make_room(self, here: _Place) -> None:
        """Removes what dead processes left half written, and what was unused for longest until the rest fits."""
        entries = sorted(_entries(here), key=lambda entry: entry.used)
        total = sweep(here.folder) + sum(entry.size_bytes for entry in entries)
        for entry in entries:
            if total <= self.limit_bytes:
                break
            with suppress(OSError):
                os.unlink(entry.name + _SUFFIX, dir_fd=here.folder)
            total -= entry.size_bytes


class CacheHit:
    """An entry that was read: a copy that nobody can change any more, checked before it is handed out.

    Args:
        told: What is told of the machine code.
        file: The file, at the beginning of the machine code.
        size: How many bytes it has.

    Attributes:
        told: What is told of the machine code.
        size_bytes: How many bytes of machine code there are.
    """

    def __init__(self, told: bytes, file: FileIO, size: int) -> None:
        self.told = told
        self.size_bytes = size
        self._bytes = b""
        self._file: OwnedDescriptor | None = None
        if not has_memory_files() or not size:
            self._bytes = file.read(size) or b""
            return
        # The engine can map a file, which is faster than to copy bytes; this one is in memory, and sealed.
        self._file = own_memory_file("stockade")
        copy = self._file.number
        while size > 0 and (copied := os.sendfile(copy, file.fileno(), None, size)):
            size -= copied
        seal(copy)

    @contextmanager
    def looked_at(self) -> Iterator[memoryview]:
        """Shows the machine code."""
        if self._file is None or not os.fstat(self._file.number).st_size:
            yield memoryview(self._bytes)
            return
        from mmap import PROT_READ, mmap

        with mmap(self._file.number, 0, prot=PROT_READ) as mapped, memoryview(mapped) as view:
            yield view

    @property
    def code(self) -> bytes | Path:
        """The machine code, or the path of a file that has it while this is not closed."""
        return self._bytes if self._file is None else Path(f"/proc/self/fd/{self._file.number}")

    def close(self) -> None:
        """Lets go of the copy. Closing twice is harmless."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _Place(NamedTuple):
    """The folder, open, and the user's secret."""

    folder: int
    secret: bytes

    def mac(self, name: str, told: bytes, code: bytes | memoryview) -> bytes:
        """Returns the MAC of an entry; its key is part of it, so that no entry passes for another one."""
        mac = hmac.new(self.secret, digestmod=hashlib.sha256)
        mac.update(os.fsencode(name) + f"\n{len(told)}\n".encode())
        mac.update(told)
        mac.update(code)
        return mac.digest()


class _Opened:
    """Opens the folder and fetches the secret; tells why not, where that fails."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._folder = -1

    def __enter__(self) -> _Place | None:
        cache = self._cache
        if cache.folder is None or cache.state is None:
            cache.problem = "switched off, or there is no home folder"
            return None
        try:
            self._folder = open_private(cache.folder)
            return _Place(self._folder, user_secret(cache.state))
        except EngineError as problem:
            cache.problem = str(problem)
        except OSError as problem:
            cache.problem = f"{cache.folder} or {cache.state} cannot be used: {problem.strerror}"
        self.__exit__()
        return None

    def __exit__(self, *exception: object) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


def _names(folder: int) -> list[str]:
    return os.listdir(folder)


def _entries(here: _Place) -> Iterator[CacheEntry]:
    for name in _names(here.folder):
        if name.endswith(_SUFFIX):
            with suppress(OSError):
                status = os.stat(name, dir_fd=here.folder, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    # Not of our making, and not to be removed like a file.
                    continue
                yield CacheEntry(name.removesuffix(_SUFFIX), status.st_size, status.st_mtime)
