"""Files that are in memory only, and can be sealed, so that nobody can change them any more."""

from __future__ import annotations

import os
from typing import Final

from stockade._dropped import OwnedDescriptor

__all__ = ["has_memory_files", "is_sealed", "open_memory_file", "own_memory_file", "seal", "seal_against_mapping"]

_F_SEAL_FUTURE_WRITE: Final = 0x10
"""As on Linux from 5.1 on; Python names it from 3.13 on only."""


def has_memory_files() -> bool:
    """Whether the system has such files."""
    return hasattr(os, "memfd_create")


def open_memory_file(name: str) -> int:
    """Makes a file in memory, empty and not sealed yet.

    Args:
        name: What the system calls it, for whoever looks at the process.

    Returns:
        Its descriptor.

    Raises:
        OSError: There is no room, or no descriptor.
    """
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def own_memory_file(name: str) -> OwnedDescriptor:
    """Makes the same, which is closed when it is dropped: a handler of a signal that raises loses none.

    Args:
        name: What the system calls it.

    Raises:
        OSError: There is no room, or no descriptor.
    """
    return OwnedDescriptor(os.memfd_create, name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def seal(descriptor: int) -> None:
    """Has nobody change a file in memory any more, nor its size.

    Args:
        descriptor: The file.
    """
    import fcntl

    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _unchangeable() | fcntl.F_SEAL_SEAL)


def seal_against_mapping(descriptor: int) -> None:
    """Has nobody change a file in memory any more, nor its size, who has not mapped it already.

    Args:
        descriptor: The file. It may still be sealed for good.
    """
    import fcntl

    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)


def is_sealed(descriptor: int) -> bool:
    """Whether nobody can change a file any more, nor its size.

    Args:
        descriptor: The file.

    Raises:
        OSError: It is none in memory.
    """
    import fcntl

    wanted = _unchangeable()
    return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & wanted == wanted


def _unchangeable() -> int:
    import fcntl

    return fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
