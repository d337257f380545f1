"""Many runs at once: so many and no more, in fair turns, with results as they come; nothing of them stays behind.

Holds P-RUN-3, P-MANY-4 and P-HOST-2.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import logging
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stockade
from stockade import (
    EngineError,
    InvalidModule,
    LinkError,
    ModuleNotFound,
    Outcome,
    Pipe,
    Policy,
    PolicyError,
    QueueFull,
    Quota,
    Report,
    Sandbox,
    Scheduler,
    Task,
    TaskHandle,
    Usage,
    UsageError,
)
from stockade.scheduling import _tellers
from stockade.scheduling._fair_queue import Line
from stockade.scheduling._handle import TaskRun, when_over
from tests._compiling import Compiling, compiling_by_hand
from tests._processes import live_instances, open_descriptors, wait_for
from tests.conftest import ECHO as ECHO_TEXT
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

PATIENT = Policy().replace(fuel=None, wall_time=3600.0)

# Waits until its input ends, and writes what it read.
ECHO = wat(ECHO_TEXT)
SLEEP = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func $sleep (export "sleep") (param $milliseconds i32) (result i32)
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.mul (i64.extend_i32_u (local.get $milliseconds)) (i64.const 1_000_000)))
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
        (local.get $milliseconds))
      (func (export "_start") (drop (call $sleep (i32.const 3_600_000)))))
    """
)
SPIN = wat('(module (func (export "_start") (loop br 0)))')
SAME = wat('(module (func (export "same") (param i32) (result i32) (local.get 0)))')
NOTHING = wat('(module (func (export "_start")))')
NOTE = wat(
    """
    (module
      (import "env" "note" (func $note (param i32) (result i32)))
      (func (export "go") (param i32) (result i32) (call $note (local.get 0))))
    """
)
GUESTS = {"computes": SPIN, "sleeps": SLEEP, "waits for input": ECHO}


def foreign_threads() -> set[str]:
    """The names of threads that are none of the executor's, which come and go, nor the ticker's."""
    own = "stockade-executor", "stockade-ticker"
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith(own)}


def same(number: int, **fields: object) -> Task:
    """A task that returns its number."""
    return Task(module=SAME, export="same", args=(number,), **fields)  # type: ignore[arg-type]


@pytest.fixture
def box() -> Iterator[Sandbox]:
    """A patient sandbox, that knows what is run here. Afterwards nothing of any run is left."""
    threads = foreign_threads()
    with Sandbox(PATIENT) as found:
        for module in (ECHO, SLEEP, SPIN, SAME):
            found.prepare(module)
        yield found
        assert found.monitor() == {}
    gc.collect()
    wait_for(lambda: live_instances() == 0)
    wait_for(lambda: foreign_threads() <= threads)


class Stage:
    """Guests that note in which order they began, one at a time if the scheduler lets them; the first waits."""

    def __init__(self, box: Sandbox) -> None:
        self.began: list[int] = []
        self.open = Pipe()

        @box.host_function("env")
        def note(number: int) -> int:
            self.began.append(number)
            return number

        box.prepare(NOTE)

    def first(self, tenant: str = "") -> Task:
        """A task that holds its place until it is let go."""
        return Task(module=ECHO, stdin=self.open, tenant=tenant)

    def task(self, number: int, **fields: object) -> Task:
        return Task(module=NOTE, export="go", args=(number,), **fields)  # type: ignore[arg-type]


# -- so many and no more ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"concurrency": 3}, {"concurrency": 50, "tenant_concurrency": 3}])
def test_no_more_than_so_many_are_under_way(box: Sandbox, limits: dict[str, int]) -> None:
    """Holds the bound: guests that wait for input count as running, for they hold an instance each."""
    pipes = [Pipe() for _ in range(10)]
    with Scheduler(box, **limits) as scheduler:
        jobs = [scheduler.submit(Task(module=ECHO, stdin=pipe)) for pipe in pipes]
        for done in range(len(pipes)):
            expected = min(3, len(pipes) - done)
            wait_for(lambda expected=expected: len(box.monitor()) == expected == live_instances())  # type: ignore[misc]
            assert scheduler.running == expected
            assert scheduler.waiting == len(pipes) - done - expected
            assert sum(job.done for job in jobs) == done
            pipes[done].write(b"%d" % done)
            pipes[done].close()
            assert jobs[done].result(60).stdout == b"%d" % done
            wait_for(lambda done=done: scheduler.running + scheduler.waiting == len(pipes) - done - 1)  # type: ignore[misc]


def test_guests_that_sleep_count_as_running(box: Sandbox) -> None:
    """Holds the bound where nobody computes; the twin has room for all of them."""
    with Scheduler(box, concurrency=1) as scheduler:
        begun = time.monotonic()
        naps = [Task(module=SLEEP, export="sleep", args=(50,)) for _ in range(8)]
        assert [report.value for report in scheduler.map(naps)] == [50] * 8
        assert time.monotonic() - begun >= 8 * 0.05
    with Scheduler(box, concurrency=8) as scheduler:
        for _ in range(8):
            scheduler.submit(Task(module=SLEEP))
        wait_for(lambda: len(box.monitor()) == 8)
        scheduler.cancel_all()


def test_a_full_queue_is_told_and_takes_on_again(box: Sandbox) -> None:
    """The attack: submitting without end must not fill the host's memory. When there is room, there is."""
    pipes = [Pipe() for _ in range(5)]
    with Scheduler(box, concurrency=2, queue_size=3) as scheduler:
        jobs = [scheduler.submit(Task(module=ECHO, stdin=pipe)) for pipe in pipes]
        for _ in range(2):
            with pytest.raises(QueueFull) as caught:
                scheduler.submit(same(1))
            assert str(caught.value) == (
                "queue full: 2 running, 3 waiting; wait for some of them, or raise queue_size or concurrency"
            )
        with pytest.raises(QueueFull):
            scheduler.execute(same(1))
        pipes[0].close()
        jobs[0].wait(60)
        wait_for(lambda: scheduler.waiting == 2)
        last = scheduler.submit(same(7))
        with pytest.raises(QueueFull):
            scheduler.submit(same(8))
        jobs[4].cancel()
        taken = scheduler.submit(same(9))
        for pipe in pipes:
            pipe.close()
        assert (last.result(60).value, taken.result(60).value) == (7, 9)


