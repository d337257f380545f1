"""`stockade run`: one module, one policy, one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stockade._text import printable
from stockade.cli._complete import ExportName, ModuleFile
from stockade.cli._encoding import plain_json
from stockade.cli._endings import INTERRUPTED, complain, leave
from stockade.cli._grants import (
    environment_of,
    folder_options,
    isolation_option,
    limit_options,
    policy_with,
    secret_option,
    secrets_of,
)
from stockade.cli._guest_io import GuestStreams, Watcher
from stockade.cli._logging import audit_option, audited, check_own_files
from stockade.cli._policy_option import policy_option
from stockade.cli._report_option import ReportingCommand, monitoring_for, opened, report_option
from stockade.cli._status import exit_status
from stockade.cli._streams import say_document
from stockade.cli._terminal import progress, show_report, show_value
from stockade.engine import Engine
from stockade.errors import ModuleError
from stockade.modules import load_module
from stockade.report import ModuleInfo, Outcome, PolicyInfo, Report
from stockade.runner import run_blocking
from stockade.sandbox import Sandbox, Snapshot, is_snapshot_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from stockade.execution import Argument, Returns
    from stockade.modules import Module
    from stockade.policy import Policy

__all__ = ["arguments_of", "finish", "perform", "run"]

_TEXT_MARK = "text:"
"""Says that the rest of an argument is text, even if it looks like a number."""


@click.command(cls=ReportingCommand, context_settings={"allow_interspersed_args": False})
@click.argument("module", type=ModuleFile())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@folder_options
@click.option(
    "--invoke",
    metavar="EXPORT",
    type=ExportName(),
    help="Call this function with ARGS and print its value. An argument that is not a number is text; so is text:5.",
)
@click.option("--returns", type=click.Choice(["text", "bytes"]), help="Read the value of the function as this.")
@policy_option
@limit_options
@isolation_option
@secret_option
@click.option("--live", is_flag=True, hidden=True, help="Does nothing: output is always written as it comes.")
@report_option
@click.option(
    "--json", "wants_json", is_flag=True, help="Print the report, output included, to stdout as JSON, and nothing else."
)
@audit_option
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
    isolation: Literal["inprocess", "process", "bubblewrap"] | None,
    secrets: tuple[str, ...],
    live: bool,  # noqa: ARG001 - it was an option once
    reports: tuple[str, ...],
    wants_json: bool,
    audit_file: str | None,
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
    Engine.make_no_pools()  # There is one guest.
    # Opened before the guest runs: what cannot be written is told at once, and no guest chooses what it is.
    check_own_files(audit_file, module, *reports)
    files = opened(reports)
    policy = policy_with(base, directories, volumes, fuel=fuel, memory=memory, timeout=timeout)
    environment = environment_of(variables)
    given = secrets_of(secrets, policy)
    watched = monitoring_for(reports)
    with (
        Watcher() as watcher,
        audited(audit_file) as log,
        Sandbox(policy, isolation, watched, audit=log, secrets=given) as box,
    ):
        streams = GuestStreams(watcher, reads=module != "-", shows=not wants_json)
        report = perform(box, watcher, streams, module, args, environment, invoke, returns)
    for file in files:
        file.write(report)
    if streams.lost_bytes and not quiet:
        click.echo(f"stockade: nobody read the last {streams.lost_bytes:,} bytes of the output", err=True)
    _show(
        report, returns, streams.problem, watcher.signal, wants_report="" in reports, wants_json=wants_json, quiet=quiet
    )
    return finish(report, watcher, streams)


def perform(
    box: Sandbox,
    watcher: Watcher,
    streams: GuestStreams,
    module: str,
    args: Sequence[str],
    environment: Mapping[str, str],
    invoke: str | None = None,
    returns: Returns | None = None,
) -> Report:
    """Loads a module and runs it, once.

    Args:
        box: Where.
        watcher: Is told what to stop.
        streams: What passes the guest's output and input on.
        module: The name of its file; - for stdin.
        args: Its arguments.
        environment: Its environment.
        invoke: The function to be called; None for a command.
        returns: What the result of that is read as.
    """
    loaded = _prepared(box, module, watcher)
    if isinstance(loaded, Report):
        return loaded
    given: Sequence[Argument] = args
    if invoke is not None:
        of = loaded.module if isinstance(loaded, Snapshot) else loaded
        given = arguments_of(invoke, args, of.function_entry(invoke).type.params)
    steps, control = box.steps(loaded, given, export=invoke, env=environment, returns=returns, streams=streams)
    watcher.attach(control)
    return run_blocking(steps, control)


def finish(report: Report, watcher: Watcher, streams: GuestStreams) -> int:
    """Returns the exit status of a run that was reported on, or leaves where a signal has ended it.

    Args:
        report: The report.
        watcher: What watched it.
        streams: What passed its output on.

    Raises:
        OSError: Its output could not be written.
    """
    if streams.problem is not None:
        raise streams.problem
    if watcher.signal and (report.outcome is Outcome.CANCELLED or streams.lost_bytes):
        leave(128 + watcher.signal)
    return exit_status(report)


def _prepared(sandbox: Sandbox, name: str, watcher: Watcher) -> Module | Snapshot | Report:
    """Loads and compiles a module; returns a report where a signal came first and there is something to report on."""
    policy = sandbox.policy
    loaded: list[Module] = []
    snapshots: list[Snapshot] = []

    def load() -> None:
        if name != "-":
            if is_snapshot_file(Path(name)):
                snapshots.append(Snapshot.load(name))
            loaded.append(snapshots[0].module if snapshots else load_module(name, policy))
            return
        data = sys.stdin.buffer.read(policy.limits.module_size + 1)
        loaded.append(load_module(data, policy, text=True, name="<stdin>"))

    try:
        done = watcher.finish(load)
    except ModuleError as problem:
        sandbox.tell_refused(problem)
        raise
    if done:
        with progress(loaded[0].name) as tell:
            done = watcher.finish(lambda: sandbox.prepare(loaded[0], tell))
    if done:
        return snapshots[0] if snapshots else loaded[0]
    if not loaded:
        click.echo(f"stockade: {INTERRUPTED[watcher.signal]}", err=True)
        leave(128 + watcher.signal)
    module = ModuleInfo(loaded[0].sha256, loaded[0].name)
    info = PolicyInfo(policy.digest, printable(policy.name))
    return Report(outcome=Outcome.CANCELLED, module=module, policy=info, isolation=sandbox.isolation)


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
        complain(report, stopped_by)
