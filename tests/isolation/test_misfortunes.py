"""What befalls workers in the middle of others: killed, stopped, out of memory, garbled, held by the file system.

Holds P-ISO-4 and P-ISO-5.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stockade import Mount, Outcome, Policy, Report, Sandbox
from stockade.isolation import _frames, _handle, _hub, backend
from stockade.isolation._messages import TO_WORKER, Rest
from stockade.policy import Filesystem
from tests._processes import children, descriptors, until
from tests.conftest import HELLO, wat
from tests.execution.test_outcomes import imports
from tests.isolation.test_behaviour import SLEEPER
from tests.isolation.test_workers import all_gone, none_made_ahead, number_of, server, started  # noqa: F401 - a fixture, too

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.execution import Isolation

HOUR = 3_600_000_000_000
SECOND = 1_000_000_000

HUNGRY = f"""
(module
  {imports("poll_oneoff", "fd_write")}
  (memory (export "memory") 1)
  (func (export "eat") (param $wait i64) (param $pages i32) (result i32)
    (local $at i32) (local $end i32)
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (local.get $wait))
    (drop (call $poll_oneoff (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 2048)))
    (local.set $at (memory.grow (local.get $pages)))
    (if (i32.eq (local.get $at) (i32.const -1)) (then (return (i32.const -1))))
    (local.set $at (i32.shl (local.get $at) (i32.const 16)))
    (local.set $end (i32.shl (memory.size) (i32.const 16)))
    (loop $touch
      (i32.store (local.get $at) (i32.const 1))
      (local.set $at (i32.add (local.get $at) (i32.const 4096)))
      (br_if $touch (i32.lt_u (local.get $at) (local.get $end))))
    (i32.const 0)))
