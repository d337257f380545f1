"""How a command ends: what is told of a run that did not go well, and how the process leaves."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import click

from stockade.report import Outcome, deciding_violation, summary, violation_text

if TYPE_CHECKING:
    from stockade.report import Report

__all__ = ["INTERRUPTED", "complain", "leave"]

INTERRUPTED: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""What is told of a signal."""


def leave(status: int) -> NoReturn:
    """Ends the process at once: what a thread has still to do, such as compiling, is not waited for.

    Args:
        status: Its exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def complain(report: Report, stopped_by: int, subject: str = "") -> None:
    """Tells on stderr what a run was refused, and why it did not come to its end.

    Args:
        report: The report on it.
        stopped_by: The signal that stopped it, or 0.
        subject: What ran; by default, the module.
    """
    decisive = deciding_violation(report)
    for violation in report.violations:
        # That one is in the summary.
        if violation is not decisive:
            click.echo(f"stockade: {violation_text(violation)}", err=True)
    if report.outcome is Outcome.CANCELLED:
        if stopped_by:
            click.echo(f"stockade: {INTERRUPTED[stopped_by]}", err=True)
    elif report.outcome not in (Outcome.OK, Outcome.EXIT):
        click.echo(f"stockade: {subject or report.module.name}: {summary(report)}", err=True)
        for frame in report.trap.frames[:5] if report.trap else ():
            click.echo(f"  at {frame.function or f'function {frame.index}'} + {frame.offset:#x}", err=True)
