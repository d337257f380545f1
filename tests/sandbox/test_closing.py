"""Closing: what is under way ends, whoever closes and wherever, and an event loop is never blocked by it."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

import pytest

from stockade import Outcome, Pipe, Policy, Report, Sandbox, Scheduler, SessionPool, Task, TaskHandle, UsageError
from tests._processes import fork
from tests.conftest import ECHO, wat

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("everywhere")

PATIENT = Policy().replace(fuel=None, wall_time=None)
SPIN = wat('(module (func (export "_start") (loop $l (br $l))) (func (export "f") (loop $l (br $l))))')
STOPS = wat('(module (import "env" "stop" (func $stop)) (func (export "f") (call $stop) (loop $l (br $l))))')
NOTHING = wat('(module (func (export "_start")) (func (export "f")))')
WAIT_SECONDS = 30


def in_threads(count: int, work: Callable[[], Report]) -> tuple[list[threading.Thread], list[Report]]:
    """Starts runs on threads of their own."""
    reports: list[Report] = []
    threads = [threading.Thread(target=lambda: reports.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, reports


def until_under_way(box: Sandbox, count: int) -> None:
    """Waits until so many guests run."""
    while len(box.monitor()) < count:
        threading.Event().wait(0.001)


def test_closing_a_sandbox_cancels_its_runs_and_waits_for_them() -> None:
    """Those that compute and those that wait for input, on threads and on the executor."""
    box = Sandbox(PATIENT)
    spinning, ended = in_threads(2, lambda: box.run(SPIN))
    calling, ended_calls = in_threads(1, lambda: box.call(SPIN, "f"))
    pipe = Pipe()
    waiting, ended_waits = in_threads(1, lambda: box.run(wat(ECHO), stdin=pipe))
    scheduler = Scheduler(box)
    handle = scheduler.submit(Task(module=SPIN))
    until_under_way(box, 5)
    box.close()
    assert box.monitor() == {}
    assert handle.result(WAIT_SECONDS).outcome is Outcome.CANCELLED
    for thread in (*spinning, *calling, *waiting):
        thread.join(WAIT_SECONDS)
    assert [report.outcome for report in ended + ended_calls + ended_waits] == [Outcome.CANCELLED] * 4
    box.close()
    with pytest.raises(UsageError, match=r"^the sandbox is closed: make a new one$"):
        box.run(NOTHING)
    scheduler.close()


def test_leaving_a_sandbox_closes_it() -> None:
    """The same by `with`; another sandbox's runs go on."""
    other = Sandbox(PATIENT)
    threads, reports = in_threads(1, lambda: other.run(SPIN, run_id="other"))
    with Sandbox(PATIENT) as box:
        more, ended = in_threads(1, lambda: box.run(SPIN))
        until_under_way(box, 1)
    more[0].join(WAIT_SECONDS)
    assert ended[0].outcome is Outcome.CANCELLED
    until_under_way(other, 1)
    assert not reports
    assert other.cancel("other")
    threads[0].join(WAIT_SECONDS)


def test_a_callback_or_a_host_function_may_close_the_sandbox_that_it_runs_in() -> None:
    """The attack: it would wait for itself. Its run is cancelled, and nothing hangs."""
    box = Sandbox(PATIENT)

    @box.host_function("env", "stop")
    def stop() -> None:
        box.close()

    assert box.call(STOPS, "f").outcome is Outcome.CANCELLED

    talking = Sandbox(PATIENT)
    report = talking.run(wat(ECHO), stdin=lambda _: b"x", on_stdout=lambda _: talking.close())
    assert report.outcome is Outcome.CANCELLED


def test_a_host_function_of_a_task_may_close_the_sandbox() -> None:
    """The same on a thread of the executor, and beside another one that does so, too."""
    box = Sandbox(PATIENT)

    @box.host_function("env", "stop")
    def stop() -> None:
        both.wait()
        box.close()

    both = threading.Barrier(2, timeout=WAIT_SECONDS)
    with Scheduler(box) as scheduler:
        handles = [scheduler.submit(Task(module=STOPS, export="f")) for _ in range(2)]
        assert [handle.result(WAIT_SECONDS).outcome for handle in handles] == [Outcome.CANCELLED] * 2


def test_a_sandbox_inside_of_another_is_closed_whole() -> None:
    """A host function that uses a sandbox of its own waits for that one's runs."""
    outer = Sandbox(PATIENT)
    ended: list[Report] = []

    @outer.host_function("env", "nest")
    def nest() -> None:
        with Sandbox(PATIENT) as inner:
            threads, reports = in_threads(1, lambda: inner.run(SPIN))
            until_under_way(inner, 1)
        threads[0].join(WAIT_SECONDS)
        ended.extend(reports)

    module = wat('(module (import "env" "nest" (func $nest)) (func (export "f") (call $nest)))')
    assert outer.call(module, "f").ok
    assert [report.outcome for report in ended] == [Outcome.CANCELLED]


