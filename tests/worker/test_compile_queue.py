"""Compiling at once: a few at a time, in fair turns, each module once, and nobody is charged for waiting.

Holds P-COMPILE-2.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade import EngineError, InvalidModule, Module, Outcome, Policy, Sandbox
from stockade.compilation import _programs
from stockade.execution import _plan
from stockade.worker import _compile_queue, _process
from stockade.worker._compile_queue import CompileJob, CompileQueue, Turn
from tests._compiling import Compiling, compiling_by_hand
from tests._examples import examples
from tests._processes import busy, until
from tests._signals import Signal, Signals
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENT = Policy().replace(fuel=None, wall_time=30.0)
GIB = 1 << 30


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Held:
    """Jobs that go on until they are let go."""

    def __init__(self, queue: CompileQueue) -> None:
        self.queue = queue
        self.begun: list[str] = []
        self.turns: dict[str, Turn] = {}
        self._gates: dict[str, threading.Event] = {}

    def submit(self, name: str, *, tenant: str = "", small: bool = False, memory: int = 0) -> CompileJob[str]:
        """Submits a job of this name."""
        self._gates[name] = gate = threading.Event()

        def work(turn: Turn) -> str:
            self.begun.append(name)
            self.turns[name] = turn
            turn.on_abandoned = gate.set
            gate.wait(60)
            return name

        return self.queue.submit(CompileJob(work, memory_bytes=memory, small=small, tenant=tenant))

    def settled(self, *names: str) -> bool:
        """Whether just these have begun, in whatever order, and no other may."""
        return until(lambda: sorted(self.begun) == sorted(names))

    def let_go(self, job: CompileJob[str], name: str) -> None:
        """Ends a job."""
        self._gates[name].set()
        assert job.result() == name

    def let_all_go(self) -> None:
        """Ends all jobs."""
        for gate in self._gates.values():
            gate.set()


@pytest.fixture
def two() -> Held:
    """A queue for two processors."""
    return Held(CompileQueue(2, 8 * GIB))


# -- how many at once -------------------------------------------------------------------------------------------------


def test_as_many_as_there_are_processors(two: Held) -> None:
    """One tenant has as many under way as there are processors; the next begins when one is done."""
    jobs = [two.submit(str(number)) for number in range(4)]
    assert two.settled("0", "1")
    assert (two.queue.running, two.queue.waiting) == (2, 2)

    two.let_go(jobs[1], "1")
    assert two.settled("0", "1", "2")
    for number in (0, 2, 3):
        two.let_go(jobs[number], str(number))
    assert until(lambda: two.queue.running == 0)


def test_another_tenant_has_a_place_whatever_one_has_submitted(two: Held) -> None:
    """The attack: a tenant fills all places with modules that take a minute each, large and small."""
    floods = [two.submit(f"flood {number}", tenant="flood", small=number > 4) for number in range(10)]
    assert two.settled("flood 0", "flood 1", "flood 5")

    victim = two.submit("large", tenant="victim")
    assert two.settled("flood 0", "flood 1", "flood 5", "large")
    two.let_go(victim, "large")
    two.let_all_go()
    assert [job.result() for job in floods] == [f"flood {number}" for number in range(10)]


def test_small_ones_do_not_wait_for_large_ones(two: Held) -> None:
    """Of the same tenant, too."""
    large = [two.submit(f"large {number}") for number in range(5)]
    small = two.submit("small", small=True)
    assert two.settled("large 0", "large 1", "small")

    two.let_go(small, "small")
    for number in range(5):
        two.let_go(large[number], f"large {number}")


def test_memory_is_for_all_together(two: Held) -> None:
    """What needs more than is left waits, and nothing passes it by from behind; alone, it always has its turn."""
    first = two.submit("first", memory=6 * GIB)
    much, little = two.submit("much", tenant="b", memory=20 * GIB), two.submit("little", tenant="c", memory=GIB)
    small = two.submit("small", tenant="d", small=True, memory=GIB)
    assert two.settled("first", "small")
    two.let_go(small, "small")

    two.let_go(first, "first")
    assert two.settled("first", "small", "much")
    two.let_go(much, "much")
    assert two.settled("first", "small", "much", "little")
    two.let_go(little, "little")


def test_a_thread_that_cannot_start_is_told(two: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is free again, for others."""
    with monkeypatch.context() as patch:
        patch.setattr(
            threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start new thread"))
        )
        job = two.submit("none")
    with pytest.raises(EngineError) as failure:
        job.result()

    assert str(failure.value) == "no thread can be started to compile on: can't start new thread"
    two.let_go(two.submit("other"), "other")
    assert two.queue.running == 0 or until(lambda: two.queue.running == 0)


# -- whose turn it is -------------------------------------------------------------------------------------------------


