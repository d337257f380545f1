"""Files of our own: made under names that nobody can guess, and secrets that are the user's alone."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from typing import TYPE_CHECKING, Final

from stockade.errors import EngineError
from stockade.system._folders import is_private, open_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedWriter, FileIO
    from pathlib import Path

__all__ = ["NEW_SUFFIX", "new_file", "open_file", "sweep", "user_secret"]

NEW_SUFFIX: Final = ".new"
"""What the names of files end with that are being written."""

_SECRET_BYTES: Final = 32
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def open_file(name: str | bytes, folder: int | None = None, *, own: bool = False) -> FileIO:
    """Opens a regular file; what else may lie in its place is not opened, or not read.

    Args:
        name: Its name.
        folder: The folder that it is in, open; None where the name is a path.
        own: Whether it must be this user's, and nobody else may read or write it, for it holds a secret.

    Raises:
        OSError: It is none of that, or cannot be opened; says why in words.
    """
    descriptor = os.open(name, _READ, dir_fd=folder)
    status = os.fstat(descriptor)
    why = ""
    if not stat.S_ISREG(status.st_mode):
        why = "not a regular file"
    elif own and not is_private(status):
        why = "another user's, or others may read or write it: chmod 600 it"
    if why:
        os.close(descriptor)
        raise OSError(errno.EINVAL, why, name)
    return os.fdopen(descriptor, "rb", buffering=0)


@contextmanager
def new_file(folder: int) -> Iterator[tuple[str, BufferedWriter]]:
    """Makes a file under a name that nobody can guess, to be written and given its own name; else it is removed.

    It is locked as long as it is open, which the system ends with the process: whoever finds it unlocked knows that its
    writer is dead.

    Args:
        folder: Where, an open folder.

    Yields:
        Its name, and the file.
    """
    name, descriptor = _locked(folder)
    with os.fdopen(descriptor, "wb") as file:
        try:
            yield name, file
        finally:
            # Where it has its own name by now, there is nothing under this one.
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)


def _locked(folder: int) -> tuple[str, int]:
    """Makes a file under a name that nobody can guess, locked; returns its name and descriptor."""
    while True:
        name = os.urandom(16).hex() + NEW_SUFFIX
        descriptor = os.open(name, _WRITE, 0o600, dir_fd=folder)
        try:
            with suppress(OSError):  # Not every file system has locks.
                flock(descriptor, LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return name, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Before it was locked, somebody took its writer for dead.
        os.close(descriptor)


def sweep(folder: int) -> int:
    """Removes files whose writers are dead, and what is no file.

    Returns:
        How many bytes those have that are being written.
    """
    living = 0
    for name in os.listdir(folder):
        if not name.endswith(NEW_SUFFIX):
            continue
        size = _being_written(name, folder)
        living += size
        if not size:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
    return living


def _being_written(name: str, folder: int) -> int:
    """How many bytes a file has, at least one, if somebody writes it, or may; 0 if nobody does."""
    try:
        file = open_file(name, folder)
    except OSError:
        return 0
    with file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except OSError:
            return max(1, os.fstat(file.fileno()).st_size)
    return 0


def user_secret(folder: Path, name: str = "cache.key") -> bytes:
    """Returns the user's secret; makes one where there is none.

    Args:
        folder: The user's folder for secrets.
        name: The file that it is in.

    Raises:
        EngineError: The folder, or what is in it, is not the user's alone.
        OSError: It cannot be made or opened.
    """
    descriptor = open_private(folder)
    try:
        for _ in range(2):
            with suppress(FileNotFoundError):
                return _read_secret(descriptor, folder, name)
            sweep(descriptor)
            with new_file(descriptor) as (temporary, file):
                file.write(os.urandom(_SECRET_BYTES))
                file.flush()
                # Whoever links first wins; the others read that one.
                with suppress(FileExistsError):
                    os.link(temporary, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        return _read_secret(descriptor, folder, name)
    finally:
        os.close(descriptor)


def _read_secret(descriptor: int, folder: Path, name: str) -> bytes:
    try:
        with open_file(name, descriptor) as file:
            status = os.fstat(file.fileno())
            secret = file.read(_SECRET_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise EngineError(f"{folder / name} cannot be read: {problem.strerror}") from None
    if len(secret) != _SECRET_BYTES or not is_private(status):
        raise EngineError(f"{folder / name} is not a secret of yours: remove it, and another one is made")
    return secret