def test_async_with_ends_a_sandbox() -> None:
    """What was not awaited is cancelled, and the loop is free meanwhile."""

    async def scenario() -> None:
        async with Sandbox(PATIENT) as box:
            tasks = [asyncio.create_task(box.run_async(SPIN)) for _ in range(3)]
            while len(box.monitor()) < 3:
                await asyncio.sleep(0)
        assert [report.outcome for report in await asyncio.gather(*tasks)] == [Outcome.CANCELLED] * 3
        with pytest.raises(UsageError, match="the sandbox is closed"):
            await box.run_async(NOTHING)

    asyncio.run(scenario())


def test_a_plain_close_on_the_loops_thread_does_not_hang() -> None:
    """Runs end without their loop, which waits here; their reports are taken afterwards."""

    async def scenario() -> None:
        with Sandbox(PATIENT) as box:
            task = asyncio.create_task(box.run_async(wat(ECHO), stdin=Pipe(), on_stdout=lambda _: None))
            while not box.monitor():
                await asyncio.sleep(0)
        assert (await task).outcome is Outcome.CANCELLED

    asyncio.run(scenario())


def test_a_forked_child_does_not_wait_for_its_parents_runs() -> None:
    """They are on its list for ever."""
    box = Sandbox(PATIENT)
    threads, reports = in_threads(1, lambda: box.run(SPIN, run_id="spin"))
    until_under_way(box, 1)
    child = fork()
    if not child:
        box.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert box.cancel("spin")
    threads[0].join(WAIT_SECONDS)
    assert reports[0].outcome is Outcome.CANCELLED


# -- schedulers and pools ---------------------------------------------------------------------------------------------


def test_a_scheduler_in_a_coroutine_waits_without_blocking_the_loop() -> None:
    """The loop goes on while the last task waits for what only the loop can give."""

    async def scenario() -> None:
        pipe = Pipe()
        async with Sandbox(PATIENT) as box, Scheduler(box) as scheduler:
            handle = scheduler.submit(Task(module=wat(ECHO), stdin=pipe))
            asyncio.get_running_loop().call_later(0.01, pipe.close)
        assert handle.done
        assert (await handle).ok
        with pytest.raises(UsageError, match="the scheduler is closed"):
            scheduler.submit(Task(module=NOTHING))
        await scheduler.close_async()

    asyncio.run(scenario())


def test_an_error_or_a_cancellation_stops_what_a_scheduler_has() -> None:
    """As with `with`."""

    async def fails() -> None:
        async with Scheduler(box) as scheduler:
            handles.append(scheduler.submit(Task(module=SPIN)))
            raise ZeroDivisionError

    async def is_cancelled() -> None:
        async with Scheduler(box) as scheduler:
            handles.append(scheduler.submit(Task(module=SPIN)))
            asyncio.get_running_loop().call_later(0.01, asyncio.current_task().cancel)  # type: ignore[union-attr]

    box = Sandbox(PATIENT)
    handles: list[TaskHandle] = []
    with pytest.raises(ZeroDivisionError):
        asyncio.run(fails())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(is_cancelled())
    outcomes = {handle.task_result(WAIT_SECONDS).outcome for handle in handles}
    assert outcomes == {Outcome.CANCELLED}


def test_a_plain_with_in_a_coroutine_is_refused_in_words() -> None:
    """It would block the loop for the scheduler's whole life; outside of one it is the usual way."""

    async def scenario() -> None:
        with Scheduler(box):
            pass

    box = Sandbox(PATIENT)
    with pytest.raises(UsageError) as caught:
        asyncio.run(scenario())
    assert str(caught.value) == (
        "with Scheduler(...) would block the event loop until all its tasks are done: write async with"
    )
    with Scheduler(box) as scheduler:
        assert scheduler.submit(Task(module=NOTHING)).result(WAIT_SECONDS).ok


def test_async_with_closes_a_pool() -> None:
    """What is ready is closed."""

    async def scenario() -> None:
        async with Sandbox(PATIENT) as box, SessionPool(box, NOTHING, size=2) as pool:
            with pool.lease() as session:
                assert (await asyncio.to_thread(session.call, "f")).ok
        assert pool.ready == 0
        with pytest.raises(UsageError, match="the pool is closed"), pool.lease():
            pass

    asyncio.run(scenario())


def test_a_closed_sandbox_takes_nothing_any_more() -> None:
    """Neither a function of the host nor another `with`: both would be for runs that cannot come."""
    box = Sandbox()
    box.close()
    with pytest.raises(UsageError, match="the sandbox is closed: make a new one"):
        box.host_function("env", "f")
    with pytest.raises(UsageError, match="the sandbox is closed: make a new one"), box:
        pass
    with Sandbox() as open_:
        assert open_.host_function("env", "f")
