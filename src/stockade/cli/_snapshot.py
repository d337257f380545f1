"""`stockade snapshot`: what a guest holds after it was initialized, kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stockade.cli._complete import ExportName, ModuleFile
from stockade.cli._files import OutputFile
from stockade.cli._grants import environment_of, folder_options, limit_options, policy_with
from stockade.cli._logging import check_own_files
from stockade.cli._policy_option import policy_option
from stockade.cli._run import arguments_of
from stockade.cli._terminal import progress
from stockade.modules import Module, load_module
from stockade.sandbox import Sandbox, Snapshot, is_snapshot_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.execution import Argument
    from stockade.policy import Policy

__all__ = ["snapshot"]


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.argument("module", type=ModuleFile())
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--invoke", metavar="EXPORT", type=ExportName(), help="Call this function with ARGS first.")
@folder_options
@policy_option
@limit_options
def snapshot(
    module: str,
    file: str,
    args: tuple[str, ...],
    invoke: str | None,
    directories: tuple[str, ...],
    volumes: tuple[str, ...],
    variables: tuple[str, ...],
    base: Policy,
    fuel: str | None,
    memory: str | None,
    timeout: str | None,
) -> int:
    """Take a snapshot of MODULE, initialized, and write it to FILE.

    With --invoke, a function is called first. `stockade run FILE` then begins with what the guest held. MODULE may be
    a snapshot, too. FILE holds the guest's memory, and is believed only on this machine and for this user.
    """
    if args and invoke is None:
        raise click.UsageError("ARGS are for a function: name it with --invoke")
    if not is_snapshot_file(Path(module)):
        check_own_files(None, module, file)
    # Opened before the guest runs: what cannot be written is told at once, and no guest chooses what it is.
    output = OutputFile(file, "the snapshot")
    policy = policy_with(base, directories, volumes, fuel=fuel, memory=memory, timeout=timeout)
    loaded: Module | Snapshot
    loaded = Snapshot.load(module) if is_snapshot_file(Path(module)) else load_module(module, policy)
    of = loaded.module if isinstance(loaded, Snapshot) else loaded
    with Sandbox(policy) as box:
        with progress(of.name) as tell:
            box.prepare(of, tell)
        with box.open(loaded, env=environment_of(variables)) as session:
            if invoke is not None:
                given: Sequence[Argument] = arguments_of(invoke, args, of.function_entry(invoke).type.params)
                session.call(invoke, *given).check()
            taken = session.snapshot()
    taken.save(output.name, dir_fd=output.folder)
    click.echo(f"{file}: {of.name}, {taken.memory_bytes:,} bytes of memory, {taken.stored_bytes:,} of them kept")
    return 0
