"""Files of the user's: written whole or not at all, and never through a link."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from stockade._text import printable

if TYPE_CHECKING:
    from io import FileIO

__all__ = ["FileName", "OutputFile", "create_file", "open_stream", "replace_file", "write_file"]

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""Opens a file that was not there, through no link."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STREAM: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


class FileName(click.Path):
    """The name of a file, given with an option: no other option, which stands where the name is missing."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Returns the name.

        Raises:
            UsageError: It begins as an option does.
        """
        given = os.fspath(value)
        if param is not None and given.startswith("-"):
            shown = printable(given, 400)
            raise click.UsageError(
                f"{param.opts[0]} needs a FILE, and {shown} begins as an option does: write ./{shown} for a file that "
                "is called so",
                ctx,
            )
        return super().convert(value, param, ctx)


class OutputFile:
    """A file that something is to be written to: known before a guest runs, so that none chooses what it is.

    Its folder is open, and what lies under its name is replaced, never followed or opened. What was there stays until
    there is something whole to take its place.

    Args:
        name: Its path.
        what: What is written to it, such as `the report`.

    Raises:
        UsageError: It cannot be written, or what is there is no plain file.
    """

    def __init__(self, name: str, what: str) -> None:
        path = Path(name)
        self._what = what
        self.shown = printable(name, 400)
        self.name = path.name
        try:
            self.folder = os.open(path.parent, _FOLDER)
            if not self.name:
                raise IsADirectoryError(0, "Is a directory")
            self._check()
            # Whether anything can be written there is known when something was.
            replace_file(self.folder, None, b"")
        except OSError as problem:
            raise self._problem(problem) from None

    def replace(self, data: bytes) -> None:
        """Writes it.

        Args:
            data: What is to be in it.

        Raises:
            UsageError: It cannot be written any more.
        """
        try:
            self._check()
            replace_file(self.folder, self.name, data)
        except OSError as problem:
            raise self._problem(problem) from None
        finally:
            os.close(self.folder)

    def create(self, data: bytes) -> None:
        """Writes it as a new file.

        Args:
            data: What is to be in it.

        Raises:
            FileExistsError: Something is there.
            UsageError: It cannot be written any more.
        """
        try:
            create_file(self.folder, self.name, data)
        except FileExistsError:
            raise
        except OSError as problem:
            raise self._problem(problem) from None
        finally:
            os.close(self.folder)

    def _check(self) -> None:
        mode = _mode(self.name, self.folder)
        if mode and not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "no plain file"
            raise click.UsageError(f"{self.shown} is {kind}: give {self._what} a file of its own")

    def _problem(self, problem: OSError) -> click.UsageError:
        return click.UsageError(f"{self.shown} cannot be written: {problem.strerror}")


def write_file(name: str, data: bytes, what: str, *, force: bool) -> None:
    """Writes a file that is not there yet, or may be replaced.

    Args:
        name: Its path.
        data: What is to be in it.
        what: What that is, such as `the policy`.
        force: Whether a plain file that is there may be replaced.

    Raises:
        UsageError: It cannot be written, or something is there.
    """
    file = OutputFile(name, what)
    if force:
        file.replace(data)
        return
    try:
        file.create(data)
    except FileExistsError:
        raise click.UsageError(f"{file.shown} already exists: use --force to overwrite it") from None


def open_stream(name: str, what: str) -> FileIO:
    """Opens what is written to while a guest runs: a new file in the place of a plain one, or a device as it is.

    Args:
        name: Its path.
        what: What is written to it, such as `the trace`.

    Raises:
        UsageError: It cannot be written, or it is a link or a folder.
    """
    try:
        mode = _mode(name)
        if mode and (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
            return os.fdopen(os.open(name, _STREAM), "wb", buffering=0)
    except OSError as problem:
        raise click.UsageError(f"{printable(name, 400)} cannot be written: {problem.strerror}") from None
    file, temporary = OutputFile(name, what), _temporary_name()
    try:
        stream = os.fdopen(os.open(temporary, _CREATE, 0o666, dir_fd=file.folder), "wb", buffering=0)
        os.rename(temporary, file.name, src_dir_fd=file.folder, dst_dir_fd=file.folder)
    except OSError as problem:
        raise click.UsageError(f"{file.shown} cannot be written: {problem.strerror}") from None
    finally:
        os.close(file.folder)
    return stream


def _mode(name: str, folder: int | None = None) -> int:
    """What lies under a name, which is not followed; 0 where nothing does."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return 0


def create_file(folder: int, name: str, data: bytes) -> None:
    """Writes a file that was not there.

    Args:
        folder: The open folder.
        name: The name of the file in it.
        data: What is in it.

    Raises:
        OSError: It cannot be written, or something is there.
    """
    with os.fdopen(os.open(name, _CREATE, 0o666, dir_fd=folder), "wb") as file:
        try:
            file.write(data)
            file.flush()
        except OSError:
            os.unlink(name, dir_fd=folder)
            raise


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
    temporary = _temporary_name()
    with os.fdopen(os.open(temporary, _CREATE, 0o666, dir_fd=folder), "wb") as file:
        try:
            file.write(data)
            file.flush()
            if name is not None:
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            # Where it has its own name by now, there is nothing under this one.
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)


def _temporary_name() -> str:
    return f".stockade-{os.urandom(8).hex()}"
