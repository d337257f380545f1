"""The command line: a thin face over the facade.

Exit status: the guest's own; 124 stopped by time; 125 wrong use, or Stockade's own failure; 126 the module cannot be
run or was denied; 127 no such file; 130 interrupted; 134 trap; 137 stopped by another limit.
"""

from __future__ import annotations

import os
import sys

import click
from click.shell_completion import get_completion_class

from stockade._version import __version__
from stockade.cli._bench import bench
from stockade.cli._cache import cache
from stockade.cli._encoding import replace_what_cannot_be_written
from stockade.cli._inspect import inspect
from stockade.cli._policy import policy
from stockade.cli._run import run
from stockade.cli._status import ExitStatus, failure_status
from stockade.cli._streams import guard_standard_streams
from stockade.errors import StockadeError

__all__ = ["main", "stockade"]

_COMPLETE = "_STOCKADE_COMPLETE"
"""The variable by which a shell asks what would complete a command line."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stockade")
def stockade() -> None:
    """Run untrusted WebAssembly under a policy, and report what it did."""


stockade.add_command(run)
stockade.add_command(inspect)
stockade.add_command(policy)
stockade.add_command(cache)
stockade.add_command(bench)


@stockade.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    For bash, add this line to ~/.bashrc:
      eval "$(stockade completion bash)"
    """  # noqa: D301 - \b is click's mark for a paragraph to be kept as it is
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(stockade, {}, "stockade", _COMPLETE).source())


def main() -> None:
    """Runs the command line and leaves with its exit status; no traceback reaches the user."""
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
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        status = ExitStatus.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain about it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = ExitStatus.USAGE
    except OSError as problem:
        _complain(str(problem.strerror))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = ExitStatus.USAGE
    except StockadeError as problem:
        _complain(str(problem))
        status = failure_status(problem)
    sys.exit(status)


def _complain(text: str) -> None:
    click.echo(f"stockade: {text}", err=True)
