"""The folder that a run has for itself on the host: filled before, read and removed after, whatever the guest did.

The guest can write to it: so nothing is reached by a path that it could have changed, no link is followed, and what is
read is counted. It is only touched while the guest is halted.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import weakref
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import count, islice
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade._bytes import bytes_of
from stockade._locks import new_lock
from stockade._text import printable
from stockade.errors import UsageError
from stockade.policy import Mount
from stockade.system import folder_below

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from stockade._bytes import BytesLike

__all__ = [
    "MOST_FILES",
    "MOST_FILE_BYTES",
    "WORKSPACE",
    "Collected",
    "PrivateFolder",
    "check_files",
    "check_patterns",
    "is_untouched",
]

WORKSPACE: Final = "/workspace"
"""Where the guest finds its files."""

MOST_FILES: Final = 1_000
"""How many files are collected."""

MOST_FILE_BYTES: Final = 64 << 20
"""How many bytes they may have together."""

_MOST_LOOKED_AT: Final = 20_000
_DEEPEST: Final = 32
_MOST_NAME_BYTES: Final = 255

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_RESULT: Final = "result"
_REQUEST: Final = "request"
_MOST_REQUEST_BYTES: Final = 16 << 20
_PARTS: Final = (("work", WORKSPACE), ("tmp", "/tmp"), ("run", "/run"))  # noqa: S108 - in the guest


_BY_DESCRIPTOR: Final = ("fd_filestat_set_times", "fd_readdir")
"""What changes a granted folder, or when it was last read, without a path: it is open from the beginning."""


class Collected(NamedTuple):
    """What was read of a workspace.

    Attributes:
        files: Files by their names in it.
        left_out: How many more files matched, or could not be looked at.
    """

    files: dict[str, bytes]
    left_out: int


def is_untouched(calls: Iterable[str]) -> bool:
    """Whether a guest that has made these WASI calls, and no others, has changed nothing in the folders granted to it.

    Args:
        calls: The names of the calls that the guard has counted.
    """
    return not any(call in _BY_DESCRIPTOR if call.startswith("fd_") else call.startswith("path_") for call in calls)


def check_files(files: Mapping[str, BytesLike] | None) -> dict[tuple[str, ...], bytes]:
    """Returns files by the parts of their names.

    Args:
        files: What somebody wants to lie in the workspace.

    Raises:
        UsageError: A name is none, or leads outside; or what is given is no bytes.
    """
    if files is None:
        return {}
    if not hasattr(files, "items"):
        raise UsageError(f"files is {type(files).__name__}: give a dict of names and bytes")
    found: dict[tuple[str, ...], bytes] = {}
    for name, data in files.items():
        found[_parts(name)] = bytes_of(data, f"the file {printable(str(name))}")
    for parts in found:
        for size in range(1, len(parts)):
            if parts[:size] in found:
                raise UsageError(f"the file {printable('/'.join(parts[:size]))} cannot be a folder, too")
    return found


def _parts(name: object) -> tuple[str, ...]:
    if not isinstance(name, str):
        raise UsageError(f"the name of a file is {type(name).__name__}: it must be text")
    parts = tuple(name.removeprefix(f"{WORKSPACE}/").split("/"))
    if len(parts) > _DEEPEST or any(not _is_name(part) for part in parts):
        raise UsageError(
            f"{printable(name) or 'an empty text'} cannot be the name of a file: give a path below {WORKSPACE}, "
            "such as data/table.csv"
        )
    return parts


def _is_name(part: str) -> bool:
    if part in ("", ".", "..") or "\0" in part:
        return False
    try:
        return len(part.encode()) <= _MOST_NAME_BYTES
    except UnicodeEncodeError:
        return False


def check_patterns(collect: Sequence[str]) -> tuple[str, ...]:
    """Returns patterns as they are matched, below the workspace.

    Raises:
        UsageError: They are none.
    """
    if isinstance(collect, str | bytes):
        raise UsageError('collect is a single text: give a list of patterns, such as ["*.csv"]')
    patterns = tuple(collect)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UsageError(f"a pattern of collect is {type(pattern).__name__}: it must be text")
        if pattern.startswith("/") and not pattern.startswith(f"{WORKSPACE}/"):
            raise UsageError(
                f"collect has {printable(pattern)}, and only files below {WORKSPACE} are returned: have the code write "
                "there"
            )
    names = (pattern.removeprefix(f"{WORKSPACE}/").removeprefix("./") for pattern in patterns)
    return tuple(f"{name}*" if name.endswith("/") else name for name in names)


class _Entry(NamedTuple):
    """What lies in a folder of the guest's.

    Attributes:
        name: Its name, from the top.
        descriptor: It, open; None for what is no plain file.
        size: Its size in bytes.
        is_too_deep: Whether it is a folder that was not entered, for it is nested too deep.
        is_rest: Whether it stands for all that was not looked at, for there is too much.
    """

    name: str
    descriptor: int | None
    size: int
    is_too_deep: bool = False
    is_rest: bool = False


class PrivateFolder:
    """A folder of the host's with the workspace of one guest. Closing it, or dropping it, removes it.

    It belongs to the process that has made it: one that is forked from that leaves it as it is.

    Raises:
        UsageError: There is no room for one.
    """

    def __init__(self) -> None:
        try:
            self._path = tempfile.mkdtemp(prefix="stockade-")
            self._process = os.getpid()
            self._lock = new_lock()
            self._untidy = False
            # What was put there last, by its name, as long as the guest has not changed it.
            self._given: dict[str, bytes] = {}
            self._finish = weakref.finalize(self, _remove, self._path, self._process)
            for part, _ in _PARTS:
                os.mkdir(f"{self._path}/{part}", 0o700)  # noqa: PTH102 - a run waits for it
            os.close(os.open(f"{self._path}/run/{_RESULT}", _CREATE, 0o600))
        except OSError as problem:
            raise UsageError(f"no folder for the guest's files can be made: {problem.strerror}") from None

    @property
    def is_ours(self) -> bool:
        """Whether this process has made it."""
        return os.getpid() == self._process

    def mounts(self) -> tuple[Mount, ...]:
        """Returns what a policy has to grant."""
        return tuple(Mount(f"{self._path}/{part}", guest, "rw") for part, guest in _PARTS)

    def put(self, files: Mapping[tuple[str, ...], bytes]) -> None:
        """Writes files to the workspace, in the place of those that are there.

        Args:
            files: Their bytes, by the parts of their names.

        Raises:
            UsageError: A file cannot be written: the guest has a folder, or something else, in its place.
        """
        for parts, data in files.items():
            name = "/".join(parts)
            try:
                self._put(parts, data)
            except OSError as problem:
                raise UsageError(
                    f"the file {printable(name)} cannot be put into the workspace: {problem.strerror}"
                ) from None
            self._given[name] = data

    def _put(self, parts: tuple[str, ...], data: bytes) -> None:
        top = os.open(f"{self._path}/work", _FOLDER)
        try:
            with folder_below(top, parts[:-1], 0o700) as here:
                with suppress(FileNotFoundError):
                    os.unlink(parts[-1], dir_fd=here)
                with os.fdopen(os.open(parts[-1], _CREATE, 0o600, dir_fd=here), "wb") as file:
                    file.write(data)
        finally:
            os.close(top)

    def copy_to(self, other: PrivateFolder) -> None:
        """Copies the files of the workspace into another one; what is no plain file or folder is left out.

        Args:
            other: Where to.

        Raises:
            UsageError: They are too many, or nested too deep, to be copied.
        """
        top = os.open(f"{self._path}/work", _FOLDER)
        for entry in _walk(top, "", [_MOST_LOOKED_AT]):
            if entry.descriptor is not None:
                with os.fdopen(os.dup(entry.descriptor), "rb") as file:
                    other.put({tuple(entry.name.split("/")): file.read()})
            elif entry.is_rest:
                raise UsageError(
                    f"the workspace holds more than {_MOST_LOOKED_AT:,} files and folders, and so many are not copied: "
                    "remove some"
                )
            elif entry.is_too_deep:
                raise UsageError(
                    f"the workspace has folders more than {_DEEPEST} levels deep, which are not copied: remove them, "
                    f"such as {printable(entry.name, 100)}"
                )
        # Not all of these were given: what the guest has made is its own there, too.
        other._given = dict(self._given)

    def collect(self, patterns: Sequence[str]) -> Collected:
        """Reads the files of the workspace whose names match; not what was put there and is as it was, unless by name.

        Args:
            patterns: `*` stands for anything, folders included, `?` for a character, `[...]` for one of several.
        """
        files: dict[str, bytes] = {}
        if not patterns:
            return Collected(files, 0)
        room, left_out = MOST_FILE_BYTES, 0
        top = os.open(f"{self._path}/work", _FOLDER)
        for entry in _walk(top, "", [_MOST_LOOKED_AT]):
            if not any(fnmatchcase(entry.name, pattern) for pattern in patterns):
                continue
            if entry.name not in patterns and self._is_as_given(entry):
                continue
            data = None
            if entry.descriptor is not None and entry.size <= room and len(files) < MOST_FILES:
                data = _read_all(entry.descriptor, room)
            if data is None:
                left_out += 1
                continue
            room -= len(data)
            files[entry.name] = data
        return Collected(files, left_out)

    def _is_as_given(self, entry: _Entry) -> bool:
        """Says whether a file is one that was put there, with the same bytes: times are the guest's to set."""
        given = self._given.get(entry.name)
        if given is None or entry.descriptor is None or entry.size != len(given):
            return False
        with os.fdopen(os.dup(entry.descriptor), "rb") as file:
            same = file.read(len(given) + 1) == given
        if not same:
            del self._given[entry.name]
            os.lseek(entry.descriptor, 0, os.SEEK_SET)
        return same

    def take_request(self) -> bytes | None:
        """Returns what the guest wants of a tool, and empties it; None where there is nothing."""
        return self._taken(_REQUEST, _MOST_REQUEST_BYTES, again=True) or None

    def take_result(self, most: int, *, again: bool = True) -> bytes | None:
        """Returns what the guest left as its result, and empties it where there may be another one.

        Args:
            most: How many bytes it may have.
            again: Whether the guest lives on.

        Returns:
            Its bytes; None where there are none that can be read, or too many.
        """
        return self._taken(_RESULT, most, again=again)

    def _taken(self, name: str, most: int, *, again: bool) -> bytes | None:
        try:
            descriptor = os.open(f"{self._path}/run/{name}", os.O_RDWR | _READ)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            data = _read_all(descriptor, most) if status.st_size <= most else None
            if again:
                # Not for nothing: file systems write out at once what comes after it, and then wait for the disk.
                os.ftruncate(descriptor, 0)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return data

    def has_result(self) -> bool:
        """Says whether the guest has left something as its result."""
        try:
            status = os.stat(f"{self._path}/run/{_RESULT}", follow_symlinks=False)  # noqa: PTH116 - a run waits for it
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size > 0

    def left(self) -> None:
        """Notes that a guest that is over may have left something."""
        self._untidy = True

    def clear(self) -> bool:
        """Removes what a guest may have left; returns whether nothing is left, and the folder can be used again."""
        with self._lock:
            if not (self.is_ours and self._finish.alive):
                return False
            if self._untidy:
                self._given = {}
                try:
                    for part, _ in _PARTS:
                        _empty(f"{self._path}/{part}")
                    os.close(os.open(f"{self._path}/run/{_RESULT}", _CREATE, 0o600))
                except OSError:
                    return False
                self._untidy = False
            return True

    def close(self) -> None:
        """Removes the folder. Closing twice is harmless."""
        with self._lock:
            self._finish()


