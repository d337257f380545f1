"""Where this process, and the one that compiles, take their code from: no guest may write there."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from stockade._text import printable
from stockade.engine import library_folder
from stockade.errors import EngineError
from stockade.policy import folders_on_the_way, policy_files

__all__ = ["HostCode"]


_RUNS = "a guest could leave code there that the host would run"
_LOOKED_FOR = f"this process looks for Python modules: {_RUNS}"
_INSTALLED = f"Python modules are installed: {_RUNS}"
_INTERPRETER = f"the Python interpreter is: {_RUNS}"
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

    given: Path
    path: Path
    found: str
    whole: bool


class HostCode:
    """All those places, as they are now."""

    def __init__(self) -> None:
        told: dict[str, tuple[str, bool]] = {}
        for entry in sys.path:
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
        if startup := os.environ.get("PYTHONSTARTUP"):
            told.setdefault(startup, (_STARTUP, False))
        for file in policy_files():
            told.setdefault(str(file), (_POLICY, False))
        self._places = [
            _Place(Path(entry), Path(entry).resolve(), found, whole) for entry, (found, whole) in told.items()
        ]
        self._ways = folders_on_the_way(*(place.given for place in self._places))

    def reached_from(self, folder: Path) -> str:
        """Says what whoever can write to a folder can change, and what a guest could make of it; nothing if nothing.

        Args:
            folder: The folder, links resolved.
        """
        for place in self._places:
            at = printable(str(place.path), 400)
            if folder == place.path or folder in place.path.parents:
                return f"covers {at}, where {place.found}"
            if place.whole and place.path in folder.parents:
                return f"lies in {at}, where {place.found}"
        if _covers(folder, self._ways):
            for place in self._places:
                if _covers(folder, folders_on_the_way(place.given)):
                    return f"has a link on the way to {printable(str(place.path), 400)}, where {place.found}"
        return ""


def _covers(folder: Path, others: set[str]) -> bool:
    return any(os.path.commonpath((folder, other)) == str(folder) for other in others)


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