def test_who_has_used_less_is_next() -> None:
    """Seconds count, not modules: a tenant with long ones has fewer turns."""
    clock = Clock()
    queue = CompileQueue(1, 8 * GIB, clock)
    order: list[str] = []
    gate = threading.Event()

    def job(tenant: str, seconds: float) -> CompileJob[None]:
        def work(_: Turn) -> None:
            gate.wait(60)
            order.append(tenant)
            clock.now += seconds

        return CompileJob(work, memory_bytes=8 * GIB, small=False, tenant=tenant)

    # It takes all the memory, so that there is one at a time.
    jobs = [queue.submit(job("first", 0.0))]
    jobs += [queue.submit(job("long", 3.0)) for _ in range(3)] + [queue.submit(job("short", 1.0)) for _ in range(6)]
    gate.set()
    for each in jobs:
        each.result()

    assert order[0] == "first"
    assert [order[1:9].count("long"), order[1:9].count("short")] in ([2, 6], [3, 5])
    assert "long" in order[1:3]
    assert "short" in order[1:3]


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c"]), st.booleans(), st.integers(0, 12), st.booleans()), max_size=25
    ),
    st.integers(1, 4),
)
def test_everything_has_its_turn(wanted: list[tuple[str, bool, int, bool]], processors: int) -> None:
    """Whatever comes, in whatever order, is done once, within the bounds, unless nobody waits for it."""
    queue = CompileQueue(processors, 8.0)
    lock, under_way, done = threading.Lock(), [], list[int]()
    problems: list[str] = []

    def job(number: int) -> CompileJob[int]:
        tenant, small, memory, _ = wanted[number]

        def work(_: Turn) -> int:
            with lock:
                under_way.append(number)
                sizes = [wanted[each][2] for each in under_way]
                if len(sizes) > 1 and sum(sizes) > 8:
                    problems.append(f"memory {sizes}")
                if len(sizes) > processors + 4 or sum(not wanted[each][1] for each in under_way) > processors + 2:
                    problems.append(f"places {sizes}")
                if sum(wanted[each][0] == tenant for each in under_way) > processors + 1:
                    problems.append("tenant")
            with lock:
                under_way.remove(number)
                done.append(number)
            return number

        return CompileJob(work, memory_bytes=memory, small=small, tenant=tenant)

    jobs = [queue.submit(job(number)) for number in range(len(wanted))]
    for number, each in enumerate(jobs):
        if wanted[number][3]:
            queue.leave(each)
    kept = [number for number in range(len(wanted)) if not wanted[number][3]]

    assert [queue.wait(jobs[number]) for number in kept] == kept
    assert until(lambda: queue.running == 0)
    assert (queue.waiting, problems, queue._tenants) == (0, [], {})
    assert len(done) == len(set(done))


# -- what is charged --------------------------------------------------------------------------------------------------


def test_a_job_is_charged_its_share_of_the_machine() -> None:
    """Three seconds alone are three; with another beside it, two seconds are one."""
    clock = Clock()
    held = Held(CompileQueue(2, 8 * GIB, clock))
    first = held.submit("first")
    assert held.settled("first")
    clock.now += 3
    assert held.turns["first"].had() == 3

    second = held.submit("second")
    assert held.settled("first", "second")
    clock.now += 2
    assert [held.turns[name].had() for name in ("first", "second")] == [4, 1]
    held.let_go(first, "first")
    held.let_go(second, "second")


