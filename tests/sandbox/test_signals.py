"""Handlers of signals come between any two lines of the main thread: what they cancel, close or look at does not hang.

A tracing function stands for the handler, so that each line has its turn. Handlers that raise are real ones.

Holds P-RUN-5.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import stockade
from stockade import Outcome, Pipe, Policy, Sandbox, Scheduler, SessionPool, StockadeError, Task
from stockade.runner import _executor
from stockade.runner._executor import Executor
from stockade.sandbox._registry import UnderWay
from tests._examples import examples
from tests._processes import live_guests, until
from tests.conftest import HELLO, isolation_here, wat
from tests.sandbox.test_async import ECHO, SLEEPER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

pytestmark = pytest.mark.usefixtures("everywhere")

_SOURCE = str(Path(stockade.__file__).parent)
_WHOLE = frozenset({"Engine._count_dismissed", "Engine.admit", "Owner.__del__", "Store.free"})
"""Functions that are written so that Python looks for no signals between lines that belong together."""

_TIMES = max(20, examples(100))
"""Lines of each operation that a handler comes after."""

_SHARES = 5
"""Tests that they are divided among, evenly: `make test` leaves out all but the first."""

_SMALL = wat(HELLO)
_LENDING = wat('(module (import "env" "f" (func $f (result i32))) (func (export "g") (result i32) (call $f)))')


class Everything:
    """What handlers find: a sandbox, and what is under way in it."""

    def __init__(self) -> None:
        self.box = Sandbox(Policy().replace(wall_time=10.0, fuel=None))
        self.box.host_function("env", "f")(self.lent)
        self.scheduler = Scheduler(self.box, concurrency=2)
        self.pool: SessionPool | None = None
        self.sessions: list[stockade.Session] = []
        self.jobs: list[stockade.TaskHandle] = []
        self.pipe = Pipe()

    def lent(self) -> int:
        return 7

    def end(self) -> None:
        self.pipe.close()
        if self.pool is not None:
            self.pool.close()
        for session in self.sessions:
            session.close()
        self.scheduler.close(cancel=True)
        self.box.close()


# -- what is interrupted ----------------------------------------------------------------------------------------------


def run(all_: Everything) -> None:
    all_.box.run(_SMALL, policy=Policy().replace(wall_time=5.0), on_stdout=len)


def sleep(all_: Everything) -> None:
    all_.box.call(SLEEPER, "sleep", 1, run_id="sleeper")


def read(all_: Everything) -> None:
    all_.pipe.write(b"word")
    all_.pipe.close()
    all_.box.run(ECHO, stdin=all_.pipe)


def session(all_: Everything) -> None:
    with all_.box.open(SLEEPER) as opened:
        all_.sessions.append(opened)
        opened.call("sleep", 1)


def lend(all_: Everything) -> None:
    all_.box.call(_LENDING, "g")


def submit(all_: Everything) -> None:
    for tenant in "aab":
        all_.jobs.append(all_.scheduler.submit(Task(module=_SMALL, tenant=tenant)))  # type: ignore[arg-type]
        all_.jobs[-1].on_done(lambda job: None)
    for job in all_.jobs:
        job.result(20)
    all_.jobs[-1].cancel()
    all_.scheduler.close()


def lease(all_: Everything) -> None:
    all_.pool = SessionPool(all_.box, _SMALL, size=1)
    with all_.pool.lease() as leased:
        leased.call("_start")
    all_.pool.close()


def await_(all_: Everything) -> None:
    async def both() -> None:
        await asyncio.gather(
            all_.box.run_async(_SMALL, on_stdout=len), all_.box.call_async(SLEEPER, "sleep", 1, tenant="x")
        )

    asyncio.run(both())


OPERATIONS = (run, sleep, read, session, lend, submit, lease, await_)


# -- what handlers do -------------------------------------------------------------------------------------------------


def monitor(all_: Everything) -> None:
    all_.box.monitor()
    assert all_.scheduler.running + all_.scheduler.waiting >= 0


def cancel(all_: Everything) -> None:
    for name in ("sleeper", *all_.box._registry.runs):
        all_.box.cancel(name)
    for opened in all_.sessions:
        opened.cancel()
    for job in all_.jobs:
        job.cancel()
    all_.scheduler.cancel_all()


def close(all_: Everything) -> None:
    for opened in all_.sessions:
        with suppress(StockadeError):
            opened.close()
    if all_.pool is not None:
        all_.pool.close()
    all_.pipe.close()
    all_.box.close()


def close_the_scheduler(all_: Everything) -> None:
    all_.scheduler.close(cancel=True)


def run_another(all_: Everything) -> None:
    with suppress(StockadeError):
        assert all_.box.call(SLEEPER, "sleep", 0).ok
        all_.box.run(_SMALL, policy=Policy().replace(wall_time=4.0))


HANDLERS = (monitor, cancel, close, close_the_scheduler, run_another)


def interrupted(operation: Callable[[], object], handler: Callable[[], object], at: int) -> int:
    """Calls something, and a handler before the line of that number; returns how many lines there were."""
    count = 0

    def begins(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        return line if code.co_filename.startswith(_SOURCE) and code.co_qualname not in _WHOLE else None

    def line(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count == at:
                handler()
        return line

    before = sys.gettrace()
    sys.settrace(begins)
    try:
        operation()
    except StockadeError:
        pass  # It was closed.
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "shares", [range(1), pytest.param(range(1, _SHARES), marks=pytest.mark.slow)], ids=["some", "others"]
)
@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_handlers_come_between_any_two_lines(
    operation: Callable[[Everything], None], handler: Callable[[Everything], None], shares: Sequence[int]
) -> None:
    """The attack: a handler takes a lock that the thread it has interrupted holds, and waits for it for ever."""
    if handler is run_another and isolation_here() != "inprocess":
        pytest.skip("known: the thread that hears workers may wait for a lock of the executor's that was interrupted")

    def once(at: int) -> int:
        all_ = Everything()
        try:
            return interrupted(lambda: operation(all_), lambda: handler(all_), at)
        finally:
            all_.end()

    # Workers of other tests may be there.
    before = live_guests()
    once(0)
    lines = once(0)
    assert lines > 20
    for number in (number for share in shares for number in range(share, _TIMES, _SHARES)):
        once(1 + (number * lines) // _TIMES)
    gc.collect()
    # The thread of a pool may just be closing what it has opened for nobody.
    assert until(lambda: live_guests() <= before)


def close_the_sandbox(all_: Everything) -> None:
    all_.box.close()


@pytest.mark.parametrize("handler", [close_the_scheduler, close_the_sandbox], ids=lambda handler: handler.__name__)
def test_a_task_that_is_taken_on_meanwhile_ends_with_all_others(
    handler: Callable[[Everything], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: a handler stops everything and closes, before it can find the task that it has interrupted, or in the
    middle of what those need that are to end.
    """
    monkeypatch.setattr(_executor, "_LINGER_SECONDS", 0.01)
    lines = at = 1
    while at <= lines:
        # One that has no thread yet.
        monkeypatch.setattr(_executor, "_executor", Executor())
        all_ = Everything()
        jobs = [all_.scheduler.submit(Task(module=SLEEPER))]
        lines = interrupted(
            lambda: jobs.append(all_.scheduler.submit(Task(module=SLEEPER))),  # noqa: B023 - called here
            lambda: handler(all_),  # noqa: B023
            at,
        )
        all_.end()
        assert {job.task_result().outcome for job in jobs} <= {Outcome.CANCELLED, None}
        at += 1
    assert lines > 20