def test_without_a_queue_only_what_can_begin_is_taken(box: Sandbox) -> None:
    """Holds a queue size of 0."""
    with Scheduler(box, concurrency=1, queue_size=0) as scheduler, Pipe() as pipe:
        scheduler.submit(Task(module=ECHO, stdin=pipe))
        with pytest.raises(QueueFull):
            scheduler.submit(same(1))
        pipe.close()
        wait_for(lambda: scheduler.running == 0)
        assert scheduler.submit(same(1)).result(60).value == 1
        assert [report.value for report in scheduler.map(map(same, range(5)))] == list(range(5))


def test_a_full_queue_of_one_tenant_leaves_room_for_another(box: Sandbox) -> None:
    """The attack: one tenant fills the whole queue; another one, who could begin at once, does."""
    pipe = Pipe()
    with Scheduler(box, concurrency=4, queue_size=2, tenant_concurrency=1) as scheduler:
        jobs = [scheduler.submit(Task(module=ECHO, stdin=pipe, tenant="loud"))]
        jobs += [scheduler.submit(same(number, tenant="loud")) for number in range(2)]
        with pytest.raises(QueueFull):
            scheduler.submit(same(2, tenant="loud"))
        assert scheduler.submit(same(3, tenant="quiet")).result(60).value == 3
        pipe.close()
        assert [job.result(60).value for job in jobs] == [None, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concurrency": 0}, "concurrency is 0: it must be a whole number from 1 on"),
        ({"concurrency": 1.5}, "concurrency is 1.5: it must be a whole number from 1 on"),
        ({"queue_size": -1}, "queue_size is -1: it must be a whole number from 0 on"),
        ({"tenant_concurrency": 0}, "tenant_concurrency is 0: it must be a whole number from 1 on"),
        ({"concurrency": True}, "concurrency is True: it must be a whole number from 1 on"),
    ],
)
def test_numbers_out_of_range(box: Sandbox, arguments: dict[str, int], message: str) -> None:
    """Each is named."""
    with pytest.raises(UsageError) as caught:
        Scheduler(box, **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("priority", [0, 101, -1, 1.5, True, "high"])
def test_what_is_no_priority(box: Sandbox, priority: object) -> None:
    """It is refused where it is given; the twins at the ends of the range run."""
    with Scheduler(box) as scheduler:
        with pytest.raises(UsageError) as caught:
            scheduler.submit(same(1, priority=priority))
        assert str(caught.value) == f"priority is {priority!r}: it must be a whole number from 1 to 100"
        assert [scheduler.submit(same(1, priority=end)).result(60).value for end in (1, 100)] == [1, 1]


# -- whose turn it is -------------------------------------------------------------------------------------------------


def test_who_floods_does_not_hold_others_up(box: Sandbox) -> None:
    """The attack: one tenant submits a hundred tasks. The single task of another one is the next to begin."""
    stage = Stage(box)
    with Scheduler(box, concurrency=1) as scheduler:
        scheduler.submit(stage.first("flood"))
        for number in range(100):
            scheduler.submit(stage.task(number, tenant="flood"))
        scheduler.submit(stage.task(1000, tenant="single"))
        scheduler.submit(stage.task(1001, tenant="another"))
        assert scheduler.waiting == 102
        stage.open.close()
    assert stage.began == [1000, 1001, *range(100)]


def test_tenants_take_turns(box: Sandbox) -> None:
    """Holds fairness: whoever came first does not stay first."""
    stage = Stage(box)
    with Scheduler(box, concurrency=1) as scheduler:
        scheduler.submit(stage.first())
        for tenant in range(3):
            for number in range(4 - tenant):
                scheduler.submit(stage.task(10 * tenant + number, tenant=f"t{tenant}"))
        stage.open.close()
    assert stage.began == [0, 10, 20, 1, 11, 21, 2, 12, 3]


def test_long_tasks_do_not_take_all_places(box: Sandbox) -> None:
    """The attack: a tenant whose tasks never end takes each place that comes free, until it has them all.

    Places go to whoever has the fewest, so a tenant that came late comes to its half.
    """
    pipes = {(tenant, number): Pipe() for tenant in ("slow", "late") for number in range(8)}

    def begun(tenant: str) -> list[int]:
        return sorted(int(name.split()[1]) for name in box.monitor() if name.startswith(tenant))

    with Scheduler(box, concurrency=4) as scheduler:
        for (tenant, number), pipe in pipes.items():
            scheduler.submit(Task(module=ECHO, stdin=pipe, tenant=tenant, id=f"{tenant} {number}"))
        wait_for(lambda: begun("slow") == [0, 1, 2, 3])
        for number in range(2):
            pipes["slow", number].close()
        wait_for(lambda: begun("slow") == [2, 3] and begun("late") == [0, 1])
        pipes["late", 0].close()
        wait_for(lambda: begun("late") == [1, 2])
        assert begun("slow") == [2, 3]
        for pipe in pipes.values():
            pipe.close()


def test_priority_orders_the_tasks_of_one_tenant(box: Sandbox) -> None:
    """High ones first, equal ones as they came; another tenant's turn is none of their business."""
    stage = Stage(box)
    with Scheduler(box, concurrency=1) as scheduler:
        scheduler.submit(stage.first())
        for number, priority in enumerate([50, 10, 90, 50, 100, 1, 90]):
            scheduler.submit(stage.task(number, priority=priority, tenant="a"))
        scheduler.submit(stage.task(100, priority=1, tenant="b"))
        scheduler.submit(stage.task(101, priority=2, tenant="b"))
        stage.open.close()
    assert stage.began == [4, 101, 2, 100, 6, 0, 3, 1, 5]


class Oracle:
    """Whose turn it is, as plainly as it can be said: a list of all that wait, searched each time."""

    def __init__(self) -> None:
        self.waiting: list[TaskRun] = []
        self.turns: list[str] = []

    def add(self, run: TaskRun) -> None:
        if run.task.tenant not in {other.task.tenant for other in self.waiting}:
            # Who has just come stands before whoever had the last turn, behind all others that wait.
            place = len(self.turns)
            if self.turns and self.turns[-1] in {other.task.tenant for other in self.waiting} and self.latest_is_last:
                place -= 1
            self.turns.insert(place, run.task.tenant)
        self.waiting.append(run)

    latest: str | None = None

    @property
    def latest_is_last(self) -> bool:
        return bool(self.turns) and self.turns[-1] == self.latest

    def take(self, running: dict[str, int], most: int) -> TaskRun | None:
        able = [tenant for tenant in self.turns if running.get(tenant, 0) < most]
        if not able:
            return None
        tenant = min(able, key=lambda name: (running.get(name, 0), self.turns.index(name)))
        own = [run for run in self.waiting if run.task.tenant == tenant]
        run = max(own, key=lambda run: (run.task.priority, -self.waiting.index(run)))
        self.turns.remove(tenant)
        self.turns.append(tenant)
        self.latest = tenant
        self.remove(run)
        return run

    def remove(self, run: TaskRun) -> bool:
        if run not in self.waiting:
            return False
        self.waiting.remove(run)
        if run.task.tenant not in {other.task.tenant for other in self.waiting}:
            self.turns.remove(run.task.tenant)
        return True


@given(st.data())
def test_the_line_keeps_its_rules(data: st.DataObject) -> None:
    """Holds fairness for any sequence of coming, going on, and being cancelled, against a plain list."""
    line, oracle = Line(), Oracle()
    running: dict[str, int] = {}
    runs: list[TaskRun] = []
    most = data.draw(st.integers(1, 3))
    for what in data.draw(st.lists(st.sampled_from(["add", "add", "take", "end", "remove"]), max_size=40)):
        if what == "add":
            task = same(0, tenant=data.draw(st.sampled_from("abc")), priority=data.draw(st.sampled_from([1, 50, 51])))
            runs.append(TaskRun(task))
            line.add(runs[-1])
            oracle.add(runs[-1])
        elif what == "take":
            run = line.take(running, most)
            assert run is oracle.take(running, most)
            if run is not None:
                running[run.task.tenant] = running.get(run.task.tenant, 0) + 1
        elif what == "end" and running:
            tenant = data.draw(st.sampled_from(sorted(running)))
            running[tenant] -= 1
            if not running[tenant]:
                del running[tenant]
        elif what == "remove" and runs:
            run = data.draw(st.sampled_from(runs))
            assert line.remove(run) == oracle.remove(run)
        assert len(line) == len(oracle.waiting)
        assert set(line) == set(oracle.waiting)


def test_whose_tasks_take_longer_has_fewer_turns() -> None:
    """The attack: a tenant's tasks take ten times as long as another's. Each gets as much time as the other."""
    line = Line()
    seconds = {"long": 0.1, "short": 0.01}
    had = dict.fromkeys(seconds, 0.0)
    for _ in range(400):
        for tenant in seconds:
            line.add(TaskRun(same(0, tenant=tenant)))
    for _ in range(220):
        run = line.take({}, 1)
        assert run is not None
        tenant = run.task.tenant
        line.charge(tenant, seconds[tenant])
        had[tenant] += seconds[tenant]
    assert had["short"] == pytest.approx(had["long"], rel=0.1)


def test_who_was_away_has_no_time_saved_up() -> None:
    """The attack: a tenant comes late, to have all places until it has had as much as the other had before."""
    line = Line()
    for tenant in ("steady", "late"):
        for _ in range(100):
            line.add(TaskRun(same(0, tenant=tenant)))
        if tenant == "steady":
            for _ in range(50):
                assert line.take({}, 1) is not None
                line.charge("steady", 1.0)
    turns = []
    for _ in range(20):
        run = line.take({}, 1)
        assert run is not None
        turns.append(run.task.tenant)
        line.charge(run.task.tenant, 1.0)
    assert 9 <= turns.count("late") <= 12


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiling]:
    """Compiling that is done when the test says so, in a queue for one processor."""
    yield from compiling_by_hand(monkeypatch)


