"""`stockade cache`: the compiled modules that are kept on disk."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stockade._text import printable
from stockade.cli._complete import ModuleFile
from stockade.cli._policy_option import policy_option
from stockade.cli._status import ExitStatus, failure_status
from stockade.cli._streams import say_document
from stockade.cli._terminal import interruptible, progress, show_table
from stockade.compilation import Cache, cached_name, why_not_kept
from stockade.errors import ModuleError
from stockade.modules import load_module
from stockade.sandbox import Sandbox

if TYPE_CHECKING:
    from stockade.policy import Policy

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """Manage the cache of compiled modules.

    The cache is the folder that STOCKADE_CACHE names, or stockade in your cache folder; STOCKADE_CACHE=off turns it
    off. Without it, modules are compiled again in each process.
    """


@cache.command()
@click.option("--json", "wants_json", is_flag=True, help="Print JSON.")
def info(wants_json: bool) -> int:
    """Show where the cache is and which modules are in it."""
    store = Cache()
    entries = store.entries()
    total = sum(entry.size_bytes for entry in entries)
    if wants_json:
        listed = [
            {"name": e.name, "module": cached_name(e.name), "size_bytes": e.size_bytes, "used": e.used} for e in entries
        ]
        folder = None if store.folder is None else str(store.folder)
        facts = {"folder": folder, "problem": store.problem, "limit_bytes": store.limit_bytes, "entries": listed}
        say_document(json.dumps(facts, indent=2))
        return 0
    if store.problem:
        return _unusable(store)
    click.echo(f"{store.folder}: {_modules(len(entries))}, {_size(total)} of {_size(store.limit_bytes)}")
    now = time.time()
    show_table(
        [
            (
                (cached_name(entry.name) or "?", "bold"),
                (entry.name[:16], "dim"),
                (_size(entry.size_bytes), ""),
                (f"used {_ago(now - entry.used)}", "dim"),
            )
            for entry in entries
        ]
    )
    return 0


@cache.command()
def clear() -> int:
    """Remove everything from the cache."""
    store = Cache()
    removed = store.clear()
    if store.problem:
        return _unusable(store)
    click.echo(f"{_modules(removed)} removed")
    return 0


@cache.command()
def verify() -> int:
    """Check every byte of the cache and remove what has changed.

    Exit status: 0 nothing has changed; 1 something has; 125 the cache cannot be used.
    """
    store = Cache()
    bad = store.verify()
    if store.problem:
        return _unusable(store)
    for name in bad:
        click.echo(f"stockade: removed {printable(name)}: it is not as it was written", err=True)
    click.echo(f"{_modules(len(store.entries()))} unchanged")
    return int(bool(bad))


@cache.command(short_help="Compile modules ahead of their first run.")
@click.argument("modules", metavar="MODULE...", nargs=-1, required=True, type=ModuleFile(path_type=Path))
@policy_option
def warm(modules: tuple[Path, ...], base: Policy) -> int:
    """Compile modules before their first run under a policy, and keep them in the cache.

    Exit status: 0; 125 the cache cannot be used; 126 a module cannot run; 127 no such file.
    """
    store = Cache()
    store.entries()
    if store.problem:
        return _unusable(store)
    status = 0
    with Sandbox(base) as sandbox:
        for path in modules:
            begun = time.perf_counter()
            try:
                module = load_module(path, base)
                with progress(module.name) as tell:
                    interruptible(lambda module=module, tell=tell: sandbox.prepare(module, tell))  # type: ignore[misc]
            except ModuleError as problem:
                message = str(problem)
                where = "" if printable(path.name) in message else f"{printable(str(path), 400)}: "
                click.echo(f"stockade: {where}{message}", err=True)
                status = max(status, failure_status(problem))
                continue
            told = f"{module.name}: ready in {time.perf_counter() - begun:.2f} s"
            why = why_not_kept(module, base)
            click.echo(f"{told}; not kept: {printable(why, 400)}" if why else told)
    return status


def _unusable(store: Cache) -> int:
    click.echo(f"stockade: the cache cannot be used: {printable(store.problem, 1000)}", err=True)
    return ExitStatus.USAGE


def _modules(count: int) -> str:
    return f"{count:,} module{'' if count == 1 else 's'}"


def _size(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB" if size >= 1 << 20 else f"{size / (1 << 10):,.1f} KiB"


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
