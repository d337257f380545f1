"""Sessions and snapshots wherever guests live, and what becomes of them when their worker lies or is lost.

Holds P-ISO-9 and P-ISO-10.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import signal
from typing import TYPE_CHECKING

import pytest

from stockade import EngineError, LimitExceeded, Outcome, Policy, Sandbox, Session, SnapshotError, UsageError
from stockade.engine import SealedFile
from stockade.isolation import _handle, _hub, _remote_heard
from stockade.isolation._frames import Garbled
from stockade.isolation._messages import Looked, MemoryTold, StateTold, Taken
from stockade.isolation._state import checked_state
from stockade.system import open_memory_file, seal
from tests._processes import descriptors, ended, forked, until
from tests.conftest import wat
from tests.execution.test_outcomes import imports
from tests.isolation.test_behaviour import CALLED_BACK
from tests.isolation.test_workers import all_gone, number_of, started

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stockade.execution import Isolation

COUNTER = wat(f"""
(module
  {imports("poll_oneoff", "proc_exit", "fd_write", "fd_read")}
  (memory (export "memory") 1)
  (global $count (mut i32) (i32.const 0))
  (func (export "count") (result i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (global.get $count))
  (func (export "get") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "put") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "trap") (unreachable))
  (func (export "exit") (param i32) (call $proc_exit (local.get 0)))
  (func (export "spin") (loop $l (br $l)))
  (func (export "say") (param i32 i32)
    (i32.store (i32.const 0) (local.get 0)) (i32.store (i32.const 4) (local.get 1))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "hear") (param i32 i32) (result i32)
    (i32.store (i32.const 0) (local.get 0)) (i32.store (i32.const 4) (local.get 1))
    (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.load (i32.const 8)))
  (func (export "sleep") (param i64)
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (local.get 0))
    (drop (call $poll_oneoff (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 2048)))))
