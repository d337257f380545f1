"""Files that code has written, brought to a folder of the user's: their names and their bytes are the code's.

A name is one below the folder, or is not taken: nothing is reached through a link, nothing that is there is replaced
unless the user says so, and what other programs obey without being asked, files whose names begin with a dot, comes
only where it is asked for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click

from stockade._text import printable
from stockade.cli._files import create_file, replace_file
from stockade.system import folder_below

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["check_collection", "open_folder", "write_files"]

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_MOST_TOLD: Final = 10


def check_collection(patterns: Sequence[str], folder: str | None, *, force: bool, wants_json: bool) -> None:
    """Checks options that belong together.

    Args:
        patterns: Which files are wanted.
        folder: Where they go.
        force: Whether they replace what is there.
        wants_json: Whether they are shown as JSON.

    Raises:
        UsageError: One is there without another that it needs.
    """
    if patterns and folder is None and not wants_json:
        raise click.UsageError("--collect: say where the files go, with -o FOLDER (or print them, with --json)")
    if folder is not None and not patterns:
        raise click.UsageError("-o is for files that the code writes: say which, with --collect PATTERN")
    if force and folder is None:
        raise click.UsageError("--force is for files that are written to -o FOLDER")


def open_folder(folder: str) -> int:
    """Returns a folder of the user's, open; it is made where it is not there.

    Args:
        folder: Its path.

    Raises:
        UsageError: There is none, and none can be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103 - as the user wrote it
        return os.open(folder, _FOLDER)
    except OSError as problem:
        raise click.UsageError(f"-o {printable(folder, 400)}: {problem.strerror}") from None


def write_files(files: Mapping[str, bytes], patterns: Sequence[str], folder: int, *, force: bool) -> bool:
    """Writes files below a folder, which it closes, and tells which it does not write, and why.

    Args:
        files: Their bytes, by their names.
        patterns: What was asked for.
        folder: The open folder.
        force: Whether files that are there are replaced.

    Returns:
        Whether all of them were written.
    """
    left: list[str] = []
    try:
        for name, data in files.items():
            reason = _objection(name, patterns)
            if not reason:
                try:
                    _write(folder, name.split("/"), data, force=force)
                except FileExistsError:
                    reason = "it is there already: use --force to overwrite it"
                except OSError as problem:
                    reason = problem.strerror or type(problem).__name__
            if reason:
                left.append(f"stockade: {printable(name, 400)} is not written: {reason}")
    finally:
        os.close(folder)
    for line in left[:_MOST_TOLD]:
        click.echo(line, err=True)
    if len(left) > _MOST_TOLD:
        click.echo(f"stockade: {len(left) - _MOST_TOLD:,} more files are not written", err=True)
    return not left


def _objection(name: str, patterns: Sequence[str]) -> str:
    """Says why a name is not taken; "" where it is."""
    parts = name.split("/")
    if not name.isprintable():
        return "its name has characters that cannot be shown"
    if any(part in ("", ".", "..") for part in parts):
        return "its name leads elsewhere"
    hidden = any(part.startswith(".") for part in parts)
    if hidden and not any(pattern.startswith(".") or "/." in pattern for pattern in patterns):
        return "its name begins with a dot: give a --collect that does, such as '.*', if you want it"
    return ""


def _write(folder: int, parts: Sequence[str], data: bytes, *, force: bool) -> None:
    """Writes a file below an open folder."""
    with folder_below(folder, parts[:-1]) as here:
        if force:
            replace_file(here, parts[-1], data)
        else:
            create_file(here, parts[-1], data)
