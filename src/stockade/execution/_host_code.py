"""Where this process, and the one that compiles, take their code from: no guest may write there."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from stockade._start import LEFT_OUT
from stockade._text import printable
from stockade.engine import library_folder
from stockade.errors import EngineError
from stockade.policy import folders_on_the_way, policy_files
from stockade.system import identities_on_the_way

if TYPE_CHECKING:
    from stockade.system import Identity, OpenFolder

__all__ = ["HostCode"]


_RUNS = "a guest could leave code there that the host would run"
_LOOKED_FOR = f"this process looks for Python modules: {_RUNS}"
_INSTALLED = f"Python modules are installed: {_RUNS}"
_INTERPRETER = f"the Python interpreter is: {_RUNS}"
_LIBRARIES = f"this process looks for libraries: {_RUNS}"
_LOADED = f"libraries of this process come from: {_RUNS}"
_IMPORTED = f"modules of this process come from: {_RUNS}"
_OURS = f"code of Stockade is: {_RUNS}"
_STARTUP = f"there is what Python runs when it starts: {_RUNS}"
_POLICY = "a policy of this process is: a guest could change what it may do"


class _Place(NamedTuple):
    """A folder or file from which code is taken, or rights.

    Attributes:
        given: How it is named.
        path: Where it is, links resolved.
        found: What is there and what a guest could make of it, as a sentence goes on after "where".
        whole: Whether all that lies in the folder counts. If not, folders in it may be written to.
    """

    given: str
    path: str
    found: str
    whole: bool


class HostCode:
    """All those places, as they are now."""

    def __init__(self) -> None:
        told: dict[str, tuple[str, bool]] = {}
        for entry in (*sys.path, *LEFT_OUT):
            if isinstance(entry, str):
                told.setdefault(entry or ".", (_LOOKED_FOR, False))
        for entry in (sys.executable, getattr(sys, "_base_executable", "")):
            if entry:
                told.setdefault(entry, (_INTERPRETER, False))
        for entry in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix):
            told.setdefault(entry, (_INTERPRETER, False))
        for entry in _installed():
            told[entry] = (_LOOKED_FOR if entry in told else _INSTALLED, True)
        for package in _packages():
            told[str(package)] = (_OURS, True)
        if sys.pycache_prefix:
            told.setdefault(sys.pycache_prefix, (_LOOKED_FOR, True))
        for variable in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
            for entry in filter(None, os.environ.get(variable, "").split(os.pathsep)):
                told.setdefault(entry, (_LIBRARIES, False))
        if startup := os.environ.get("PYTHONSTARTUP"):
            told.setdefault(startup, (_STARTUP, False))
        for file in policy_files():
            told.setdefault(str(file), (_POLICY, False))
        # Most came from a folder of which all counts.
        wholes = tuple(_below(entry) for entry, (_, whole) in told.items() if whole)
        for entry in _imported_from():
            if not _below(entry).startswith(wholes):
                told.setdefault(entry, (_IMPORTED, False))
        for entry in _loaded_from():
            if not _below(entry).startswith(wholes):
                told.setdefault(entry, (_LOADED, False))
        self._places = [_Place(entry, os.path.realpath(entry), found, whole) for entry, (found, whole) in told.items()]
        self._ways = folders_on_the_way(*(Path(place.given) for place in self._places))
        self._known: dict[str, Identity | None] = {}
        # Hardly any folder is one of these, or lies in one; whoever asks for one that is, is told of which.
        self._around: set[Identity] = set()
        for path in (*(place.path for place in self._places), *self._ways):
            self._around |= identities_on_the_way(path, self._known)
        self._wholes = {self._known[place.path] for place in self._places if place.whole}

    def reached_from(self, folder: OpenFolder) -> str:
        """Says what whoever can write to a folder can change, and what a guest could make of it; nothing if nothing.

        Args:
            folder: The folder.
        """
        if folder.identity not in self._around and self._wholes.isdisjoint(folder.within):
            return ""
        for place in self._places:
            # A folder covers itself, too.
            if self._covers(folder, place.path):
                return f"covers {printable(place.path, 400)}, where {place.found}"
            if place.whole and self._lies_in(folder, place.path):
                return f"lies in {printable(place.path, 400)}, where {place.found}"
        if any(self._covers(folder, way) for way in self._ways):
            for place in self._places:
                if any(self._covers(folder, way) for way in folders_on_the_way(Path(place.given))):
                    return f"has a link on the way to {printable(place.path, 400)}, where {place.found}"
        return ""

    def _covers(self, folder: OpenFolder, path: str) -> bool:
        return folder.identity in identities_on_the_way(path, self._known)

    def _lies_in(self, folder: OpenFolder, path: str) -> bool:
        # What does not exist yet has no identity, and nothing that is open lies in it.
        return path in self._known and self._known[path] in folder.within


def _below(folder: str) -> str:
    """What the paths begin with of all that lies in a folder."""
    return folder if folder.endswith(os.sep) else folder + os.sep


def _imported_from() -> set[str]:
    """The folders from which modules of this process came: what is imported later may come from there, too."""
    # Not by getattr, upon which some load themselves.
    files = (getattr(module, "__dict__", {}).get("__file__") for module in tuple(sys.modules.values()))
    return {_folder_of(file) for file in files if isinstance(file, str)}


_folder_of: Final = lru_cache(4_096)(os.path.dirname)
"""There are hundreds, the same ones each time."""


@cache  # There may be tens of thousands of maps; what is loaded later mostly comes from the same folders.
def _loaded_from() -> tuple[str, ...]:
    """The folders from which the machine code of this process came, where the system tells."""
    found: dict[str, None] = {}
    with suppress(OSError), open("/proc/self/maps", "rb") as maps:  # noqa: PTH123 - a line at a time
        for line in maps:
            _, rights, *_, file = line.rstrip(b"\n").split(None, 5)
            # Not what is only in memory, such as the code of guests.
            if b"x" in rights and file.startswith(b"/") and not file.startswith((b"/memfd:", b"/dev/")):
                found[os.path.dirname(os.fsdecode(file))] = None  # noqa: PTH120 - far faster
    return tuple(found)


@cache
def _installed() -> list[str]:
    """The folders of Python's own library and of what is installed, for all and for this user."""
    paths = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return [*filter(None, paths), site.getusersitepackages()]


def _packages() -> list[Path]:
    """The packages that a compiling process imports, beside Python's own."""
    packages = [Path(__file__).parents[1], Path(str(msgspec.__file__)).parent]
    try:
        return [*packages, library_folder() / "wasmtime"]
    except EngineError:
        # Not installed: whoever comes to need it is told so.
        return packages
