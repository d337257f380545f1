"""Web servers whose processes import and use runs, before and after they fork. Holds P-ISO-6."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests._processes import children, until
from tests.jail._jailed import needs_linux

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [needs_linux, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SERVERS = {
    "gunicorn, forked after the import": (
        *("gunicorn", "--preload", "--workers", "2", "--bind", "unix:{where}", "--timeout", "120"),
        *("--control-socket", "{where}-control", "tests.isolation._served:wsgi"),
    ),
    "gunicorn, forked before the import": (
        *("gunicorn", "--workers", "2", "--bind", "unix:{where}", "--timeout", "120"),
        *("--control-socket", "{where}-control", "tests.isolation._served:wsgi"),
    ),
    "uvicorn": ("uvicorn", "--workers", "2", "--uds", "{where}", "tests.isolation._served:asgi"),
}


class Connection(http.client.HTTPConnection):
    """To a socket that has a path."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(self._path)


def asked(path: str) -> dict[str, Any] | None:
    """What a server answers; None where there is none yet."""
    with contextlib.closing(Connection(path)) as connection:
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
        except OSError:
            return None
        assert response.status == 200
        told: dict[str, Any] = json.loads(response.read())
        return told


def below(process: int) -> set[int]:
    """All processes that a process has started, and those that these have."""
    found, todo = set(), [process]
    while todo:
        with contextlib.suppress(OSError):
            more = children(todo.pop())
            found |= more
            todo += more
    return found


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], str]]:
    """A server with two processes that serve, and the path of its socket."""
    where = str(tmp_path / "socket")
    command = [part.format(where=where) for part in SERVERS[request.param]]
    log = (tmp_path / "log").open("wb")
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            if not until(lambda: asked(where) is not None, 240):
                pytest.fail((tmp_path / "log").read_text())
            yield request.param, process, where
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_servers_that_fork_serve_runs(server: tuple[str, subprocess.Popen[bytes], str]) -> None:
    """Each process has runs here and in workers of its own; where the server ends, nothing is left of them."""
    name, process, where = server
    told: list[dict[str, Any]] = []

    def both() -> bool:
        with ThreadPoolExecutor(8) as threads:
            told.extend(answer for answer in threads.map(asked, [where] * 16) if answer is not None)
        return len({answer["process"] for answer in told}) == 2

    assert until(both, 120)

    hello = ["hello world\n"] * 2
    assert all(answer["outputs"] == hello and answer["before"] == hello for answer in told)
    assert all((answer["imported"] == process.pid) == ("after" in name) for answer in told)
    processes = below(process.pid)
    # Those that serve, and for each of them its fork server with what that has made.
    assert len(processes) >= 4
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) in (0, -signal.SIGTERM)
    assert until(lambda: not any(Path(f"/proc/{number}").exists() for number in processes))