def test_waiting_is_not_charged_to_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: modules of others take so long that a module is refused for the time that it had to wait.

    One place, held longer than the module may take; it is compiled afterwards, however busy the machine is.
    """
    moved = 0.0
    queue = CompileQueue(1, 8 * GIB, clock=lambda: time.monotonic() / 100 + moved)
    monkeypatch.setattr(_compile_queue, "_compile_queue", queue)
    monkeypatch.setattr(_programs, "_stays_here", lambda *_, **__: False)
    held = Held(queue)
    blocking = held.submit("blocking", memory=8 * GIB)
    assert held.settled("blocking")
    box = Sandbox(PATIENT.replace(compile_time=2.0))
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(box.run(wat(HELLO.replace("hello", "HELLO"))).stdout))
    thread.start()
    assert until(lambda: queue.waiting == 1)
    time.sleep(2.2)
    moved = 2.2
    assert not found
    held.let_go(blocking, "blocking")
    thread.join()

    assert found == [b"HELLO world\n"]


def test_who_is_left_alone_is_not_done(two: Held) -> None:
    """What nobody waits for is taken out of the queue, or ended where it has begun; others go on."""
    jobs = [two.submit(str(number)) for number in range(4)]
    assert two.settled("0", "1")
    assert two.queue.join(jobs[1])

    for number in (3, 1, 0):
        two.queue.leave(jobs[number])
    assert two.settled("0", "1", "2")
    assert [two.turns[name].abandoned for name in "012"] == [True, False, False]
    assert not two.queue.join(jobs[3])
    with pytest.raises(EngineError) as failure:
        jobs[3].result()
    assert str(failure.value) == "nobody waits for this any more"
    two.let_go(jobs[1], "1")
    two.let_go(jobs[2], "2")


def test_what_is_interrupted_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: Ctrl-C at any moment, once or twice, until all places are of jobs that no thread does."""
    signals = Signals()
    for name in ("submit", "leave", "_line_up", "_admit", "_next", "_advance", "_had", "_start"):
        monkeypatch.setattr(CompileQueue, name, signals.within(getattr(CompileQueue, name)))
    monkeypatch.setattr(_compile_queue, "start_thread", signals.within(_compile_queue.start_thread))

    def once(at: int, apart: int) -> int:
        queue = CompileQueue(1, GIB)
        jobs = [CompileJob(lambda _: None, memory_bytes=GIB, small=False, tenant=tenant) for tenant in "aab"]
        signals.come(at, apart)
        for job in jobs:
            with suppress(Signal):
                queue.submit(job)
        places = signals.places
        signals.end()
        last: CompileJob[None] = CompileJob(lambda _: None, memory_bytes=GIB, small=False, tenant="b")
        assert queue.submit(last).wait(60), (at, apart)
        # One that was interrupted at its very beginning was never there.
        assert until(lambda: not (queue.running or queue.waiting or queue._tenants)), (at, apart)
        assert all(job.done or job.turn is None for job in jobs), (at, apart)
        return places

    places = once(0, 0)
    assert places > 20
    for at in range(1, places):
        for apart in (0, 1, 2, 3, 5, 8):
            once(at, apart)


# -- one compile for all ----------------------------------------------------------------------------------------------


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiling]:
    """Compiling that is done when the test says so, in a queue for two processors."""
    yield from compiling_by_hand(monkeypatch, processors=2)


def outcomes(calls: list[Callable[[], object]]) -> tuple[list[threading.Thread], list[object]]:
    """Calls functions, each on a thread of its own; what comes of them."""
    found: list[object] = []

    def work(call: Callable[[], object]) -> None:
        try:
            found.append(call())
        except Exception as problem:
            found.append((type(problem), str(problem)))

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    return threads, found


@pytest.mark.parametrize("fails", [False, True])
def test_what_many_ask_for_is_compiled_once(compiling: Compiling, fails: bool) -> None:
    """Whether it can be compiled or not: all are told the same, at once and for a while."""
    box, module = Sandbox(PATIENT), compiling.module(7)
    threads, found = outcomes([lambda: box.run(module).stdout] * 8)
    assert until(lambda: compiling.begun == ["7"])
    compiling.let_go("7", InvalidModule("too much") if fails else None)
    for thread in threads:
        thread.join()

    assert found == [(InvalidModule, "too much") if fails else b"00007 world\n"] * 8
    later = outcomes([lambda: box.run(module).stdout, lambda: Sandbox(PATIENT).run(module).stdout])
    for thread in later[0]:
        thread.join()
    assert later[1] == found[:2]
    assert compiling.begun == ["7"]


