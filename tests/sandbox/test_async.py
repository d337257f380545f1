"""Runs awaited: guests that wait hold no thread, an event loop is never blocked, and cancelling stops that run only.

Holds P-RUN-3, P-MANY-1, P-MANY-3 and P-TIME-4.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import os
import queue
import random
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import EngineError, Outcome, Pipe, Policy, Report, Sandbox, UsageError
from stockade.engine import Engine, _parking
from stockade.isolation._ahead import MOST_AHEAD
from stockade.isolation._hub import MOST_WORKERS
from stockade.runner import executor
from tests._processes import live_instances, open_descriptors, until
from tests.conftest import ECHO as ECHO_TEXT
from tests.conftest import HELLO, isolation_here, wat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("everywhere")

PATIENT = Policy().replace(wall_time=30.0)
UNMETERED = PATIENT.replace(fuel=None)

SLEEPER = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "sleep") (param $milliseconds i64) (result i32)
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.mul (local.get $milliseconds) (i64.const 1_000_000)))
        (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
      (func (export "_start")
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.const 3_600_000_000_000))
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))
    """
)
SPIN = wat('(module (func (export "_start") (loop br 0)) (func (export "seven") (result i32) (i32.const 7)))')

ECHO = wat(ECHO_TEXT)


async def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until something is so, at most a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to be so"
        await asyncio.sleep(0.005)


# -- waiting holds no thread ------------------------------------------------------------------------------------------


def test_many_guests_asleep_hold_few_threads() -> None:
    """More asleep at once than the pool has slots for, in a handful of threads; of workers, as many as there may be."""
    is_here = isolation_here() == "inprocess"
    many = 1200 if is_here else MOST_WORKERS

    async def scenario() -> list[Report]:
        with Sandbox(PATIENT.replace(wall_time=None)) as box:
            runs = [asyncio.create_task(box.run_async(SLEEPER)) for _ in range(many)]
            await wait_for(lambda: len(box.monitor()) == many)
            assert live_instances() == (many if is_here else 0)
            assert executor().threads < 20
        return await asyncio.gather(*runs)

    assert {report.outcome for report in asyncio.run(scenario())} == {Outcome.CANCELLED}
    assert live_instances() == 0


def test_many_guests_asleep_have_deadlines_of_their_own() -> None:
    """Each ends at its own, and has waited by then; of workers, more than there may be at a time."""
    many = 1200 if isolation_here() == "inprocess" else MOST_WORKERS + 50

    async def scenario() -> list[Report]:
        boxes = [Sandbox(PATIENT.replace(wall_time=1.0 + 0.2 * place)) for place in range(4)]
        for box in boxes:
            box.prepare(SLEEPER)
        return await asyncio.gather(*(boxes[number % 4].run_async(SLEEPER) for number in range(many)))

    reports = asyncio.run(scenario())

    assert {report.outcome for report in reports} == {Outcome.TIMEOUT}
    late = [report.usage.wall_seconds - (1.0 + 0.2 * (number % 4)) for number, report in enumerate(reports)]
    assert min(late) >= 0
    # Most of the time is waiting, however long a busy machine takes to begin with all of them.
    assert (
        sum(report.usage.idle_seconds for report in reports) > sum(report.usage.wall_seconds for report in reports) / 2
    )
    assert live_instances() == 0


def test_a_sleep_ends_on_time_and_counts_as_idle() -> None:
    """Awaited or not, a guest sleeps as long as it says."""

    async def scenario() -> Report:
        return await Sandbox(PATIENT).call_async(SLEEPER, "sleep", 150)

    for report in (asyncio.run(scenario()), Sandbox(PATIENT).call(SLEEPER, "sleep", 150)):
        assert (report.outcome, report.value) == (Outcome.OK, 0)
        assert 0.15 <= report.usage.idle_seconds <= report.usage.wall_seconds
        assert report.usage.cpu_seconds < 0.1


def test_waits_cost_no_processor_time() -> None:
    """Attack: a thousand guests that sleep in order to keep the host's processors busy."""

    async def scenario() -> float:
        with Sandbox(PATIENT.replace(wall_time=None)) as box:
            runs = [asyncio.create_task(box.run_async(SLEEPER)) for _ in range(200)]
            await wait_for(lambda: len(box.monitor()) == 200 and executor().is_idle)
            begun = time.process_time()
            await asyncio.sleep(0.5)
            used = time.process_time() - begun
        await asyncio.gather(*runs)
        return used

    assert asyncio.run(scenario()) < 0.25


