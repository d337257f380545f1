"""Where an audit log is, its head and its key; and how they are opened, so that nothing else is in their places."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from fcntl import LOCK_NB, flock
from pathlib import Path
from typing import Final, NamedTuple

from stockade._text import printable
from stockade.errors import AuditError, EngineError
from stockade.system import (
    forget_private_file,
    granted_folders,
    identities_on_the_way,
    is_private,
    note_private_file,
    open_file,
    open_private,
    private_files,
    state_folder,
    user_secret,
)

__all__ = [
    "LogPlace",
    "claim_place",
    "find_place",
    "key_from",
    "open_head",
    "open_log",
    "read_key",
    "take_lock",
    "user_state",
    "users_key",
]

_LOG: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HEAD: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_LOCK_SECONDS: Final = 10.0
"""How long to wait for another process that writes."""

_LOCK_STEP_SECONDS: Final = 0.001

_KEY: Final = "audit.key"
_LEAST_KEY_BYTES: Final = 16
_MOST_KEY_BYTES: Final = 4096


class LogPlace(NamedTuple):
    """Where a log is.

    Attributes:
        folder: The folder that it is in, without links.
        name: Its name there.
        state: The folder that its head is kept in; None for the user's.
    """

    folder: Path
    name: str
    state: Path | None = None

    @property
    def path(self) -> Path:
        """The path of the log."""
        return self.folder / self.name

    @property
    def shown(self) -> str:
        """The path as messages show it."""
        return printable(str(self.path), 400)

    @property
    def head_name(self) -> str:
        """What its head is called, in the folder of the heads."""
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:32] + ".head"


def find_place(path: str | os.PathLike[str]) -> LogPlace:
    """Returns where a log is, from where the process is now.

    Args:
        path: Its path; links on the way to its folder are followed.

    Raises:
        AuditError: There is no such folder, or the path names none of its files.
    """
    given = Path(path)
    if given.name in ("", "..") or "\0" in str(given):
        raise AuditError(f"{printable(str(given), 400)} names no file: give the path of the audit log")
    try:
        folder = given.parent.resolve(strict=True)
    except (OSError, RuntimeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "its links lead in a circle"
        raise AuditError(f"the folder of the audit log {printable(str(given), 400)} cannot be used: {why}") from None
    return LogPlace(folder, given.name)


def claim_place(place: LogPlace) -> None:
    """Sees to it that no guest is granted the folder of a log, from now on.

    Args:
        place: Where the log is.

    Raises:
        AuditError: Guests of a sandbox are granted it already.
    """
    path = place.path
    is_new = path not in private_files()
    note_private_file(path)
    around = identities_on_the_way(str(place.folder), {})
    for folder in granted_folders():
        if folder.identity in around:
            if is_new:
                forget_private_file(path)
            raise AuditError(
                f"the audit log {place.shown} would lie in {printable(folder.path, 400)}, which guests of an open "
                "sandbox are granted: put it into a folder beside that, or open it when the sandbox is closed"
            )


def read_key(given: bytes | None) -> bytes:
    """Returns the key of a log: the one that is given, or the user's, which is made where there is none.

    Args:
        given: The key; None for the user's.

    Raises:
        AuditError: There is none, or it is too short.
    """
    if given is not None:
        if type(given) is not bytes or not _LEAST_KEY_BYTES <= len(given) <= _MOST_KEY_BYTES:
            raise AuditError(
                f"the key of an audit log is {_LEAST_KEY_BYTES} to {_MOST_KEY_BYTES:,} bytes, kept secret: "
                "make one by secrets.token_bytes(32)"
            )
        return given
    folder = user_state()
    try:
        return user_secret(folder, _KEY)
    except EngineError as problem:
        raise AuditError(f"the key of audit logs cannot be used: {problem}") from None
    except OSError as problem:
        raise AuditError(f"the key of audit logs cannot be used: {folder / _KEY}: {problem.strerror}") from None


def users_key() -> bytes:
    """Returns the user's key, to check what was written with it; none is made.

    Raises:
        AuditError: There is none, or it cannot be used.
    """
    path = user_state() / _KEY
    if not path.exists():
        raise AuditError(f"there is no key at {path}: give the key of the log")
    return read_key(None)


def key_from(path: Path) -> bytes:
    """Reads a key from a file, which nobody else may read or write.

    Args:
        path: Where it is.

    Raises:
        AuditError: Others may read or write it, it cannot be read, or is no key.
    """
    try:
        with open_file(str(path), own=True) as file:
            return read_key(file.read(_MOST_KEY_BYTES + 1) or b"")
    except OSError as problem:
        raise AuditError(f"the key {printable(str(path), 400)} cannot be read: {problem.strerror}") from None


def user_state() -> Path:
    """Returns the folder that keys and heads are kept in.

    Raises:
        AuditError: There is none.
    """
    folder = state_folder()
    if folder is None:
        raise AuditError(
            "there is no folder for the key and the head of an audit log, for there is no home: name one by "
            "STOCKADE_STATE"
        )
    return folder


def open_head(place: LogPlace, *, make: bool = True) -> int:
    """Opens the file of a log's head.

    Args:
        place: Where the log is.
        make: Whether it is made where it is missing.

    Raises:
        AuditError: Its folder, or what is in its place, is not the user's alone.
        FileNotFoundError: It is missing, and is not to be made.
        OSError: It cannot be opened.
    """
    state = place.state or user_state()
    try:
        os.close(open_private(state))
        folder = open_private(state / "audit")
    except EngineError as problem:
        raise AuditError(f"the head of the audit log cannot be kept: {problem}") from None
    try:
        head = os.open(place.head_name, _HEAD if make else _HEAD & ~os.O_CREAT, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
    status = os.fstat(head)
    if not stat.S_ISREG(status.st_mode) or not is_private(status):
        os.close(head)
        raise AuditError(f"{state / 'audit' / place.head_name} is not a file of yours alone: it must have mode 0600")
    return head


def open_log(place: LogPlace) -> int:
    """Opens a log, to be read and added to; makes it where it is missing, readable by its owner only.

    Args:
        place: Where it is.

    Raises:
        AuditError: Its folder is one in which others may exchange it; or what is in its place is no plain file, or not
            the user's, or others may write to it, or it has another name, too.
        OSError: It cannot be opened.
    """
    folder = os.open(place.folder, _FOLDER)
    try:
        around = os.fstat(folder)
        mode = stat.S_IMODE(around.st_mode)
        # In a folder with the sticky bit, only its owner moves or removes a file.
        if mode & 0o022 and not mode & stat.S_ISVTX:
            raise AuditError(
                f"{printable(str(place.folder), 400)} has mode {mode:04o}: others may exchange the audit log in it. "
                "Put it into a folder that only you may write to"
            )
        if around.st_uid not in (os.geteuid(), 0):
            raise AuditError(
                f"{printable(str(place.folder), 400)} belongs to another user, who may exchange the audit log that is "
                "in it. Put it into a folder of yours"
            )
        log = os.open(place.name, _LOG, 0o600, dir_fd=folder)
    except OSError as problem:
        if problem.errno != errno.ELOOP:
            raise
        raise _refused(place, "is a link") from None
    finally:
        os.close(folder)
    try:
        _check_log(place, os.fstat(log))
    except BaseException:
        os.close(log)
        raise
    return log


def _check_log(place: LogPlace, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    why = ""
    if not stat.S_ISREG(status.st_mode):
        why = "is no plain file"
    elif status.st_uid != os.geteuid():
        why = "belongs to another user"
    elif mode & 0o022:
        why = f"has mode {mode:04o}, so that others may write to it"
    elif status.st_nlink != 1:
        why = "has another name, too, by which it may be reached elsewhere"
    if why:
        raise _refused(place, why)


def _refused(place: LogPlace, why: str) -> AuditError:
    return AuditError(f"the audit log {place.shown} {why}: give another path, or remove what is there")


def take_lock(descriptor: int, how: int, otherwise: str) -> None:
    """Takes the lock of a file, and waits for who has it.

    Args:
        descriptor: The open file.
        how: `LOCK_EX` to write, `LOCK_SH` to read.
        otherwise: What is said where it is not to be had.

    Raises:
        OSError: Others have it all the while.
    """
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            flock(descriptor, how | LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise OSError(errno.EAGAIN, otherwise) from None
            time.sleep(_LOCK_STEP_SECONDS)
        else:
            return