def test_a_run_that_never_came_to_be_on_the_list_is_dropped() -> None:
    """A handler that raises while it is made leaves it half done; what is raised where it is dropped fails tests."""
    half_done = UnderWay.__new__(UnderWay)
    del half_done
    gc.collect()


ALARMS = """
import asyncio, faulthandler, gc, random, signal, sys, time, warnings
faulthandler.dump_traceback_later(80, exit=True)
warnings.simplefilter("ignore", ResourceWarning)
import stockade
from stockade.engine import Engine
from tests.conftest import HELLO, wat
from tests.sandbox.test_async import SLEEPER

class Alarm(Exception):
    pass

small = wat(HELLO)
sys.unraisablehook = lambda *_: None
# Without any limit of time, so that nothing but a wakeup ends those who sleep.
box = stockade.Sandbox(stockade.Policy().replace(wall_time=None, fuel=None), sys.argv[2])
box.prepare(small), box.prepare(SLEEPER)
chance = random.Random(11)
heard, armed, jobs = 0, False, []
scheduler = stockade.Scheduler(box, concurrency=2)

def handler(*_):
    global heard
    if not armed:
        return
    heard += 1
    what = chance.randrange(5)
    if what == 0:
        raise Alarm
    if what == 1:
        box.monitor()
    for job in jobs:
        job.cancel()
    for name in tuple(box._registry.runs):
        box.cancel(name)
    if what == 2:
        scheduler.cancel_all()
        raise Alarm
    if what == 3:
        # Also those that are just taken on, of which nobody has a handle yet.
        scheduler.cancel_all()
        scheduler.close()

def once():
    kind = chance.randrange(4)
    if kind == 0:
        box.call(SLEEPER, "sleep", 1)
    elif kind == 1:
        jobs.append(scheduler.submit(stockade.Task(module=small, tenant=chance.choice("ab"))))
        jobs[-1].on_done(lambda job: None)
        jobs.append(scheduler.submit(stockade.Task(module=SLEEPER, tenant=chance.choice("ab"))))
        jobs[0].wait(0.001)
    elif kind == 2:
        with box.open(SLEEPER) as session:
            session.call("sleep", 1)
    else:
        with stockade.SessionPool(box, small, size=1) as pool, pool.lease() as session:
            session.call("_start")

signal.signal(signal.SIGALRM, handler)
MOST = int(sys.argv[1])
while heard < MOST:
    armed = True
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.random() * float(sys.argv[3]) + 0.000001)
        once()
        armed = False
    except (Alarm, stockade.StockadeError):
        armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    if scheduler._closed or not chance.randrange(20):
        scheduler.close(cancel=True)
        assert not scheduler._unfinished and not scheduler.running and not scheduler.waiting
        assert all(job.done for job in jobs)
        scheduler, jobs = stockade.Scheduler(box, concurrency=2), []
signal.signal(signal.SIGALRM, signal.SIG_IGN)
scheduler.close(cancel=True)
jobs.clear()
end = time.monotonic() + 20
while True:
    gc.collect()
    alive = sum(engine.live_instances for engine in Engine._engines.values())
    left = (alive, len(box._registry.runs), Engine._descriptors.taken)
    if not any(left) or time.monotonic() > end:
        break
    time.sleep(0.01)
print(*left)
"""


@pytest.mark.parametrize("alarms", [examples(300), pytest.param(1500, marks=pytest.mark.slow)])
def test_real_signals_hang_and_leak_nothing(alarms: int) -> None:
    """The attack: alarms at any moment, whose handlers cancel, close, look and raise."""
    isolation = isolation_here()
    within = "0.0015" if isolation == "inprocess" else "0.008"
    alarms = alarms if isolation == "inprocess" else min(alarms, 300)
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", ALARMS, str(alarms), isolation, within],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "0 0 0\n")
