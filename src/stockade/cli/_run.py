"""`stockade run`: one module, one policy, one run."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from stockade._text import printable
from stockade.cli._complete import ExportName, ModuleFile
from stockade.cli._encoding import plain_json
from stockade.cli._guest_io import GuestStreams, Watcher
from stockade.cli._policy import policy_option
from stockade.cli._status import exit_status
from stockade.cli._streams import say_document
from stockade.cli._terminal import progress, show_report, show_value
from stockade.modules import load_module
from stockade.policy import Mount, parse_count, parse_seconds, parse_size
from stockade.report import ModuleInfo, Outcome, PolicyInfo, Report, deciding_violation, summary, violation_text
from stockade.runner import run_blocking
from stockade.sandbox import Sandbox, Snapshot, is_snapshot_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from stockade.execution import Argument, Returns
    from stockade.modules import Module
    from stockade.policy import Policy

__all__ = ["arguments_of", "environment_of", "mount_of", "policy_with", "run", "volume_of"]

_TEXT_MARK = "text:"
"""Says that the rest of an argument is text, even if it looks like a number."""


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.argument("module", type=ModuleFile())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--dir",
    "directories",
    multiple=True,
    metavar="HOST::GUEST[::rw]",
    help="Grant a folder: read-only, or read-write with ::rw. May be repeated.",
)
@click.option(
    "--volume",
    "-v",
    "volumes",
    multiple=True,
    metavar="HOST:GUEST[:ro|rw]",
    help="The same, as docker spells it; read-only unless :rw is given.",
)
@click.option(
    "--env",
    "-e",
    "variables",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Set a variable, or pass on yours of that name. May be repeated.",
)
@click.option(
    "--invoke",
    metavar="EXPORT",
    type=ExportName(),
    help="Call this function with ARGS and print its value. An argument that is not a number is text; so is text:5.",
)
@click.option("--returns", type=click.Choice(["text", "bytes"]), help="Read the value of the function as this.")
@policy_option
@click.option("--fuel", metavar="UNITS", help='Fuel limit: units; "~2s", an estimate; or "unlimited".')
@click.option("--memory", "-m", metavar="SIZE", help="Memory limit, such as 64MiB or 64m.")
@click.option("--timeout", metavar="TIME", help='Wall-clock limit, such as 500ms or 5s, or "unlimited".')
@click.option("--isolation", type=click.Choice(["inprocess"]), default="inprocess", help="Where the module runs.")
@click.option("--live", is_flag=True, hidden=True, help="Does nothing: output is always written as it comes.")
@click.option("--report", "wants_report", is_flag=True, help="Print the report to stderr, however the run ends.")
@click.option(
    "--report-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write the report to this file: as JSON if it ends in .json, else as text.",
)
@click.option(
    "--json", "wants_json", is_flag=True, help="Print the report, output included, to stdout as JSON, and nothing else."
)
@click.option("--quiet", is_flag=True, help="Print only what the guest writes.")
def run(
    module: str,
    args: tuple[str, ...],
    directories: tuple[str, ...],
    volumes: tuple[str, ...],
    variables: tuple[str, ...],
    invoke: str | None,
    returns: Returns | None,
    base: Policy,
    fuel: str | None,
    memory: str | None,
    timeout: str | None,
    isolation: str,
    live: bool,  # noqa: ARG001 - it was an option once
    wants_report: bool,
    report_file: str | None,
    wants_json: bool,
    quiet: bool,
) -> int:
    """Run MODULE with ARGS in a sandbox. MODULE is a file, or - for stdin; or a snapshot, with which the guest begins.

    The guest reads this command's stdin and writes to its stdout and stderr, as it runs. Its exit code becomes that of
    the command. Violations of the policy are printed to stderr.

    \b
    Exit status: the guest's own; 124 timeout; 125 wrong usage; 126 the module
    cannot run; 127 no such file; 130 Ctrl-C; 134 trap; 137 another limit;
    143 SIGTERM.
    """  # noqa: D301 - \b is click's mark for a paragraph to be kept as it is
    if returns is not None and invoke is None:
        raise click.UsageError("--returns says how to read the value of a function: name the function with --invoke")
    # Opened before the guest runs: what cannot be written is told at once, and no guest chooses what it is.
    out = None if report_file is None else _opened(report_file)
    mounts = [*map(mount_of, directories), *map(volume_of, volumes)]
    policy = policy_with(base, mounts, fuel=fuel, memory=memory, timeout=timeout)
    environment = environment_of(variables)
    with Watcher() as watcher, Sandbox(policy, isolation="inprocess" if isolation == "inprocess" else "process") as box:
        streams = GuestStreams(watcher, reads=module != "-", shows=not wants_json)
        loaded = _prepared(box, module, watcher)
        if isinstance(loaded, Report):
            report = loaded
        else:
            given: Sequence[Argument] = args
            if invoke is not None:
                of = loaded.module if isinstance(loaded, Snapshot) else loaded
                given = arguments_of(invoke, args, of.function_entry(invoke).type.params)
            steps, control = box.steps(loaded, given, export=invoke, env=environment, returns=returns, streams=streams)
            watcher.attach(control)
            report = run_blocking(steps, control)
    if out is not None:
        with out:
            out.write(report.to_json() if str(report_file).endswith(".json") else report.render())
            out.write("\n")
    if streams.lost_bytes and not quiet:
        click.echo(f"stockade: nobody read the last {streams.lost_bytes:,} bytes of the output", err=True)
    _show(
        report, returns, streams.problem, watcher.signal, wants_report=wants_report, wants_json=wants_json, quiet=quiet
    )
    if streams.problem is not None:
        raise streams.problem
    if watcher.signal and (report.outcome is Outcome.CANCELLED or streams.lost_bytes):
        _leave(128 + watcher.signal)
    return exit_status(report)


def _opened(name: str) -> TextIO:
    try:
        return Path(name).open("w", encoding="utf-8")
    except OSError as problem:
        raise click.UsageError(f"{printable(name, 400)} cannot be written: {problem.strerror}") from None


def _prepared(sandbox: Sandbox, name: str, watcher: Watcher) -> Module | Snapshot | Report:
    """Loads and compiles a module; returns a report where a signal came first and there is something to report on."""
    policy = sandbox.policy
    loaded: list[Module] = []
    snapshots: list[Snapshot] = []

    def load() -> None:
        if name != "-":
            if is_snapshot_file(Path(name)):
                snapshots.append(Snapshot.load(name))
            loaded.append(snapshots[0].module if snapshots else load_module(name, policy.limits))
            return
        data = sys.stdin.buffer.read(policy.limits.module_size + 1)
        loaded.append(load_module(data, policy.limits, text=True, name="<stdin>"))

    done = watcher.finish(load)
    if done:
        with progress(loaded[0].name) as tell:
            done = watcher.finish(lambda: sandbox.prepare(loaded[0], tell))
    if done:
        return snapshots[0] if snapshots else loaded[0]
    if not loaded:
        click.echo(f"stockade: {_INTERRUPTED[watcher.signal]}", err=True)
        _leave(128 + watcher.signal)
    module = ModuleInfo(loaded[0].sha256, loaded[0].name)
    return Report(outcome=Outcome.CANCELLED, module=module, policy=PolicyInfo(policy.digest, printable(policy.name)))


_INTERRUPTED: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def _leave(status: int) -> NoReturn:
    """Ends the process at once: what a thread has still to do, such as compiling, is not waited for."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def policy_with(
    policy: Policy, mounts: Sequence[Mount], *, fuel: str | None, memory: str | None, timeout: str | None
) -> Policy:
    changes: dict[str, Any] = {}
    for option, field, text, parse in (
        ("--fuel", "fuel", fuel, parse_count),
        ("--memory", "memory", memory, _memory),
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
    if mounts:
        changes["mounts"] = [*policy.filesystem.mounts, *mounts]
    return policy.replace(**changes)


def _memory(text: str) -> int | None:
    # Docker's units are one small letter, and binary.
    short = re.fullmatch(r"([0-9]+)([bkmg])", text)
    return parse_size(short[1] + {"b": "B", "k": "KiB", "m": "MiB", "g": "GiB"}[short[2]] if short else text)


def mount_of(text: str) -> Mount:
    host, separator, rest = text.partition("::")
    guest, _, mode = rest.partition("::")
    if not separator or not host or not guest:
        raise click.UsageError(f"--dir {printable(text)}: write HOST::GUEST, such as ./data::/data, or HOST::GUEST::rw")
    if guest.endswith((":ro", ":rw")):
        raise click.UsageError(f"--dir {printable(text)}: write the rights after two colons, as in HOST::GUEST::rw")
    if mode not in ("", "ro", "rw"):
        raise click.UsageError(f"--dir {printable(text)}: the rights are ro or rw, not {printable(mode)}")
    return Mount(host, guest, "rw" if mode == "rw" else "ro")


def volume_of(text: str) -> Mount:
    rest, _, mode = text.rpartition(":")
    if mode.startswith("/"):
        rest, mode = text, "ro"
    host, _, guest = rest.rpartition(":")
    if not host or not guest.startswith("/") or host.endswith(":"):
        raise click.UsageError(f"-v {printable(text)}: write HOST:GUEST, such as ./data:/data, or HOST:GUEST:rw")
    if mode not in ("ro", "rw"):
        raise click.UsageError(f"-v {printable(text)}: the rights are ro or rw, not {printable(mode)}")
    return Mount(host, guest, "rw" if mode == "rw" else "ro")


def environment_of(variables: Sequence[str]) -> dict[str, str]:
    environment = {}
    for text in variables:
        name, separator, value = text.partition("=")
        if not separator:
            if name not in os.environ:
                shown = printable(name)
                raise click.UsageError(f"--env {shown}: {shown} is not set in the environment: write NAME=VALUE")
            value = os.environ[name]
        environment[name] = value
    return environment


def arguments_of(export: str, texts: Sequence[str], params: Sequence[str]) -> list[Argument]:
    """Reads arguments as the parameters in their places want them.

    As many arguments as parameters are a number each. Fewer may have texts among them, which take two places.
    """
    found: list[Argument] = []
    place = 0
    for number, text in enumerate(texts, 1):
        type_ = params[place] if place < len(params) else ""
        value = _argument(text, type_)
        if isinstance(value, str) and type_ in _NUMBERS:
            may_be_text = type_ == "i32" and len(texts) < len(params) and tuple(params[place : place + 2]) == _TEXT
            if not (text.startswith(_TEXT_MARK) or (may_be_text and not _is_number(text))):
                article = "an" if type_[0] in "if" else "a"
                raise click.UsageError(
                    f"argument {number} of {printable(export)} is {article} {type_}: "
                    f"{printable(text) or repr('')} is not {_NUMBERS[type_]}"
                )
        found.append(value)
        place += 2 if isinstance(value, str) else 1
    return found


_TEXT = ("i32", "i32")
"""The parameters that a text fills."""

_NUMBERS = {
    "i32": "a whole number",
    "i64": "a whole number",
    "f32": "a number",
    "f64": "a number",
    "v128": "a whole number",
}


def _argument(text: str, type_: str) -> Argument:
    if text.startswith(_TEXT_MARK):
        return text.removeprefix(_TEXT_MARK)
    try:
        return float(text) if type_ in ("f32", "f64") else int(text, 0)
    except ValueError:
        return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _show(
    report: Report,
    returns: Returns | None,
    problem: OSError | None,
    stopped_by: int,
    *,
    wants_report: bool,
    wants_json: bool,
    quiet: bool,
) -> None:
    if wants_json:
        say_document(plain_json(report.to_json()))
        return
    if problem is None:
        show_value(report, returns)
    if wants_report:
        show_report(report)
    elif not quiet:
        _complain(report, stopped_by)


def _complain(report: Report, stopped_by: int) -> None:
    decisive = deciding_violation(report)
    for violation in report.violations:
        # That one is in the summary.
        if violation is not decisive:
            click.echo(f"stockade: {violation_text(violation)}", err=True)
    if report.outcome is Outcome.CANCELLED:
        if stopped_by:
            click.echo(f"stockade: {_INTERRUPTED[stopped_by]}", err=True)
    elif report.outcome not in (Outcome.OK, Outcome.EXIT):
        click.echo(f"stockade: {report.module.name}: {summary(report)}", err=True)
        for frame in report.trap.frames[:5] if report.trap else ():
            click.echo(f"  at {frame.function or f'function {frame.index}'} + {frame.offset:#x}", err=True)
