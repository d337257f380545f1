"""The lists of paths of mounts, as the guard reads them (listed.wat)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from stockade.guard._source import guard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.policy import Mount

__all__ = ["granted_paths", "scopes_bytes"]

_ADDRESS: Final = struct.Struct("<I")
_LIST: Final = struct.Struct("<II")
_ENTRY: Final = struct.Struct("<IIII")


def scopes_bytes() -> int:
    """Returns how much room the scopes of all descriptors take."""
    return _ADDRESS.size * guard().layout.constants["MAX_DESCRIPTORS"]


def granted_paths(mounts: Sequence[Mount], at: int) -> bytes:
    """Returns the lists of mounts; nothing where no mount has one.

    Args:
        mounts: The mounts, in the order of their descriptors.
        at: Where this is going to lie in the guard's memory.
    """
    if all(mount.only is None for mount in mounts):
        return b""
    constants = guard().layout.constants
    one, below = constants["ENTRY_ONE"], constants["ENTRY_BELOW"]
    assert _ENTRY.size == constants["ENTRY_SIZE"]
    roots: list[int] = []
    lists: list[bytes] = []
    end = at + _ADDRESS.size * len(mounts)
    for mount in mounts:
        if mount.only is None:
            roots.append(0)
            continue
        paths = [
            (path.rstrip("/").encode(), below if path.endswith("/") else one) for path in mount.only if path != "."
        ]
        root = constants["ENTRY_LISTED_ROOT" if "." in mount.only else "ENTRY_ROOT"]
        # The list itself, the entry of its root, its entries, and their paths.
        first = end + _LIST.size + _ENTRY.size
        text = first + _ENTRY.size * len(paths)
        packed = [_LIST.pack(first, len(paths)), _ENTRY.pack(text, 0, root, end)]
        roots.append(end + _LIST.size)
        for path, flags in paths:
            packed.append(_ENTRY.pack(text, len(path), flags, end))
            text += len(path)
        # The next list begins at a multiple of four.
        padding = -text % _ADDRESS.size
        lists += [*packed, *(path for path, _ in paths), bytes(padding)]
        end = text + padding
    return b"".join([*map(_ADDRESS.pack, roots), *lists])