""")

HOUR = 3_600_000_000_000


def worker() -> _handle.WorkerHandle:
    """The one worker that there is."""
    # That of the test before may just be ending.
    assert until(lambda: len(started(1)) == 1)
    (found,) = started(1)
    return found


def test_a_session_keeps_its_guest(isolation: Isolation) -> None:
    """Memory and globals are there for the next call; each call has fuel, time and a report of its own. P-ISO-9."""
    with Sandbox(Policy().replace(fuel=1_000_000), isolation) as box, box.open(COUNTER) as session:
        reports = [session.call("count") for _ in range(3)]
        assert [report.value for report in reports] == [1, 2, 3]
        assert len({report.fuel.consumed for report in reports if report.fuel}) == 1
        session.write_memory(100, "grün")
        assert session.read_memory(98, 7) == b"\0\0gr\xc3\xbcn"
        assert session.call("get", 100).value == int.from_bytes("grün".encode()[:4], "little", signed=True)
        with pytest.raises(
            UsageError, match="outside the guest's memory: bytes 65,536 to 65,537 are not inside 65,536"
        ):
            session.read_memory(65_536, 1)
        told = [told for told in box.monitor().values() if told.is_session]
        assert [(one.state, one.memory_bytes) for one in told] == [("idle", 65_536)]


@pytest.mark.parametrize(
    ("export", "outcome"), [("trap", Outcome.TRAP), ("spin", Outcome.FUEL), ("exit", Outcome.EXIT)]
)
def test_a_guest_that_ends_ends_its_session(isolation: Isolation, export: str, outcome: Outcome) -> None:
    """What is left of it is not to be trusted. P-ISO-9."""
    args = (3,) if export == "exit" else ()
    with Sandbox(Policy().replace(fuel=1_000_000), isolation) as box, box.open(COUNTER) as session:
        assert session.call(export, *args).outcome is outcome
        with pytest.raises(UsageError, match="the session is over"):
            session.call("count")
        with pytest.raises(UsageError, match="the guest has ended"):
            session.read_memory(0, 1)


def test_streams_of_a_session(isolation: Isolation) -> None:
    """Output is passed on call by call, and input fetched when it is asked for. P-ISO-9."""
    taken: list[bytes] = []
    given = iter([b"one", b"two", b""])
    with (
        Sandbox(isolation=isolation) as box,
        box.open(COUNTER, stdin=lambda _: next(given), on_stdout=taken.append) as session,
    ):
        session.write_memory(200, b"said")
        assert session.call("say", 200, 4).ok
        assert taken == [b"said"]
        assert [session.call("hear", 300, 10).value for _ in range(3)] == [3, 3, 0]
        assert session.read_memory(300, 3) == b"two"


def test_an_awaited_session(isolation: Isolation) -> None:
    """Opened, called, forked and closed by coroutines; cancelling a call ends it. P-ISO-9."""

    async def use() -> Outcome:
        async with Sandbox(isolation=isolation) as box, await box.open_async(COUNTER) as session:
            assert (await session.call("count")).value == 1
            async with await session.fork() as other:
                assert (await other.call("count")).value == 2
            sleeping = asyncio.ensure_future(session.call("sleep", HOUR))
            while not any(told.state != "idle" for told in box.monitor().values()):
                await asyncio.sleep(0.01)
            session.cancel()
            return (await sleeping).outcome

    assert asyncio.run(asyncio.wait_for(use(), 60)) is Outcome.CANCELLED


def test_a_call_past_its_deadline_ends_the_session(isolation: Isolation) -> None:
    """The twin, in time, leaves it open. P-ISO-9."""
    with Sandbox(Policy().replace(wall_time=0.3), isolation) as box, box.open(COUNTER) as session:
        assert session.call("sleep", 1_000_000).ok
        assert session.call("count").value == 1
        assert session.call("sleep", HOUR).outcome is Outcome.TIMEOUT
        with pytest.raises(UsageError, match="the session is over"):
            session.call("count")


def test_functions_of_the_embedder_in_a_session(isolation: Isolation) -> None:
    """They call the session back, and the next call finds it in order. P-ISO-9."""
    box = Sandbox(isolation=isolation)

    @box.host_function("env", "greet")
    def greet(name: str, number: int) -> int:
        return int(session.call("twice", number).value)  # type: ignore[call-overload, no-any-return]

    text = CALLED_BACK.replace("(result i64)", "(result i32)")
    with box, box.open(wat(text)) as session:
        assert [session.call("ask", number).value for number in (1, 2)] == [2, 4]
        assert session.call("ask", 3).usage.host_calls == 1


# -- snapshots -------------------------------------------------------------------------------------------------------


def test_snapshots_cross(isolation: Isolation, tmp_path: Path) -> None:
    """A guest begins with what another held, in a worker or here, whichever it was taken in. P-ISO-10."""
    for other in ("inprocess", "process"):
        with Sandbox(isolation=isolation) as box, Sandbox(isolation=other) as there, box.open(COUNTER) as session:  # type: ignore[arg-type]
            session.call("count")
            session.write_memory(1_000, b"kept")
            snapshot = session.snapshot()
            session.write_memory(1_000, b"lost")
            assert session.snapshot() is not snapshot
            snapshot.save(tmp_path / "saved")
            loaded = type(snapshot).load(tmp_path / "saved", COUNTER)
            for one in (snapshot, loaded):
                assert there.call(one, "count").value == 2
                with there.open(one) as restored:
                    assert restored.read_memory(1_000, 4) == b"kept"
                    restored.write_memory(1_000, b"else")
                    with restored.fork() as forked_one:
                        assert forked_one.read_memory(1_000, 4) == b"else"
                        assert forked_one.call("count").value == 2


def test_what_cannot_be_taken_is_refused_and_the_session_goes_on(isolation: Isolation) -> None:
    """In the same words. P-ISO-10."""
    changes = wat(
        '(module (table 1 funcref) (func $f (export "f") (table.set (i32.const 0) (ref.null func))) '
        '(func (export "one") (result i32) (i32.const 1)))'
    )
    with Sandbox(isolation=isolation) as box, box.open(changes) as session:
        with pytest.raises(SnapshotError, match=r"its code changes tables"):
            session.snapshot()
        assert session.call("one").value == 1


def sealed(size: int) -> int:
    file = open_memory_file("x")
    os.ftruncate(file, size)
    seal(file)
    return file


PAGE = 65_536
GLOBAL = bytes([0]) + bytes(16)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (StateTold((), (GLOBAL,), True), "other memories or globals"),
        (StateTold((MemoryTold(PAGE, ()),), (), True), "other memories or globals"),
        (StateTold((MemoryTold(PAGE, ()),), (b"\x01" + bytes(16),), True), "of another type"),
        (StateTold((MemoryTold(PAGE, ()),), (b"\xff" + bytes(16),), True), "of another type"),
        (StateTold((MemoryTold(PAGE, ()),), (b"",), True), "of another type"),
        (StateTold((MemoryTold(0, ()),), (GLOBAL,), True), "smaller than it begins"),
        (StateTold((MemoryTold(-PAGE, ()),), (GLOBAL,), True), "smaller than it begins"),
        (StateTold((MemoryTold(PAGE + 1, ()),), (GLOBAL,), True), "smaller than it begins"),
        (StateTold((MemoryTold(1 << 40, ()),), (GLOBAL,), True), "larger than its guest may be"),
        (StateTold((MemoryTold(PAGE, ((0, PAGE, 1, 0),)),), (GLOBAL,), True), "a file that there is not"),
        (StateTold((MemoryTold(PAGE, ((0, PAGE, -1, 0),)),), (GLOBAL,), True), "a file that there is not"),
        (StateTold((MemoryTold(PAGE, ((0, 2 * PAGE, 0, 0),)),), (GLOBAL,), True), "does not fit"),
        (StateTold((MemoryTold(PAGE, ((0, PAGE, 0, 4096),)),), (GLOBAL,), True), "does not fit"),
        (StateTold((MemoryTold(PAGE, ((-4096, 4096, 0, 0),)),), (GLOBAL,), True), "does not fit"),
        (StateTold((MemoryTold(PAGE, ((0, 4096, 0, -4096),)),), (GLOBAL,), True), "does not fit"),
        (StateTold((MemoryTold(PAGE, ((1, 4096, 0, 0),)),), (GLOBAL,), True), "does not fit"),
        (StateTold((MemoryTold(PAGE, ((0, 8192, 0, 0), (4096, 4096, 0, 0))),), (GLOBAL,), True), "does not fit"),
        (StateTold((MemoryTold(PAGE, ((0, 0, 0, 0),)),), (GLOBAL,), True), "does not fit"),
        (StateTold((MemoryTold(PAGE, ((0, 4096, 0, 0),) * 300),), (GLOBAL,), True), "too many pieces"),
        (StateTold((MemoryTold(PAGE, ()),), (GLOBAL,), False), "has not begun"),
    ],
)
def test_what_a_worker_says_of_a_snapshot_is_checked(told: StateTold, why: str) -> None:
    """Attack: a snapshot that maps other memory of the host's over a guest, or reads beyond a file. P-ISO-10."""
    plan = Sandbox(Policy().replace(memory="1MiB"))._contexts.under().plan(COUNTER)
    files = [SealedFile.received(sealed(PAGE))]

    with pytest.raises(Garbled, match=why):
        checked_state(told, files, plan)
    assert checked_state(StateTold((MemoryTold(PAGE, ((0, PAGE, 0, 0),)),), (GLOBAL,), True), files, plan).maps


