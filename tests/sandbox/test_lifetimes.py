"""What a run takes is owned by one, used by one, and given back once, whatever is cancelled, dropped or interrupted.

Holds P-RUN-2.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Outcome, Policy, Report, Sandbox
from stockade._bell import start_thread
from stockade.engine import _ticker
from stockade.engine._ticker import Ticker
from stockade.execution import Call, Inputs, PolicyContext
from stockade.execution.loop_streams import LoopStreams
from stockade.guard._state import State
from stockade.host import HostFunctions
from stockade.runner import FOREVER, GO_ON, RunControl, WorkItem, executor
from tests._processes import live_guests, live_instances, until
from tests.conftest import HELLO, wat
from tests.sandbox.test_async import ECHO, SLEEPER, SPIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.execution import OpenGuest
    from stockade.runner import RunCoroutine

pytestmark = pytest.mark.usefixtures("everywhere")

PATIENT = Policy().replace(wall_time=30.0, fuel=None)

HELD = wat(
    '(module (import "env" "hold" (func $hold)) (func (export "f") (call $hold)) (func (export "_start") (call $hold)))'
)


class _Hold:
    """A function for guests that returns when it may: until then its guest is polled."""

    def __init__(self, box: Sandbox) -> None:
        self.entered, self.may_leave = threading.Event(), threading.Event()
        box.host_function("env", "hold")(self.hold)

    def hold(self) -> None:
        self.entered.set()
        assert self.may_leave.wait(30)

    async def until_entered(self) -> None:
        while not self.entered.is_set():
            await asyncio.sleep(0.001)


# -- cancelling again -------------------------------------------------------------------------------------------------


async def cancel_often(task: asyncio.Task[Report]) -> None:
    """Cancels a task again and again, with turns of the loop between."""
    for _ in range(5):
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.mark.parametrize("times", [1, 5])
def test_a_session_is_its_guests_until_that_has_halted(times: int) -> None:
    """The attack: a task that awaits a call is cancelled again while the guest is still in the first cancellation. The
    session was free for others then, and to close it freed a store that was in use.
    """

    async def scenario() -> None:
        box = Sandbox(PATIENT)
        hold = _Hold(box)
        session = await box.open_async(HELD)
        task = asyncio.create_task(session.call("f"))
        await hold.until_entered()
        try:
            for _ in range(times):
                await cancel_often(task)
            assert not task.done()
            for use in (session.close, lambda: session.call("f")):
                with pytest.raises(stockade.UsageError):
                    await use()
            with pytest.raises(stockade.UsageError):
                session.read_memory(0, 1)
        finally:
            hold.may_leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await session.close()

    asyncio.run(scenario())
    assert until(lambda: live_guests() == 0)


def test_two_timeouts_around_a_call() -> None:
    """As it comes about: one timeout around another, both of which pass while the guest is halting."""

    async def scenario() -> None:
        box = Sandbox(PATIENT)
        hold = _Hold(box)
        async with await box.open_async(HELD) as session:
            asyncio.get_running_loop().call_later(0.1, hold.may_leave.set)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02), asyncio.timeout(0.01):
                    await session.call("f")
            # The guest has halted: the session may be closed.
            assert hold.may_leave.is_set() or not hold.entered.is_set()

    asyncio.run(scenario())
    assert until(lambda: live_guests() == 0)


@pytest.mark.parametrize("kind", ["run", "call"])
def test_a_run_is_on_the_list_until_its_guest_has_halted(kind: str) -> None:
    """However often its task is cancelled, no guest goes on that `monitor` does not show and `cancel` does not find."""

    async def scenario() -> None:
        box = Sandbox(PATIENT)
        hold = _Hold(box)
        run = box.run_async(HELD, run_id="r") if kind == "run" else box.call_async(HELD, "f", run_id="r")
        task = asyncio.create_task(run)
        await hold.until_entered()
        try:
            await cancel_often(task)
            assert not task.done()
            assert list(box.monitor()) == ["r"]
            assert box.cancel("r")
        finally:
            hold.may_leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert box.monitor() == {}

    asyncio.run(scenario())
    assert until(lambda: live_guests() == 0)


def test_a_loop_that_is_dropped_leaves_the_session_to_its_guest() -> None:
    """The attack: a loop that stops and is never run again: what awaits the call goes, while its guest is polled."""
    box = Sandbox(PATIENT)
    hold = _Hold(box)
    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(box.open_async(HELD))
    call = session.call("f")

    async def begin() -> None:
        task.append(asyncio.ensure_future(call))
        await hold.until_entered()

    task: list[asyncio.Future[Report]] = []
    loop.run_until_complete(begin())
    try:
        call.close()
        with pytest.raises(stockade.UsageError):
            session.read_memory(0, 1)
    finally:
        hold.may_leave.set()
    deadline = time.monotonic() + 10
    while session._occupancy.holder is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    loop.run_until_complete(session.close())
    task[0]._log_destroy_pending = False  # type: ignore[attr-defined]
    task.clear()
    loop.close()
    assert until(lambda: live_guests() == 0)


def test_a_loop_that_is_never_run_again_is_let_go_of_with_what_was_for_it() -> None:
    """The attack: results come for a loop that has stopped. They know the loop, so it was kept by them for ever."""
    box = Sandbox(PATIENT)
    hold = _Hold(box)
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        task.append(asyncio.ensure_future(box.call_async(HELD, "f")))
        await hold.until_entered()

    task: list[asyncio.Future[Report]] = []
    loop.run_until_complete(begin())
    task.pop()._log_destroy_pending = False  # type: ignore[attr-defined]
    hold.may_leave.set()
    assert until(lambda: live_guests() == 0)
    gone = weakref.ref(loop)
    loop.close()
    del loop

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    assert until(is_gone, 10)


def test_no_cancellation_of_a_call_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: to cancel a session in the moment in which a call has begun and its guest has not."""
    box = Sandbox(PATIENT.replace(wall_time=5.0))
    with box.open(SPIN) as session:

        def ended(guest: OpenGuest) -> bool:
            session.cancel()
            return False

        with monkeypatch.context() as patch:
            patch.setattr(type(session._guest), "ended", property(ended))
            assert session.call("seven").outcome is Outcome.CANCELLED


