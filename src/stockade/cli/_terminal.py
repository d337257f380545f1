"""What people see on a terminal: progress, output that cannot steer it, reports in colour."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stockade._text import terminal_safe
from stockade.cli._status import ExitStatus
from stockade.cli._streams import drawing, pass_on
from stockade.report import LIMITS, Outcome, amount, limits_shown, percent, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.table import Table

    from stockade.execution import Returns
    from stockade.report import Report

__all__ = [
    "begun",
    "interruptible",
    "progress",
    "report_table",
    "show_report",
    "show_table",
    "show_title",
    "show_value",
]

_COLOURS = {Outcome.OK: "green", Outcome.EXIT: "yellow"}
_SECTIONS = {"violations": "red", "alerts": "yellow"}

_BAR_WIDTH = 16
"""Of a limit: with it, a report is 80 columns wide."""


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Shows what is being done while it lasts, on a terminal only.

    Args:
        what: What it is done to.

    Yields:
        A function to be told each step.
    """
    if not sys.stderr.isatty():
        yield lambda step: None  # noqa: ARG005 - nobody looks
        return
    from rich.console import Console
    from rich.text import Text

    # No markup: the name of a file could make a link of itself.
    shown = terminal_safe(what.encode("utf-8", "surrogateescape"))
    with Console(file=drawing(sys.stderr)).status(Text(shown)) as status:
        yield lambda step: status.update(Text(f"{step} {shown}"))


def begun(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Begins work on a thread that the process does not wait for; returns the thread, and a list for what it raises."""
    problems: list[BaseException] = []

    def attempt() -> None:
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    return thread, problems


def interruptible(work: Callable[[], object]) -> None:
    """Does work that Python cannot interrupt (compiling) so that Ctrl-C ends the process at once.

    Args:
        work: What to do; it has nothing to clean up.
    """
    thread, problems = begun(work)
    try:
        while thread.is_alive():
            thread.join(0.05)
    except KeyboardInterrupt:
        drawing(sys.stderr).write("\r\x1b[?25h" if sys.stderr.isatty() else "")
        sys.stderr.write("stockade: interrupted\n")
        sys.stderr.flush()
        os._exit(ExitStatus.INTERRUPTED)
    if problems:
        raise problems[0]


def show_value(report: Report, returns: Returns | None) -> None:
    """Shows on stdout what a called function returned, if it returned; nothing is put behind bytes.

    Args:
        report: The report on the call.
        returns: What its result was read as.
    """
    value = report.value
    if value is None:
        return
    if isinstance(value, bytes) and returns == "bytes":
        data = value
    else:
        values = value if isinstance(value, list) else [value]
        data = " ".join(map(_value_text, values)).encode() + b"\n"
    pass_on(sys.stdout, data)


def _value_text(value: float | bytes | str) -> str:
    # A vector is shown as `--invoke` takes it: as one number.
    return f"{int.from_bytes(value, 'little'):#034x}" if isinstance(value, bytes) else str(value)


def show_report(report: Report) -> None:
    """Shows a report on stderr: as a table in colour on a terminal, as plain lines elsewhere."""
    if not sys.stderr.isatty():
        sys.stderr.write(report.render() + "\n")
        return
    from rich.console import Console

    Console(file=drawing(sys.stderr)).print(report_table(report))


def show_table(rows: Iterable[Sequence[tuple[str, str]]]) -> None:
    """Shows rows of cells on stdout: in colour on a terminal, as plain aligned text elsewhere.

    Args:
        rows: Each a list of cells, which are a text and its style.
    """
    listed = [[(terminal_safe(text.encode("utf-8", "surrogateescape")), style) for text, style in row] for row in rows]
    if not listed:
        return
    if not sys.stdout.isatty():
        widths = [max(len(text) for text, _ in column) for column in zip(*listed, strict=True)]
        for row in listed:
            line = "  ".join(text.ljust(width) for (text, _), width in zip(row, widths, strict=True))
            sys.stdout.write(f"{line.rstrip()}\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 1))
    for row in listed:
        table.add_row(*(Text(text, style=style) for text, style in row))
    Console(file=drawing(sys.stdout)).print(table)


def show_title(text: str) -> None:
    """Shows a line on stdout that stands above a table: bold on a terminal.

    Args:
        text: The line.
    """
    safe = terminal_safe(text.encode("utf-8", "surrogateescape"))
    if not sys.stdout.isatty():
        sys.stdout.write(f"{safe}\n")
        return
    from rich.console import Console
    from rich.text import Text

    Console(file=drawing(sys.stdout)).print(Text(safe, style="bold"))


def report_table(report: Report) -> Table:
    """Returns a report as a table in colour."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    section = ""
    for label, text in rows(report):
        section = label or section
        if label == LIMITS:
            table.add_row(label, limits_table(report))
            continue
        style = _COLOURS.get(report.outcome, "red") if section == "outcome" else _SECTIONS.get(section, "")
        table.add_row(label, Text(terminal_safe(text.encode()), style=style))
    return table


def limits_table(report: Report) -> Table:
    """Returns the limits of a report as a table with bars."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    for _ in range(3):
        table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    for use in limits_shown(report):
        share = use.utilization
        style = "" if not use.used else "red" if use.exceeded or share == 1 else "yellow" if (share or 0) >= 0.8 else ""
        allowed = "unlimited" if use.limit is None else f"of {amount(use.limit, use.unit)}"
        used = "" if use.used is None else amount(use.used, use.unit)
        bar = ProgressBar(1.0, share or 0.0, width=_BAR_WIDTH, complete_style=style or "green", finished_style="red")
        cells = (use.name, Text(used, style), Text(allowed, "dim"))
        table.add_row(*cells, *(() if share is None else (Text(percent(share), style), bar)))
    return table
