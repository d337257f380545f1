"""Files of the user's that are written whole, or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from secrets import token_hex
from typing import Final

__all__ = ["CREATE", "replace_file"]

CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""Opens a file that was not there, through no link."""


def replace_file(folder: int, name: str | None, data: bytes) -> None:
    """Puts a file in the place of what lies under its name, which is neither followed nor opened.

    What is there stays until there is something whole to take its place.

    Args:
        folder: The open folder.
        name: The name of the file in it; None to see whether one could be written, and leave nothing.
        data: What is in it.

    Raises:
        OSError: It cannot be written.
    """
    temporary = f".stockade-{token_hex(8)}"
    with os.fdopen(os.open(temporary, CREATE, 0o666, dir_fd=folder), "wb") as file:
        try:
            file.write(data)
            file.flush()
            if name is not None:
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            # Where it has its own name by now, there is nothing under this one.
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
