"""`stockade doctor`: what this machine can enforce."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from stockade.cli._policy_option import PolicyName
from stockade.cli._streams import say_document
from stockade.cli._terminal import show_table, show_title
from stockade.doctor import diagnose, gather_facts
from stockade.jail import WALLS

if TYPE_CHECKING:
    from stockade.policy import Policy

__all__ = ["doctor"]

_STYLES = {"active": "green", "ok": "green", "partial": "yellow", "low": "yellow", "missing": "red"}


@click.command(short_help="Show what this machine can enforce.")
@click.option("--policy", "found", type=PolicyName(), default="default", show_default=True, help="The policy to rate.")
@click.option(
    "--require",
    "required",
    metavar="WALL",
    type=click.Choice(WALLS),
    multiple=True,
    help="Exit with status 1 only if this wall is missing; may be given again.",
)
@click.option("--json", "wants_json", is_flag=True, help="Print JSON.")
def doctor(found: Policy, required: tuple[str, ...], wants_json: bool) -> int:
    """Show what this machine can enforce, and what to change for more.

    All walls of process isolation are raised around a process that is made for that, which then tries them. Exits with
    status 1 if one is missing, or if the file that STOCKADE_SYSCALLS names cannot be followed.
    """
    told = diagnose(gather_facts(), found)
    if wants_json:
        say_document(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    else:
        show_title(told.system)
        rows: list[tuple[tuple[str, str], ...]] = []
        for finding in told.findings:
            style = _STYLES[finding.state]
            rows.append(((finding.name, "bold"), (finding.state, style), (finding.found, "")))
            if finding.advice:
                rows.append((("", ""), ("", ""), (f"for more: {finding.advice}", "cyan")))
        for isolation, value in told.scores.items():
            rows.append(((f"score {isolation}", "bold"), (str(value), "bold"), (f"policy {told.policy}", "dim")))
        show_table(rows)
    return int(bool(told.missing(frozenset(required))))
