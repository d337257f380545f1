"""`stockade gate`: what was kept aside of runs, released or deleted."""

from __future__ import annotations

import time
from pathlib import Path

import click
import msgspec

from stockade._text import document_safe, printable
from stockade.cli._streams import say_document
from stockade.cli._terminal import show_table
from stockade.gate import Quarantined, quarantined, quarantined_as, remove_leftovers

__all__ = ["gate"]


@click.group()
def gate() -> None:
    """List, look at, release or delete what was kept aside of runs.

    A policy keeps aside what leaves a run where it says quarantine in its table [gate]. It is kept below the folder
    that STOCKADE_STATE names, for you alone.
    """


@gate.command(name="list")
@click.option("--json", "wants_json", is_flag=True, help="Print JSON.")
def list_command(wants_json: bool) -> int:
    """List what is kept aside, the latest first.

    What a process that was killed had begun to keep is removed, and that is said on stderr.
    """
    leftovers = remove_leftovers()
    if leftovers:
        runs = "1 run" if leftovers == 1 else f"{leftovers:,} runs"
        click.echo(f"removed what was not kept whole of {runs}: the process that kept it was killed", err=True)
    kept = quarantined()
    if wants_json:
        say_document(_json(kept))
        return 0
    if not kept:
        click.echo("nothing is kept aside")
        return 0
    show_table(
        [
            (
                (each.id, "bold"),
                (time.strftime("%Y-%m-%d %H:%M", time.localtime(each.at)), ""),
                (printable(each.module, 40), ""),
                (printable(", ".join(dict.fromkeys(finding.detector for finding in each.findings)), 60), "dim"),
            )
            for each in kept
        ]
    )
    return 0


@gate.command()
@click.argument("id_", metavar="ID")
@click.option("--json", "wants_json", is_flag=True, help="Print JSON.")
def show(id_: str, wants_json: bool) -> int:
    """Say what is kept aside as ID, and why. Its content is not shown."""
    kept = quarantined_as(id_)
    if wants_json:
        say_document(_json(kept))
        return 0
    click.echo(f"{kept.id}: of {printable(kept.module, 200)}, under the policy {printable(kept.policy, 200)}")
    for name, size in kept.parts.items():
        click.echo(f"  {printable(name, 200)}: {size:,} bytes")
    for finding in kept.findings:
        times = f", {finding.count:,} times" if finding.count > 1 else ""
        shown = f" ({printable(finding.evidence)})" if finding.evidence else ""
        where = f"{printable(finding.channel, 200)}, from byte {finding.offset:,} on"
        click.echo(f"  found {printable(finding.detector, 100)}{shown} in {where}{times}")
    return 0


@gate.command()
@click.argument("id_", metavar="ID")
@click.option("--to", "folder", metavar="DIR", help="A folder that is not there yet.  [default: ID]")
def release(id_: str, folder: str | None) -> int:
    """Write what is kept aside as ID into a folder, and keep it aside no longer."""
    for path in quarantined_as(id_).release(Path(folder or id_)):
        click.echo(printable(str(path), 400))
    return 0


@gate.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
def delete(ids: tuple[str, ...]) -> int:
    """Delete what is kept aside as each ID."""
    for each in ids:
        quarantined_as(each).delete()
        click.echo(f"{each} is deleted")
    return 0


def _json(what: Quarantined | list[Quarantined]) -> str:
    return document_safe(msgspec.json.format(msgspec.json.encode(what)).decode(), "json")
