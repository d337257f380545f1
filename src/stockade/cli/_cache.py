"""`stockade cache`: what is kept of compiled modules."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stockade._text import printable
from stockade.cli._complete import ModuleFile
from stockade.cli._policy import policy_option
from stockade.cli._status import ExitStatus
from stockade.cli._terminal import interruptible, progress, show_table
from stockade.compilation import Cache
from stockade.errors import ModuleError
from stockade.modules import load_module
from stockade.sandbox import Sandbox

if TYPE_CHECKING:
    from stockade.policy import Policy

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """Look after the machine code of compiled modules.

    It lies in the folder that STOCKADE_CACHE names, or in stockade in your cache folder; STOCKADE_CACHE=off switches it
    off. Nothing depends on it but time.
    """


@cache.command()
@click.option("--json", "wants_json", is_flag=True, help="Print it as JSON.")
def info(wants_json: bool) -> int:
    """Show where the cache is, and what is in it."""
    store = Cache()
    entries = store.entries()
    total = sum(entry.size_bytes for entry in entries)
    if wants_json:
        listed = [{"name": e.name, "size_bytes": e.size_bytes, "used": e.used} for e in entries]
        folder = None if store.folder is None else str(store.folder)
        facts = {"folder": folder, "problem": store.problem, "limit_bytes": store.limit_bytes, "entries": listed}
        click.echo(json.dumps(facts, indent=2))
        return 0
    if store.problem:
        click.echo(f"stockade: the cache is not used: {store.problem}", err=True)
        return ExitStatus.USAGE
    click.echo(f"{store.folder}: {_modules(len(entries))}, {_size(total)} of {_size(store.limit_bytes)}")
    now = time.time()
    show_table(
        [
            ((entry.name[:16], "bold"), (_size(entry.size_bytes), ""), (f"used {_ago(now - entry.used)}", "dim"))
            for entry in entries
        ]
    )
    return 0


@cache.command()
def clear() -> None:
    """Remove everything from the cache."""
    click.echo(f"{_modules(Cache().clear())} removed")


@cache.command()
def verify() -> int:
    """Check every byte of the cache, and remove what was changed.

    Exit status: 0 all was right; 1 something was not.
    """
    bad = Cache().verify()
    for name in bad:
        click.echo(f"stockade: {printable(name)} was changed, and is removed", err=True)
    right = len(Cache().entries())
    click.echo(f"{_modules(right)} {'is as it was' if right == 1 else 'are as they were'} written")
    return int(bool(bad))


@cache.command()
@click.argument("modules", metavar="MODULE...", nargs=-1, required=True, type=ModuleFile(path_type=Path))
@policy_option
def warm(modules: tuple[Path, ...], base: Policy) -> int:
    """Compile modules ahead of their first run under a policy."""
    status = 0
    with Sandbox(base) as sandbox:
        for path in modules:
            begun = time.perf_counter()
            try:
                module = load_module(path, base.limits)
                with progress(module.name) as tell:
                    interruptible(lambda module=module, tell=tell: sandbox.prepare(module, tell))  # type: ignore[misc]
            except ModuleError as problem:
                click.echo(f"stockade: {printable(str(path), 400)}: {problem}", err=True)
                status = ExitStatus.CANNOT_RUN
            else:
                click.echo(f"{module.name}: ready after {time.perf_counter() - begun:.2f} s")
    return status


def _modules(count: int) -> str:
    return f"{count:,} module{'' if count == 1 else 's'}"


def _size(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB" if size >= 1 << 20 else f"{size / (1 << 10):,.1f} KiB"


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
