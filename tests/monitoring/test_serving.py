"""A process tells of its runs: to its own user only, to all who ask, and to nobody who only holds the line.

Holds P-MONITOR-2.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Policy, Sandbox, serve_monitor
from stockade.errors import EngineError
from stockade.monitoring import MonitorServer, _server, look
from tests._processes import ended, fork, open_descriptors, until
from tests.conftest import wat
from tests.sandbox.test_monitor import POLICY, WORK, in_a_thread

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder of a user of one's own, with a path longer than that of a socket may be."""
    folder = tmp_path / ("long" * 30) / "state"
    monkeypatch.setenv("STOCKADE_STATE", str(folder))
    # Machine code that another secret has signed is none for others.
    monkeypatch.setenv("STOCKADE_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def server(state: Path) -> Iterator[MonitorServer]:
    """One that is closed after the test."""
    with serve_monitor() as found:
        yield found


def sockets(state: Path) -> list[Path]:
    """The sockets that are there."""
    return sorted((state / "monitor").iterdir())


def connected(state: Path) -> socket.socket:
    """A connection to the only one."""
    (path,) = sockets(state)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        while True:
            # Where more are in line than the kernel lets stand there.
            with suppress(BlockingIOError):
                client.connect(f"/proc/self/fd/{folder}/{path.name}")
                return client
            time.sleep(0.01)
    finally:
        os.close(folder)


def all_of(client: socket.socket) -> bytes:
    """What comes until the other end hangs up."""
    found = b""
    try:
        while piece := client.recv(65_536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def served() -> subprocess.Popen[bytes]:
    """Another process that serves."""
    code = "import stockade, time; s = stockade.serve_monitor(); print(flush=True); time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


ASK = b'{"want":"runs"}\n'


def test_runs_and_sessions_are_told(server: MonitorServer) -> None:
    """Of all sandboxes of the process, with names and limits."""
    with Sandbox(POLICY) as box, Sandbox() as other, other.open(wat(WORK)):
        thread = in_a_thread(lambda: box.run(wat(WORK), run_id="upload 17"))
        assert until(lambda: "upload 17" in box.monitor() and box.monitor()["upload 17"].state == "running")
        found = look()
        box.cancel("upload 17")
        thread.join(30)

    (process,) = found.processes
    runs = {run.name: run.progress for run in process.runs}
    assert (process.pid, process.left_out, found.silent) == (os.getpid(), 0, ())
    assert runs["upload 17"].state == "running"
    assert runs["upload 17"].limits.wall_time == 120
    assert any(progress.is_session for progress in runs.values())


def test_the_socket_is_the_users_alone(server: MonitorServer, state: Path) -> None:
    """Mode 0600 in folders of mode 0700, whatever the umask says."""
    (path,) = sockets(state)

    assert stat.S_ISSOCK(path.stat().st_mode)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent, state)] == [0o600, 0o700, 0o700]
    assert path.name.startswith(f"{os.getpid()}-")