def test_modules_are_compiled_in_turns_too(box: Sandbox, compiling: Compiling) -> None:
    """The attack: a tenant submits many modules that take long to compile, ahead of another's small one.

    There is room for all of them, so nothing waits in the queue; it is the compiling that they stand in line for.
    """
    with Scheduler(box) as scheduler:
        jobs = [scheduler.submit(Task(module=compiling.module(number), tenant="flood")) for number in range(8)]
        wait_for(lambda: compiling.begun == ["0"] and compiling.waiting == 7)
        last = scheduler.submit(Task(module=compiling.module(8), tenant="single"))
        wait_for(lambda: compiling.begun == ["0", "8"])
        compiling.let_go("8")
        assert last.result(60).ok
        assert not any(job.done for job in jobs)
        compiling.let_all_go()
    assert all(job.result().ok for job in jobs)
    # Which of one tenant's come first is not said: threads bring them.
    assert compiling.begun[:2] == ["0", "8"]
    assert sorted(compiling.begun[2:]) == [str(number) for number in range(1, 8)]


# -- one after the other, and as they come ----------------------------------------------------------------------------


def test_map_keeps_the_order(box: Sandbox) -> None:
    """Whichever is done first, reports come as the tasks came."""
    naps = [30, 1, 20, 5, 10, 0] * 4
    with Scheduler(box, concurrency=5) as scheduler:
        tasks = [Task(module=SLEEP, export="sleep", args=(nap,)) for nap in naps]
        assert [report.value for report in scheduler.map(tasks)] == naps
        assert list(scheduler.map([])) == []