@pytest.mark.parametrize("before", [False, True])
def test_who_is_interrupted_leaves_nothing_for_others_to_wait_for(
    compiling: Compiling, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """The attack: Ctrl-C while a module is about to be compiled, for which whoever asks later waits for ever."""
    box, module, submit = Sandbox(PATIENT), compiling.module(7), CompileQueue.submit

    def interrupted(queue: CompileQueue, job: CompileJob[object]) -> CompileJob[object]:
        monkeypatch.setattr(CompileQueue, "submit", submit)
        if not before:
            submit(queue, job)
        raise Signal

    monkeypatch.setattr(CompileQueue, "submit", interrupted)
    with pytest.raises(Signal):
        box.run(module)
    assert not _programs.programs._jobs

    threads, found = outcomes([lambda: box.run(module).stdout])
    while not until(lambda: bool(found), 0.05):
        compiling.let_go("7")
    assert found == [b"00007 world\n"]
    threads[0].join()


def test_a_refusal_is_believed_for_a_while(compiling: Compiling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is tried again; at once under limits that allow more, and under another name, which the words have."""
    clock = Clock()
    programs = _programs._Programs(clock)
    monkeypatch.setattr(_plan, "programs", programs)
    box, module = Sandbox(PATIENT), compiling.module(1)
    compiling.let_go("1", InvalidModule("too much"))
    for _ in range(3):
        with pytest.raises(InvalidModule, match="too much"):
            box.run(module)
    assert compiling.begun == ["1"]

    more = Sandbox(PATIENT.replace(compile_time=100.0))
    with pytest.raises(InvalidModule, match="too much"):
        more.run(module)
    with pytest.raises(InvalidModule, match="too much"):
        box.run(Module(module.data, "other", module.sha256))
    assert compiling.begun == ["1"] * 3
    clock.now += _programs._REFUSED_SECONDS + 1
    with pytest.raises(InvalidModule, match="too much"):
        box.run(module)
    assert compiling.begun == ["1"] * 4


def test_few_refusals_are_remembered(compiling: Compiling, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a flood of bad modules fills the memory of the host."""
    monkeypatch.setattr(_programs, "_MAX_REFUSED", 3)
    programs = _programs._Programs()
    monkeypatch.setattr(_plan, "programs", programs)
    box = Sandbox(PATIENT)
    for number in range(5):
        compiling.let_go(str(number), InvalidModule("too much"))
        with pytest.raises(InvalidModule):
            box.run(compiling.module(number))

    assert len(programs._refused) == 3
    assert programs._jobs == {}


def test_a_failure_that_is_not_the_modules_is_not_remembered(compiling: Compiling) -> None:
    """Such as a compiler that was killed, because the machine was short of memory."""
    box, module = Sandbox(PATIENT), compiling.module(1)
    compiling.let_go("1", EngineError("killed"))
    for _ in range(2):
        with pytest.raises(EngineError, match="killed"):
            box.run(module)

    assert compiling.begun == ["1"] * 2


# -- awaited, and cancelled -------------------------------------------------------------------------------------------


def test_awaited_runs_hold_no_thread_while_they_are_compiled(compiling: Compiling) -> None:
    """Many wait for compiling, and one whose module is there runs at once; nor is the loop's own pool needed."""

    many = max(40, examples(100))

    async def main() -> None:
        box, ready = Sandbox(PATIENT), compiling.module(0)
        compiling.let_go("0")
        assert (await box.run_async(ready)).ok
        before = threading.active_count()
        waiting = [asyncio.create_task(box.run_async(compiling.module(number))) for number in range(1, many + 1)]
        while compiling.waiting < many - 2:
            await asyncio.sleep(0.001)
        assert (await box.run_async(ready)).ok
        # A busy machine makes the executor start some more of its few threads.
        assert threading.active_count() < before + 20
        compiling.let_all_go()
        assert all(report.ok for report in await asyncio.gather(*waiting))

    asyncio.run(main())


def test_tenants_of_awaited_runs_are_compiled_for_in_turns(compiling: Compiling) -> None:
    """The attack: one tenant's modules stand before another's."""

    async def main() -> None:
        box = Sandbox(PATIENT)
        flood = [asyncio.create_task(box.run_async(compiling.module(number), tenant="flood")) for number in range(5)]
        while compiling.running < 2:
            await asyncio.sleep(0.001)
        single = asyncio.create_task(box.run_async(compiling.module(9), tenant="single"))
        while "9" not in compiling.begun:
            await asyncio.sleep(0.001)
        compiling.let_go("9")
        assert (await single).ok
        assert not any(task.done() for task in flood)
        compiling.let_all_go()
        await asyncio.gather(*flood)

    asyncio.run(main())


def test_cancelling_does_not_wait_for_the_compiler(compiling: Compiling) -> None:
    """Neither the task nor the name; what others wait for goes on."""

    async def main() -> None:
        box, module = Sandbox(PATIENT), compiling.module(1)
        task, named, other = (
            asyncio.create_task(box.run_async(module, run_id=name)) for name in ("task", "named", "other")
        )
        while compiling.begun != ["1"] or len(box._registry.runs) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        assert box.cancel("named")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await named).outcome is Outcome.CANCELLED
        assert not other.done()
        compiling.let_all_go()
        assert (await other).ok

    asyncio.run(main())


def test_what_nobody_waits_for_any_more_is_ended_in_the_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: modules that take long are submitted and cancelled, and keep the compiler busy for minutes."""
    monkeypatch.setenv("STOCKADE_CACHE", "off")
    monkeypatch.setattr(_plan, "programs", _programs._Programs())
    worker = _process.Worker()
    monkeypatch.setattr(_process, "worker", worker)
    box = Sandbox(PATIENT.replace(functions=1_000_000))
    large = wat(f'(module (func (export "_start")) {"(func)" * 300_000})')

    async def main() -> None:
        task = asyncio.create_task(box.run_async(large))
        while not (worker._process and busy(worker._process.popen.pid)):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert worker._process is not None
    pid = worker._process.popen.pid
    assert until(lambda: not busy(pid))
    assert worker._process.popen.poll() is None
    worker.close()
