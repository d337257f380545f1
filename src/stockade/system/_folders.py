"""Folders of our own on the host: one for the cache, one for secrets. No guest may ever be granted them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stockade._start import START_FOLDER
from stockade.errors import EngineError

__all__ = [
    "cache_folder",
    "forget_private_file",
    "is_private",
    "note_private_file",
    "open_private",
    "private_files",
    "private_folders",
    "state_folder",
]

_files: set[Path] = set()


def cache_folder() -> Path | None:
    """Returns where machine code is kept: `STOCKADE_CACHE`, or `stockade` in the user's cache folder.

    Returns:
        The folder; None where the variable says `off`, or there is no home to have one in.
    """
    told = os.environ.get("STOCKADE_CACHE", "")
    if told:
        return None if told == "off" else _absolute(told)
    return _xdg("XDG_CACHE_HOME", ".cache")


def state_folder() -> Path | None:
    """Returns where secrets are kept: `STOCKADE_STATE`, or `stockade` in the user's state folder."""
    told = os.environ.get("STOCKADE_STATE", "")
    return _absolute(told) if told else _xdg("XDG_STATE_HOME", ".local/state")


def private_folders() -> list[Path]:
    """Returns all folders that no guest may reach."""
    return [folder for folder in (cache_folder(), state_folder()) if folder is not None]


def note_private_file(path: Path) -> None:
    """Notes a file that no guest may reach, such as an audit log."""
    _files.add(path)


def forget_private_file(path: Path) -> None:
    """Forgets a file that was noted, and is none after all."""
    _files.discard(path)


def private_files() -> frozenset[Path]:
    """Returns the files of this process that no guest may reach, wherever they are."""
    return frozenset(_files)


def _xdg(variable: str, below_home: str) -> Path | None:
    told = os.environ.get(variable, "")
    if told.startswith("/"):
        return Path(told) / "stockade"
    try:
        return _absolute(str(Path.home() / below_home / "stockade"))
    except RuntimeError:
        return None


def _absolute(told: str) -> Path | None:
    """Returns a folder from where the process was at the beginning.

    From where it is now, a change of its working folder would move a secret into another one: one that a guest is
    granted, maybe.
    """
    return Path(START_FOLDER, told) if START_FOLDER or told.startswith("/") else None


def is_private(status: os.stat_result) -> bool:
    """Whether a file or folder is this user's, and nobody else may read or write it.

    Args:
        status: Its status.
    """
    return status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077


def open_private(folder: Path) -> int:
    """Opens a folder that is ours alone, and makes it where it is missing.

    Args:
        folder: Where it is.

    Returns:
        A descriptor; whatever is done in the folder goes through it, so that nobody can exchange the folder meanwhile.

    Raises:
        EngineError: It is a link, belongs to someone else, or others may write to it.
        OSError: It cannot be made or opened.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not is_private(status):
        os.close(descriptor)
        todo = f": chmod 700 {folder}" if status.st_uid == os.geteuid() else ""
        raise EngineError(
            f"{folder} is not private (mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}): "
            f"it must be yours, with mode 0700{todo}"
        )
    return descriptor
