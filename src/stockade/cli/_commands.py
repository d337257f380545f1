"""The commands: each is loaded when it is used."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module

import click

from stockade._version import __version__
from stockade.cli._encoding import replace_what_cannot_be_written
from stockade.cli._status import ExitStatus, failure_status
from stockade.cli._streams import guard_standard_streams
from stockade.errors import StockadeError

__all__ = ["run_command_line", "stockade"]

_COMPLETE = "_STOCKADE_COMPLETE"
"""The variable by which a shell asks what would complete a command line."""

_LOADED_WHEN_USED = {
    "audit": "_audit",
    "bench": "_bench",
    "cache": "_cache",
    "doctor": "_doctor",
    "gate": "_gate",
    "inspect": "_inspect",
    "js": "_code",
    "learn": "_learn",
    "policy": "_policy",
    "python": "_code",
    "report": "_report",
    "run": "_run",
    "snapshot": "_snapshot",
    "top": "_top",
    "trace": "_trace",
}
"""Commands, and the modules that they are in, under their names."""


class _Commands(click.Group):
    """A group of commands, of which most are loaded when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all commands."""
        return sorted({*super().list_commands(ctx), *_LOADED_WHEN_USED})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns a command; None where there is none of that name."""
        if cmd_name in _LOADED_WHEN_USED:
            command = getattr(import_module(f"stockade.cli.{_LOADED_WHEN_USED[cmd_name]}"), cmd_name)
            gc.freeze()
            gc.enable()
            assert isinstance(command, click.Command)
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns the command that is asked for; tells what may have been meant where there is none."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0].lower(), known, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else f" Choose from {', '.join(known)}."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stockade")
def stockade() -> None:
    """Run untrusted WebAssembly under a policy, and report what it did."""


@stockade.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    For bash, add this line to ~/.bashrc:
      eval "$(stockade completion bash)"

    \b
    For zsh, add this line to ~/.zshrc, after compinit:
      eval "$(stockade completion zsh)"

    \b
    For fish, run this once:
      stockade completion fish > ~/.config/fish/completions/stockade.fish
    """  # noqa: D301 - \b is click's mark for a paragraph to be kept as it is
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(stockade, {}, "stockade", _COMPLETE).source())


def run_command_line() -> int:
    """Runs the command that is asked for, and returns the exit status; tells mistakes and failures on stderr.

    Raises:
        KeyboardInterrupt: Somebody wants it to end.
        OSError: stdout cannot be written to.
    """
    # Completion is for the shell, and is written as bytes.
    if _COMPLETE not in os.environ:
        guard_standard_streams()
        replace_what_cannot_be_written()
    try:
        status = stockade.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as leave:
        status = leave.exit_code
    except click.ClickException as problem:
        problem.show(sys.stderr)
        status = ExitStatus.USAGE
    except click.Abort:
        raise KeyboardInterrupt from None
    except StockadeError as problem:
        click.echo(f"stockade: {problem}", err=True)
        status = failure_status(problem)
    return int(status or 0)
