"""`stockade learn`: runs a module, and writes the smallest policy that permits what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from stockade.cli._complete import ModuleFile
from stockade.cli._endings import complain
from stockade.cli._files import FileName, OutputFile
from stockade.cli._grants import environment_of, folder_options, isolation_option, limit_options, policy_with
from stockade.cli._guest_io import GuestStreams, Watcher
from stockade.cli._logging import audit_option, audited, check_own_files
from stockade.cli._policy_option import policy_option
from stockade.cli._run import finish, perform
from stockade.cli._streams import say_document
from stockade.engine import Engine
from stockade.learning import LEARNING_TRACE, learning_policy, merge
from stockade.learning import learn as learn_from
from stockade.modules import load_module
from stockade.policy import Policy
from stockade.report import Outcome
from stockade.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.modules import Module
    from stockade.report import Report

__all__ = ["learn", "write_learned"]


@click.command(
    "learn",
    short_help="Run MODULE, and write the policy that permits what it did.",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
)
@click.argument("module", type=ModuleFile())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("-o", "output", metavar="FILE", type=FileName(), help="Write the policy to FILE.")
@click.option(
    "--merge",
    "before",
    metavar="FILE",
    type=FileName(),
    help="Permit what this policy permits, too: one that was learned from other runs.",
)
@folder_options
@policy_option
@limit_options
@isolation_option
@audit_option
def learn(
    module: str,
    args: tuple[str, ...],
    output: str | None,
    before: str | None,
    directories: tuple[str, ...],
    volumes: tuple[str, ...],
    variables: tuple[str, ...],
    base: Policy,
    fuel: str | None,
    memory: str | None,
    timeout: str | None,
    isolation: Literal["inprocess", "process", "bubblewrap"] | None,
    audit_file: str | None,
) -> int:
    """Run MODULE with ARGS, and write the smallest policy that permits what it did, with why in each line.

    The run has what is given here, and no more: folders, variables, and the rights of --policy. Its limits are out of
    the way. What it used becomes the policy: calls, folders and whether they are written, variables, clock, randomness,
    proposals, and limits with headroom. To learn from several runs, name the policy of the runs before with --merge.

    The guest reads this command's stdin. Without -o, the policy is printed in the place of what the guest writes.
    """
    Engine.make_no_pools()  # There is one guest.
    if module == "-":
        raise click.UsageError("MODULE is read a second time to learn from it: give the name of a file")
    if before is not None:
        Policy.load(before)  # A mistake in it is told before anything runs.
    # Opened before the guest runs: what cannot be written is told at once, and no guest chooses what it is.
    check_own_files(audit_file, module, output)
    file = None if output is None else OutputFile(output, "the policy")
    policy = policy_with(base, directories, volumes, fuel=fuel, memory=memory, timeout=timeout)
    environment = environment_of(variables)
    with (
        Watcher() as watcher,
        audited(audit_file) as log,
        Sandbox(learning_policy(policy), isolation, trace=LEARNING_TRACE, audit=log) as box,
    ):
        streams = GuestStreams(watcher, reads=True, shows=output is not None)
        report = perform(box, watcher, streams, module, args, environment)
    complain(report, watcher.signal)
    write_learned(load_module(module, policy), policy, report, [*environment], before, file)
    return finish(report, watcher, streams)


def write_learned(
    module: Module,
    given: Policy,
    report: Report,
    variables: Sequence[str],
    before: str | None,
    output: OutputFile | None,
    *,
    finds_folders: bool = False,
) -> None:
    """Writes what was learned, unless the run was cancelled, and tells where that may be too little.

    Args:
        module: What ran.
        given: The policy that was given.
        report: The report on the run.
        variables: The names of the variables that it was given.
        before: The file with what was learned before, if something was.
        output: The file; None for stdout.
        finds_folders: Whether the program finds its folders by their names.

    Raises:
        UsageError: It cannot be written.
    """
    if report.outcome is Outcome.CANCELLED:
        return
    learned = learn_from(module, given, [report], variables, finds_folders=finds_folders)
    if before is not None:
        learned = merge(Policy.load(before), learned)
    text = learned.to_toml()
    if output is None:
        say_document(text, "toml")
    else:
        output.replace(text.encode())
    if not report.ok:
        click.echo(
            f"stockade: the run did not end well ({report.summary()}): the policy permits what it did until then",
            err=True,
        )
    if report.violations:
        click.echo("stockade: what was refused above is refused by the policy, too", err=True)
