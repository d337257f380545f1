"""What a command tells of its runs: to an audit log, and to stderr as STOCKADE_LOG says."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stockade._text import printable
from stockade.cli._files import FileName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.audit import AuditLog

__all__ = ["audit_option", "audited", "check_own_files"]

audit_option = click.option(
    "--audit",
    "audit_file",
    metavar="FILE",
    type=FileName(),
    help="Add what happens to this audit log. Nothing runs where it cannot be written.",
)
"""The option for an audit log, given as `audit_file`."""


def check_own_files(audit_file: str | None, runs: str | None, *others: str | None) -> None:
    """Checks that what is written has a file of its own, before anything is opened.

    Args:
        audit_file: The audit log; None for none.
        runs: The file of what runs; None for none.
        others: What else is written to.

    Raises:
        UsageError: One of them is the audit log, or what runs.
    """
    for path, what in ((audit_file, "the audit log, too: what else"), (runs, "what is to run: what")):
        for other in others if path else ():
            if other and _are_one(other, path or ""):
                raise click.UsageError(f"{printable(other, 400)} is {what} is written needs a file of its own")


def _are_one(one: str, other: str) -> bool:
    """Whether two names are of one file, whichever links lead there."""
    try:
        return Path(one).samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


@contextmanager
def audited(path: str | None) -> Iterator[AuditLog | None]:
    """Opens what a run tells of, and closes it after the run.

    Args:
        path: The file of an audit log; None for none.

    Yields:
        The log; None where there is neither a file nor a level of `STOCKADE_LOG`.
    """
    if path is None and not os.environ.get("STOCKADE_LOG"):
        yield None
        return
    import logging
    import sys

    from stockade._log_levels import LOG_LEVELS, log_level

    level = log_level()
    if os.environ.get("STOCKADE_LOG") and level is None:
        told = printable(os.environ["STOCKADE_LOG"])
        raise click.UsageError(f"STOCKADE_LOG is {told}: use one of {', '.join(LOG_LEVELS)}")
    from stockade.audit import AuditLog, LoggingSink

    sinks = [LoggingSink()] if level is not None and level < logging.CRITICAL else []
    if path is None and not sinks:
        yield None
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("stockade: %(message)s"))
    logger = logging.getLogger("stockade")
    logger.addHandler(handler)
    logger.propagate = False
    with AuditLog(path, sinks=sinks, fsync="never" if path is None else "run", required=path is not None) as log:
        yield log