def test_another_user_is_not_served(server: MonitorServer, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says who is connected: of somebody else nothing is read, and nothing is told."""
    monkeypatch.setattr(_server, "peer_of", lambda client: (1, os.geteuid() + 1))
    with connected(state) as client:
        with suppress(BrokenPipeError):
            client.sendall(ASK)
        assert all_of(client) == b""


def test_the_peer_is_told_by_the_kernel() -> None:
    """The twin: it is us."""
    one, two = socket.socketpair()
    with one, two:
        assert _server.peer_of(one) == (os.getpid(), os.geteuid())


def test_a_process_serves_once(state: Path) -> None:
    """Who asks again gets the same; after it was closed, a new one."""
    with serve_monitor() as first:
        assert serve_monitor() is first
        assert len(sockets(state)) == 1
    assert (first.closed, sockets(state)) == (True, [])
    first.close()
    with serve_monitor() as second:
        assert second is not first
        assert len(sockets(state)) == 1


def test_a_closed_server_leaves_nothing(state: Path) -> None:
    """No thread, no descriptor, no socket."""
    serve_monitor().close()
    before, descriptors = set(threading.enumerate()), open_descriptors()
    for _ in range(20):
        serve_monitor().close()

    # What other tests have left lingering may end meanwhile.
    assert set(threading.enumerate()) <= before
    assert (open_descriptors(), sockets(state)) == (descriptors, [])


@pytest.mark.parametrize(
    "asked",
    [
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"want":"everything"}\n',
        b'{"want":["runs"]}\n',
        b"\xff\xfe\n",
        b"[" * 200 + b"\n",
        b"x" * 256,
        b"x" * 100_000,
    ],
)
def test_what_is_no_question_is_told_so(server: MonitorServer, state: Path, asked: bytes) -> None:
    """In one line, and hung up; those who come next are served."""
    with connected(state) as client:
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(asked)
        assert all_of(client) in (b'{"error":"ask with a line of {\\"want\\":\\"runs\\"}"}\n', b"")
    assert len(look().processes) == 1


def test_a_question_may_come_in_pieces(server: MonitorServer, state: Path) -> None:
    """The twin: one line is one line."""
    with connected(state) as client:
        for byte in ASK:
            client.send(bytes([byte]))
        assert json.loads(all_of(client))["pid"] == os.getpid()


def test_who_says_nothing_is_hung_up_on(server: MonitorServer, state: Path) -> None:
    """Attack: connections that ask for nothing, and one that asks and takes no answer. All others are served."""
    silent = [connected(state) for _ in range(40)]
    asking = connected(state)
    asking.sendall(ASK[:-1])
    try:
        assert len(look().processes) == 1
        assert until(lambda: not server._clients, 30), "each is waited for a second at most"
        assert len(look().processes) == 1
    finally:
        for client in (*silent, asking):
            client.close()


def test_who_takes_no_answer_is_hung_up_on(server: MonitorServer, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: the answer is larger than what the kernel holds, and nobody reads it. The thread serves others."""
    monkeypatch.setattr(server, "_reply", lambda asked: b"x" * (8 << 20))
    with connected(state) as client:
        client.sendall(ASK)
        assert until(lambda: bool(server._clients), 30)
        monkeypatch.undo()
        monkeypatch.setenv("STOCKADE_STATE", str(state))
        monkeypatch.setenv("STOCKADE_CACHE", str(state.parent / "cache"))
        assert len(look().processes) == 1
        assert until(lambda: not server._clients, 30)


def test_many_who_ask_cost_one_answer(server: MonitorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: somebody asks without end. What is told is made ten times a second at most."""
    made = 0
    true = _server._told

    def counted() -> object:
        nonlocal made
        made += 1
        return true()

    monkeypatch.setattr(_server, "_told", counted)
    begun = time.monotonic()
    for _ in range(100):
        look()

    assert made <= 10 * (time.monotonic() - begun) + 2


def test_a_failure_is_told_and_ends_nothing(
    server: MonitorServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong while runs are looked at, others are served after it."""

    def failing() -> object:
        raise RuntimeError("odd\x1b[2J")

    with monkeypatch.context() as patch:
        patch.setattr(_server, "_told", failing)
        with connected(state) as client:
            client.sendall(ASK)
            assert all_of(client) == b'{"error":"RuntimeError: odd\\\\x1b[2J"}\n'
        assert look() == ((), (os.getpid(),))
    assert len(look().processes) == 1


def test_no_more_than_a_thousand_runs_are_told(server: MonitorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the others, how many there are."""
    progress = stockade.report.Progress(seconds=1.0)
    monkeypatch.setattr(_server, "live_runs", lambda: [(f"run {number}", progress) for number in range(2_500)])

    (process,) = look().processes

    assert (len(process.runs), process.left_out) == (1_000, 1_500)


def test_a_socket_whose_process_is_over_is_removed(server: MonitorServer, state: Path) -> None:
    """Killed, it leaves its socket; who looks removes it, and nothing else."""
    process = served()
    assert {found.pid for found in look().processes} == {os.getpid(), process.pid}
    process.kill()
    process.communicate()
    others = state / "monitor" / "note", state / "monitor" / f"{os.getpid()}-0123456789abcdef.sock"
    others[0].write_text("not a socket")
    others[1].write_text("nor is this one")
    assert len(sockets(state)) == 4

    found = look()

    assert [one.pid for one in found.processes] == [os.getpid()]
    assert found.silent == ()
    assert len(sockets(state)) == 3
    assert all(path.exists() for path in others)


def test_a_process_that_ends_removes_its_socket(state: Path) -> None:
    """Without closing what it serves."""
    subprocess.run([sys.executable, "-c", "import stockade; s = stockade.serve_monitor()"], check=True)

    assert sockets(state) == []


def test_a_stopped_process_is_told_as_silent(server: MonitorServer) -> None:
    """It is waited for a second, together with all others; its socket stays."""
    process = served()
    process.send_signal(signal.SIGSTOP)
    try:
        assert until(lambda: ") T " in Path(f"/proc/{process.pid}/stat").read_text())
        found = look()
        assert ([one.pid for one in found.processes], found.silent) == ([os.getpid()], (process.pid,))
        process.send_signal(signal.SIGCONT)
        assert until(lambda: len(look().processes) == 2)
    finally:
        process.kill()
        process.communicate()


def test_a_forked_process_has_none_until_it_asks(server: MonitorServer, state: Path) -> None:
    """The socket is the parent's: the child neither answers, nor removes it, nor keeps it open when the parent goes."""
    inherited = server._socket.fileno()
    child = fork()
    if not child:
        status = 1
        try:
            closed = server.closed
            server.close()
            try:
                os.fstat(inherited)
            except OSError:
                gone = True
            else:
                gone = stat.S_ISSOCK(os.fstat(inherited).st_mode) is False
            with serve_monitor() as own:
                both = len(sockets(state)) == 2 and own is not server
            status = 0 if closed and gone and both else 2
        finally:
            os._exit(status)

    assert ended(child) == 0
    assert len(sockets(state)) == 1
    assert len(look().processes) == 1


def test_without_a_private_folder_nothing_is_told(state: Path) -> None:
    """Others may look into it, or it is a link to theirs: neither served nor asked there."""
    (state / "monitor").mkdir(parents=True, mode=0o755)
    state.chmod(0o700)
    (state / "monitor").chmod(0o755)
    for use in (serve_monitor, look):
        with pytest.raises(EngineError, match=r"monitor is not private \(mode 0755"):
            use()
    (state / "monitor").rmdir()
    (state / "monitor").symlink_to(state)
    with pytest.raises(EngineError, match="monitor cannot be opened"):
        serve_monitor()


def test_looking_makes_no_folder(state: Path) -> None:
    """Where nobody ever served, there is nothing, and nothing is made."""
    assert look() == ((), ())
    assert not state.exists()


def test_no_guest_is_granted_the_folder(server: MonitorServer, state: Path) -> None:
    """A guest that could open the socket would see what others do."""
    with pytest.raises(stockade.PolicyError, match="which no guest may reach"):
        Sandbox(Policy().replace(mounts=[stockade.Mount(state / "monitor", "/data", "ro")]))
