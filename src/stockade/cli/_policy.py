"""`stockade policy`: check, show, explain, compare and rate policies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stockade._text import printable
from stockade.cli._files import write_file
from stockade.cli._policy_option import PolicyName, is_policy_file
from stockade.cli._status import ExitStatus
from stockade.cli._streams import say_document
from stockade.cli._terminal import show_table
from stockade.errors import PolicyError
from stockade.guard import fields_kept
from stockade.policy import (
    Isolation,
    Policy,
    check_enforceable,
    examine_policy,
    isolation_of,
    reference,
    write_toml,
    write_value,
    write_yaml,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.policy import Change, Plain, Score

__all__ = ["policy"]

_RISKS = {"none": "green", "low": "cyan", "medium": "yellow", "high": "red"}
_EFFECTS = {"wider": "red", "both": "yellow", "narrower": "green", "none": "dim"}
_BAR = 10
"""Characters of a bar: with those of the other columns they leave room for a sentence in 80."""

_LABELS = {"minimal": "red", "basic": "red", "standard": "yellow", "hardened": "green", "fortress": "green"}


class _PolicyWord(PolicyName):
    """The same, not loaded yet."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Returns it as it is."""
        return value


_as_json = click.option("--json", "wants_json", is_flag=True, help="Print JSON.")


@click.group()
def policy() -> None:
    """Check, show, explain, compare and rate policies.

    A policy is a file in TOML, YAML or JSON, or the name of a preset.
    """


@policy.command()
@click.argument("names", metavar="FILE|PRESET...", nargs=-1, required=True, type=_PolicyWord())
def check(names: tuple[str, ...]) -> int:
    """Check that policies are valid and can be used here.

    All that is wrong is reported: mistakes, what this release cannot enforce, folders to be mounted that do not exist.

    Exit status: 0 all can be used; 125 one cannot.
    """
    status = 0
    for name in names:
        shown = printable(name, 400)
        found: Policy | None = None
        try:
            if is_policy_file(name):
                found, problems = examine_policy(Path(name))
            else:
                found, problems = Policy.preset(name), ()
                check_enforceable(found)
        except PolicyError as problem:
            problems = problem.problems
        for message in problems:
            click.echo(f"stockade: {message}" if shown in message else f"stockade: {shown}: {message}", err=True)
        if problems:
            status = ExitStatus.USAGE
        elif found is not None:
            click.echo(f"{shown}: valid, score {_rated(found)}")
    return status


def _rated(found: Policy, isolation: Isolation | None = None) -> Score:
    """Rates a policy, with the walls that stand on this machine where runs happen in processes of their own."""
    isolation = isolation_of(found, isolation)
    if isolation == "inprocess":
        return found.score(isolation)
    from stockade.jail import rehearse

    return found.score(isolation, rehearse().active)


@policy.command()
@click.argument("found", metavar="FILE|PRESET", type=PolicyName())
@_as_json
def show(found: Policy, wants_json: bool) -> None:
    """Print a policy with every field, as TOML."""
    if wants_json:
        say_document(_json(found.to_document()))
    else:
        say_document(found.to_toml(), "toml")


@policy.command(short_help="Say in sentences what a guest can and cannot do.")
@click.argument("found", metavar="FILE|PRESET", type=PolicyName())
@_as_json
def explain(found: Policy, wants_json: bool) -> None:
    """Describe in sentences what a guest can and cannot do, with the risk of each grant."""
    statements = found.explain()
    if wants_json:
        say_document(_json([statement._asdict() for statement in statements]))
        return
    capability = ""
    rows = []
    for statement in statements:
        first = statement.capability if statement.capability != capability else ""
        capability = statement.capability
        risk = "" if statement.risk == "none" else f"{statement.risk} risk"
        rows.append(((first, "bold"), (statement.text, ""), (risk, _RISKS[statement.risk])))
    show_table(rows)


@policy.command(short_help="Show what is wider and narrower in another policy.")
@click.argument("before", metavar="BEFORE", type=PolicyName())
@click.argument("after", metavar="AFTER", type=PolicyName())
@_as_json
def diff(before: Policy, after: Policy, wants_json: bool) -> int:
    """Show what changes from one policy to another, and whether the second permits more.

    Exit status: 0 no difference; 1 a difference.
    """
    changes = before.diff(after)
    if wants_json:
        say_document(_json([change._asdict() for change in changes]))
        return int(bool(changes))
    show_table([row for change in changes for row in _rows(change)])
    less, more = after.is_subset(before), before.is_subset(after)
    if not changes:
        click.echo("no difference")
    elif less and more:
        click.echo("both permit the same")
    elif less:
        click.echo("the second permits less")
    else:
        click.echo("the second permits more" if more else "each permits something that the other does not")
    return int(bool(changes))