def test_as_completed_yields_what_is_done_first(box: Sandbox) -> None:
    """The first to be done is the first to come; each comes once."""
    pipes = [Pipe() for _ in range(3)]
    tasks = [Task(module=ECHO, stdin=pipe) for pipe in pipes]
    with Scheduler(box) as scheduler:
        jobs = scheduler.as_completed(tasks)
        for pipe, task in zip(pipes[::-1], tasks[::-1], strict=True):
            pipe.close()
            assert next(jobs).task is task
        assert list(jobs) == []
    assert list(Scheduler(box).as_completed([])) == []


@pytest.mark.parametrize("how", ["map", "as_completed"])
def test_tasks_may_be_endless(box: Sandbox, how: str) -> None:
    """Tasks are taken as there is room. Whoever stops iterating stops what is under way, and nothing stays behind."""
    taken: list[int] = []

    def tasks() -> Generator[Task]:
        for number in itertools.count():
            taken.append(number)
            yield Task(module=SPIN) if number > 4 else same(number)

    with Scheduler(box, concurrency=3, queue_size=100) as scheduler:
        found = getattr(scheduler, how)(tasks())
        for _ in range(5):
            next(found)
        assert len(taken) <= 5 + 2 * 3
        found.close()
        begun = time.monotonic()
    # Those that spin would do so for an hour.
    assert time.monotonic() - begun < 60
    assert scheduler.running == scheduler.waiting == 0


@pytest.mark.parametrize("how", ["map", "as_completed"])
def test_progress_is_told(box: Sandbox, how: str) -> None:
    """How many are done, and of how many if that is known."""
    told: list[tuple[int, int | None]] = []
    with Scheduler(box, concurrency=2) as scheduler:

        def run(tasks: object) -> None:
            list(getattr(scheduler, how)(tasks, progress=lambda done, total: told.append((done, total))))

        run([same(number) for number in range(3)])
        run(same(number) for number in range(2))
    assert told == [(1, 3), (2, 3), (3, 3), (1, None), (2, None)]


@pytest.mark.parametrize("how", ["map", "as_completed"])
@pytest.mark.parametrize("where", ["progress", "tasks"])
def test_what_the_caller_raises_stops_the_iteration(box: Sandbox, how: str, where: str) -> None:
    """It comes out where one iterates, what is under way is stopped, and the scheduler is as good as new."""

    def tasks() -> Generator[Task]:
        yield same(1)
        yield Task(module=SPIN)
        if where == "tasks":
            raise ZeroDivisionError

    def progress(done: int, total: int | None) -> None:
        if where == "progress":
            raise ZeroDivisionError

    with Scheduler(box) as scheduler:
        with pytest.raises(ZeroDivisionError):
            list(getattr(scheduler, how)(tasks(), progress=progress))
        wait_for(lambda: scheduler.running == 0)
        assert scheduler.execute(same(2)).output == 2


def test_a_task_that_cannot_run_ends_map_but_not_as_completed(box: Sandbox) -> None:
    """`map` yields reports, and of this one there is none; `as_completed` yields the job, which tells."""
    tasks = [same(1), Task(module=b"no module", id="bad"), Task(module=SLEEP)]
    with Scheduler(box) as scheduler:
        reports = scheduler.map(tasks)
        assert next(reports).value == 1
        with pytest.raises(InvalidModule):
            next(reports)
        wait_for(lambda: scheduler.running == 0)
        jobs = list(scheduler.as_completed(tasks[:2]))
        assert {job.task.id: job.task_result().success for job in jobs} == {tasks[0].id: True, "bad": False}


def test_map_waits_for_its_own_where_the_queue_is_small(box: Sandbox) -> None:
    """Tasks of one tenant that may have one run at a time, and little room to wait: all are run all the same."""
    with Scheduler(box, concurrency=20, queue_size=2, tenant_concurrency=1) as scheduler:
        assert [report.value for report in scheduler.map(map(same, range(30)))] == list(range(30))
        assert len(list(scheduler.as_completed(map(same, range(30))))) == 30


def test_map_where_others_fill_the_queue(box: Sandbox) -> None:
    """With nothing of its own to wait for, it says so; its twin has."""
    with Scheduler(box, concurrency=1, queue_size=1) as scheduler, Pipe() as pipe:
        scheduler.submit(Task(module=ECHO, stdin=pipe))
        waits = scheduler.submit(same(1))
        with pytest.raises(QueueFull):
            next(scheduler.map([same(2)]))
        waits.cancel()
        reports = scheduler.map(map(same, range(4)))
        threading.Timer(0.1, pipe.close).start()
        assert [report.value for report in reports] == [0, 1, 2, 3]


# -- on an event loop -------------------------------------------------------------------------------------------------


def test_jobs_are_awaited_and_the_loop_goes_on(box: Sandbox) -> None:
    """The loop has its turns while a guest computes; what is wrong is raised where one awaits."""

    async def main() -> None:
        async with Scheduler(box) as scheduler:
            spinning = scheduler.submit(Task(module=SPIN))
            waiter = asyncio.ensure_future(spinning)
            assert (await scheduler.submit(same(3))).value == 3
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert not waiter.done()
            spinning.cancel()
            assert (await waiter).outcome is Outcome.CANCELLED
            assert (await spinning) is spinning.result()
            with pytest.raises(InvalidModule):
                await scheduler.submit(Task(module=b"none"))

    asyncio.run(main())


