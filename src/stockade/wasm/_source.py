"""Reading a module file that someone else may have put there.

The file is opened once, checked on the open descriptor, and read within a bound: a folder, a FIFO or `/dev/zero` is
refused without reading from it, and a file that grows while it is read is cut at the bound. What is hashed is
what is compiled.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from stockade._text import printable
from stockade.errors import InvalidModule, ModuleNotFound
from stockade.wasm._formats import is_text_format

if TYPE_CHECKING:
    from io import FileIO

__all__ = ["read_module_file"]


def read_module_file(path: str | os.PathLike[str], limit_bytes: int) -> bytes:
    """Reads a regular file of a bounded size.

    Args:
        path: Where it is.
        limit_bytes: The most it may have.

    Raises:
        ModuleNotFound: There is no such file.
        InvalidModule: It is not a regular file, cannot be read, or is too large.
    """
    shown = printable(os.fspath(path), 400)
    try:
        # Not blocking: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        if is_text_format(os.fsencode(path)):
            raise ModuleNotFound(f"no file at {shown}: give WebAssembly text as bytes") from None
        near = _neighbours(Path(path))
        raise ModuleNotFound(f"no file at {shown}{near}") from None
    except (OSError, ValueError) as problem:
        if isinstance(problem, OSError) and problem.errno == errno.ENXIO:  # what a socket says
            raise InvalidModule(f"{shown} is a socket, not a regular file: give the path of a module") from None
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        if "\0" in os.fsdecode(path):
            reason = "it has a zero byte"  # for which each release of Python has its own words
        raise InvalidModule(f"{shown} cannot be opened: {reason}") from None
    # Not through fdopen yet: that refuses a folder in words of its own, and leaves the descriptor open.
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InvalidModule(f"{shown} is {_kind(status.st_mode)}, not a regular file: give the path of a module")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if status.st_size > limit_bytes:
            raise InvalidModule(
                f"{shown} has {status.st_size:,} bytes; modules may have {limit_bytes:,} (limits.module_size)"
            )
        # One more than it should have, so that its growing is seen; asking for the limit would clear as much memory.
        try:
            data = _read(file, status.st_size + 1)
            if len(data) > status.st_size:
                data += _read(file, limit_bytes + 1 - len(data))
        except OSError as problem:
            # A regular file of the kernel's, such as /proc/self/mem, or a disk that fails.
            raise InvalidModule(f"{shown} cannot be read: {problem.strerror}") from None
    if len(data) > limit_bytes:
        raise InvalidModule(f"{shown} grew beyond {limit_bytes:,} bytes while it was read (limits.module_size)")
    return data


def _read(file: FileIO, size: int) -> bytes:
    """Reads so many bytes, or to the end."""
    data = file.read(size) or b""
    while 0 < len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _neighbours(path: Path) -> str:
    import difflib

    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.name.endswith((".wasm", ".wat"))][:1000]
    except OSError:
        return f" (nor a folder {printable(str(path.parent), 400)})"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {printable(close[0])}?" if close else ""
