"""The library of an interpreter, in folders of its own under the names that the interpreter looks for."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from stockade._locks import new_lock
from stockade._text import printable
from stockade.errors import InvalidModule, ModuleNotFound
from stockade.policy import Mount

__all__ = ["library_mounts"]

_FOLDER = "/usr/local/lib"

_lock = new_lock()
_made: dict[tuple[Path, int], tuple[Mount, ...]] = {}


def library_mounts(archive: Path, name: str, unpacked: str) -> tuple[Mount, ...]:
    """Returns what a policy has to grant of a library: the archive alone in a folder, and a folder that was in it.

    The archive is linked there where that is possible, else copied. The folders are for this process, and removed at
    its end.

    Args:
        archive: The archive, a zip.
        name: What it is called in the folder.
        unpacked: A folder whose files are opened by their paths; it is an archive in the archive, under this name.

    Raises:
        ModuleNotFound: There is no such file.
        InvalidModule: It is no such archive.
    """
    with _lock:
        key = archive, os.getpid()
        if key not in _made:
            top = Path(tempfile.mkdtemp(prefix="stockade-library-"))
            atexit.register(shutil.rmtree, top, ignore_errors=True)
            for folder in ("lib", "data"):
                (top / folder).mkdir()
            try:
                os.link(archive, top / "lib" / name)
            except FileNotFoundError:
                raise ModuleNotFound(f"the library of the interpreter is missing: {printable(str(archive))}") from None
            except OSError:
                shutil.copyfile(archive, top / "lib" / name)
            _unpack(archive, unpacked, top / "data")
            _made[key] = (
                Mount(top / "lib", _FOLDER, "ro"),
                Mount(top / "data", f"{_FOLDER}/{name}/{unpacked}", "ro"),
            )
        return _made[key]


def _unpack(archive: Path, folder: str, target: Path) -> None:
    """Unpacks an archive within an archive whose bytes are known."""
    try:
        with zipfile.ZipFile(archive) as outer, outer.open(f"{folder}.zip") as file, zipfile.ZipFile(file) as inner:
            inner.extractall(target)
    except (zipfile.BadZipFile, KeyError):
        raise InvalidModule(f"{printable(str(archive))} is not the library of an interpreter") from None
