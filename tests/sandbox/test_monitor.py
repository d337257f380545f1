"""How far runs and sessions are, as another thread sees it while they go on.

Holds P-MONITOR-1.
"""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Outcome, Policy, Sandbox, Usage
from stockade.report import Progress
from tests._processes import until
from tests.conftest import isolation_here, wat

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("everywhere")

WORK = """(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\06\\00\\00\\00")
  (func $work (export "work") (param $times i32)
    (loop $more
      (drop (call $random (i32.const 64) (i32.const 100)))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
      (local.set $times (i32.sub (local.get $times) (i32.const 1)))
      (br_if $more (local.get $times))))
  (func (export "sleep")
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "_start") (call $work (i32.const -1))))"""

POLICY = Policy(name="watched").replace(wall_time=120, random_bytes="unlimited", stdout=100, fuel=10**15)


def in_a_thread(work: Callable[[], object]) -> threading.Thread:
    """Work under way."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_the_counters_of_a_run_grow_while_it_goes_on() -> None:
    """Another thread sees calls, output, randomness, fuel and time rise, and never fall."""
    with Sandbox(POLICY) as box:
        module = wat(WORK)
        thread = in_a_thread(lambda: box.run(module, run_id="busy"))
        assert until(lambda: "busy" in box.monitor())
        seen = [box.monitor()["busy"]]
        while len(seen) < 5:
            now = box.monitor()["busy"]
            if now.calls > seen[-1].calls and now.fuel != seen[-1].fuel:
                seen.append(now)
        assert box.cancel("busy")
        thread.join(30)

    for before, after in pairwise(seen):
        for name in ("seconds", "fuel", "calls", "stdout_bytes", "random_bytes", "cpu_seconds"):
            assert getattr(before, name) <= getattr(after, name), name
    first, last = seen[0], seen[-1]
    assert first.calls < last.calls
    assert first.random_bytes < last.random_bytes
    assert first.stdout_bytes < last.stdout_bytes
    assert (last.state, last.is_session, last.policy) == ("running", False, "watched")
    assert last.limits.wall_time == 120
    assert 0 < last.utilization["wall_time"] < 1
    assert last.utilization["stdout"] == 1.0, "100 bytes are kept"


def test_an_open_session_is_there_between_its_calls() -> None:
    """Idle, with what its last call used and what all of them have left; while a call goes on it runs."""
    with Sandbox(POLICY) as box, box.open(wat(WORK)) as session:
        (name,) = box.monitor()
        new = box.monitor()[name]
        session.call("work", 3)
        rested = box.monitor()[name]
        thread = in_a_thread(lambda: session.call("work", -1))
        assert until(lambda: box.monitor()[name].state == "running" and box.monitor()[name].calls > 6)
        busy = box.monitor()[name]
        assert box.cancel(name)
        thread.join(30)
        over = box.monitor()

    assert (new.state, new.is_session, new.seconds, new.calls) == ("idle", True, 0.0, 0)
    assert (rested.state, rested.seconds, rested.calls, rested.random_bytes) == ("idle", 0.0, 6, 300)
    assert (busy.earlier.calls, busy.earlier.random_bytes) == (6, 300)
    assert busy.seconds > 0
    assert over == {}, "a session whose guest was stopped is over"


def test_a_session_that_waits_says_so() -> None:
    """Asleep, it holds nothing; cancelled by its name, the call ends."""
    reports: list[stockade.Report] = []
    with Sandbox(POLICY) as box, box.open(wat(WORK)) as session:
        (name,) = box.monitor()
        thread = in_a_thread(lambda: reports.append(session.call("sleep")))
        assert until(lambda: box.monitor()[name].state == "waiting")
        assert box.cancel(name)
        thread.join(30)

    assert [report.outcome for report in reports] == [Outcome.CANCELLED]


def test_a_session_at_rest_has_nothing_to_cancel() -> None:
    """And is none the worse for being asked."""
    with Sandbox(POLICY) as box, box.open(wat(WORK)) as session:
        (name,) = box.monitor()
        assert not box.cancel(name)
        assert session.call("work", 1).ok


def test_sessions_that_are_gone_are_not_told() -> None:
    """Closed, or dropped without being closed."""
    with Sandbox(POLICY) as box:
        module = wat(WORK)
        kept = box.open(module)
        closed = box.open(module)
        assert len(box.monitor()) == 2
        closed.close()
        assert len(box.monitor()) == 1
        with pytest.warns(ResourceWarning, match="unclosed session"):
            del kept
        # What was warned of has held it until here.
        assert until(lambda: not box.monitor())
        assert len(box._registry._sessions) <= 1, "the closed one is still held here"


def test_thousands_of_sessions_leave_nothing_on_the_list() -> None:
    """Whether or not somebody looks."""
    with Sandbox(POLICY) as box:
        module = box.prepare(wat(WORK))
        for _ in range(2_000 if isolation_here() == "inprocess" else 50):
            with box.open(module) as session:
                session.call("grow", 0)
        del session

        assert box._registry._sessions == {}


def test_sessions_of_every_kind_are_there() -> None:
    """Awaited ones, forks, and those of languages."""

    async def main() -> list[Progress]:
        async with Sandbox(POLICY) as box, await box.open_async(wat(WORK)) as session:
            await session.call("work", 1)
            async with await session.fork():
                return list(box.monitor().values())

    assert [progress.is_session for progress in asyncio.run(main())] == [True, True]
    with stockade.Python() as python, python.session() as session:
        session.run("x = 1")
        (told,) = session._interpreter.box.monitor().values()
        assert (told.is_session, told.state) == (True, "idle")
        assert told.memory_bytes > 1 << 20


def test_progress_is_told_with_every_name_of_a_report() -> None:
    """What both tell goes by the same name and means the same."""
    shared = {*Progress.__struct_fields__} & {*Usage.__struct_fields__}
    assert {"fuel", "cpu_seconds", "memory_bytes", "stdout_bytes", "read_bytes", "random_bytes"} <= shared

    with Sandbox(POLICY) as box, box.open(wat(WORK)) as session:
        report = session.call("work", 7)
        (told,) = box.monitor().values()
    for name in shared - {"calls"}:
        assert getattr(told, name) == pytest.approx(getattr(report.usage, name)), name
    assert told.calls == sum(report.usage.calls.values())
    assert told.utilization == {name: report.utilization[name] for name in told.utilization} | {"wall_time": 0.0}


def test_whoever_looks_meets_no_end_of_a_run() -> None:
    """Attack on ourselves: runs and sessions begin and end while three threads look; nobody sees an exception."""
    problems: list[BaseException] = []
    over = threading.Event()
    with Sandbox(POLICY) as box:
        module = box.prepare(wat(WORK))

        def looking() -> None:
            try:
                while not over.is_set():
                    for progress in box.monitor().values():
                        assert progress.memory_bytes >= 65_536
            except BaseException as problem:
                problems.append(problem)

        threads = [in_a_thread(looking) for _ in range(3)]
        until_then = time.monotonic() + 0.5
        while time.monotonic() < until_then:
            box.call(module, "work", 1)
            with box.open(module) as session:
                session.call("work", 1)
        over.set()
        for thread in threads:
            thread.join(30)

    assert problems == []