def test_the_end_of_one_call_does_not_take_the_wakeups_of_the_next() -> None:
    """The attack: the next call of a session begins in the moment in which the last one lets go of it."""
    control, results = RunControl(), []  # type: ignore[var-annotated]
    asleep, over = threading.Event(), threading.Event()

    def done(result: object, problem: BaseException | None) -> None:
        results.append(problem or result)
        if len(results) == 2:
            over.set()

    def second() -> RunCoroutine[str]:
        asleep.set()
        yield FOREVER
        return "woken"

    def first() -> RunCoroutine[str]:
        try:
            yield GO_ON
            return "over"
        finally:
            executor().begin(WorkItem(second(), control, done, 50, ""))

    executor().begin(WorkItem(first(), control, done, 50, ""))
    assert asleep.wait(30)
    control.wake()
    assert over.wait(30)
    assert sorted(results) == ["over", "woken"]


# -- the thread that ticks --------------------------------------------------------------------------------------------


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it so that no thread can be started."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


NO_TICKER = (
    "no thread can be started to look at deadlines, and without it no guest runs: the process or the system has as "
    "many as it may (can't start new thread). Run fewer at once, or raise the limit (ulimit -u)"
)


def test_a_ticker_that_could_not_start_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that cannot be had once is no end of deadlines: who enters is told, and the next one tries again."""
    ticked = threading.Event()
    ticker = Ticker(ticked.set)
    with monkeypatch.context() as patch:
        no_threads(patch)
        for _ in range(2):
            with pytest.raises(stockade.EngineError) as caught:
                ticker.enter(self := object())
            ticker.running.pop(self, None)
            assert str(caught.value) == NO_TICKER
    ticker.enter(ticker)
    assert ticked.wait(30)
    ticker.running.pop(ticker, None)


def test_nobody_relies_on_a_ticker_that_is_about_to_fail_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a run begins while another one finds that there is no thread, and would have no deadline."""
    ticked, entered = threading.Event(), threading.Event()
    ticker = Ticker(ticked.set)

    def second() -> None:
        ticker.enter(ticker)
        entered.set()

    other = threading.Thread(target=second)

    def fail(thread: threading.Thread) -> None:
        monkeypatch.undo()
        other.start()
        # It comes as far as it does.
        entered.wait(0.1)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_ticker, "start_thread", fail)
    with pytest.raises(stockade.EngineError):
        ticker.enter(self := object())
    ticker.running.pop(self, None)
    other.join()
    assert ticked.wait(30)
    ticker.running.pop(ticker, None)


