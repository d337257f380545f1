"""`stockade inspect`: what a module is, before anything of it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stockade._text import printable
from stockade.cli._complete import ModuleFile
from stockade.cli._encoding import plain_json
from stockade.cli._files import write_file
from stockade.cli._streams import pass_on, say_document
from stockade.cli._terminal import progress, show_table, show_title
from stockade.modules import Module, inspect_woven
from stockade.policy import MAX_MODULE_BYTES, write_value
from stockade.worker import titles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.modules import Grant, Inspection, Weaving

__all__ = ["inspect"]

_KINDS = {
    "command": "a command: stockade run starts it at _start",
    "reactor": "a reactor: _initialize runs, then its exports are called",
    "plain": "a plain module: its exports are called",
    "component": "a component",
}
_ROWS = 10
_SECTIONS = 6
_CALLS = 4
"""How much of a list is shown without --all."""

_CELL = 160
"""How many characters of a name or type are shown without --all."""

_Row = tuple[tuple[str, str], ...]
"""Texts with their styles."""

_UNPROVIDED = "Not part of WASI: provide these with Sandbox.host_function"


@click.command(short_help="Show what a module is, imports, exports and needs.")
@click.argument("file", metavar="FILE", type=ModuleFile())
@click.option("--woven", is_flag=True, help="Show what the guard changes in the module instead.")
@click.option("-o", "out", metavar="OUT", type=click.Path(allow_dash=True), help="Write the woven module to this file.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option("--all", "everything", is_flag=True, help="Show long lists and names in full.")
@click.option("--json", "wants_json", is_flag=True, help="Print JSON.")
def inspect(file: str, woven: bool, out: str | None, force: bool, everything: bool, wants_json: bool) -> None:
    """Show what a module contains, imports and exports, and what a policy must allow for it to run.

    Nothing in it runs. FILE is a module, or WebAssembly text that ends in .wat.

    \b
    Exit status: 0; 126 FILE is not a module or cannot be woven; 127 no such file.
    """  # noqa: D301 - \b is click's mark for a paragraph to be kept as it is
    if out is not None and not woven:
        raise click.UsageError("-o writes the woven module: use it with --woven")
    with progress(printable(Path(file).name)) as tell:
        tell("inspecting")
        # As large as any policy allows: what the module needs is told, not held against it.
        module = Module.load(file, limit_bytes=MAX_MODULE_BYTES)
        if not woven:
            found = module.inspect()
        else:
            weaving, wasm = inspect_woven(module)
    if not woven:
        say_document(plain_json(found.to_json())) if wants_json else _show(found, everything=everything)
        return
    if out is not None:
        _write(out, wasm, force=force)
    if out != "-":
        say_document(plain_json(weaving.to_json())) if wants_json else _show_woven(module.name, weaving)


def _show(found: Inspection, *, everything: bool) -> None:
    _block(found.name, _facts(found), everything=True, first=True)
    _block("It asks to", [_grant(entry, everything=everything) for entry in found.grants], everything=True)
    if found.kind == "component":
        imports = [((entry.name, "bold"), (entry.kind, "dim")) for entry in found.imports]
        _block("It imports", imports, everything=everything)
    _block(_UNPROVIDED, [((entry, "red"),) for entry in found.unprovided], everything=everything)
    exports = [((entry.name, "bold"), (entry.kind, "dim"), (entry.type, "")) for entry in found.exports]
    _block("It exports", exports, everything=everything)
    sections = [
        (
            (f"{section.kind} {section.name}".rstrip(), "bold"),
            (f"{section.size_bytes:>13,} bytes", ""),
            (f"{section.size_bytes / found.size_bytes:>4.0%}", "dim"),
        )
        for section in sorted(found.sections, key=lambda section: -section.size_bytes)
    ]
    _block("Largest sections", sections, everything=everything, shown=_SECTIONS)
    _block("Not understood", [((text, "yellow"),) for text in found.unread], everything=everything)
    if found.obstacles:
        _block("It cannot run", [((text, "red"),) for text in found.obstacles], everything=True)
    else:
        _block("A policy must allow", _policy_lines(found), everything=True)


def _facts(found: Inspection) -> list[_Row]:
    facts = [
        ("kind", _KINDS[found.kind]),
        ("size", f"{found.size_bytes:,} bytes"),
        ("sha256", found.sha256),
        ("named", found.module_name or ""),
        ("made with", ", ".join(f"{entry.name} {entry.version}".rstrip() for entry in found.producers)),
        ("uses", titles(found.features)),
        ("functions", f"{found.functions:,}, {found.imported_functions:,} imported" if found.functions else ""),
        *(("memory", str(memory)) for memory in found.memories[:_ROWS]),
        *(("table", str(table)) for table in found.tables[:_ROWS]),
        ("globals", f"{len(found.globals):,}" if found.globals else ""),
        ("data", _segments(found.data_segments, found.data_bytes)),
        ("elements", _segments(found.element_segments, found.element_bytes)),
        ("at start", "" if found.start is None else f"function {found.start:,} runs"),
    ]
    return [((label, "dim"), (text, "")) for label, text in facts if text]


def _segments(count: int, size: int) -> str:
    return f"{size:,} bytes in {count:,} segment{'s' * (count != 1)}" if count else ""


def _grant(entry: Grant, *, everything: bool) -> _Row:
    calls = entry.calls if everything or len(entry.calls) <= _CALLS + 1 else entry.calls[:_CALLS]
    named = ", ".join(calls) + (f" and {len(entry.calls) - len(calls)} more" if len(calls) < len(entry.calls) else "")
    refused = "; the default policy refuses it" if entry.calls == entry.refused else ""
    return (entry.group, "bold"), (f"{entry.grants}{refused}", "red" if refused else ""), (named, "dim")


def _policy_lines(found: Inspection) -> list[_Row]:
    """What a policy file would have to say, as it would say it."""
    lines: list[str] = []
    section = ""
    for need in found.needs:
        where, _, name = need.field.partition(".")
        lines += [f"[{where}]"] if where != section else []
        lines.append(f"{name} = {write_value(need.value)}")
        section = where
    return [((line, ""),) for line in lines or ["nothing beyond the default policy"]]


def _show_woven(name: str, told: Weaving) -> None:
    names = [name for name in told.functions if name != "helper"]
    helpers = len(told.functions) - len(names)
    added = told.woven_bytes - told.size_bytes + told.dropped_bytes
    facts = [
        ("size", f"{told.woven_bytes:,} bytes, {told.size_bytes:,} before"),
        ("added", f"{added:,} bytes" if told.exports else "nothing: there is nothing to guard"),
        ("left out", f"{told.dropped_bytes:,} bytes of custom sections" if told.dropped_bytes else ""),
        ("functions", f"{len(told.functions):,}, from index {told.first_function:,} on" if told.functions else ""),
        ("", f"{', '.join(names)} and {helpers:,} helpers" if told.functions else ""),
        ("types", str(told.types or "")),
        ("memories", f"{told.memories:,}, {told.memory_bytes:,} bytes" if told.memories else ""),
        ("tables", f"{told.tables:,}, for calls that the module does not import" if told.tables else ""),
        ("exports", ", ".join(told.exports)),
        ("renamed", ", ".join(f"{old} to {new}" for old, new in told.renamed.items())),
        ("redirected", ", ".join(f"{count:,} × {kind}" for kind, count in told.redirected.items())),
        ("start", "removed, and called under the limits" if told.start_taken else ""),
    ]
    rows = [((label, "dim"), (text, "")) for label, text in facts if text]
    _block(f"{name}, with the guard in it", rows, everything=True, first=True)


def _block(title: str, rows: Sequence[_Row], *, everything: bool, shown: int = _ROWS, first: bool = False) -> None:
    """Shows a title and rows below it, if there are any; long ones only as far as they are asked for."""
    if not rows:
        return
    if not first:
        click.echo()
    rows = [((f"  {row[0][0]}", row[0][1]), *row[1:]) for row in rows]
    # One row more is not worth a row that says so.
    kept = rows if everything or len(rows) <= shown + 1 else rows[:shown]
    cells = [[(text if everything else _cut(text), style) for text, style in row] for row in kept]
    show_title(title)
    show_table(cells)
    if len(kept) < len(rows):
        click.echo(f"  … and {len(rows) - len(kept):,} more: --all shows them")


def _cut(text: str) -> str:
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"


def _write(out: str, wasm: bytes, *, force: bool) -> None:
    """Writes the woven module: to a new file, or over a regular one that may go; never to a terminal."""
    if out != "-":
        write_file(out, wasm, "the module", force=force)
        return
    if sys.stdout.isatty():
        raise click.UsageError("-o - would write binary data to the terminal: give a file name")
    try:
        pass_on(sys.stdout, wasm)
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise click.UsageError(f"- cannot be written: {problem.strerror}") from None
