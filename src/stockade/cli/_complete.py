"""What the shell is offered: modules, and the functions that they export."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stockade.errors import StockadeError
from stockade.modules import Module

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from click.shell_completion import CompletionItem

__all__ = ["ExportName", "ModuleFile", "offer"]

_MODULES = (".wasm", ".wat")
_MOST_ENTRIES = 1000
_MOST_MODULES = 8
_MOST_MODULE_BYTES = 8 << 20
"""How much is looked at while somebody waits for the shell."""


def offer(incomplete: str, suffixes: tuple[str, ...], words: Iterable[str] = ()) -> list[CompletionItem]:
    """Returns words and files that begin as what was typed.

    Args:
        incomplete: What was typed.
        suffixes: How the files end.
        words: The words.
    """
    from click.shell_completion import CompletionItem

    found = [word for word in words if word.startswith(incomplete)]
    folders = []
    for name, is_folder in _entries(incomplete):
        if is_folder:
            folders.append(f"{name}/")
        elif name.endswith(suffixes):
            found.append(name)
    if not found and folders:
        # The shell puts no space behind a folder, where one of ours would get one.
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(text) for text in (*found, *folders)]


def _entries(incomplete: str) -> Iterator[tuple[str, bool]]:
    """Returns what begins as a path that was typed in part, and whether each is a folder."""
    folder, slash, prefix = incomplete.rpartition("/")
    listed = []
    with suppress(OSError), os.scandir(folder or slash or ".") as entries:
        listed = sorted(
            (entry.name, entry.is_dir())
            for entry in islice(entries, _MOST_ENTRIES)
            if entry.name.startswith(prefix) and (prefix or not entry.name.startswith("."))
        )
    for name, is_folder in listed:
        if name.isprintable():
            yield f"{folder}{slash}{name}", is_folder


class ModuleFile(click.Path):
    """The path of a module."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Offers modules, and folders on the way to them."""
        return offer(incomplete, _MODULES)


class ExportName(click.ParamType):  # type: ignore[type-arg]
    """The name of a function that the module exports."""

    name = "EXPORT"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Offers the functions of the module on the command line; without one, of the modules in this folder."""
        from click.shell_completion import CompletionItem

        given = [word for word in os.environ.get("COMP_WORDS", "").split() if word.endswith(_MODULES)]
        named = [Path(word) for word in given if Path(word).is_file()]
        if incomplete in given:
            # An empty word is lost on the way from the shell, and the next one stands in its place.
            incomplete = ""
        here = sorted(Path(name) for name, is_folder in _entries("") if not is_folder and name.endswith(_MODULES))
        names = {name: None for path in (named or here)[:_MOST_MODULES] for name in _functions(path)}
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _functions(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MOST_MODULE_BYTES:
            return []
        exports = Module.load(path).exports
    except (OSError, StockadeError):
        return []
    return [entry.name for entry in islice(exports, _MOST_ENTRIES) if entry.kind == "func" and entry.name.isprintable()]
