"""The command line: a thin face over the facade.

Exit status: the guest's own; 124 stopped by time; 125 wrong use, or Stockade's own failure; 126 the module cannot be
run or was denied; 127 no such file; 130 interrupted; 134 trap; 137 stopped by another limit.
"""

from __future__ import annotations

import atexit
import os
import sys

from stockade._version import __version__

# Type checkers take it for true; importing typing takes longer than telling the version.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

_USAGE = 125
_INTERRUPTED = 130


def main() -> None:
    """Runs the command line and ends the process with its exit status; no traceback reaches the user."""
    try:
        status = _exit_status()
    except KeyboardInterrupt:
        # It may come while modules are loaded, so nothing here needs another one.
        _complain("interrupted")
        status = _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain about it again at exit.
        _drop_output()
        status = _USAGE
    except OSError as problem:
        _complain(str(problem.strerror))
        _drop_output()
        status = _USAGE
    _end(status)


def _exit_status() -> int:
    if sys.argv[1:] == ["--version"] and sys.stdout is not None:
        # Asked for by scripts, and by people who only want to know whether it is there.
        sys.stdout.write(f"stockade, version {__version__}\n")
        sys.stdout.flush()
        return 0
    import gc

    # What is loaded stays: to look for garbage meanwhile takes a tenth of the time. `_commands` switches it on again.
    gc.disable()
    from stockade.cli._commands import run_command_line

    return run_command_line()


def _end(status: int) -> NoReturn:
    """Ends the process as Python does, but for taking everything apart first: that takes as long as a short run."""
    atexit._run_exitfuncs()  # noqa: SLF001 - as Python does itself when it ends
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            status = status or _USAGE
    os._exit(status)


def _complain(text: str) -> None:
    try:
        sys.stderr.write(f"stockade: {text}\n")
        sys.stderr.flush()
    except (AttributeError, OSError):
        pass  # There is nobody to tell.


def _drop_output() -> None:
    """Has what is still to be written to stdout go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