"""
"""Waits, and then takes memory and writes to each page of it."""

MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


@contextlib.contextmanager
def small_group() -> Iterator[Path | None]:
    """A group of processes with little memory; None where there are no groups, or this user may make none."""
    group = MEMORY_GROUPS / f"stockade-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        (group / "memory.limit_in_bytes").write_text(str(96 << 20))
        yield group
    finally:
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def dead() -> list[str]:
    """Processes below this one that have ended, and that nobody has waited for."""
    found, todo = [], [os.getpid()]
    while todo:
        for child in children(todo.pop()):
            with contextlib.suppress(OSError):
                if ") Z " in Path(f"/proc/{child}/stat").read_text():
                    found.append(str(child))
                todo.append(child)
    return found


@pytest.mark.slow
def test_a_hundred_runs_survive_what_befalls_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, stopped, garbled, out of memory in three ways: six of a hundred. The others finish; nothing is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lines: list[socket.socket] = []
    pair = _hub.socket_pair

    def listening(kind: int) -> tuple[socket.socket, socket.socket]:
        ours, theirs = pair(kind)
        lines.append(theirs.dup())
        return ours, theirs

    box = Sandbox(Policy().replace(wall_time="120s", memory="512MiB"), isolation="process")
    # Its worker may wait for ever. Deadlines from four seconds on are longer in tests.
    brief = Sandbox(Policy().replace(wall_time="3.9s", memory="512MiB"), isolation="process")
    sleeper, hungry = wat(SLEEPER), wat(HUNGRY)
    for sandbox in (box, brief):
        for module in (sleeper, hungry):
            sandbox.prepare(module)
    assert box.run(wat(HELLO)).ok
    assert brief.run(wat(HELLO)).ok
    assert until(all_gone)
    before, dead_before = descriptors() - len(server().watcher._templates), dead()

    async def many(group: Path | None) -> list[Report]:
        victims = []
        for name in ("killed", "stopped", "garbled"):
            victims.append(asyncio.ensure_future(box.call_async(sleeper, "sleep", HOUR, run_id=name)))
            # One after the other, so that it is known whose worker is which.
            while len(lines) < len(victims):
                await asyncio.sleep(0.01)
        for sandbox in (box, brief, box):
            victims.append(asyncio.ensure_future(sandbox.call_async(hungry, "eat", 3 * SECOND, 2048)))
            while len(lines) < len(victims):
                await asyncio.sleep(0.01)
        numbers = [number_of(worker) for worker in started(6)]
        others = [asyncio.ensure_future(box.call_async(sleeper, "sleep", SECOND)) for _ in range(94)]
        await asyncio.sleep(0.2)
        os.kill(numbers[0], signal.SIGKILL)
        os.kill(numbers[1], signal.SIGSTOP)
        lines[2].send(b"\x01garbage that no worker would say")
        # Enough for itself, and not for what its guest wants; and not even for itself.
        for number, more in ((numbers[3], 64 << 20), (numbers[4], -(16 << 20))):
            # On a busy machine the brief one may be over.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                most = 4096 * int(Path(f"/proc/{number}/statm").read_text().split()[5]) + more
                resource.prlimit(number, resource.RLIMIT_DATA, (most, most))
        if group is not None:
            (group / "cgroup.procs").write_text(str(numbers[5]))
        return [*await asyncio.gather(*victims), *await asyncio.gather(*others)]

    with small_group() as group, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_hub, "socket_pair", listening)
        killed, halted, garbage, refused, poor, starved, *others = asyncio.run(many(group))
    for line in lines:
        line.close()

    assert [report.outcome for report in others] == [Outcome.OK] * 94
    assert told(killed) == (Outcome.CRASHED, "the worker was ended by SIGKILL")
    assert told(halted) == (Outcome.CRASHED, "the worker was stopped by SIGSTOP, and ended for that")
    assert garbage.outcome is Outcome.CRASHED
    assert str(told(garbage)[1]).startswith("the worker says what makes no sense")
    # The engine is refused memory, and so is the guest, which is told so and goes on.
    assert (refused.outcome, refused.value) == (Outcome.OK, -1)
    # Python has none for a thread, and may wait for it for ever, or end.
    assert poor.outcome in (Outcome.CRASHED, Outcome.TIMEOUT)
    if group is not None:
        assert told(starved) == (Outcome.CRASHED, "the worker was ended by SIGKILL")
    else:
        assert (starved.outcome, starved.value) == (Outcome.OK, 0)
    assert box.run(wat(HELLO)).ok
    assert until(all_gone)
    # Templates have a socket each.
    assert until(lambda: descriptors() - len(server().watcher._templates) <= before)
    assert set(dead()) <= set(dead_before)
    assert list(tmp_path.iterdir()) == []


def told(report: Report) -> tuple[Outcome, str | None]:
    return report.outcome, report.trap and report.trap.message


# -- what the file system holds a native call with ---------------------------------------------------------------------

LISTS = f"""
(module
  {imports("fd_readdir")}
  (memory (export "memory") 160)
  (func (export "_start")
    (loop $again
      (drop (call $fd_readdir (i32.const 3) (i32.const 64) (i32.const 10000000) (i64.const 0) (i32.const 0)))
      (br $again))))
"""

OPENS = f"""
(module
  {imports("path_open", "proc_exit")}
  (memory (export "memory") 1)
  (data (i32.const 32) "thing")
  (func (export "_start")
    (call $proc_exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 32) (i32.const 5) (i32.const 0)
      (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 64)))))