def test_signals_while_guests_go_to_sleep() -> None:
    """Attack: a signal at any moment of ten thousand short waits. Its handler runs, and nothing aborts."""
    import signal

    heard = []
    previous = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        with Sandbox(PATIENT).open(SLEEPER) as session:
            for _ in range(3000):
                assert session.call("sleep", 0).ok
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert len(heard) > 10


def test_what_runs_on_the_stack_of_a_guest_makes_no_calls() -> None:
    """Attack: waiting while signals arrive. Handlers begin where Python calls or jumps back: it does neither."""
    looked_at = [step.opname for step in dis.get_instructions(_parking._park)]

    assert not [name for name in looked_at if "CALL" in name or "JUMP" in name or name == "YIELD_VALUE"]
    assert "STORE_SUBSCR" in looked_at


AT_THE_LIMIT = """
import ctypes, gc, sys
from collections import Counter
import stockade
from stockade.engine import Instance

session = stockade.Sandbox(stockade.Policy().replace(wall_time=60.0)).open(bytes.fromhex(sys.argv[1]))
session.call("sleep", 0).check()
instance = next(found for found in gc.get_objects() if isinstance(found, Instance))

def here():
    try:
        instance.begin(b"sleep", [("i64", 1000)], ["i32"])
        instance.poll()
        became["waits" if instance.is_parked else "yields"] += 1
    except (RecursionError, ctypes.ArgumentError):
        became["does not run"] += 1

def through_python():
    here()
    instance.abandon()
    through_python()

def through_c(_=None):
    here()
    instance.abandon()
    min((0,), key=through_c)

limits = [1000] if sys.version_info < (3, 12) else [1000, 100_000]
for limit in limits:
    sys.setrecursionlimit(limit)
    for recurse in (through_python, through_c) if limit == 1000 else (through_c,):
        became = Counter()
        try:
            recurse()
        except (RecursionError, ctypes.ArgumentError):
            pass
        instance.abandon()
        # A tick may come before it waits.
        assert became["waits"] > 300, became
print("over")
"""


def test_a_guest_may_wait_at_the_limit_of_recursion() -> None:
    """Attack: waiting where Python has no room left for what halts a guest, so that the library ends the process.

    At each depth up to the limit, that of Python and that of C, the guest waits, or does not begin to run.
    """
    command = [sys.executable, "-X", "faulthandler", "-c", AT_THE_LIMIT, SLEEPER.data.hex()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    # What Python has no room for while it tells of that, it writes to stderr.
    assert (result.returncode, result.stdout) == (0, "over\n"), result.stderr


@pytest.mark.differs("another Python is pretended here, which workers have not")
def test_a_python_that_ends_on_other_stacks_runs_what_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14.0 ends a process that runs Python on the stack of a guest. What cannot come to that runs."""
    monkeypatch.setattr(_parking, "_ENDS_ON_OTHER_STACKS", True)

    with pytest.raises(EngineError) as caught:
        Sandbox(PATIENT).run(SLEEPER)
    assert str(caught.value) == (
        "guests that may come to wait do not run on Python 3.14.0, which would end this process when one does: install "
        "Python 3.14.1 or later"
    )
    # What was begun is in its traceback.
    del caught
    assert Sandbox(PATIENT).run(wat(HELLO)).stdout == b"hello world\n"
    assert live_instances() == 0


DEEP = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func $deep (export "deep") (param $left i32)
        (if (local.get $left)
          (then (call $deep (i32.sub (local.get $left) (i32.const 1))))
          (else
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 1_000_000))
            (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))))
    """
)


def test_a_guest_may_wait_at_the_bottom_of_its_stack() -> None:
    """Attack: waiting where next to nothing of the stack is left, so that what the host does there finds no room."""
    box = Sandbox(UNMETERED)
    fits, overflows = 0, 1 << 17
    while overflows - fits > 1:
        depth = (fits + overflows) // 2
        report = box.call(DEEP, "deep", depth)
        assert report.outcome in (Outcome.OK, Outcome.STACK)
        fits, overflows = (depth, overflows) if report.ok else (fits, depth)
    assert fits > 1000

    async def scenario() -> list[Report]:
        return await asyncio.gather(*(box.call_async(DEEP, "deep", fits - number % 3) for number in range(60)))

    assert {report.outcome for report in asyncio.run(scenario())} == {Outcome.OK}


