"""`stockade audit`: audit logs that are checked."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from stockade._text import document_safe, printable
from stockade.audit import key_from, verify
from stockade.cli._streams import say_document

__all__ = ["audit"]

_FOUND = 1
"""The exit status where a log is not as it was written."""


@click.group()
def audit() -> None:
    """Check audit logs."""


@audit.command(name="verify")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--key", "key_file", metavar="FILE", help="The key of the log.  [default: yours]")
@click.option("--head", metavar="FILE", help="The head of the log, where it was copied from elsewhere.")
@click.option("--no-head", is_flag=True, help="Do without the head: whether the end was cut off is not known then.")
@click.option("--partial", is_flag=True, help="The first FILE need not be the first that was written.")
@click.option("--json", "wants_json", is_flag=True, help="Print JSON.")
def verify_command(
    files: tuple[str, ...], key_file: str | None, head: str | None, no_head: bool, partial: bool, wants_json: bool
) -> int:
    """Say whether the audit log FILE is as it was written, and if not, which lines are not.

    Where the log was rotated, give all its files, the oldest first.

    Exit status: 0 all is as it was written; 1 it is not; 125 it cannot be checked.
    """
    if head is not None and no_head:
        raise click.UsageError("--head and --no-head: give one of them")
    key = None if key_file is None else key_from(Path(key_file))
    check = verify(files, key=key, head=head, without_head=no_head, partial=partial)
    if wants_json:
        told = msgspec.to_builtins(check) | {"ok": check.ok}
        say_document(document_safe(msgspec.json.format(msgspec.json.encode(told)).decode(), "json"))
    else:
        for note in check.notes:
            click.echo(f"note: {printable(str(note), 600)}")
        for finding in check.findings:
            click.echo(f"NOT AS WRITTEN: {printable(str(finding), 600)}")
        events = f"{check.events:,} event{'' if check.events == 1 else 's'}"
        if check.ok:
            click.echo(f"{events}, all as written. The last seal is {check.last}")
        else:
            click.echo(
                f"{events} as written, and {len(check.findings):,} finding{'s' if len(check.findings) > 1 else ''}"
            )
    return 0 if check.ok else _FOUND