"""


@pytest.fixture
def many() -> Iterator[Path]:
    """A folder of 100,000 entries, in memory where it can be: a disk takes a minute for them."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="many-", dir=memory) as name:
        folder = os.open(name, os.O_RDONLY)
        for number in range(100_000):
            os.close(os.open(f"{number:05}", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
        os.close(folder)
        yield Path(name)


@pytest.mark.slow
def test_a_folder_of_100_000_entries_holds_nobody(many: Path) -> None:
    """Attack: a call of native WASI's that nobody in its process can stop. The worker is killed; others are served."""
    mounted = Policy(filesystem=Filesystem(mounts=(Mount(many, "/many"),)))
    box = Sandbox(mounted.replace(wall_time=0.2, fuel=None), isolation="process")
    module = wat(LISTS)
    box.prepare(module)
    killed: list[int] = []
    kill = _handle.WorkerHandle.kill

    async def both() -> tuple[Report, Report]:
        listing = asyncio.ensure_future(box.run_async(module))
        other = asyncio.ensure_future(Sandbox(isolation="process").run_async(wat(HELLO)))
        return await listing, await other

    with pytest.MonkeyPatch.context() as patch:

        def noted(self: _handle.WorkerHandle) -> None:
            killed.append(self.number)
            kill(self)

        patch.setattr(_handle.WorkerHandle, "kill", noted)
        report, other = asyncio.run(both())

    assert report.outcome is Outcome.TIMEOUT
    assert [violation.field for violation in report.violations] == ["limits.wall_time"]
    assert other.stdout == b"hello world\n"
    assert killed
    assert until(all_gone)


@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_what_is_no_file_holds_nobody(isolation: Isolation, kind: str, tmp_path: Path) -> None:
    """Attack: a FIFO without a writer, a device, in a folder that is granted: refused, and nobody waits.

    A device is opened where there is no mount without devices: what cannot be stopped there is ended with its worker.
    """
    thing = tmp_path / "thing"
    if kind == "fifo":
        os.mkfifo(thing)
    elif kind == "socket":
        with contextlib.chdir(tmp_path), socket.socket(socket.AF_UNIX) as line:
            line.bind("thing")
    else:
        if isolation == "inprocess" or "mount" not in backend("process").check():
            pytest.skip("there is no mount without devices")
        try:
            os.mknod(thing, 0o666 | 0o020000, os.makedev(1, 5))
        except OSError:
            pytest.skip("to make a device takes root")
    policy = Policy(filesystem=Filesystem(mounts=(Mount(tmp_path, "/things"),))).replace(wall_time=60)
    box = Sandbox(policy, isolation)

    report = box.run(wat(OPENS))

    assert report.outcome is Outcome.EXIT
    thing.unlink()
    thing.write_text("x")
    assert box.run(wat(OPENS)).ok


@pytest.fixture
def in_flight() -> Iterator[None]:
    """Descriptors that somebody else of this user has sent, and that nobody receives: hundreds."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sender, receiver:
        for _ in range(7):
            socket.send_fds(sender, [b"x"], [sender.fileno()] * 100)
        yield


@pytest.mark.usefixtures("in_flight")
def test_what_others_send_does_not_keep_a_worker_from_sending(tmp_path: Path) -> None:
    """The attack: the kernel counts descriptors under way by users, so that one process could silence all workers."""
    with Sandbox("default", "process") as box, box.open(wat(HELLO)) as session:
        session.snapshot().save(tmp_path / "snapshot")

    assert (tmp_path / "snapshot").stat().st_size > 0


class _Crowded(socket.socket):
    """A socket through which the kernel lets no descriptor at first, for there are too many under way."""

    refusals = 0

    def sendmsg(self, *args: Any) -> int:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ETOOMANYREFS, "Too many references: cannot splice")
        return super().sendmsg(*args)


@pytest.mark.parametrize(("refusals", "comes"), [(3, True), (1_000_000, False)])
def test_descriptors_are_sent_when_there_are_fewer_under_way(
    refusals: int, comes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again; who never can ends as if there were nobody to hear it, and not by an error of its own."""
    monkeypatch.setattr(_frames, "_MOST_RETRIES", 5)
    monkeypatch.setattr(_frames, "_RETRY_SECONDS", 0.0)
    one, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sender = _Crowded(fileno=one.detach())
    sender.refusals = refusals
    with sender, receiver:
        if not comes:
            with pytest.raises(_frames.Gone):
                _frames.send(sender, Rest(), descriptors=[sender.fileno()])
            return
        _frames.send(sender, Rest(), descriptors=[sender.fileno()])
        found = _frames.receive(receiver, TO_WORKER, most_descriptors=1)

    assert found is not None
    assert isinstance(found[0], Rest)
    for descriptor in found[2]:
        os.close(descriptor)
