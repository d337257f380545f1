"""`stockade top`: the runs under way of all processes that serve a monitor."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from stockade._text import printable
from stockade.cli._encoding import plain_json
from stockade.cli._streams import drawing, say_document
from stockade.monitoring import Found, look
from stockade.report import amount, duration, percent, size

if TYPE_CHECKING:
    from rich.table import Table

    from stockade.monitoring import LiveRun

__all__ = ["top"]

_WIDTH = 80
"""How wide the table is where it is not on a terminal."""

_MOST_NAME, _LEAST_NAME = 40, 7
"""How much of a name is shown where there is room, and where there is none."""

_HEADINGS = ("PID", "RUN", "MODULE", "STATE", "TIME", "MEMORY", "CALLS", "FULLEST LIMIT")
_NAMES = ("RUN", "MODULE")
_RIGHT = ("PID", "TIME", "MEMORY", "CALLS")
_STATES = {"running": "green", "waiting": "cyan", "idle": "dim"}

_NOBODY = "no process tells of its runs: call stockade.serve_monitor() in one that is to be seen"


class _Line(NamedTuple):
    """A run as it is shown, and the part of its fullest limit that is used."""

    cells: tuple[str, ...]
    state: str
    share: float


@click.command(short_help="Show the runs under way in other processes.")
@click.option("--once", is_flag=True, help="Show the runs once, and end.")
@click.option("--json", "wants_json", is_flag=True, help="Print a line of JSON each time.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait before looking again.",
)
def top(once: bool, wants_json: bool, interval: float) -> int:
    """Show the runs under way, and the open sessions, of all processes of yours that call stockade.serve_monitor().

    On a terminal the table is renewed until Ctrl-C; elsewhere it is printed once. The fullest limit of a run is the one
    of which the largest part is used.
    """
    if math.isnan(interval):
        raise click.BadParameter("nan is no time", param_hint="--interval")
    try:
        if wants_json:
            while True:
                say_document(plain_json(_json(look())))
                if once:
                    return 0
                time.sleep(interval)
        elif once or not sys.stdout.isatty():
            _print(look())
        else:
            _watch(interval)
    except KeyboardInterrupt:
        # That is how it is ended.
        pass
    return 0


def _json(found: Found) -> str:
    told = {"processes": found.processes, "silent": found.silent}
    return msgspec.json.encode(told).decode()


def _lines(found: Found) -> list[_Line]:
    return [
        _line(process.pid, run)
        for process in found.processes
        for run in sorted(process.runs, key=lambda run: (run.progress.state == "idle", -run.progress.seconds))
    ]


def _line(pid: int, run: LiveRun) -> _Line:
    progress = run.progress
    name, share = max(progress.utilization.items(), key=lambda item: item[1], default=("", 0.0))
    state = progress.state
    cells = (
        str(pid),
        _short(run.name, _MOST_NAME),
        _short(progress.module, _MOST_NAME),
        state,
        "" if state == "idle" else _clock(progress.seconds),
        size(progress.memory_bytes),
        amount(progress.calls, "count"),
        f"{percent(share):>4} {name}",
    )
    return _Line(cells, state, share)


def _clock(seconds: float) -> str:
    """A time in at most seven characters."""
    if seconds < 60:
        return duration(seconds)
    for unit, length, smaller in (("d", 86_400, "h"), ("h", 3_600, "m"), ("m", 60, "s")):
        if seconds >= length:
            rest = int(seconds % length / {"h": 3_600, "m": 60, "s": 1}[smaller])
            return f"{int(seconds // length):,}{unit} {rest:02}{smaller}"
    raise AssertionError(seconds)


def _short(text: str, width: int) -> str:
    """A text that somebody chose, in so many characters."""
    shown = printable(text, 4 * width)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


def _summary(found: Found) -> str:
    if not found.processes and not found.silent:
        return _NOBODY
    runs = [run.progress for process in found.processes for run in process.runs]
    more = sum(process.left_out for process in found.processes)
    sessions = sum(progress.is_session for progress in runs)
    text = f"{_count(len(found.processes), 'process', 'processes')}, {_count(len(runs) - sessions, 'run', 'runs')}, "
    text += _count(sessions, "session", "sessions")
    if more:
        text += f", and {more:,} more that are not told"
    if found.silent:
        text += f"; no answer from {', '.join(map(str, found.silent[:5]))}"
        text += f" and {len(found.silent) - 5} more" if len(found.silent) > 5 else ""
    return text


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _print(found: Found) -> None:
    """Prints the runs as plain text."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console(file=drawing(sys.stdout)).print(_table(found))
        return
    click.echo(_summary(found))
    lines = [_HEADINGS, *(line.cells for line in _lines(found))]
    if len(lines) == 1:
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for heading in reversed(_NAMES):
        # Names make room for what has to be whole.
        at, beyond = _HEADINGS.index(heading), sum(widths) + len(widths) - 1 - _WIDTH
        widths[at] = max(_LEAST_NAME, widths[at] - max(0, beyond)) if beyond > 0 else widths[at]
    for cells in lines:
        shown = [
            cell.rjust(width) if heading in _RIGHT else _short(cell, width).ljust(width)
            for cell, width, heading in zip(cells, widths, _HEADINGS, strict=True)
        ]
        click.echo(" ".join(shown).rstrip())


def _watch(interval: float) -> None:
    """Shows the runs until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=drawing(sys.stdout))
    with Live(_table(look()), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(_table(look()), refresh=True)


def _table(found: Found) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_summary(found)), title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in _HEADINGS:
        # Columns that may wrap are the first to become narrow; their texts are cut instead.
        is_right, is_name = heading in _RIGHT, heading in _NAMES
        table.add_column(heading, justify="right" if is_right else "left", no_wrap=not is_name, overflow="ellipsis")
    for line in _lines(found):
        full = "red" if line.share >= 0.95 else "yellow" if line.share >= 0.8 else ""
        styles = ("", "bold", "", _STATES.get(line.state, ""), "", "", "", full)
        cells = zip(line.cells, styles, strict=True)
        table.add_row(*(Text(cell, style, no_wrap=True, overflow="ellipsis") for cell, style in cells))
    return table