def _walk(folder: int, prefix: str, left: list[int]) -> Iterator[_Entry]:
    """Yields what lies below a folder, which it closes; of folders only what they hold, unless they are too deep.

    Folders are opened from the one that they lie in, so that none leads elsewhere.

    Args:
        folder: The open folder.
        prefix: What the names in it begin with.
        left: How many entries are still looked at.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, left[0] + 1))
        left[0] -= len(names)
        for name in names if left[0] >= 0 else ():
            full = prefix + name
            descriptor, size, is_too_deep = None, 0, False
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                size = status.st_size
                full.encode()
                if stat.S_ISDIR(status.st_mode):
                    if full.count("/") < _DEEPEST:
                        yield from _walk(os.open(name, _FOLDER, dir_fd=folder), f"{full}/", left)
                        continue
                    is_too_deep = True
                elif stat.S_ISREG(status.st_mode):
                    descriptor = os.open(name, _READ, dir_fd=folder)
            except (OSError, UnicodeEncodeError):
                pass
            try:
                yield _Entry(full, descriptor, size, is_too_deep=is_too_deep)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
        if left[0] < 0:
            yield _Entry(f"{prefix}…", None, 0, is_rest=True)
    finally:
        os.close(folder)


def _read_all(descriptor: int, most: int) -> bytes | None:
    """Reads an open file; None where it has more bytes than it may."""
    pieces, room = [], most
    while piece := os.read(descriptor, min(room + 1, 1 << 20)):
        room -= len(piece)
        if room < 0:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _remove(path: str, process: int) -> None:
    """Removes a folder with all that is in it, in the process that has made it."""
    if os.getpid() != process:
        return
    try:
        _empty(path)
        os.rmdir(path)  # noqa: PTH106 - a run waits for it
    except OSError:
        # What the guest has no rights to take from us, the system may: then as far as it goes.
        shutil.rmtree(path, ignore_errors=True)


def _empty(path: str) -> None:
    """Removes all that is in a folder, however deep a guest has made it.

    What lies in a folder is moved up before the folder goes, so that neither a stack nor descriptors grow with the
    depth. Links are removed, not followed.
    """
    numbers = count()
    top = os.open(path, _FOLDER)
    try:
        while entries := _names(top):
            for name in entries:
                _remove_entry(top, name, numbers)
        # A guest can set the times of the folder itself, for the next one to read.
        os.utime(top)
    finally:
        os.close(top)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _remove_entry(top: int, name: str, numbers: Iterator[int]) -> None:
    try:
        os.unlink(name, dir_fd=top)
    except OSError:  # Most probably a folder; if not, opening it says why.
        folder = os.open(name, _FOLDER, dir_fd=top)
        try:
            for inner in _names(folder):
                try:
                    os.unlink(inner, dir_fd=folder)
                except OSError:
                    os.rename(inner, f".{next(numbers)}.{os.getpid()}", src_dir_fd=folder, dst_dir_fd=top)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=top)
