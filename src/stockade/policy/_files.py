"""Policy files of this process, and what leads to a file."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["folders_on_the_way", "note_policy_file", "policy_files"]

_files: set[Path] = set()


def note_policy_file(path: Path) -> None:
    """Notes that this process has read a policy from a file, and may do so again."""
    _files.add(path.absolute())


def policy_files() -> frozenset[Path]:
    """Returns the files from which this process has read policies: no guest may come to write to one."""
    return frozenset(_files)


def folders_on_the_way(*paths: Path) -> set[str]:
    """Returns the folders in which something stands that leads to files: their links, those of these, and themselves.

    Whoever can write to one of them can put another file in its place.
    """
    folders: set[str] = set()
    seen: set[str] = set()
    todo = [str(path.absolute()) for path in paths]
    while todo:
        here = todo.pop()
        while here not in seen:
            seen.add(here)
            above = os.path.dirname(here)  # noqa: PTH120 - far faster
            folders.add(above)
            with suppress(OSError):  # No link, or nothing at all.
                todo.append(os.path.join(above, os.readlink(here)))  # noqa: PTH115, PTH118 - far faster
            here = above
    return {os.path.realpath(folder) for folder in folders}