def test_a_lent_function_may_run_guests_that_wait() -> None:
    """A run within a run, each of them parked and woken for itself, by the dozen."""
    inner, box = Sandbox(PATIENT), Sandbox(PATIENT)

    @box.host_function("env", "nap")
    def nap() -> int:
        return int(inner.call(SLEEPER, "sleep", 20).ok)

    module = wat(
        """
        (module
          (import "env" "nap" (func $nap (result i32)))
          (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func $wait (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
          (func (export "f") (result i32)
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 5_000_000))
            (call $wait)
            (i32.add (call $nap) (block (result i32) (call $wait) (call $nap)))))
        """
    )

    async def scenario() -> list[Report]:
        return await asyncio.gather(*(box.call_async(module, "f") for _ in range(24)))

    assert box.call(module, "f").value == 2
    assert [report.value for report in asyncio.run(scenario())] == [2] * 24


# -- the loop goes on -------------------------------------------------------------------------------------------------


def test_the_loop_goes_on_while_guests_spin() -> None:
    """Four guests spin, and the loop's own tasks have their turn all the while: none of them uses the loop's thread."""

    async def scenario() -> float:
        with Sandbox(UNMETERED.replace(wall_time=None)) as box:
            runs = [asyncio.create_task(box.run_async(SPIN)) for _ in range(4)]
            await wait_for(lambda: len(box.monitor()) == 4)
            begun = time.thread_time()
            for _ in range(30):
                await asyncio.sleep(0.01)
            used = time.thread_time() - begun
            assert not any(run.done() for run in runs)
        assert {(await run).outcome for run in runs} == {Outcome.CANCELLED}
        return used

    # A turn takes a hundredth of a millisecond.
    assert asyncio.run(scenario()) < 0.06


def test_a_short_run_passes_by_those_that_spin() -> None:
    """Slices are fair: a hello world does not wait for guests that never end."""

    async def scenario() -> None:
        box = Sandbox(PATIENT.replace(fuel=2**60, wall_time=None))
        spinning = [asyncio.create_task(box.run_async(SPIN)) for _ in range(6)]
        hello = wat(HELLO)
        box.prepare(hello)
        await wait_for(lambda: len(box.monitor()) == 6)
        async with asyncio.timeout(100):
            for _ in range(5):
                assert (await box.run_async(hello)).stdout == b"hello world\n"
        assert not any(run.done() for run in spinning)
        for run in spinning:
            run.cancel()
        await asyncio.gather(*spinning, return_exceptions=True)

    asyncio.run(scenario())


WORK = 10**9
"""So much fuel is a second's work, and many slices."""


def fuel_of(box: Sandbox) -> dict[str, int]:
    """What each run has used."""
    return {name: progress.fuel or 0 for name, progress in box.monitor().items()}


@pytest.mark.differs("the system divides the processors between workers")
def test_priority_is_a_share() -> None:
    """Of two guests that spin side by side, the one of nine times the priority gets more done."""

    async def scenario() -> tuple[float, float]:
        box = Sandbox(PATIENT.replace(fuel=2**60, wall_time=None))
        names = ("low", "high")
        # More than there are processors, so that they have to share.
        runs = [
            asyncio.create_task(box.run_async(SPIN, run_id=f"{name}{number}", priority=10 if name == "low" else 90))
            for number in range(4)
            for name in names
        ]
        await wait_for(lambda: sum(fuel_of(box).values()) > WORK)
        told = fuel_of(box)
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        low, high = (sum(told[f"{name}{number}"] for number in range(4)) for name in names)
        return low, high

    low, high = asyncio.run(scenario())
    assert high > low > 0


@pytest.mark.differs("the system divides the processors between workers")
def test_tenants_have_equal_shares_whatever_number_of_runs_they_have() -> None:
    """Attack: one tenant begins ten runs that spin, so that another one's single run hardly gets on."""

    async def scenario() -> tuple[float, float]:
        box = Sandbox(PATIENT.replace(fuel=2**60, wall_time=None))
        names = [f"many{number}" for number in range(10)] + ["single"]
        runs = [
            asyncio.create_task(box.run_async(SPIN, run_id=name, tenant="a" if name.startswith("many") else "b"))
            for name in names
        ]
        await wait_for(lambda: sum(fuel_of(box).values()) > WORK)
        told = fuel_of(box)
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        return sum(told[name] for name in names[:-1]), told["single"]

    many, single = asyncio.run(scenario())
    # On two processors or more, the single run can have one to itself at most.
    assert many < 2 * single or single > 0.8 * many / max(1, (os.cpu_count() or 1) - 1)


def test_deadlines_do_not_wait_for_their_turn() -> None:
    """Attack: two hundred guests that spin, so that the deadline of each is looked at only when it has its turn.

    That those whose time is up come first is held by `tests/runner/test_executor.py`, and how late they are is measured
    by `make bench`.
    """

    async def scenario() -> list[Report]:
        box = Sandbox(UNMETERED.replace(wall_time=0.2))
        return await asyncio.gather(*(box.run_async(SPIN) for _ in range(200)))

    reports = asyncio.run(scenario())

    assert {report.outcome for report in reports} == {Outcome.TIMEOUT}
    assert min(report.usage.wall_seconds for report in reports) >= 0.2


