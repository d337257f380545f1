"""Folders below an open one, by names that others may have chosen: nothing is reached through a link."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["folder_below"]

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def folder_below(folder: int, parts: Sequence[str], mode: int = 0o777) -> Iterator[int]:
    """Opens a folder below an open one; those on the way are made where they are not there.

    Args:
        folder: The open folder, which stays open.
        parts: The names on the way: none of them leads elsewhere, as `..` does.
        mode: The rights of those that are made, before the umask.

    Yields:
        Its descriptor.

    Raises:
        OSError: There is something else on the way, or one cannot be made.
    """
    here = os.dup(folder)
    try:
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, mode, dir_fd=here)
            inner = os.open(part, _FOLDER, dir_fd=here)
            os.close(here)
            here = inner
        yield here
    finally:
        os.close(here)