def _rows(change: Change) -> list[tuple[tuple[str, str], ...]]:
    """Shows a change: in one line, or of a list of tables what it has less and more, in a line each."""
    effect = ("" if change.effect == "none" else change.effect, _EFFECTS[change.effect])
    before, after = change.before, change.after
    if isinstance(before, list) and isinstance(after, list) and any(isinstance(item, dict) for item in before + after):
        lines = [f"- {_value(item)}" for item in before if item not in after]
        lines += [f"+ {_value(item)}" for item in after if item not in before]
    else:
        lines = []
    # Where only the order has changed there is nothing to list.
    first, *rest = lines or [f"{_value(before)} → {_value(after)}"]
    empty = ("", "")
    return [((change.path, "bold"), (first, ""), effect), *((empty, (line, ""), empty) for line in rest)]


def _value(value: Plain) -> str:
    return printable(" ".join(write_value(value).split("\n")), 300)


@policy.command()
@click.argument("found", metavar="FILE|PRESET", type=PolicyName())
@click.option(
    "--isolation",
    type=click.Choice(["inprocess", "process"]),
    help="Where runs happen; by default, where the policy has them happen at least.",
)
@click.option("--at-least", type=click.IntRange(0, 100), default=0, help="Exit with status 1 if the score is lower.")
@_as_json
def score(found: Policy, isolation: Isolation | None, at_least: int, wants_json: bool) -> int:
    """Rate how strongly a policy confines a guest, from 0 to 100.

    Only what is enforced counts: 0-29 minimal, 30-49 basic, 50-69 standard, 70-84 hardened, 85-100 fortress. Under
    process isolation, the walls that were found to stand on this machine count.
    """
    rated = _rated(found, isolation)
    if wants_json:
        reasons = [reason._asdict() for reason in rated.reasons]
        say_document(_json({"value": rated.value, "label": rated.label, "reasons": reasons}))
    else:
        colour = _LABELS[rated.label]
        rows = []
        for reason in rated.reasons:
            style = "green" if reason.points == reason.most else "red" if not reason.points else "yellow"
            filled = _BAR * reason.points // reason.most
            bar = "█" * filled + "░" * (_BAR - filled)
            rows.append(
                ((reason.control, "bold"), (f"{reason.points}/{reason.most}", style), (bar, style), (reason.why, ""))
            )
        show_table([*rows, (("score", "bold"), (str(rated.value), colour), (rated.label, colour), ("", ""))])
    return int(rated.value < at_least)


@policy.command(short_help="Print the JSON Schema of policy files.")
@click.option("--markdown", is_flag=True, help="Print the reference page instead.")
def schema(markdown: bool) -> None:
    """Print the JSON Schema of policy files, for editors and validators."""
    click.echo(reference(fields_kept()) if markdown else _json(Policy.schema()), nl=not markdown)


@policy.command(short_help="Write a policy to start from, with comments.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--preset", "found", type=PolicyName(), default="default", show_default=True, help="The preset to start from."
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def init(file: Path | None, found: Policy, force: bool) -> None:
    """Write a policy to start from, with a comment on each field, to FILE or stdout.

    The format is TOML; YAML if FILE ends in .yaml or .yml; JSON, which has no comments, if it ends in .json.
    """
    found = found.replace(name="custom" if file is None else file.stem or "custom")
    text = _WRITERS.get("" if file is None else file.suffix.lower(), _as_toml)(found)
    if file is None:
        say_document(text, "toml")
        return
    write_file(str(file), text.encode(), "the policy", force=force)
    shown = printable(str(file), 400)
    click.echo(f"wrote {shown}: edit it, then run stockade policy check {shown}", err=True)


def _as_toml(found: Policy) -> str:
    return write_toml(found, told=True)


def _as_yaml(found: Policy) -> str:
    return write_yaml(found, told=True)


_WRITERS: dict[str, Callable[[Policy], str]] = {
    ".yaml": _as_yaml,
    ".yml": _as_yaml,
    ".json": lambda found: json.dumps(found.to_document(), indent=2, ensure_ascii=False) + "\n",
}


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=not sys.stdout.isatty())