def test_cancelling_does_not_wait_for_its_turn() -> None:
    """The same for whoever is not wanted any more."""

    async def scenario() -> None:
        box = Sandbox(UNMETERED.replace(wall_time=None))
        runs = [asyncio.create_task(box.run_async(SPIN)) for _ in range(100)]
        await wait_for(lambda: len(box.monitor()) == 100)
        runs[50].cancel()
        await asyncio.wait([runs[50]], timeout=60)
        assert [run.done() for run in runs] == [number == 50 for number in range(100)]
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    asyncio.run(scenario())


@pytest.mark.parametrize("priority", [0, 101, -1, True, 1.5, "high"])
def test_what_is_no_priority(priority: object) -> None:
    """What is no priority."""

    async def scenario() -> None:
        await Sandbox().run_async(SPIN, priority=priority)  # type: ignore[arg-type]

    with pytest.raises(UsageError) as caught:
        asyncio.run(scenario())
    assert str(caught.value) == f"priority is {priority!r}: it must be a whole number from 1 to 100"


# -- cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [SLEEPER, SPIN], ids=["asleep", "spinning"])
@pytest.mark.parametrize("policy", [PATIENT.replace(fuel=2**60), UNMETERED], ids=["metered", "unmetered"])
def test_a_cancelled_task_stops_its_guest_and_no_other(module: stockade.Module, policy: Policy) -> None:
    """Also in its sleep, at once; the other goes on to its own end."""

    async def scenario() -> Report:
        box, other = Sandbox(policy.replace(wall_time=None)), Sandbox(policy.replace(wall_time=None))
        run, bystander = (asyncio.create_task(where.run_async(module)) for where in (box, other))
        await wait_for(lambda: len(box.monitor()) == len(other.monitor()) == 1)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert box.monitor() == {}
        (name,) = other.monitor()
        assert not bystander.done()
        other.cancel(name)
        return await bystander

    assert asyncio.run(scenario()).outcome is Outcome.CANCELLED
    assert live_instances() == 0


def test_a_timeout_of_the_loop_stops_a_guest() -> None:
    """`asyncio.timeout` works as with anything else that is awaited."""

    async def scenario() -> float:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await Sandbox(PATIENT).run_async(SLEEPER)
        return time.monotonic() - begun

    assert 0.2 <= asyncio.run(scenario()) < 60
    assert live_instances() == 0


def test_a_plain_with_in_a_coroutine_cancels_and_does_not_block_the_loop() -> None:
    """What the loop itself awaits cannot end while the loop waits for it: so it is not waited for there."""

    async def scenario() -> Report:
        with Sandbox(PATIENT) as box:
            running = asyncio.create_task(box.run_async(SLEEPER))
            while not box.monitor():
                await asyncio.sleep(0.01)
        return await running

    assert asyncio.run(scenario()).outcome is Outcome.CANCELLED
    assert live_instances() == 0