def test_a_ticker_that_stays_rests_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the thread does not end, it does nothing while nothing runs, and each run that comes has its ticks."""
    monkeypatch.setattr(_ticker, "TICK_SECONDS", 0.001)
    ticked = threading.Event()
    ticker = Ticker(ticked.set)
    ticker.stay()
    thread = ticker._thread
    for _ in range(3):
        assert until(lambda: ticker._rests)
        assert not ticked.is_set()
        ticker.enter(ticker)
        assert ticked.wait(30)
        ticker.running.pop(ticker, None)
        assert until(lambda: ticker._rests)
        ticked.clear()
    assert ticker._thread is thread
    # It ends as those do that do not stay.
    ticker._rest, rest = None, ticker._rest
    assert rest is not None
    rest.ring()
    assert until(lambda: ticker._thread is None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_ticker_whose_thread_fails_goes_on() -> None:
    """What a tick raises ends its thread, and no run's deadline: another thread takes over at once."""
    ticked = threading.Event()
    failed: list[threading.Thread] = []

    def tick() -> None:
        if failed:
            ticked.set()
        else:
            failed.append(threading.current_thread())
            raise MemoryError

    ticker = Ticker(tick)
    ticker.enter(ticker)
    assert ticked.wait(30)
    ticker.running.pop(ticker, None)
    # What it raised is told of when it has ended, which is to be in this test.
    failed[0].join()


def test_what_a_handler_raises_while_a_thread_starts_is_raised_as_it_is() -> None:
    """The attack: an alarm while `Thread.start` waits for a thread that runs already: Python tells of a KeyError."""

    class AlarmError(Exception):
        pass

    class Interrupted(threading.Thread):
        def start(self) -> None:
            try:
                raise AlarmError
            except AlarmError:
                raise KeyError(self) from None

    with pytest.raises(AlarmError):
        start_thread(Interrupted())
    started = threading.Event()
    start_thread(threading.Thread(target=started.set))
    assert started.wait(30)


@pytest.mark.differs("workers have tickers of their own")
def test_a_run_without_a_ticker_is_refused_and_the_next_one_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for runs: none goes on that nothing would stop."""
    box = Sandbox(PATIENT.replace(wall_time=0.2, stack=100_000))
    loaded = box.prepare(SPIN)
    deadline = time.monotonic() + 30
    while any(thread.name == "stockade-ticker" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with monkeypatch.context() as patch:
        no_threads(patch)
        with pytest.raises(stockade.EngineError) as caught:
            box.run(loaded)
        assert str(caught.value) == NO_TICKER
    assert until(lambda: live_guests() == 0)
    assert box.run(loaded).outcome is Outcome.TIMEOUT


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_ticker_ends_when_nothing_runs(interrupted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that came to run although its start was interrupted."""
    monkeypatch.setattr(_ticker, "TICK_SECONDS", 0.001)
    ticker = Ticker(lambda: None)
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def start_and_raise(self: threading.Thread) -> None:
        started.append(self)
        start(self)
        if interrupted:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_and_raise)
        try:
            ticker.enter(ticker)
        except KeyboardInterrupt:
            assert interrupted
        ticker.running.pop(ticker, None)
    started[0].join(30)
    assert not started[0].is_alive()


