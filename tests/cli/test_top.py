"""`stockade top`: what it shows of runs, as text, as JSON and on a terminal.

Holds P-MONITOR-3.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import time
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from stockade import Sandbox, serve_monitor
from stockade.cli._top import _lines, _summary, _table, top
from stockade.monitoring import Found, LiveRun, ProcessRuns
from stockade.report import Progress, RunLimits
from tests._commands import begun
from tests._processes import until
from tests.cli.test_run import stockade
from tests.conftest import wat
from tests.report._reports import HOSTILE
from tests.sandbox.test_monitor import POLICY, WORK, in_a_thread

if TYPE_CHECKING:
    from pathlib import Path

FOUND = Found(
    (
        ProcessRuns(
            pid=4711,
            program="app.py",
            runs=(
                LiveRun("#7", Progress(seconds=0.0, state="idle", is_session=True, module="plugin.wasm")),
                LiveRun(
                    "upload 17",
                    Progress(
                        seconds=2.5,
                        memory_bytes=6 << 20,
                        calls=1_234_567,
                        module="resvg.wasm",
                        limits=RunLimits(memory=8 << 20, wall_time=10.0),
                    ),
                ),
                LiveRun("#8", Progress(seconds=61.5, state="waiting", module="a-module-of-a-long-name.wasm")),
            ),
            left_out=3,
        ),
    ),
    (4712,),
)


def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders of a user of one's own: machine code that another secret has signed is none for others."""
    monkeypatch.setenv("STOCKADE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("STOCKADE_CACHE", str(tmp_path / "cache"))


def test_runs_that_are_oldest_stand_first() -> None:
    """Sessions at rest last; each with the limit of which it has used most."""
    assert [line.cells for line in _lines(FOUND)] == [
        ("4711", "#8", "a-module-of-a-long-name.wasm", "waiting", "1m 01s", "0 B", "0", "  0% "),
        ("4711", "upload 17", "resvg.wasm", "running", "2.50 s", "6.0 MiB", "1.2 M", " 75% memory"),
        ("4711", "#7", "plugin.wasm", "idle", "", "0 B", "0", "  0% "),
    ]
    assert _summary(FOUND) == "1 process, 2 runs, 1 session, and 3 more that are not told; no answer from 4712"


def test_a_name_cannot_break_the_table() -> None:
    """Attack: markup of the table's own, escapes, direction, line breaks and length, in the names of run and module."""
    from rich.console import Console

    names = (HOSTILE, "[bold red]x[/bold red]", "[link=http://evil.example]y[/link]", "\u202e" * 50, "x" * 10_000)
    runs = tuple(LiveRun(name, Progress(seconds=1.0, module=name)) for name in names)
    found = Found((ProcessRuns(pid=1, runs=runs),), ())

    console = Console(width=80, force_terminal=True, record=True)
    with console.capture() as capture:
        console.print(_table(found))
    shown = re.sub(r"\x1b\[[\d;]*m", "", capture.get())

    assert all(character.isprintable() or character == "\n" for character in shown)
    assert "\x1b]8" not in capture.get(), "no link"
    assert len(shown.splitlines()) == len(names) + 2
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "[bold red]" in shown


def test_what_is_not_on_a_terminal_is_printed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As plain aligned text of 80 columns; and as JSON, which programs read."""
    own_folders(tmp_path, monkeypatch)
    with serve_monitor(), Sandbox(POLICY) as box, box.open(wat(WORK)):
        thread = in_a_thread(lambda: box.run(wat(WORK), run_id="upload\x1b[2J"))
        assert until(lambda: len(box.monitor()) == 2)
        text = stockade("top").stdout.decode()
        document = json.loads(stockade("top", "--json", "--once").stdout)
        box.cancel("upload\x1b[2J")
        thread.join(30)

    lines = text.splitlines()
    assert lines[0] == "1 process, 1 run, 1 session"
    assert lines[1].split() == ["PID", "RUN", "MODULE", "STATE", "TIME", "MEMORY", "CALLS", "FULLEST", "LIMIT"]
    assert re.match(rf" *{os.getpid()} upload\\x1b\[2J <bytes> +running ", lines[2])
    assert re.match(rf" *{os.getpid()} #1 +<bytes> +idle ", lines[3])
    assert max(map(len, lines)) <= 80
    (process,) = document["processes"]
    assert {run["name"] for run in process["runs"]} == {"upload\\x1b[2J", "#1"}
    assert document["silent"] == []


def test_nobody_to_be_seen_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And how a process comes to be seen."""
    own_folders(tmp_path, monkeypatch)

    done = stockade("top", "--once")

    assert (done.returncode, done.stdout.decode().strip()) == (
        0,
        "no process tells of its runs: call stockade.serve_monitor() in one that is to be seen",
    )
    assert json.loads(stockade("top", "--once", "--json").stdout) == {"processes": [], "silent": []}


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "soon"])
def test_an_interval_is_a_time(interval: str) -> None:
    """Not none, and not for ever."""
    done = stockade("top", "--interval", interval)

    assert done.returncode == 125
    assert b"--interval" in done.stderr


@pytest.mark.usefixtures("interrupts")
def test_json_comes_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until Ctrl-C, which is no failure."""
    own_folders(tmp_path, monkeypatch)
    process = begun(["top", "--json", "--interval", "0.1"])
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=30)

    assert [json.loads(line) for line in lines] == [{"processes": [], "silent": []}] * 3
    assert (process.returncode, complaints) == (0, b"")


@pytest.mark.usefixtures("interrupts")
def test_a_terminal_is_renewed_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a screen of its own, until Ctrl-C."""
    own_folders(tmp_path, monkeypatch)
    ours, theirs = pty.openpty()
    with serve_monitor(), Sandbox(POLICY) as box, box.open(wat(WORK)):
        process = begun(
            ["top", "--interval", "0.1"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
        )
        os.close(theirs)
        seen = b""
        until_then = time.monotonic() + 30
        while seen.count(b"FULLEST LIMIT") < 3 and time.monotonic() < until_then:
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 65_536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:
                break
            seen += piece
            if not piece:
                break
        process.wait(30)
    os.close(ours)

    assert process.returncode == 0
    assert seen.count(b"FULLEST LIMIT") >= 3
    assert b"\x1b[?1049h" in seen
    assert seen.rstrip().endswith(b"\x1b[?25h") or b"\x1b[?1049l" in seen[-200:]


def test_what_has_to_be_whole_is_whole_in_80_columns() -> None:
    """Names make room: of processes with seven digits, days of time, and limits of long names."""
    long = Progress(
        seconds=400_000.0,
        memory_bytes=1000 << 20,
        calls=999_999_999,
        module="m" * 300,
        limits=RunLimits(table_elements=1),
        table_elements=1,
    )
    found = Found((ProcessRuns(pid=4_194_304, runs=(LiveRun("r" * 300, long),)),), ())
    with patch("stockade.cli._top.look", lambda: found):
        shown = CliRunner().invoke(top, ["--once"]).stdout

    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == [
        *("4194304", "rrrrrrrrrr…", "mmmmmm…", "running", "4d", "15h", "1,000.0", "MiB", "1.0", "G", "100%"),
        "table_elements",
    ]