@pytest.mark.parametrize("module", [SLEEPER, SPIN], ids=["asleep", "spinning"])
def test_cancel_by_name(module: stockade.Module) -> None:
    """A run is stopped by its name, from another thread, and its report says so; there is no run of another name."""
    box = Sandbox(UNMETERED)
    reports: list[Report] = []
    threads = [
        threading.Thread(target=lambda name=name: reports.append(box.run(module, run_id=name)))  # type: ignore[misc]
        for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    assert until(lambda: len(box.monitor()) == 2)
    assert not box.cancel("three")

    assert box.cancel("one")
    threads[0].join(60)
    assert [report.outcome for report in reports] == [Outcome.CANCELLED]
    assert set(box.monitor()) == {"two"}
    assert box.cancel("two")
    threads[1].join(60)
    assert [report.outcome for report in reports] == [Outcome.CANCELLED] * 2
    assert not box.cancel("two")


def test_two_runs_of_one_name() -> None:
    """A name is for one run at a time."""

    async def scenario() -> None:
        box = Sandbox(PATIENT)
        run = asyncio.create_task(box.run_async(SLEEPER, run_id="mine"))
        await wait_for(lambda: bool(box.monitor()))
        with pytest.raises(UsageError) as caught:
            await box.run_async(SLEEPER, run_id="mine")
        assert str(caught.value) == "a run called mine is under way: give each run a name of its own"
        assert box.cancel("mine")
        assert (await run).outcome is Outcome.CANCELLED
        assert (await box.run_async(wat(HELLO), run_id="mine")).ok

    asyncio.run(scenario())


def test_cancelling_at_random_moments_leaks_nothing() -> None:
    """Cancelled before the start, while computing, asleep, reading: no instance, thread or descriptor is left."""
    chance = random.Random(7)
    box = Sandbox(PATIENT.replace(fuel=2**60))
    modules = [SLEEPER, SPIN, wat(HELLO), ECHO]

    async def one(number: int) -> None:
        module = modules[number % len(modules)]
        stdin: asyncio.Queue[bytes | None] = asyncio.Queue()
        run = asyncio.create_task(box.run_async(module, stdin=stdin if module is ECHO else b""))
        await asyncio.sleep(chance.random() * 0.02 * chance.randint(0, 1))
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert (await run).ok

    async def scenario() -> None:
        for _ in range(20):
            await asyncio.gather(*(one(number) for number in range(20)))

    for module in modules:
        box.prepare(module)
    asyncio.run(scenario())
    descriptors, threads = open_descriptors(), threading.active_count()
    asyncio.run(scenario())

    assert live_instances() == 0
    assert box.monitor() == {}
    # A worker that waits for the next run has two: its socket, and itself.
    assert open_descriptors() <= descriptors + (0 if isolation_here() == "inprocess" else 2 * MOST_AHEAD)
    # Threads that a busy machine made necessary go again.
    assert until(lambda: threading.active_count() <= threads)
    assert all(not engine.ticker.running for engine in Engine._engines.values())


# -- stdin ------------------------------------------------------------------------------------------------------------


async def pieces() -> AsyncIterator[bytes]:
    for number in range(3):
        await asyncio.sleep(0.01)
        yield b"piece %d " % number
        yield b""


def full_queue() -> asyncio.Queue[bytes | None]:
    found: asyncio.Queue[bytes | None] = asyncio.Queue()
    for number in range(3):
        found.put_nowait(b"piece %d " % number)
    found.put_nowait(None)
    return found


def full_reader() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(b"piece 0 piece 1 piece 2 ")
    reader.feed_eof()
    return reader


def coroutine() -> Callable[[int], object]:
    left = [b"piece 2 ", b"piece 1 ", b"piece 0 "]

    async def fetch(size: int) -> bytes:
        await asyncio.sleep(0.01)
        return left.pop() if left else b""

    return fetch


SOURCES: dict[str, Callable[[], object]] = {
    "queue": full_queue,
    "stream": full_reader,
    "coroutine": coroutine,
    "iterator": pieces,
    "text": lambda: "piece 0 piece 1 piece 2 ",
}


@pytest.mark.parametrize("source", SOURCES)
def test_sources_of_stdin_on_a_loop(source: str) -> None:
    """A guest reads from whatever can be awaited; pieces without bytes are not the end."""

    async def scenario() -> Report:
        return await Sandbox(PATIENT).run_async(ECHO, stdin=SOURCES[source]())  # type: ignore[arg-type]

    report = asyncio.run(scenario())

    assert report.ok
    assert report.stdout == b"piece 0 piece 1 piece 2 "


def test_a_guest_parked_on_stdin_answers_when_it_is_spoken_to() -> None:
    """It waits without a thread, gets a line, answers by a callback on the loop, and waits again."""

    async def scenario() -> tuple[list[bytes], Report]:
        box = Sandbox(PATIENT)
        stdin: asyncio.Queue[bytes | None] = asyncio.Queue()
        answers: asyncio.Queue[bytes] = asyncio.Queue()
        loop_thread = threading.get_ident()

        def answer(piece: bytes) -> None:
            assert threading.get_ident() == loop_thread
            answers.put_nowait(piece)

        run = asyncio.create_task(box.run_async(ECHO, stdin=stdin, on_stdout=answer))
        heard = []
        for word in (b"one", b"two", b"three"):
            await asyncio.sleep(0.05)
            assert answers.empty()
            stdin.put_nowait(word)
            heard.append(await asyncio.wait_for(answers.get(), 60))
        stdin.put_nowait(None)
        return heard, await run

    heard, report = asyncio.run(scenario())

    assert heard == [b"one", b"two", b"three"]
    assert report.stdout == b"onetwothree"
    assert report.usage.idle_seconds > 0


def test_a_pipe_is_written_while_the_guest_reads() -> None:
    """The same without an event loop: from another thread."""
    pipe = Pipe()
    answers: queue.Queue[bytes] = queue.Queue()
    reports: list[Report] = []
    thread = threading.Thread(
        target=lambda: reports.append(Sandbox(PATIENT).run(ECHO, stdin=pipe, on_stdout=answers.put))
    )
    thread.start()
    with pipe:
        for word in (b"one", b"two"):
            pipe.write(word)
            assert answers.get(timeout=60) == word
    thread.join(60)

    assert reports[0].ok
    assert reports[0].stdout == b"onetwo"
    with pytest.raises(UsageError) as caught:
        pipe.write(b"more")
    assert str(caught.value) == "the pipe is closed: nothing can be written to it any more"


def test_a_pipe_is_for_one_guest() -> None:
    """What one guest was to read, another does not get."""
    pipe = Pipe()
    pipe.write(b"mine")
    pipe.close()
    assert Sandbox(PATIENT).run(ECHO, stdin=pipe).stdout == b"mine"

    with pytest.raises(UsageError) as caught:
        Sandbox(PATIENT).run(ECHO, stdin=pipe)
    assert str(caught.value) == "the pipe is the input of another guest: make one for each"


def test_a_queue_and_a_file_are_stdin_too(tmp_path: Path) -> None:
    """Without an event loop: a queue in which None is the end, and an open file, each larger than a piece."""
    data = os.urandom(300_000)
    box = Sandbox(PATIENT.replace(stdout=1 << 20))
    source: queue.Queue[bytes | None] = queue.Queue()
    source.put(data)
    source.put(None)
    (tmp_path / "file").write_bytes(data)

    assert box.run(ECHO, stdin=source).stdout == data
    with (tmp_path / "file").open("rb") as file:
        assert box.run(ECHO, stdin=file).stdout == data


def test_a_guest_that_reads_an_empty_pipe_of_the_system_meets_its_deadline() -> None:
    """Attack: reading from a file that never has anything. The host does not wait in it."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb") as sink:
        report = Sandbox(PATIENT.replace(wall_time=0.3)).run(ECHO, stdin=source)
        assert report.outcome is Outcome.TIMEOUT
        assert report.usage.wall_seconds < 60
        sink.write(b"x")


def test_waiting_for_stdin_is_idle_time() -> None:
    """A wait for input that is longer than `idle_time` ends the run; a shorter one does not."""
    slow = Sandbox(PATIENT.replace(idle_time=0.2)).run(ECHO, stdin=Pipe())
    pipe = Pipe()
    timer = threading.Timer(0.1, pipe.close)
    timer.start()
    quick = Sandbox(PATIENT.replace(idle_time=60.0)).run(ECHO, stdin=pipe)
    timer.join()

    assert slow.outcome is Outcome.IDLE
    (violation,) = slow.violations
    assert (violation.kind, violation.call, violation.action, violation.limit) == ("idle", "fd_read", "stop", 0.2)
    assert slow.usage.idle_seconds >= 0.2
    assert quick.ok
    assert 0.0 < quick.usage.idle_seconds <= quick.usage.wall_seconds


@pytest.mark.parametrize(
    ("source", "kind"), [(asyncio.Queue, "Queue"), (asyncio.StreamReader, "StreamReader"), (lambda: 7, "int")]
)
def test_what_only_a_loop_can_wait_for_is_refused_without_one(source: Callable[[], object], kind: str) -> None:
    """It is told before anything runs, with what would be right."""

    async def make() -> object:
        return source()

    with pytest.raises(UsageError) as caught:
        Sandbox(PATIENT).run(ECHO, stdin=asyncio.run(make()))  # type: ignore[arg-type]

    assert str(caught.value) == (
        f"stdin is {kind}: give bytes, text, a function, a stockade.Pipe, a queue.Queue or an open file; what only an "
        "event loop can wait for is for run_async"
    )


def test_polling_stdin_and_a_clock() -> None:
    """`poll_oneoff` on both: the clock comes first while nothing is there, stdin as soon as there is something."""
    module = wat(
        """
        (module
          (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "poll") (param $milliseconds i64) (result i32)
            (i64.store (i32.const 0) (i64.const 1))
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.mul (local.get $milliseconds) (i64.const 1_000_000)))
            (i64.store (i32.const 48) (i64.const 2))
            (i32.store8 (i32.const 56) (i32.const 1))
            (drop (call $poll (i32.const 0) (i32.const 256) (i32.const 2) (i32.const 512)))
            (i32.load (i32.const 256))))
        """
    )
    pipe = Pipe()
    with Sandbox(PATIENT).open(module, stdin=pipe) as session:
        assert session.call("poll", 50).value == 1
        timer = threading.Timer(0.05, pipe.write, [b"now"])
        timer.start()
        report = session.call("poll", 3_600_000)
        timer.join()
    assert report.value == 2


# -- output -----------------------------------------------------------------------------------------------------------


def test_coroutines_get_output_in_order_and_hold_the_guest_back() -> None:
    """A guest that writes faster than they take waits for them; nothing is lost, nothing piles up."""
    module = wat(
        """
        (module
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "_start") (local $left i32)
            (local.set $left (i32.const 200))
            (i32.store (i32.const 0) (i32.const 16))
            (i32.store (i32.const 4) (i32.const 8192))
            (loop $next
              (memory.fill (i32.const 16) (local.get $left) (i32.const 8192))
              (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
              (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))
        """
    )
    taken: list[bytes] = []
    ahead: list[int] = []

    async def scenario() -> Report:
        box = Sandbox(PATIENT)

        async def take(piece: bytes) -> None:
            await asyncio.sleep(0)
            taken.append(piece)
            ahead.extend(progress.stdout_bytes - sum(map(len, taken)) for progress in box.monitor().values())

        return await box.run_async(module, on_stdout=take)

    report = asyncio.run(scenario())

    assert report.ok
    assert b"".join(taken) == b"".join(bytes([number]) * 8192 for number in range(200, 0, -1))
    # The ring, what is on its way, and the piece that is being written.
    assert max(ahead) <= (256 << 10) + 33 * 8192


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_what_a_callback_raises_ends_the_run(kind: str) -> None:
    """It reaches whoever awaits, as it is; the guest is stopped, and the loop goes on."""

    class MineError(Exception):
        pass

    def shout(piece: bytes) -> None:
        raise MineError(piece)

    async def shout_later(piece: bytes) -> None:
        await asyncio.sleep(0)
        raise MineError(piece)

    async def scenario() -> None:
        box = Sandbox(PATIENT)
        stdin: asyncio.Queue[bytes | None] = asyncio.Queue()
        stdin.put_nowait(b"word")
        with pytest.raises(MineError, match="word"):
            await box.run_async(ECHO, stdin=stdin, on_stdout=shout if kind == "function" else shout_later)
        assert box.monitor() == {}
        assert (await box.run_async(wat(HELLO))).ok

    asyncio.run(scenario())
    assert live_instances() == 0


def test_what_a_source_raises_ends_the_run() -> None:
    """The same for what gives stdin."""

    async def broken(size: int) -> bytes:
        raise OSError("the line is dead")

    async def scenario() -> None:
        await Sandbox(PATIENT).run_async(ECHO, stdin=broken)

    with pytest.raises(OSError, match="the line is dead"):
        asyncio.run(scenario())
    assert live_instances() == 0


# -- progress ---------------------------------------------------------------------------------------------------------


def test_monitor_sees_counters_grow() -> None:
    """Another thread reads how far a guest is while it runs."""
    module = wat(
        """
        (module
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "_start")
            (i32.store (i32.const 4) (i32.const 10))
            (loop $next
              (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
              (if (i32.lt_u (memory.size) (i32.const 20)) (then (drop (memory.grow (i32.const 1)))))
              (br $next))))
        """
    )
    box = Sandbox(PATIENT.replace(fuel=2**60, wall_time=None))
    thread = threading.Thread(target=lambda: box.run(module, run_id="busy"))
    thread.start()
    seen: list[stockade.Progress] = []

    def has_grown() -> bool:
        seen.extend(box.monitor().values())
        return len(seen) > 5 and seen[-1].memory_bytes == 20 * 65536 and seen[-1].calls > seen[0].calls

    assert until(has_grown)
    assert box.cancel("busy")
    thread.join(60)

    for name in ("seconds", "fuel", "calls", "stdout_bytes", "memory_bytes"):
        values = [getattr(progress, name) for progress in seen]
        assert values == sorted(values)
        assert values[-1] > values[0] or name == "memory_bytes"
    assert seen[-1].memory_bytes == 20 * 65536
    assert box.monitor() == {}


@pytest.mark.parametrize("awaited", [False, True], ids=["waited for", "awaited"])
def test_progress_is_told_while_a_guest_runs(awaited: bool) -> None:
    """At most ten times a second, with growing numbers; also of a guest that imports nothing."""
    told: list[stockade.Progress] = []
    box = Sandbox(PATIENT.replace(fuel=2**60, wall_time=None))

    def take(progress: stockade.Progress) -> None:
        told.append(progress)
        if len(told) == 5:
            box.cancel("it")

    async def scenario() -> Report:
        return await box.run_async(SPIN, on_progress=take, run_id="it")

    report = asyncio.run(scenario()) if awaited else box.run(SPIN, on_progress=take, run_id="it")

    assert report.outcome is Outcome.CANCELLED
    assert told[4].seconds >= 0.4
    fuel = [progress.fuel or 0 for progress in told]
    assert fuel == sorted(fuel)
    assert fuel[-1] > 0


# -- sessions ---------------------------------------------------------------------------------------------------------

COUNTER = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (global $count (mut i32) (i32.const 0))
      (func (export "bump") (result i32)
        (global.set $count (i32.add (global.get $count) (i32.const 1)))
        (global.get $count))
      (func (export "sleep")
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.const 3_600_000_000_000))
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
      (func (export "_initialize") (global.set $count (i32.const 100))))
    """
)