def unsealed() -> int:
    file = open_memory_file("x")
    os.ftruncate(file, PAGE)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return file


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


@pytest.mark.parametrize("make", [unsealed, pipe, lambda: os.open("/dev/null", os.O_RDWR), lambda: sealed(1 << 40)])
def test_a_file_of_a_snapshot_is_looked_at(monkeypatch: pytest.MonkeyPatch, make: Callable[[], int]) -> None:
    """Attack: a file that shrinks under whoever has mapped it, that is none, or that fills the host. P-ISO-10."""
    receive = _handle.WorkerHandle.receive

    def lying(handle: _handle.WorkerHandle, most_blob: int) -> object:
        found = receive(handle, most_blob)
        if found is not None and isinstance(found[0], Taken):
            for file in found[2]:
                os.close(file)
            return found[0], b"", (make(),)
        return found

    with Sandbox(isolation="process") as box, box.open(COUNTER) as session:
        session.write_memory(0, b"x")
        before = descriptors()
        monkeypatch.setattr(_handle.WorkerHandle, "receive", lying)
        with pytest.raises(EngineError, match="the worker says what makes no sense"):
            session.snapshot()
        monkeypatch.undo()
        with pytest.raises(UsageError, match="the session is over"):
            session.call("count")
        assert until(all_gone)
        assert descriptors() <= before


# -- workers that are lost, or lie -----------------------------------------------------------------------------------


