"""What the command takes to begin: whole processes, from their start to their end, beside Python with nothing to do.

Processor time is told, which a busy machine changes less than the time on the wall; the median of several runs in turn.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import wasmtime
from rich.table import Table
from tests.conftest import program_path

from benchmarks._guests import HELLO
from benchmarks._measure import Promise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

__all__ = ["start"]

_ROUNDS = 15

_PROMISED = (
    ("stockade --version", "python -c pass", 1.5),
    ("hello world from the cache", "python -c 'import click, msgspec'", 2.2),
)
"""What one process may take over another: Python itself, and Python with the packages that the command stands on."""


def _processor_seconds(command: Sequence[str], environment: dict[str, str]) -> float:
    """Runs a command to its end; returns its processor time, as the system accounts for it."""
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    assert running.returncode == 0, command
    return usage.ru_utime + usage.ru_stime


def start(console: Console) -> list[Promise]:
    """Measures what scripts and people do most: ask for the version, and run something that is compiled already."""
    stockade = (sys.executable, "-m", "stockade")
    with tempfile.TemporaryDirectory() as folder:
        hello = Path(folder) / "hello.wasm"
        hello.write_bytes(bytes(wasmtime.wat2wasm(HELLO)))
        # As it is where nobody develops: compiled modules of Python are kept, too.
        kept = {"STOCKADE_CACHE": f"{folder}/cache", "STOCKADE_STATE": f"{folder}/state"}
        environment = {key: text for key, text in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | kept
        commands = {
            "python -c pass": (sys.executable, "-c", "pass"),
            "python -c 'import click, msgspec'": (sys.executable, "-c", "import click, msgspec"),
            "stockade --version": (*stockade, "--version"),
            "hello world from the cache": (*stockade, "run", str(hello)),
            "CPython from the cache": (*stockade, "run", str(program_path("python")), "-c", "pass"),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(1 + _ROUNDS):
            for name, command in commands.items():
                taken = _processor_seconds(command, environment)
                if number:
                    times[name].append(taken * 1e3)
    table = Table(title="a whole process, milliseconds of processor time")
    for heading in ("", "least", "median", "most"):
        table.add_column(heading, justify="right")
    for name, taken in times.items():
        table.add_row(name, *(f"{value:,.0f}" for value in (min(taken), median(taken), max(taken))))
    console.print(table)
    return [
        Promise(f"{name} over {other}", median(times[name]) / median(times[other]), bound)
        for name, other, bound in _PROMISED
    ]
