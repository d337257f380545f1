"""Folders of the host, opened first and looked at afterwards: what is found out holds for what is open.

A path may lead somewhere else a moment later. An open folder stays the folder that it is, so all questions are asked of
the descriptor: where it is, in which folders it lies, on which kind of file system.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from stockade._dropped import OwnedDescriptor

__all__ = [
    "Identity",
    "NotGranted",
    "OpenFolder",
    "forget_granted",
    "granted_folders",
    "identities_on_the_way",
    "note_granted",
]

Identity: TypeAlias = tuple[int, int]
"""What a file is, whatever it is called: its device and its number there."""

_HAS_PROC: Final = Path("/proc/self/fd").is_dir()

_LOOK: Final = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK) | os.O_CLOEXEC
"""Opens without any effect, also what is no folder, such as a FIFO."""

_READ: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_MISSING: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

_DEEPEST: Final = 4096
"""No path has more folders on its way; where one seems to, folders are being moved while they are looked at."""


_granted: Final[set[weakref.ref[OpenFolder]]] = set()
"""No `WeakSet`: where a folder was dropped, that would lose what the handler of a signal raises (`_dropped.py`)."""


class NotGranted(Exception):  # noqa: N818 - becomes an error with the name of the mount
    """A folder that cannot be granted, and why."""


class OpenFolder:
    """A folder that is open, until nothing refers to this any more.

    Args:
        path: Where it is; links are followed.
        writable: Whether it must be writable.

    Raises:
        NotGranted: It is missing, not a folder, or not accessible.

    Attributes:
        descriptor: The open folder.
        path: Where it was found, without links.
        identity: What it is.
        within: What the folders are in which it lies, itself first.
    """

    __slots__ = ("__weakref__", "_owner", "descriptor", "identity", "path", "within")

    def __init__(self, path: str, *, writable: bool) -> None:
        self._owner = _open(path, writable=writable)
        self.descriptor = self._owner.number
        self.within = _folders_around(self.descriptor)
        self.identity = self.within[0]
        self.path = _path_of(path, self.descriptor, self.identity)

    @classmethod
    def received(cls, descriptor: int) -> OpenFolder:
        """Returns a folder that was opened, and looked at, in another process.

        Args:
            descriptor: The folder, which is ours from now on.
        """
        folder = cls.__new__(cls)
        folder._owner = OwnedDescriptor.of(descriptor)  # noqa: SLF001 - it is one of ours
        status = os.fstat(descriptor)
        folder.descriptor, folder.path = descriptor, ""
        folder.identity = status.st_dev, status.st_ino
        folder.within = (folder.identity,)
        return folder

    @property
    def name(self) -> bytes:
        """A path under which whoever opens it gets this folder, where the system has such paths."""
        return b"/proc/self/fd/%d" % self.descriptor if _HAS_PROC else os.fsencode(self.path)

    @property
    def removed(self) -> bool:
        """Whether it was removed."""
        return os.fstat(self.descriptor).st_nlink == 0

    def covers(self, other: OpenFolder) -> bool:
        """Whether another folder is this one, or lies in it."""
        return self.identity in other.within


def note_granted(folder: OpenFolder) -> None:
    """Notes a folder that guests may reach, as long as anything refers to it."""
    _granted.add(weakref.ref(folder, _granted.discard))


def forget_granted(folder: OpenFolder) -> None:
    """Forgets a folder that was noted, and that guests may not reach after all."""
    _granted.discard(weakref.ref(folder))


def granted_folders() -> list[OpenFolder]:
    """Returns the folders that guests of this process may reach now."""
    return [folder for kept in list(_granted) if (folder := kept()) is not None]


def _open(path: str, *, writable: bool) -> OwnedDescriptor:
    try:
        owner = OwnedDescriptor(os.open, path, _LOOK)
    except ValueError:
        raise NotGranted("does not exist") from None
    except OSError as problem:
        if problem.errno in _MISSING:
            raise NotGranted("does not exist") from None
        raise NotGranted(f": {problem.strerror}") from None
    looked_at = owner.number
    try:
        if not stat.S_ISDIR(os.fstat(looked_at).st_mode):
            raise NotGranted("is not a folder")
        # By way of the open folder, so that it is the same one.
        if writable and not os.access(".", os.R_OK | os.X_OK | os.W_OK, dir_fd=looked_at):
            raise NotGranted("cannot be read and written by this user")
        if not os.access(".", os.R_OK | os.X_OK, dir_fd=looked_at):
            raise NotGranted("cannot be read by this user")
        return OwnedDescriptor(partial(os.open, dir_fd=looked_at), ".", _READ)
    except OSError as problem:
        raise NotGranted("does not exist" if problem.errno in _MISSING else f": {problem.strerror}") from None


def _folders_around(descriptor: int) -> tuple[Identity, ...]:
    """Returns what the folders are in which an open one lies, itself first, up to the root."""
    found: list[Identity] = []
    here, above = descriptor, None
    try:
        while len(found) < _DEEPEST:
            status = os.fstat(here)
            identity = status.st_dev, status.st_ino
            if found and found[-1] == identity:
                return tuple(found)
            found.append(identity)
            above = OwnedDescriptor(partial(os.open, dir_fd=here), "..", _LOOK)
            here = above.number
    except OSError as problem:
        raise NotGranted(f": a folder in which it lies cannot be opened: {problem.strerror}") from None
    raise NotGranted("lies too deep")


def _path_of(path: str, descriptor: int, identity: Identity) -> str:
    """Returns where an open folder is, as the kernel tells it, or as a path that was found to lead to it."""
    real = str(Path(f"/proc/self/fd/{descriptor}").readlink()) if _HAS_PROC else os.path.realpath(path)
    try:
        status = Path(real).stat()
        if real.startswith("/") and (status.st_dev, status.st_ino) == identity:
            return real
    except OSError:
        pass
    raise NotGranted("was moved or exchanged while it was looked at: try again")


def identities_on_the_way(path: str, known: dict[str, Identity | None]) -> set[Identity]:
    """Returns what a path leads to, and the folders in which that lies; what does not exist is left out.

    Args:
        path: The path, absolute and without links.
        known: What was found out before, which grows.
    """
    found: set[Identity] = set()
    while True:
        if path not in known:
            try:
                status = os.stat(path)  # noqa: PTH116 - there are many
                known[path] = status.st_dev, status.st_ino
            except (OSError, ValueError):
                known[path] = None
        identity = known[path]
        if identity is not None:
            found.add(identity)
        above = os.path.dirname(path)  # noqa: PTH120 - there are many
        if above == path:
            return found
        path = above
