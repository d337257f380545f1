"""Interpreters as WebAssembly: where they come from, and that they are what they should be."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from stockade._text import printable
from stockade.errors import InvalidModule, ModuleNotFound
from stockade.modules import Module

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DataFile", "Runtime", "choose", "installed"]


@dataclass(frozen=True)
class DataFile:
    """A file of a package.

    Attributes:
        name: Its name in the package.
        sha256: What its bytes must be.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Runtime:
    """An interpreter that a package holds as data; none of the package's own code is imported.

    Attributes:
        name: What it is called.
        distribution: The package.
        install: What to install it with.
        module: The module.
        library: A file that the guest reads its library from.
        library_name: What the guest calls it, in `/usr/local/lib`.
    """

    name: str
    distribution: str
    install: str
    module: DataFile
    library: DataFile | None = None
    library_name: str = ""

    def find(self, file: DataFile | None = None) -> Path | None:
        """Returns where a file of the runtime lies, by default its module; None where it is not installed."""
        wanted = self.module.name if file is None else file.name
        try:
            files = metadata.files(self.distribution) or ()
        except metadata.PackageNotFoundError:
            return None
        return next((Path(str(found.locate())) for found in files if found.name == wanted), None)

    def load(self) -> Module:
        """Loads the module.

        Raises:
            ModuleNotFound: It is not installed.
            InvalidModule: It is not the module that is known under this name.
        """
        path = self.find()
        if path is None:
            raise ModuleNotFound(f"the runtime {self.name} is not installed: {self.install}")
        module = Module.load(path)
        if module.sha256 != self.module.sha256:
            raise self._changed(path)
        return module

    def load_library(self) -> Path:
        """Returns where its library lies, once its bytes were looked at.

        Raises:
            ModuleNotFound: It is not installed.
            InvalidModule: It is not the library that is known under this name.
        """
        assert self.library is not None
        path = self.find(self.library)
        if path is None:
            raise ModuleNotFound(f"the library of the runtime {self.name} is not installed: {self.install}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.library.sha256:
                raise self._changed(path)
        return path

    def _changed(self, path: Path) -> InvalidModule:
        return InvalidModule(
            f"{printable(str(path))} is not the file of {self.distribution} that this release knows (its SHA-256 "
            f"differs): install the package anew, or give the path as the runtime if it is yours"
        )


def installed(known: Sequence[Runtime]) -> tuple[str, ...]:
    """Returns the names of the runtimes that are installed, the one that is taken by default first."""
    return tuple(runtime.name for runtime in known if runtime.find() is not None)


def choose(known: Sequence[Runtime], wanted: str | os.PathLike[str], language: str) -> Runtime | Path:
    """Returns the runtime that somebody asks for, or the path of a module of theirs.

    Args:
        known: The runtimes of the language.
        wanted: `auto`, a name, or a path.
        language: What the language is called.

    Raises:
        ModuleNotFound: There is none such.
    """
    named = os.fspath(wanted)
    if named == "auto":
        for runtime in known:
            if runtime.find() is not None:
                return runtime
        ways = " or ".join(runtime.install for runtime in reversed(known))
        raise ModuleNotFound(f"no runtime for {language} is installed: {ways}")
    for runtime in known:
        if runtime.name == named:
            return runtime
    if "/" in named or named.endswith((".wasm", ".wat")):
        return Path(named)
    names = ", ".join(runtime.name for runtime in known)
    raise ModuleNotFound(
        f"there is no runtime {printable(named)!r} for {language}: choose auto, {names}, or the path of a module"
    )