def test_a_session_awaited_keeps_its_state() -> None:
    """A reactor is initialized, calls follow each other, and its memory can be read between them."""

    async def scenario() -> list[object]:
        async with await Sandbox(PATIENT).open_async(COUNTER) as session:
            assert session.initialization is not None
            values = [(await session.call("bump")).value for _ in range(3)]
            session.write_memory(10, b"here")
            assert session.read_memory(10, 4) == b"here"
        with pytest.raises(UsageError, match="the session is closed: open a new one"):
            await session.call("bump")
        return values

    assert asyncio.run(scenario()) == [101, 102, 103]
    assert live_instances() == 0


def test_a_session_awaited_has_one_call_at_a_time() -> None:
    """A second call is told so, and the first one goes on; cancelling it ends the session."""

    async def scenario() -> None:
        async with await Sandbox(PATIENT).open_async(COUNTER) as session:
            asleep = asyncio.create_task(session.call("sleep"))
            await asyncio.sleep(0.1)
            with pytest.raises(UsageError, match="the session is in use"):
                await session.call("bump")
            with pytest.raises(UsageError, match="a call is under way"):
                await session.close()
            asleep.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asleep
            with pytest.raises(UsageError, match="the guest has ended, so the session is over: open a new one"):
                await session.call("bump")

    asyncio.run(scenario())
    assert live_instances() == 0