# -- output that nobody takes -----------------------------------------------------------------------------------------

CHATTY = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "_start") (local $left i32)
        (local.set $left (i32.const 500))
        (i32.store (i32.const 0) (i32.const 16))
        (i32.store (i32.const 4) (i32.const 4096))
        (loop $next
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))
    """
)


@pytest.mark.parametrize("module", [wat(HELLO), CHATTY], ids=["all written", "more to write"])
def test_a_deadline_holds_while_output_is_not_taken(module: stockade.Module) -> None:
    """The attack: a guest writes, and a peer of the host does not read: runs without number were kept for ever."""

    async def never(piece: bytes) -> None:
        await asyncio.Event().wait()

    async def scenario() -> list[Report]:
        box = Sandbox(PATIENT.replace(wall_time=0.3))
        box.prepare(module)
        return await asyncio.wait_for(
            asyncio.gather(*(box.run_async(module, on_stdout=never) for _ in range(50))), timeout=60
        )

    assert {report.outcome for report in asyncio.run(scenario())} == {Outcome.TIMEOUT}
    assert until(lambda: live_guests() == 0)


def test_output_that_is_taken_in_time_is_taken_whole() -> None:
    """The twin: a slow taker gets all of it, and the run has the outcome that it came to."""
    taken: list[bytes] = []

    async def slowly(piece: bytes) -> None:
        await asyncio.sleep(0)
        taken.append(piece)

    report = asyncio.run(Sandbox(PATIENT).run_async(CHATTY, on_stdout=slowly))
    assert report.ok
    assert len(b"".join(taken)) == report.usage.stdout_bytes == 500 * 4096


def test_a_cancelled_run_whose_output_is_not_taken_says_so() -> None:
    """Cancelled by its name in its last wait."""

    async def scenario() -> Report:
        box = Sandbox(PATIENT)
        reached = asyncio.Event()

        async def never(piece: bytes) -> None:
            reached.set()
            await asyncio.Event().wait()

        run = asyncio.create_task(box.run_async(wat(HELLO), on_stdout=never, run_id="r"))
        await reached.wait()
        assert box.cancel("r")
        return await asyncio.wait_for(run, timeout=60)

    assert asyncio.run(scenario()).outcome is Outcome.CANCELLED
    assert until(lambda: live_guests() == 0)


def test_each_piece_of_output_is_delivered_once_and_after_the_one_before() -> None:
    """The attack: more output comes when a coroutine has just taken the last of it: it was called twice."""
    under_way, most, taken = 0, 0, []  # type: ignore[var-annotated]

    async def take(piece: bytes) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        taken.append(piece)

    async def scenario() -> None:
        control = RunControl()
        streams = LoopStreams(Inputs(on_stdout=take), control)
        give = streams._stdout
        assert give is not None
        left = iter(range(1, 100))

        def more() -> None:
            for number in left:
                give(b"%d" % number)
                return

        control.on_wake = more
        give(b"0")
        while len(taken) < 100:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        streams.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert taken == [b"%d" % number for number in range(100)]
    assert most == 1


# -- CancelledError as an error of a callback -------------------------------------------------------------------------


def _cancelled(piece: object = None) -> None:
    raise asyncio.CancelledError


async def _cancelled_later(piece: object = None) -> bytes:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("options", "who"),
    [
        ({"on_stdout": _cancelled}, "the callback on_stdout"),
        ({"on_stdout": _cancelled_later}, "the callback on_stdout"),
        ({"stdin": _cancelled_later}, "the callback stdin"),
        ({"stdin": _cancelled}, "a callback or a host function"),
    ],
)
def test_a_callback_does_not_cancel_the_task_that_awaits(options: dict[str, Callable[..., object]], who: str) -> None:
    """What a callback raises ends the run by its name: CancelledError ended the task without a word."""

    async def scenario() -> None:
        given = {"stdin": b"word", **options}
        with pytest.raises(stockade.UsageError) as caught:
            await Sandbox(PATIENT).run_async(ECHO, **given)  # type: ignore[arg-type]
        assert str(caught.value) == (
            f"{who} raised CancelledError, which ended the run; it is no way to cancel the task that awaits the run. "
            "Stop a run with Sandbox.cancel, or by cancelling its task"
        )

    asyncio.run(scenario())
    assert until(lambda: live_guests() == 0)


def test_a_host_function_does_not_cancel_the_task_that_awaits() -> None:
    """The same for what guests call."""

    async def scenario() -> None:
        box = Sandbox(PATIENT)
        box.host_function("env", "hold")(_cancelled_now)
        with pytest.raises(stockade.UsageError, match="a callback or a host function raised CancelledError"):
            await box.call_async(HELD, "f")

    asyncio.run(scenario())
    assert until(lambda: live_guests() == 0)


def _cancelled_now() -> None:
    raise asyncio.CancelledError


# -- what is dropped --------------------------------------------------------------------------------------------------


def test_a_session_that_is_dropped_is_freed_and_told_about() -> None:
    """As with files: what nobody can close any more is closed, with a warning."""
    session = Sandbox(PATIENT).open(SPIN)
    assert session.call("seven").value == 7
    assert live_guests() == 1
    with pytest.warns(ResourceWarning) as told:  # noqa: PT031
        del session
        gc.collect()
    assert [str(warning.message) for warning in told] == [f"unclosed session <Session {SPIN.name}>"]
    # The warning keeps what it is about.
    del told
    assert until(lambda: live_guests() == 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_session_that_is_dropped_in_a_cycle_and_by_another_thread_is_freed() -> None:
    """The cyclic collector runs wherever it likes, also in a thread that runs another guest."""

    def drop() -> None:
        session = Sandbox(PATIENT).open(SLEEPER)
        assert session.call("sleep", 1).ok
        session.itself = session  # type: ignore[attr-defined]

    drop()
    assert live_guests() == 1
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    assert until(lambda: live_guests() == 0)


@pytest.mark.differs("it is about the memory of a guest in this process")
def test_a_generator_in_a_cycle_ends_before_the_store_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: steps that wait are dropped in a cycle with their guest. In its farewell, the generator counts how
    long the guest has waited, in the guest's memory: that was gone if the collector came to the store first.
    """
    seen: list[int] = []
    add_idle = State.add_idle

    def add_idle_and_look(state: State, seconds: float) -> None:
        seen.append(live_instances())
        add_idle(state, seconds)

    monkeypatch.setattr(State, "add_idle", add_idle_and_look)
    context = PolicyContext(PATIENT, HostFunctions())
    for first in (False, True):
        control = RunControl()
        guest = context.guest(SLEEPER, control)
        steps = guest.invoke(Call(SLEEPER.command_entry), command=True)
        while not next(steps) > 0:
            pass
        control.progress = guest.progress
        cycle: list[object] = [steps, guest] if first else [guest, steps]
        cycle.append(cycle)
        del guest, steps, cycle, control
        gc.collect()

    def freed() -> bool:
        # What a finalizer has looked at may be freed by the next collection only.
        gc.collect()
        return live_instances() == 0

    assert seen == [1, 1]
    assert until(freed)


