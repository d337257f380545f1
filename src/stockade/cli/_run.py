"""`stockade run`: one module, one policy, one run."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from stockade._text import printable
from stockade.cli._policy import PolicyName
from stockade.cli._status import exit_status
from stockade.cli._streams import say_document
from stockade.cli._terminal import LiveOutput, interruptible, progress, show_output, show_report, show_value
from stockade.modules import load_module
from stockade.policy import Mount, parse_count, parse_seconds, parse_size
from stockade.report import Outcome, summary, violation_text
from stockade.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.execution import Argument, Returns
    from stockade.policy import Policy
    from stockade.report import Report

__all__ = ["run"]

_TEXT_MARK = "text:"
"""Says that the rest of an argument is text, even if it looks like a number."""


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.argument("module", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--dir",
    "directories",
    multiple=True,
    metavar="HOST::GUEST[::rw]",
    help="Grant a folder: read-only, or read-write with ::rw. May be repeated.",
)
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="Set a variable. May be repeated.")
@click.option(
    "--invoke",
    metavar="EXPORT",
    help="Call this function with ARGS, and print its value. What is not a number is text; so is text:5.",
)
@click.option("--returns", type=click.Choice(["text", "bytes"]), help="Read what the invoked function returns as this.")
@click.option("--policy", "base", type=PolicyName(), default="default", show_default=True, help="The policy.")
@click.option("--fuel", metavar="UNITS", help='Fuel budget: units; "~2s", an estimate; or "unlimited".')
@click.option("--memory", metavar="SIZE", help="Most memory, such as 64MiB.")
@click.option("--timeout", metavar="TIME", help='Wall-clock limit, such as 500ms or 5s, or "unlimited".')
@click.option("--isolation", type=click.Choice(["inprocess"]), default="inprocess", help="Where the run happens.")
@click.option("--live", is_flag=True, help="Print output as it is written: all of it, also what no report would keep.")
@click.option("--report", "wants_report", is_flag=True, help="Show the whole report on stderr.")
@click.option("--json", "wants_json", is_flag=True, help="Print the report, output included, as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Say nothing but what the guest says.")
def run(
    module: str,
    args: tuple[str, ...],
    directories: tuple[str, ...],
    variables: tuple[str, ...],
    invoke: str | None,
    returns: Returns | None,
    base: Policy,
    fuel: str | None,
    memory: str | None,
    timeout: str | None,
    isolation: str,
    live: bool,
    wants_report: bool,
    wants_json: bool,
    quiet: bool,
) -> int:
    """Run MODULE with ARGS in a sandbox.

    The guest's output and exit code become those of this command. What the policy stopped is told on stderr.

    \b
    Exit status: the guest's own; 124 time was up; 125 wrong use; 126 the module
    cannot be run; 127 no such file; 134 trap; 137 another limit.
    """  # noqa: D301 - \b is click's mark for a paragraph to be kept as it is
    if returns is not None and invoke is None:
        raise click.UsageError("--returns tells how to read what a function returns: name the function with --invoke")
    if live and wants_json:
        raise click.UsageError("--live prints output as it is written, --json prints it in the report: choose one")
    if live and invoke is not None:
        raise click.UsageError("--live is for commands: a function that is called with --invoke prints at its end")
    policy = _policy(base, directories, fuel=fuel, memory=memory, timeout=timeout)
    with Sandbox(policy, isolation="inprocess" if isolation == "inprocess" else "process") as sandbox:
        loaded = load_module(module, policy.limits)
        with suppress(BrokenPipeError), progress(loaded.name) as tell:
            interruptible(lambda: sandbox.prepare(loaded, tell))
        if invoke is not None:
            params = loaded.function_entry(invoke).type.params
            report = sandbox.call(loaded, invoke, *_arguments(args, params), returns=returns)
        else:
            out, err = (LiveOutput(sys.stdout), LiveOutput(sys.stderr)) if live else (None, None)
            environment = _environment(variables)
            report = sandbox.run(loaded, args, stdin=_stdin, env=environment, on_stdout=out, on_stderr=err)
    _show(report, returns, live=live, wants_report=wants_report, wants_json=wants_json, quiet=quiet)
    return exit_status(report)


def _policy(
    policy: Policy, directories: Sequence[str], *, fuel: str | None, memory: str | None, timeout: str | None
) -> Policy:
    changes: dict[str, Any] = {}
    for option, field, text, parse in (
        ("--fuel", "fuel", fuel, parse_count),
        ("--memory", "memory", memory, parse_size),
        ("--timeout", "wall_time", timeout, parse_seconds),
    ):
        if text is not None:
            try:
                # An estimate is for the policy to read.
                changes[field] = text if field == "fuel" and text.startswith("~") else parse(text)
                if changes[field] is None and field == "memory":
                    raise ValueError("memory cannot be unlimited: give a limit, such as 1GiB")
            except ValueError as problem:
                raise click.UsageError(f"{option}: {problem}") from None
    if directories:
        changes["mounts"] = [*policy.filesystem.mounts, *map(_mount, directories)]
    return policy.replace(**changes)


def _mount(text: str) -> Mount:
    host, separator, rest = text.partition("::")
    guest, _, mode = rest.partition("::")
    if not separator or not host or not guest:
        raise click.UsageError(f"--dir {printable(text)}: write HOST::GUEST, such as ./data::/data, or HOST::GUEST::rw")
    if mode not in ("", "ro", "rw"):
        raise click.UsageError(f"--dir {printable(text)}: the rights are ro or rw, not {printable(mode)}")
    return Mount(host, guest, "rw" if mode == "rw" else "ro")


def _environment(variables: Sequence[str]) -> dict[str, str]:
    environment = {}
    for text in variables:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.UsageError(f"--env {printable(text)}: write NAME=VALUE")
        environment[name] = value
    return environment


def _arguments(texts: Sequence[str], params: Sequence[str]) -> list[Argument]:
    """Reads arguments as the parameters in their places want them; what does not fit is told by the call itself."""
    found: list[Argument] = []
    place = 0
    for text in texts:
        value = _argument(text, params[place] if place < len(params) else "")
        found.append(value)
        place += 2 if isinstance(value, str) else 1
    return found


def _argument(text: str, type_: str) -> Argument:
    if text.startswith(_TEXT_MARK):
        return text.removeprefix(_TEXT_MARK)
    try:
        return float(text) if type_ in ("f32", "f64") else int(text, 0)
    except ValueError:
        return text


def _stdin(size: int) -> bytes | None:
    """Fetches a piece of our own stdin for the guest, when it asks; never waits, so that its deadline holds."""
    try:
        ready = select.select([0], [], [], 0)[0]
        return os.read(0, size) if ready else None
    except (OSError, ValueError):
        return b""


def _show(
    report: Report, returns: Returns | None, *, live: bool, wants_report: bool, wants_json: bool, quiet: bool
) -> None:
    if wants_json:
        say_document(report.to_json())
        return
    if not live:
        show_output(report)
    show_value(report, returns)
    if quiet:
        return
    if wants_report:
        show_report(report)
        return
    for violation in report.violations:
        click.echo(f"stockade: {violation_text(violation)}", err=True)
    if report.outcome not in (Outcome.OK, Outcome.EXIT):
        click.echo(f"stockade: {report.module.name}: {summary(report)}", err=True)
        for frame in report.trap.frames[:5] if report.trap else ():
            click.echo(f"  at {frame.function or f'function {frame.index}'} + {frame.offset:#x}", err=True)