def test_a_session_awaited_can_be_cancelled_by_itself() -> None:
    """As the other kind: the call under way is reported as cancelled."""

    async def scenario() -> Report:
        async with await Sandbox(PATIENT).open_async(COUNTER) as session:
            asleep = asyncio.create_task(session.call("sleep"))
            await asyncio.sleep(0.1)
            session.cancel()
            return await asleep

    assert asyncio.run(scenario()).outcome is Outcome.CANCELLED


# -- what the caller did wrong ----------------------------------------------------------------------------------------


def test_errors_of_the_caller_are_raised_where_it_awaits(tmp_path: Path) -> None:
    """No such file, no such export, a closed sandbox: before anything runs."""

    async def scenario() -> None:
        box = Sandbox(PATIENT)
        with pytest.raises(stockade.ModuleNotFound):
            await box.run_async(str(tmp_path / "none.wasm"))
        with pytest.raises(stockade.LinkError):
            await box.call_async(SPIN, "eight")
        assert (await box.call_async(SPIN, "seven")).value == 7
        box.close()
        with pytest.raises(UsageError, match="the sandbox is closed"):
            await box.run_async(SPIN)

    asyncio.run(scenario())


def test_two_loops_in_two_threads() -> None:
    """Each gets its own results."""

    async def scenario() -> list[Report]:
        box = Sandbox(PATIENT)
        return await asyncio.gather(*(box.run_async(wat(HELLO)) for _ in range(50)))

    found: list[list[Report]] = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(scenario()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert [[report.stdout for report in reports] for reports in found] == [[b"hello world\n"] * 50] * 2


def test_importing_the_facade_does_not_import_asyncio() -> None:
    """Plain runs do not pay for what only awaited ones need."""
    import subprocess

    code = (
        "import sys, stockade\n"
        "stockade.call(b'(module (func (export \"f\")))', 'f')\n"
        "print([name for name in ('asyncio', 'concurrent.futures', 'wasmtime', 'rich') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout == "[]\n"


def test_a_guest_ends_whose_loop_is_closed() -> None:
    """The attack: a guest without a deadline, whose event loop is closed while it is awaited, computes for ever."""
    box = Sandbox(PATIENT.replace(fuel=None, wall_time=None))
    box.prepare(SPIN)
    loop = asyncio.new_event_loop()
    run = loop.create_task(box.run_async(SPIN))
    loop.run_until_complete(wait_for(lambda: bool(box.monitor())))
    loop.close()

    assert until(lambda: live_instances() == 0 and not box.monitor())
    # It is pending for ever, as tasks of a closed loop are.
    run._log_destroy_pending = False  # type: ignore[attr-defined]