def test_a_worker_that_is_killed_between_two_calls() -> None:
    """The next call tells that it has crashed, with the reason; then the session is over. P-ISO-9."""
    with Sandbox(isolation="process") as box, box.open(COUNTER) as session:
        assert session.call("count").ok
        os.kill(number_of(worker()), signal.SIGKILL)
        assert until(all_gone)
        report = session.call("count")
        assert (report.outcome, report.trap and report.trap.message) == (
            Outcome.CRASHED,
            "the worker was ended by SIGKILL",
        )
        with pytest.raises(UsageError, match="the session is over"):
            session.call("count")
        assert box.call(COUNTER, "count").value == 1


def test_a_worker_that_is_killed_is_told_by_whoever_asks_first() -> None:
    """Memory and snapshots, too. P-ISO-9."""
    for ask in (lambda session: session.read_memory(0, 1), Session.snapshot):
        with Sandbox(isolation="process") as box, box.open(COUNTER) as session:
            os.kill(number_of(worker()), signal.SIGKILL)
            with pytest.raises(UsageError, match="the guest has ended"):
                ask(session)
            assert until(all_gone)


def test_a_stopped_worker_ends_its_session() -> None:
    """Attack: a worker that does nothing any more, between two calls. P-ISO-9."""
    with Sandbox(Policy().replace(wall_time=None), isolation="process") as box, box.open(COUNTER) as session:
        os.kill(number_of(worker()), signal.SIGSTOP)
        assert session.call("count").outcome is Outcome.CRASHED
        with pytest.raises(UsageError, match="the session is over"):
            session.call("count")
        assert until(all_gone)


def test_a_stopped_worker_is_ended_that_is_asked_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: a worker that does not answer. P-ISO-9."""
    monkeypatch.setattr(_remote_heard, "REPLY_SECONDS", 0.2)
    with Sandbox(isolation="process") as box, box.open(COUNTER) as session:
        os.kill(number_of(worker()), signal.SIGSTOP)
        with pytest.raises(UsageError, match="the guest has ended"):
            session.read_memory(0, 1)
        report = [session._guest.ended, until(all_gone)]
        assert report == [True, True]


@pytest.mark.parametrize("told", [(Looked(PAGE), b"much more"), (Looked(PAGE), b""), (Looked(None, "x" * 5000), b"x")])
def test_an_answer_that_makes_no_sense_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch, told: tuple[Looked, bytes]
) -> None:
    """Attack: more memory than was asked for, or a text that floods a log. P-ISO-9."""
    with Sandbox(isolation="process") as box, box.open(COUNTER) as session:
        receive = _handle.WorkerHandle.receive

        def lying(handle: _handle.WorkerHandle, most_blob: int) -> object:
            found = receive(handle, most_blob)
            return found if found is None else (*told, ())

        monkeypatch.setattr(_handle.WorkerHandle, "receive", lying)
        with pytest.raises(UsageError):
            session.read_memory(0, 1)
        monkeypatch.undo()
        assert session._guest.ended
        assert until(all_gone)


def test_a_session_is_closed_with_its_worker() -> None:
    """Also where nobody closes it; and its place is given back. P-ISO-9."""
    box = Sandbox(isolation="process")
    free = _hub.hub._free
    box.open(COUNTER).close()
    assert until(all_gone)
    session = box.open(COUNTER)
    assert _hub.hub._free == free - 1
    left = [session]
    del session
    with pytest.warns(ResourceWarning, match="unclosed session"):
        left.clear()
    gc.collect()
    assert until(all_gone)
    assert _hub.hub._free == free


def test_a_forked_child_leaves_the_sessions_of_its_parent() -> None:
    """It cannot use them, and does not end them. P-ISO-9."""
    with Sandbox(isolation="process") as box, box.open(COUNTER) as session:
        assert session.call("count").value == 1

        def child() -> None:
            assert session.call("count").outcome is Outcome.CRASHED
            session.close()

        assert ended(forked(child)) == 0
        assert session.call("count").value == 2


def test_limits_hold_for_what_a_worker_opens(isolation: Isolation) -> None:
    """A guest that needs more than it may have at its beginning is refused when it is opened. P-ISO-9."""
    large = wat('(module (memory (export "memory") 100) (func (export "f")))')
    with Sandbox(Policy().replace(memory="1MiB"), isolation) as box, pytest.raises(LimitExceeded, match="memory"):
        box.open(large)
