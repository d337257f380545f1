"""Worker processes: what becomes of runs whose worker is killed, stopped, or lies, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stockade import Outcome, Policy, Report, Sandbox
from stockade.isolation import _frames, _handle, _hub, _messages
from stockade.isolation._frames import Garbled, receive, send
from stockade.isolation._messages import FROM_WORKER
from stockade.isolation._remote import RemoteGuest
from stockade.jail import landlock_version
from stockade.report import Progress
from stockade.runner import GO_ON, RunControl
from tests._processes import ended, forked, until
from tests.conftest import HELLO, wat
from tests.isolation.test_behaviour import SLEEPER

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = 3_600_000_000_000
SECOND = 1_000_000_000

SPIN = '(module (func (export "_start") (loop $l (br $l))))'


def number_of(worker: _handle.WorkerHandle) -> int:
    """The number of a worker's process, as this process sees it."""
    assert until(lambda: worker._process is not None)
    found = re.search(r"^Pid:\t(\d+)", Path(f"/proc/self/fdinfo/{worker._process}").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def server() -> _hub._Server:
    assert _hub.hub._server is not None
    return _hub.hub._server


def started(count: int) -> list[_handle.WorkerHandle]:
    """Waits until so many workers are at work, or wait for it."""
    until(
        lambda: (
            _hub.hub._server is not None and sum(w._process is not None for w in [*server().workers.values()]) >= count
        )
    )
    return [worker for worker in server().workers.values() if worker._process is not None]


@pytest.fixture(autouse=True)
def none_made_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker is one that a run has asked for, so that it is known whose it is."""
    monkeypatch.setattr("stockade.isolation._ahead.MOST_FOR_ONE", 0)
    _hub.hub.end()


def all_gone() -> bool:
    """Whether no worker is left but those that wait."""
    return len(server().workers) == len(server().ahead)


async def while_it_sleeps(box: Sandbox, do: Callable[[int], object], seconds: float = 3600) -> Report:
    """Runs a guest that sleeps, and does something to its process meanwhile."""
    sleeping = asyncio.ensure_future(box.call_async(wat(SLEEPER), "sleep", int(seconds * 1e9)))
    while not box.monitor():
        await asyncio.sleep(0.01)
    (worker,) = started(1)
    do(number_of(worker))
    return await asyncio.wait_for(sleeping, 100)


def test_a_killed_worker_is_told_truthfully() -> None:
    """Attack, or want of memory: it has crashed, with the reason, and the next one goes well. P-ISO-4, P-REPORT-8."""
    box = Sandbox(isolation="process")

    report = asyncio.run(while_it_sleeps(box, lambda number: os.kill(number, signal.SIGKILL)))

    assert (report.outcome, report.isolation) == (Outcome.CRASHED, "process")
    assert report.trap is not None
    assert report.trap.message == "the worker was ended by SIGKILL"
    assert report.summary() == "the sandbox failed: the worker was ended by SIGKILL"
    assert box.run(wat(HELLO)).ok
    assert until(all_gone)


@pytest.mark.parametrize("wall_time", [None, 3600.0])
def test_a_stopped_worker_is_noticed(wall_time: float | None) -> None:
    """Attack: a worker that does nothing any more, not even end, however long its run may take. P-ISO-4."""
    box = Sandbox(Policy().replace(wall_time=wall_time), isolation="process")

    report = asyncio.run(while_it_sleeps(box, lambda number: os.kill(number, signal.SIGSTOP)))

    assert report.outcome is Outcome.CRASHED
    assert report.trap is not None
    assert report.trap.message == "the worker was stopped by SIGSTOP, and ended for that"
    assert until(all_gone)


def test_a_lost_fork_server_is_made_anew() -> None:
    """Its workers are lost with it, and told so; the next run finds another."""
    box = Sandbox(isolation="process")

    report = asyncio.run(while_it_sleeps(box, lambda _: os.kill(server().process.popen.pid, signal.SIGKILL)))

    assert report.outcome is Outcome.CRASHED
    assert box.run(wat(HELLO)).ok


def test_no_worker_outlives_its_run() -> None:
    """Whether it comes to its end, is cancelled, or its caller goes away."""
    box = Sandbox(Policy().replace(fuel=None), isolation="process")
    assert box.run(wat(HELLO)).ok

    async def leave() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(box.run_async(wat(SPIN)), 1.0)

    asyncio.run(leave())

    assert until(all_gone)


def test_a_forked_host_makes_its_own() -> None:
    """Web servers fork before and after they use us: neither sees the other's workers. P-ISO-6."""
    box = Sandbox(isolation="process")
    assert box.run(wat(HELLO)).ok
    mine = server().process.popen.pid

    def child() -> None:
        assert _hub.hub._server is None
        assert box.run(wat(HELLO)).ok
        assert Sandbox("strict", isolation="process").run(wat(HELLO)).ok
        assert server().process.popen.pid != mine

    assert ended(forked(child)) == 0
    assert box.run(wat(HELLO)).ok
    assert server().process.popen.pid == mine


def test_a_worker_is_jailed() -> None:
    """What is told to stand around it is what it has found out itself. P-ISO-2."""
    found: list[tuple[str, ...]] = []
    run, box = _frames.receive, Sandbox(isolation="process")
    with pytest.MonkeyPatch.context() as patch:

        def noted(line: socket.socket, decoder: object, **rest: int) -> object:
            told = run(line, decoder, **rest)  # type: ignore[arg-type]
            if told is not None and isinstance(told[0], _messages.Started):
                found.append(told[0].walls)
            return told

        patch.setattr(_handle, "receive", noted)
        assert box.run(wat(HELLO)).ok

    (walls,) = found
    assert {"environment", "descriptors", "limits", "privileges", "seccomp"} <= set(walls)
    assert ("landlock" in walls) == (landlock_version() > 0)


# -- frames ----------------------------------------------------------------------------------------------------------


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(type=socket.SOCK_SEQPACKET)


@pytest.mark.parametrize(
    "told",
    [
        b"x",
        b"\x02" + b"\0" * 13,
        b"\x01\x00\xff\xff\xff\xff" + b"\0" * 8,
        b"\x01\x00\x01\0\0\0" + b"\0" * 8 + b"\xc1",
        b"\x01\x01\x01\0\0\0" + b"\0" * 8,
        b"\x01\x00\x05\0\0\0" + b"\0" * 8 + b"\x81\xa4type",
    ],
    ids=["short", "another version", "too large", "no message", "without its file", "cut off"],
)
def test_what_is_no_message_is_garbled(told: bytes) -> None:
    """Attack: a worker that says anything."""
    ours, theirs = pair()
    with ours, theirs:
        theirs.send(told)
        with pytest.raises(Garbled):
            receive(ours, FROM_WORKER)


def test_a_file_that_can_change_is_refused() -> None:
    """Attack: a message in a file that is exchanged while it is read, or is a pipe that never ends."""
    reading, writing = os.pipe()
    unsealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(unsealed, b"12345")
    for file in (unsealed, reading):
        ours, theirs = pair()
        with ours, theirs:
            socket.send_fds(theirs, [b"\x01\x01\x05\0\0\0" + b"\0" * 8], [file])
            with pytest.raises(Garbled):
                receive(ours, FROM_WORKER)
    for file in (unsealed, reading, writing):
        os.close(file)


def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    """Attack: filling the host's table of descriptors."""

    def strays() -> int:
        links = (path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
        return sum("a stray one" in name for name in links)

    ours, theirs = pair()
    stray = os.memfd_create("a stray one")
    with ours, theirs:
        socket.send_fds(theirs, [b"\x01\x00\x01\0\0\0" + b"\0" * 8 + b"\xc0"], [stray] * 6)
        os.close(stray)
        with pytest.raises(Garbled):
            receive(ours, FROM_WORKER)
    assert strays() == 0


def test_large_messages_arrive() -> None:
    """The twin: what does not fit into a socket goes by way of a sealed file."""
    ours, theirs = pair()
    blob = os.urandom(1 << 20)
    with ours, theirs:
        send(theirs, _messages.Output("stdout"), blob)
        assert receive(ours, FROM_WORKER) == (_messages.Output("stdout"), blob, ())


LOADED = """
import sys
from stockade.isolation._prepared import rehearse
rehearse()
import threading
assert threading.active_count() == 1
from stockade import Policy, Sandbox
from stockade.engine._engine import Engine
assert not Engine._engines
from tests.conftest import ECHO, HELLO, wat
from tests.execution.test_outcomes import imports
modules = [wat(text) for text in (
    HELLO, ECHO, '(module (func (export "_start") (unreachable)))',
    '(module (func (export "_start") (loop $l (br $l))))',
    f'(module {imports("proc_exit")} (func (export "_start") (call $proc_exit (i32.const 3))))')]
box = Sandbox(Policy().replace(fuel=100_000, memory="64MiB"))
for module in modules:
    box.prepare(module)
before = set(sys.modules)
for module in modules:
    box.run(module, ["a"], stdin=b"text", env={"A": "b"})
box.run(modules[1], stdin=lambda size: b"", on_stdout=print)
print(sorted(set(sys.modules) - before))
"""


def test_all_is_loaded_before_there_are_walls() -> None:
    """Behind them no file can be opened: no module, and not the library. There is no thread and no engine. P-ISO-2."""
    told = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)

    assert told.stdout == "[]\n"


def test_runs_wait_for_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are only so many workers at a time; who is cancelled while it waits keeps nobody from coming next."""
    monkeypatch.setattr(_hub.hub, "_free", 1)
    box = Sandbox(isolation="process")

    async def many() -> list[Report]:
        first = asyncio.ensure_future(box.call_async(wat(SLEEPER), "sleep", SECOND // 2))
        while not box.monitor():
            await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(box.run_async(wat(HELLO), run_id="waiting"))
        others = [asyncio.ensure_future(box.run_async(wat(HELLO))) for _ in range(3)]
        await asyncio.sleep(0.1)
        box.cancel("waiting")
        return [await first, *await asyncio.gather(*others), await waiting]

    *done, cancelled = asyncio.run(asyncio.wait_for(many(), 100))

    assert [report.outcome for report in done] == [Outcome.OK] * 4
    assert cancelled.outcome is Outcome.CANCELLED
    assert _hub.hub._free == 1
    assert not _hub.hub._waiting


def test_a_worker_that_never_stops_talking_holds_nobody_up() -> None:
    """Attack: messages without an end, so that whoever hears them never looks at the clock."""
    ours, theirs = pair()
    with ours, theirs:
        theirs.setblocking(False)
        heard = []

        class Talker:
            hub = _hub.hub
            status, refused, most_bytes = None, 0, 1 << 20

            def receive(self, most_blob: int) -> tuple[object, bytes, tuple[int, ...]]:
                heard.append(most_blob)
                return _messages.Told(Progress(seconds=0.0)), b"", ()

            def send(self, *_: object) -> None:
                pass

            def listen(self) -> None:
                pass

            kill = listen

            def close(self) -> bool:
                return False

        box = Sandbox(isolation="process")
        context = box._contexts.under()
        plan = context.plan(wat(HELLO))
        control = RunControl()
        guest = RemoteGuest(plan, context.info, "process", control, Talker(), None, None, 0.0)  # type: ignore[arg-type]
        assert plan.command is not None
        steps = guest.invoke(plan.command)
        assert next(steps) == GO_ON
        assert len(heard) <= 100
        steps.close()
