"""The example does what it says: served over HTTP, to a real client."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "code_interpreter.py"

PLOT = """
import csv
rows = [float(row["y"]) for row in csv.DictReader(open("table.csv"))]
print("rows:", len(rows), flush=True)
points = " ".join(f"{x * 10},{100 - y}" for x, y in enumerate(rows))
open("plot.svg", "w").write(f'<svg xmlns="http://www.w3.org/2000/svg"><polyline points="{points}"/></svg>')
max(rows)
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Where the example is served, by a process of its own."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--port", str(port), "--log-level", "error", f"{EXAMPLE.stem}:app"],
        cwd=EXAMPLE.parent,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            assert served.poll() is None
            try:
                httpx2.get(f"{address}/nobody/files/none", timeout=5)
                break
            except httpx2.TransportError:
                time.sleep(0.2)
        yield address
    finally:
        served.terminate()
        served.wait(30)


def test_it_is_short() -> None:
    """Fewer than 80 lines of code, the imports among them."""
    text = EXAMPLE.read_text()
    assert len([line for line in text.partition('"""\n\n')[2].splitlines() if line.strip()]) < 80


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_table_becomes_a_plot(url: str) -> None:
    """Upload a table, have it drawn, see the output as it comes, and fetch the drawing; nobody else has it."""
    with httpx2.Client(base_url=url, timeout=120) as client:
        assert client.put("/alice/files/table.csv", content=b"x,y\n0,10\n1,30\n2,20\n").json() == {"bytes": 19}
        with client.stream("POST", "/alice/run", content=PLOT.encode()) as response:
            lines = list(response.iter_lines())
        assert lines[0] == "rows: 3"
        assert json.loads(lines[-1]) == {"value": 30.0, "error": None, "files": ["plot.svg"]}
        assert '<polyline points="0,90.0 10,70.0 20,80.0"/>' in client.get("/alice/files/plot.svg").text
        assert client.get("/bob/files/plot.svg").status_code == 404
        failed = client.post("/bob/run", content=b"1 / 0").text
        assert "ZeroDivisionError" in json.loads(failed.splitlines()[-1])["error"]
