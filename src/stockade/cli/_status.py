"""Exit statuses, after those of timeout(1), env(1) and the shell."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from stockade.errors import ModuleError, ModuleNotFound
from stockade.report import Outcome

if TYPE_CHECKING:
    from stockade.errors import StockadeError
    from stockade.report import Report

__all__ = ["ExitStatus", "exit_status", "failure_status"]


class ExitStatus(IntEnum):
    """What the command line leaves with where it is not the guest's own exit code."""

    TIME = 124
    USAGE = 125
    CANNOT_RUN = 126
    NOT_FOUND = 127
    INTERRUPTED = 130
    TRAP = 134
    LIMIT = 137


_BY_OUTCOME = {
    Outcome.TIMEOUT: ExitStatus.TIME,
    Outcome.IDLE: ExitStatus.TIME,
    Outcome.DENIED: ExitStatus.CANNOT_RUN,
    Outcome.TRAP: ExitStatus.TRAP,
    Outcome.FUEL: ExitStatus.LIMIT,
    Outcome.MEMORY: ExitStatus.LIMIT,
    Outcome.STACK: ExitStatus.LIMIT,
    Outcome.OUTPUT: ExitStatus.LIMIT,
    Outcome.CANCELLED: ExitStatus.INTERRUPTED,
    Outcome.CRASHED: ExitStatus.USAGE,
}


def exit_status(report: Report) -> int:
    """Returns the exit status for a report: the guest's own exit code, where it has one.

    A shell can be told eight bits. A larger code leaves its lowest eight, and 1 where those would say that all is well.
    """
    if report.outcome is Outcome.OK:
        return 0
    if report.outcome is Outcome.EXIT:
        return (report.exit_code or 0) & 0xFF or 1
    return _BY_OUTCOME[report.outcome]


def failure_status(problem: StockadeError) -> ExitStatus:
    """Returns the exit status where nothing ran: the same for every command."""
    if isinstance(problem, ModuleNotFound):
        return ExitStatus.NOT_FOUND
    return ExitStatus.CANNOT_RUN if isinstance(problem, ModuleError) else ExitStatus.USAGE
