"""What a process tells of its runs, and how: one line of JSON each way."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from stockade.errors import EngineError
from stockade.report import Progress  # noqa: TC001 - msgspec looks it up
from stockade.system import open_private, state_folder

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MOST_RUNS", "NAME", "Ask", "LiveRun", "ProcessRuns", "open_monitor_folder"]

MOST_RUNS: Final = 1_000
"""How many runs of a process are told; of more, only how many."""

_FOLDER: Final = "monitor"

NAME: Final = re.compile(r"(?P<pid>\d{1,10})-[0-9a-f]{16}\.sock")
"""What the socket of a process is called. Nobody ever uses a name again."""


class Ask(msgspec.Struct, frozen=True):
    """What a process is asked.

    Attributes:
        want: For what.
    """

    want: Literal["runs"]


class LiveRun(msgspec.Struct, frozen=True):
    """A run under way, or an open session.

    Attributes:
        name: What it is called; names are unique in a sandbox.
        progress: How far it is.
    """

    name: str
    progress: Progress


class ProcessRuns(msgspec.Struct, frozen=True, kw_only=True):
    """A process, and its runs.

    Attributes:
        pid: Its number.
        program: What it was started as.
        runs: Its runs under way and open sessions: at most 1,000.
        left_out: How many more there are.
    """

    pid: int
    program: str = ""
    runs: tuple[LiveRun, ...] = ()
    left_out: int = 0


def open_monitor_folder(*, make: bool) -> int | None:
    """Opens the folder of the sockets.

    Args:
        make: Whether to make it where it is missing.

    Returns:
        A descriptor; None where there is no folder, and none is made.

    Raises:
        EngineError: There can be none, or it is not private.
    """
    state = state_folder()
    if state is None:
        if make:
            raise EngineError("there is no folder for sockets: set STOCKADE_STATE to one, or HOME")
        return None
    folder = state / _FOLDER
    if not make and not _is_there(folder):
        return None
    try:
        # First: what is made on the way to a folder is not private.
        os.close(open_private(state))
        return open_private(folder)
    except OSError as problem:
        raise EngineError(f"{folder} cannot be opened: {problem.strerror}") from None


def _is_there(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:
        return False