def test_as_completed_on_a_loop(box: Sandbox) -> None:
    """The first to be done is the first to come, and progress is told."""

    async def main() -> None:
        told: list[tuple[int, int | None]] = []
        pipes = [Pipe() for _ in range(3)]
        tasks = [Task(module=ECHO, stdin=pipe) for pipe in pipes]
        async with Scheduler(box) as scheduler:
            jobs = scheduler.as_completed_async(tasks, progress=lambda done, total: told.append((done, total)))
            for pipe, task in zip(pipes[::-1], tasks[::-1], strict=True):
                pipe.close()
                assert (await anext(jobs)).task is task
            assert [job async for job in jobs] == []
            assert told == [(1, 3), (2, 3), (3, 3)]

            endless = scheduler.as_completed_async(same(number) for number in itertools.count())
            async with contextlib.aclosing(endless) as found:
                async for job in found:
                    assert job.done
                    if job.result().value == 50:
                        break

    asyncio.run(main())


@pytest.mark.parametrize("kind", GUESTS)
def test_cancelling_who_awaits_cancels_the_job(box: Sandbox, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whether it computes, sleeps or waits; nobody is told of it when the loop is gone."""

    async def main() -> None:
        job = scheduler.submit(Task(module=GUESTS[kind], stdin=Pipe()))
        waiter = asyncio.ensure_future(job)
        await asyncio.sleep(0.05)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other, 0.01)

    with Scheduler(box) as scheduler:
        other = scheduler.submit(Task(module=SLEEP))
        asyncio.run(main())
        assert other.result(60).outcome is Outcome.CANCELLED
    assert caplog.records == []


def test_cancelling_who_iterates_on_a_loop(box: Sandbox) -> None:
    """What is under way is stopped."""

    async def main() -> None:
        async def iterate() -> None:
            async for _ in scheduler.as_completed_async([Task(module=SLEEP), Task(module=SPIN)]):
                pass

        waiter = asyncio.create_task(iterate())
        while scheduler.running < 2:
            await asyncio.sleep(0.01)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    with Scheduler(box) as scheduler:
        asyncio.run(main())
    assert scheduler.running == 0


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GUESTS)
def test_cancel_stops_one_and_no_other(box: Sandbox, kind: str) -> None:
    """Whatever it is at; its neighbours, of the same module, go on."""
    guest = GUESTS[kind]
    with Scheduler(box) as scheduler:
        jobs = [scheduler.submit(Task(module=guest, stdin=Pipe())) for _ in range(3)]
        wait_for(lambda: len(box.monitor()) == 3)
        jobs[1].cancel()
        assert jobs[1].result(60).outcome is Outcome.CANCELLED
        assert jobs[1].task_result().outcome is Outcome.CANCELLED
        time.sleep(0.05)
        assert [job.done for job in jobs] == [False, True, False]
        scheduler.cancel_all()
        assert [job.result(60).outcome for job in jobs] == [Outcome.CANCELLED] * 3
        jobs[1].cancel()
        assert scheduler.execute(same(1)).output == 1


def test_cancel_before_its_turn(box: Sandbox) -> None:
    """What waits is taken out of the line, whoever stands around it; nothing of it runs."""
    stage = Stage(box)
    with Scheduler(box, concurrency=1) as scheduler:
        scheduler.submit(stage.first())
        jobs = [scheduler.submit(stage.task(number, priority=50 + number % 3)) for number in range(9)]
        for number in (0, 4, 8):
            jobs[number].cancel()
            assert jobs[number].done
            with pytest.raises(UsageError) as caught:
                jobs[number].result()
            assert str(caught.value) == "the task was cancelled before it began"
            told = jobs[number].task_result()
            assert (told.success, told.outcome, told.error) == (False, Outcome.CANCELLED, str(caught.value))
        assert scheduler.waiting == 6
        jobs[0].cancel()
        assert scheduler.waiting == 6
        stage.open.close()
    assert stage.began == [2, 5, 1, 7, 3, 6]


def test_cancel_while_its_module_is_compiled(box: Sandbox, compiling: Compiling) -> None:
    """Whoever is cancelled while its module is compiled, or waits for that, is over at once; others are not."""
    with Scheduler(box) as scheduler:
        first, second, third = (scheduler.submit(Task(module=compiling.module(number))) for number in range(3))
        wait_for(lambda: compiling.begun == ["0"] and compiling.waiting == 2)
        second.cancel()
        first.cancel()
        assert [job.result(60).outcome for job in (first, second)] == [Outcome.CANCELLED] * 2
        assert first.result().usage == Usage()
        assert not third.done
        compiling.let_all_go()
        assert third.result(60).ok
    assert compiling.begun == ["0", "2"]


def test_the_sandbox_cancels_by_name(box: Sandbox) -> None:
    """Jobs are on the sandbox's list under the ids of their tasks."""
    with Scheduler(box) as scheduler:
        one, other = (scheduler.submit(Task(module=SLEEP, id=name)) for name in ("one", "other"))
        wait_for(lambda: set(box.monitor()) == {"one", "other"})
        assert box.cancel("one")
        assert one.result(60).outcome is Outcome.CANCELLED
        assert not other.done
        other.cancel()


def test_cancelling_thousands_that_wait(box: Sandbox) -> None:
    """The attack: a full queue that is cancelled must not hold the scheduler's lock for a time that grows squarely."""
    with Scheduler(box, concurrency=1, queue_size=20_000) as scheduler:
        jobs = [scheduler.submit(Task(module=SLEEP, tenant=str(number % 7))) for number in range(20_001)]
        assert scheduler.waiting == 20_000
        begun = time.thread_time()
        scheduler.cancel_all()
        assert time.thread_time() - begun < 10
        assert all(job.wait(60) for job in jobs)
        assert scheduler.execute(same(5)).output == 5


# -- closing ----------------------------------------------------------------------------------------------------------


def test_close_waits_for_what_was_taken_on(box: Sandbox) -> None:
    """At the end of the block everything is done, also what had to wait for its turn."""
    with Scheduler(box, concurrency=2) as scheduler:
        jobs = [scheduler.submit(Task(module=SLEEP, export="sleep", args=(20,))) for _ in range(6)]
    assert all(job.done for job in jobs)
    assert [job.result(0).value for job in jobs] == [20] * 6
    scheduler.close()


def test_results_are_there_when_close_returns(box: Sandbox) -> None:
    """Not a moment later: who looked at `done` after the block would sometimes have seen it before."""
    for _ in range(300):
        with Scheduler(box) as scheduler:
            job = scheduler.submit(same(1))
        assert job.done


def test_an_exception_in_the_block_cancels(box: Sandbox) -> None:
    """Whoever fails does not wait for guests that never end, and what fails is what is raised."""
    jobs: list[TaskHandle] = []

    def fail() -> None:
        with Scheduler(box, concurrency=2) as scheduler:
            jobs.extend(scheduler.submit(Task(module=guest)) for guest in (SPIN, SLEEP, SPIN, SLEEP))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [job.done for job in jobs] == [True] * 4
    assert {job.task_result().outcome for job in jobs} == {Outcome.CANCELLED}


def test_nothing_is_taken_on_after_close(box: Sandbox) -> None:
    """Also while it waits for the last ones; closing twice is harmless."""
    scheduler = Scheduler(box)
    pipe = Pipe()
    job = scheduler.submit(Task(module=ECHO, stdin=pipe))
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    for use in (scheduler.submit, scheduler.execute, lambda task: next(scheduler.map([task]))):
        with pytest.raises(UsageError) as caught:
            use(same(1))
        assert str(caught.value) == "the scheduler is closed: make a new one"
    pipe.close()
    closing.join(60)
    assert job.done
    scheduler.close()
    scheduler.close(cancel=True)


def test_close_from_a_callback(box: Sandbox) -> None:
    """Whoever is called when a job is over may close the scheduler, on whichever thread that is."""
    for task in (same(1), Task(module=SAME, export="same", args=(1,), quota=Quota()), Task(module=b"none")):
        scheduler, closed = Scheduler(box), threading.Event()

        def close(job: TaskHandle, scheduler: Scheduler = scheduler, closed: threading.Event = closed) -> None:
            scheduler.close()
            closed.set()

        scheduler.submit(task).on_done(close)
        assert closed.wait(60)


def test_a_sandbox_that_is_closed_too_early(box: Sandbox) -> None:
    """The caller's mistake: those that could not begin any more tell it, and closing the scheduler does not hang.

    What was under way is cancelled.
    """
    own = Sandbox(PATIENT)
    own.prepare(SAME)
    pipe = Pipe()
    with Scheduler(own, concurrency=1) as scheduler:
        first = scheduler.submit(Task(module=ECHO, stdin=pipe))
        jobs = [scheduler.submit(same(number)) for number in range(1000)]
        jobs.append(scheduler.submit(Task(module=HELLO.encode())))
        wait_for(lambda: len(own.monitor()) == 1)
        own.close()
        pipe.close()
        assert first.result(60).outcome is Outcome.CANCELLED
        jobs.append(scheduler.submit(same(1)))
    for job in jobs:
        with pytest.raises(UsageError) as caught:
            job.result(0)
        assert str(caught.value) == "the sandbox is closed: make a new one"


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_errors_of_the_caller_come_out_of_the_result(box: Sandbox, tmp_path: Path) -> None:
    """Each task has its own; the scheduler goes on, and the sandbox's list is empty."""
    cases: list[tuple[Task, type[Exception]]] = [
        (Task(module=str(tmp_path / "nowhere.wasm")), ModuleNotFound),
        (Task(module=tmp_path), InvalidModule),
        (Task(module=b"\0asm\1\0\0\0\xff"), InvalidModule),
        (Task(module=SAME), LinkError),
        (Task(module=SAME, export="other"), LinkError),
        (Task(module=SAME, export="same", args=("text",)), stockade.StockadeError),
        (Task(module=SAME, export="same", policy="nothing like it"), PolicyError),
        (Task(module=SAME, export="same", policy={"limits": {"memory": "much"}}), PolicyError),
        (Task(module=ECHO, env={"a=b": ""}), UsageError),
        (Task(module=ECHO, args=("\0",)), UsageError),
        (Task(module=ECHO, stdin=5), UsageError),  # type: ignore[arg-type]
    ]
    with Scheduler(box, concurrency=2) as scheduler:
        jobs = [(scheduler.submit(task), kind) for task, kind in cases]
        for job, kind in jobs:
            with pytest.raises(kind) as caught:
                job.result(60)
            told = job.task_result()
            assert (told.success, told.outcome, told.error) == (False, None, str(caught.value))
            assert told.resource_usage == stockade.Usage()
        assert scheduler.execute(same(1)).output == 1
    assert box.monitor() == {}


def test_two_tasks_of_one_name(box: Sandbox) -> None:
    """The second cannot run while the first does; a thousand of them exhaust nothing. Afterwards the name is free."""
    with Scheduler(box, concurrency=2) as scheduler, Pipe() as pipe:
        first = scheduler.submit(Task(module=ECHO, stdin=pipe, id="a"))
        wait_for(lambda: len(box.monitor()) == 1)
        with Scheduler(box, concurrency=1) as other:
            held = other.submit(Task(module=SLEEP))
            jobs = [other.submit(same(1, id="a")) for _ in range(1000)]
            held.cancel()
            for job in jobs:
                assert job.task_result(60).error == "a run called a is under way: give each run a name of its own"
        pipe.close()
        assert first.result(60).ok
        assert scheduler.execute(same(1, id="a")).output == 1


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_is_called_when_a_job_is_over_may_raise(
    box: Sandbox, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """It goes to the log; the job, the others and the threads that they run on are none the worse."""
    called: list[str] = []

    def fail(job: TaskHandle) -> None:
        called.append(job.task.id)
        raise raised("of the callback")

    with Scheduler(box, concurrency=2) as scheduler:
        for round_ in range(20):
            jobs = [scheduler.submit(Task(module=SLEEP, export="sleep", args=(1,))) for _ in range(4)]
            jobs.append(scheduler.submit(Task(module=b"bad", id=f"bad {round_}")))
            for job in jobs:
                job.on_done(fail)
                job.on_done(lambda job: called.append(job.task.id))
            for job in jobs[:-1]:
                assert job.result(60).value == 1
        over = scheduler.submit(same(1))
        over.wait(60)
        over.on_done(fail)
    # Callbacks are called after the job is done, so the last ones may come a moment after that was seen.
    wait_for(lambda: len(called) == 2 * 20 * 5 + 1 and len(caplog.records) == 20 * 5 + 1)
    assert {record.name for record in caplog.records} == {"stockade"}
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert len(caplog.records) == 20 * 5 + 1


def test_what_a_lent_function_raises_comes_out_of_the_result(box: Sandbox) -> None:
    """What ends the host elsewhere ends that one run here; the executor and the scheduler go on."""

    @box.host_function("env")
    def note(number: int) -> int:
        raise KeyboardInterrupt("stop")

    with Scheduler(box) as scheduler:
        job = scheduler.submit(Task(module=NOTE, export="go", args=(1,)))
        with pytest.raises(KeyboardInterrupt, match="stop"):
            job.result(60)
        with pytest.raises(KeyboardInterrupt, match="stop"):
            job.task_result(60)
        assert scheduler.execute(same(1)).output == 1


def test_what_is_called_when_jobs_are_over_may_submit_and_wait(box: Sandbox) -> None:
    """The attack: more callbacks than there are threads of any kind submit a task each, and wait for it."""
    pipes = [Pipe() for _ in range(100)]
    found: list[object] = []
    with Scheduler(box, concurrency=200) as scheduler:

        def again(job: TaskHandle) -> None:
            found.append(scheduler.submit(same(2)).result(60).value)

        for pipe in pipes:
            scheduler.submit(Task(module=ECHO, stdin=pipe)).on_done(again)  # type: ignore[arg-type]
        for pipe in pipes:
            pipe.close()
        wait_for(lambda: len(found) == len(pipes))
    assert found == [2] * len(pipes)


def test_a_result_that_takes_longer_than_one_waits(box: Sandbox) -> None:
    """Waiting has its own end; the run goes on all the same."""
    with Scheduler(box) as scheduler:
        job = scheduler.submit(Task(module=SLEEP))
        assert repr(job) == f"<TaskHandle {job.task.id} under way>"
        assert not job.wait(0.01)
        assert job.completed_at is None
        for ask in (job.result, job.task_result):
            with pytest.raises(TimeoutError):
                ask(0.01)
        job.cancel()
        assert job.wait(60)
        assert job.completed_at is not None
        assert repr(job) == f"<TaskHandle {job.task.id} done>"


TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("TENANT", default="nobody")


def test_lent_functions_see_the_context_of_whoever_submitted(box: Sandbox) -> None:
    """The attack: a task begins on the thread that another tenant's has ended on, and acts in that one's name.

    Each sees what was set where it was submitted, whether it began at once, had to wait, or was compiled first.
    """
    seen: dict[int, str] = {}

    @box.host_function("env")
    def note(number: int) -> int:
        seen[number] = TENANT.get()
        return number

    box.prepare(NOTE)
    with Scheduler(box, concurrency=1) as scheduler:
        for number in range(12):
            token = TENANT.set(f"tenant {number}")
            quota = Quota() if number % 3 == 2 else None
            module = b"bad" if number % 4 == 3 else NOTE
            scheduler.submit(Task(module=module, export="go", args=(number,), quota=quota))
            TENANT.reset(token)
    assert seen == {number: f"tenant {number}" for number in range(12) if number % 4 != 3}


# -- many threads, random moments -------------------------------------------------------------------------------------


def test_many_threads_submit_and_nothing_is_lost(box: Sandbox) -> None:
    """Each of eight threads gets exactly its own results back; the bound holds all the while."""
    most = 0
    wrong: list[object] = []

    @box.host_function("env")
    def note(number: int) -> int:
        nonlocal most
        most = max(most, live_instances())
        return number

    box.prepare(NOTE)

    def work(thread: int, scheduler: Scheduler) -> None:
        try:
            numbers = range(thread * 1000, thread * 1000 + 150)
            tasks = [Task(module=NOTE, export="go", args=(number,), tenant=str(thread % 3)) for number in numbers]
            if thread % 2:
                found = [report.value for report in scheduler.map(tasks)]
            else:
                found = [job.result(60).value for job in [scheduler.submit(task) for task in tasks]]
            if found != list(numbers):
                wrong.append(found)
        except BaseException as problem:
            wrong.append(problem)

    with Scheduler(box, concurrency=5) as scheduler:
        threads = [threading.Thread(target=work, args=(number, scheduler)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert wrong == []
    assert 1 <= most <= 5


def test_cancelling_at_random_moments_leaks_nothing(box: Sandbox) -> None:
    """Whatever a job is at when it is cancelled, it ends, once, and leaves nothing behind."""
    chance = random.Random(20240611)
    # Machine code that is kept may have a descriptor, from its first run on.
    assert box.run(HELLO.encode()).ok
    descriptors = open_descriptors()
    over: list[TaskHandle] = []

    def some_task() -> Task:
        kind = chance.choice(["same", "sleep", "short", "spin", "echo", "bad", "compiled", "narrowed"])
        tenant, priority = chance.choice("abc"), chance.randint(1, 100)
        if kind in ("same", "narrowed"):
            return same(1, tenant=tenant, priority=priority, quota=Quota() if kind == "narrowed" else None)
        if kind == "short":
            return Task(module=SLEEP, export="sleep", args=(2,), tenant=tenant, priority=priority)
        modules: dict[str, bytes | stockade.Module] = {
            "sleep": SLEEP,
            "spin": SPIN,
            "echo": ECHO,
            "bad": b"bad",
            "compiled": HELLO.encode(),
        }
        return Task(module=modules[kind], stdin=Pipe(), tenant=tenant, priority=priority)

    with Scheduler(box, concurrency=7) as scheduler:
        jobs: list[TaskHandle] = []
        for _ in range(600):
            job = scheduler.submit(some_task())
            job.on_done(over.append)
            jobs.append(job)
            if chance.random() < 0.7:
                chance.choice(jobs[-20:]).cancel()
            if chance.random() < 0.1:
                time.sleep(chance.random() * 0.004)
        for job in jobs:
            job.cancel()
        assert all(job.wait(60) for job in jobs)
        # It is none the worse for it.
        assert scheduler.submit(same(1)).result(60).ok
    # Callbacks are called on threads of their own, after the jobs are done.
    wait_for(lambda: len(over) >= len(jobs))
    assert sorted(map(id, over)) == sorted(map(id, jobs))
    outcomes = {job.task_result().outcome for job in jobs}
    assert outcomes <= {Outcome.OK, Outcome.CANCELLED, None}
    assert Outcome.CANCELLED in outcomes
    assert scheduler._running_of == {}
    assert box.monitor() == {}
    wait_for(lambda: live_instances() == 0)
    wait_for(lambda: open_descriptors() <= descriptors)


def test_reports_are_let_go_of(box: Sandbox) -> None:
    """What the scheduler has done with, it does not keep, however many there were."""

    def reports() -> int:
        gc.collect()
        return sum(isinstance(found, Report) for found in gc.get_objects())

    with Scheduler(box, concurrency=4) as scheduler:
        list(scheduler.map(map(same, range(20))))
        before = reports()
        for _ in scheduler.map(map(same, range(500))):
            pass
        assert reports() - before < 10


def test_what_is_called_when_a_job_is_over_is_called_once() -> None:
    """Whoever asks for more while it is called, from the call or from another thread, has it called again otherwise."""
    run = TaskRun(Task(module=HELLO))
    job = TaskHandle(run, lambda _: None)
    called: list[str] = []

    def over() -> None:
        called.append("over")
        if len(called) < 5:
            run.report.when_done(lambda: None)

    when_over(job, over)
    run.report.settle(None, UsageError("it is over"))

    assert called == ["over"]


def test_jobs_that_are_awaited_as_they_are_done_come_once(box: Sandbox) -> None:
    """The natural use: each job of the loop is awaited in its body."""

    async def main() -> list[object]:
        async with Scheduler(box, concurrency=2) as scheduler:
            return [(await job).value async for job in scheduler.as_completed_async([same(n) for n in range(3)])]

    for _ in range(30):
        assert sorted(asyncio.run(main())) == [0, 1, 2]  # type: ignore[type-var]


@pytest.fixture
def no_tellers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread can be started for what is to be called when tasks are over."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_tellers, "_tellers", _tellers._Tellers())
    monkeypatch.setattr(_tellers, "start_thread", refuse)


_NEEDED = (
    r"^no thread can be started for what is to be called when tasks are over, so it is called on one that tasks need: "
    r"waiting for a task here could last for ever\. Run fewer at once, or raise the limit \(ulimit -u\)$"
)


@pytest.mark.usefixtures("no_tellers")
@pytest.mark.parametrize("wait", ["wait", "result", "task_result", "execute", "map", "as_completed", "close", "cancel"])
def test_without_threads_no_callback_waits_on_one_that_tasks_need(wait: str) -> None:
    """The attack: what is called when a task is over waits for another one, on the only thread that could run it."""
    told: list[BaseException | None] = []
    called = threading.Event()

    def call(_: TaskHandle) -> None:
        try:
            if wait in ("wait", "result", "task_result"):
                getattr(scheduler.submit(Task(module=NOTHING)), wait)()  # type: ignore[arg-type]
            elif wait == "execute":
                scheduler.execute(Task(module=NOTHING))  # type: ignore[arg-type]
            elif wait in ("map", "as_completed"):
                list(getattr(scheduler, wait)([Task(module=NOTHING)]))  # type: ignore[arg-type]
            else:
                scheduler.close(cancel=wait == "cancel")
        except BaseException as problem:
            told.append(problem)
        else:
            told.append(None)
        called.set()

    box = Sandbox(PATIENT)
    with Scheduler(box) as scheduler:
        pipe = Pipe()
        first = scheduler.submit(Task(module=ECHO, stdin=pipe))  # type: ignore[arg-type]
        first.on_done(call)
        pipe.close()
        assert called.wait(60)
    assert len(told) == 1
    with pytest.raises(EngineError, match=_NEEDED):
        raise told[0] or AssertionError("it has waited")
    assert first.result().ok


@pytest.mark.usefixtures("no_tellers")
def test_without_threads_a_callback_that_waits_for_nothing_is_called() -> None:
    """The twin, and what is over may be looked at."""
    told: list[bool] = []
    called = threading.Event()

    def call(job: TaskHandle) -> None:
        told.append(job.wait() and job.result().ok)
        scheduler.submit(Task(module=NOTHING)).on_done(lambda _: called.set())  # type: ignore[arg-type]

    with Scheduler(Sandbox(PATIENT)) as scheduler:
        pipe = Pipe()
        scheduler.submit(Task(module=ECHO, stdin=pipe)).on_done(call)  # type: ignore[arg-type]
        pipe.close()
        assert called.wait(60)
    assert told == [True]