def test_an_awaited_session_that_is_dropped_is_freed_with_what_reads_for_it() -> None:
    """Neither its instance nor the task that waits for its input is left."""

    async def scenario() -> None:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        session = await Sandbox(PATIENT.replace(wall_time=0.1)).open_async(ECHO, stdin=queue)
        assert (await session.call("_start")).outcome is Outcome.TIMEOUT
        assert len(asyncio.all_tasks()) == 2
        with pytest.warns(ResourceWarning, match="unclosed session <AsyncSession"):  # noqa: PT031
            del session
            gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())
    assert until(lambda: live_guests() == 0)


def test_a_session_is_not_freed_while_its_guest_is_polled() -> None:
    """The twin: dropped by everybody but its own call, it goes on."""
    box = Sandbox(PATIENT)
    hold = _Hold(box)
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(box.open(HELD).call("f").outcome))
    with pytest.warns(ResourceWarning, match="unclosed session"):  # noqa: PT031
        thread.start()
        assert hold.entered.wait(30)
        gc.collect()
        assert live_guests() == 1
        hold.may_leave.set()
        thread.join(30)
        gc.collect()
    assert outcomes == [Outcome.OK]
    assert until(lambda: live_guests() == 0)


def test_closed_sessions_are_not_told_about() -> None:
    """The twin: nothing is said of what was closed, or never was opened."""
    with Sandbox(PATIENT).open(SPIN) as session:
        assert session.call("seven").ok
    del session
    gc.collect()


# -- handlers of signals that raise -----------------------------------------------------------------------------------

ALARMS = """
import gc, random, signal, sys, threading, warnings
warnings.simplefilter("ignore", ResourceWarning)
import stockade
from stockade.engine import Engine

class Alarm(Exception):
    pass

heard, armed = 0, False
def raise_it(*_):
    global heard
    if armed:
        heard += 1
        raise Alarm

sys.unraisablehook = lambda *_: None
box = stockade.Sandbox(stockade.Policy().replace(wall_time=5.0, fuel=None))
module = stockade.Module.load(b'''(module
  (import "env" "f" (func $f (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "g") (result i32) (call $f))
  (func (export "_start")
    (drop (call $f))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))''', text=True)
@box.host_function("env", "f")
def f() -> int:
    return 7

box.prepare(module)
box.call(module, "g")
chance = random.Random(7)

def once():
    if chance.random() < 0.5:
        box.run(module, on_stdout=lambda _: None if chance.random() < 0.5 else 1)
    else:
        with box.open(module) as session:
            session.call("g")

signal.signal(signal.SIGALRM, raise_it)
MOST = int(sys.argv[1])
while heard < MOST:
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.0003 + 0.000001)
        once()
        armed = False
    except Alarm:
        armed = False
    except stockade.UsageError:
        # The session whose call was interrupted.
        armed = False
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
gc.collect()
print(sum(engine.live_instances for engine in Engine._engines.values()),
      sum(len(engine.ticker.running) for engine in Engine._engines.values()),
      Engine._descriptors.taken, __import__("stockade.engine._callbacks", fromlist=["x"]).running.innermost)
"""


def test_a_handler_that_raises_anywhere_leaks_nothing() -> None:
    """The attack: alarms at any moment of runs and sessions, whose handler raises. Whatever was begun is given back."""
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", ALARMS, "3000"], capture_output=True, text=True, timeout=100
    )
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "0 0 0 [None]\n")


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_that_are_given_and_names_that_are_not_never_meet() -> None:
    """The attack: a task that is called as the next run without a name would be, so that the latter fails."""
    with Sandbox(PATIENT) as box, stockade.Scheduler(box) as scheduler:
        jobs = [scheduler.submit(stockade.Task(module=SPIN, id=str(number))) for number in range(1, 9)]  # type: ignore[arg-type]
        while len(box._registry.runs) < 8:
            time.sleep(0.001)
        assert box.call(SPIN, "seven").ok
        for name in ("#1", "#7", "#1234567"):
            with pytest.raises(stockade.UsageError) as caught:
                box.call(SPIN, "seven", run_id=name)
            assert str(caught.value) == f"a run cannot be called {name}: names of # and a number are reserved"
        assert box.call(SPIN, "seven", run_id="#x").ok
        for job in jobs:
            job.cancel()


# -- many ends --------------------------------------------------------------------------------------------------------


def test_what_is_cancelled_at_any_moment_is_told_as_it_was() -> None:
    """A small number of what the benchmark does with 10,000: reports say what was written, and nothing is left."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "cancelled"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "STOCKADE_BENCH_CANCELS": "100"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "100 writers cancelled" in done.stdout
