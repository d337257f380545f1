"""Real guests, real threads, real signals, for minutes: `make stress`.

Threads, tasks, sessions, pools, schedulers and forks share one process, cancel each other, drop what they have and are
interrupted. In the end nothing is left: instances, threads, names, descriptors and memory maps are counted.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockade import EngineError, Outcome, Pipe, Policy, Sandbox, Scheduler, SessionPool, StockadeError, Task
from stockade.engine import Engine
from stockade.engine._fork_gate import others_were_inside
from tests._processes import fork
from tests.conftest import HELLO, wat
from tests.sandbox.test_async import ECHO, SLEEPER, SPIN

if TYPE_CHECKING:
    from collections.abc import Callable

_HANG_SECONDS = 60
_REFUSED = 3
"""How a child ends that was forked while a thread was in the engine for too long."""

_done: dict[str, int] = {}


class _AlarmError(Exception):
    """What the handler of the signal raises."""


_HOST = wat('(module (import "env" "f" (func $f (result i32))) (func (export "g") (result i32) (call $f)))')
_POLICIES = (
    Policy().replace(wall_time=0.5, fuel=None),
    Policy().replace(wall_time=0.5),
    Policy().replace(wall_time=0.05, fuel=None),
    Policy().replace(wall_time=0.3, cpu_percent=40),
)


def _boxes() -> list[Sandbox]:
    boxes = [Sandbox(policy) for policy in _POLICIES]
    for box in boxes:
        box.host_function("env", "f")(_seven)
        for module in (SLEEPER, SPIN, ECHO, wat(HELLO), _HOST):
            box.prepare(module)
    return boxes


def _seven() -> int:
    if random.random() < 0.05:
        raise ValueError("now and then")
    return 7


_HELLO = wat(HELLO)


def _count(what: str) -> None:
    _done[what] = _done.get(what, 0) + 1


def _runs(chance: random.Random, boxes: list[Sandbox]) -> None:
    box = chance.choice(boxes)
    if chance.random() < 0.5:
        with Pipe() as pipe:
            pipe.write(b"word")
            timer = threading.Timer(chance.random() * 0.02, pipe.close)
            timer.start()
            report = box.run(ECHO, stdin=pipe, on_stdout=lambda _: None)
            timer.join()
            assert report.outcome in ("ok", "timeout", "cancelled"), report.outcome
            assert not report.ok or report.stdout == b"word"
    else:
        box.run(chance.choice((SPIN, SLEEPER, _HELLO)))


def _cancels(chance: random.Random, boxes: list[Sandbox]) -> None:
    box = chance.choice(boxes)
    for name in box.monitor():
        if chance.random() < 0.3:
            box.cancel(name)
    time.sleep(0.005)


def _sessions(chance: random.Random, boxes: list[Sandbox]) -> None:
    session = chance.choice(boxes).open(SLEEPER)
    rival = threading.Thread(target=lambda: (time.sleep(chance.random() * 0.01), session.cancel()))
    rival.start()
    try:
        for _ in range(3):
            with suppress(StockadeError):
                session.call("sleep", chance.randrange(10))
    finally:
        rival.join()
        if chance.random() < 0.7:
            session.close()


def _pools(chance: random.Random, boxes: list[Sandbox]) -> None:
    with SessionPool(chance.choice(boxes), _HOST, size=2) as pool:
        for _ in range(4):
            with suppress(StockadeError), pool.lease() as session:
                session.call("g")


def _schedulers(chance: random.Random, boxes: list[Sandbox]) -> None:
    with Scheduler(chance.choice(boxes), concurrency=4) as scheduler:
        jobs = [
            scheduler.submit(Task(module=chance.choice((SPIN, SLEEPER, _HELLO)), tenant=chance.choice("ab")))  # type: ignore[arg-type]
            for _ in range(8)
        ]
        for job in jobs:
            if chance.random() < 0.5:
                job.cancel()
    assert all(job.done for job in jobs)


def _loops(chance: random.Random, boxes: list[Sandbox]) -> None:
    async def never(piece: bytes) -> None:
        await asyncio.sleep(3600)

    async def taken(piece: bytes) -> None:
        await asyncio.sleep(0)

    async def one() -> None:
        box = chance.choice(boxes)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        asyncio.get_running_loop().call_later(chance.random() * 0.02, queue.put_nowait, b"word")
        asyncio.get_running_loop().call_later(chance.random() * 0.05, queue.put_nowait, None)
        kind = chance.randrange(3)
        with suppress(StockadeError, TimeoutError):
            async with asyncio.timeout(chance.random() * 0.1), asyncio.timeout(chance.random() * 0.1):
                if kind == 0:
                    await box.run_async(ECHO, stdin=queue, on_stdout=chance.choice((never, taken)))
                elif kind == 1:
                    await box.call_async(_HOST, "g")
                else:
                    session = await box.open_async(SLEEPER)
                    try:
                        await session.call("sleep", chance.randrange(50))
                    finally:
                        # However often it was cancelled, nothing of it runs.
                        await session.close()

    async def all_of_them() -> None:
        tasks = [asyncio.ensure_future(one()) for _ in range(20)]
        for _ in range(20):
            await asyncio.sleep(chance.random() * 0.01)
            chance.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and (problem := task.exception()) is not None:
                raise problem

    asyncio.run(all_of_them())


def _forks(chance: random.Random, boxes: list[Sandbox]) -> None:
    child = fork()
    if not child:
        # Only what the child began itself counts; what another thread held at the fork stays held.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_HANG_SECONDS)
        status = 1
        try:
            # A machine that is busy enough may take all its time before it begins: that is no fault.
            report = boxes[0].run(_HELLO)
            status = 0 if report.stdout == b"hello world\n" or report.outcome is Outcome.TIMEOUT else 2
            if status:
                print(f"in a child: {report}", file=sys.stderr, flush=True)
        except EngineError as problem:
            status = _REFUSED if others_were_inside() else 1
            if status == 1:
                print(f"in a child: {problem}", file=sys.stderr, flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == _REFUSED:
        _count("children refused")
    else:
        assert status == 0, f"a forked child ended with {status}"
    time.sleep(0.2)


def _interrupted(chance: random.Random, box: Sandbox, seconds: float) -> None:
    """On the main thread: alarms at any moment."""
    armed = False

    def handler(*_: object) -> None:
        if armed:
            _count("signals")
            if chance.random() < 0.5:
                raise _AlarmError
            for name in box.monitor():
                box.cancel(name)

    signal.signal(signal.SIGALRM, handler)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.002 + 1e-6)
            if chance.random() < 0.5:
                box.run(_HELLO)
            else:
                with box.open(_HOST) as session:
                    session.call("g")
            armed = False
        except (_AlarmError, StockadeError):
            armed = False
        time.sleep(0.001)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


def _left(boxes: list[Sandbox]) -> dict[str, Any]:
    return {
        "instances": sum(engine.live_instances for engine in Engine._engines.values()),
        "claimed descriptors": Engine._descriptors.taken,
        "on tickers": sum(len(engine.ticker.running) for engine in Engine._engines.values()),
        "threads": sum(thread.name.startswith("stockade") for thread in threading.enumerate()),
        "shown by monitor": sum(len(box.monitor()) for box in boxes),
    }


def _held() -> dict[str, int]:
    """What the process has of the system."""
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "maps": len(Path("/proc/self/maps").read_text().split("\n")),
    }


def _phase(seconds: float, seed: int, boxes: list[Sandbox]) -> list[str]:
    """Stresses for a while, and waits until all of it is over; returns what went wrong."""
    end = time.monotonic() + seconds
    problems: list[str] = []
    beats: dict[str, float] = {}

    def again(number: int, work: Callable[[random.Random, list[Sandbox]], None]) -> None:
        chance, name = random.Random(seed + number), f"{work.__name__[1:]}-{number}"
        while time.monotonic() < end and not problems:
            beats[name] = time.monotonic()
            try:
                work(chance, boxes)
                _count(work.__name__[1:])
            except StockadeError:
                _count("refused")
            except BaseException as problem:
                problems.append(f"{name}: {problem!r}")
        beats.pop(name, None)

    works = (_runs, _runs, _cancels, _sessions, _sessions, _pools, _schedulers, _loops, _loops, _forks)
    threads = [threading.Thread(target=again, args=entry) for entry in enumerate(works)]
    for thread in threads:
        thread.start()
    _interrupted(random.Random(seed), _own_box(), seconds)
    for thread in threads:
        thread.join(_HANG_SECONDS)
    if beats:
        problems.append(f"hangs: {sorted(beats)}")
        faulthandler.dump_traceback(all_threads=True)
    deadline = time.monotonic() + 20
    gc.collect()
    while any(_left(boxes).values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left := {what: number for what, number in _left(boxes).items() if number}:
        problems += [f"left: {number:,} {what}" for what, number in left.items()]
        problems += [f"left: {thread}" for thread in threading.enumerate() if thread.name.startswith("stockade")]
        faulthandler.dump_traceback(all_threads=True)
    return problems


def main() -> int:
    """Stresses; returns an exit status."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None
    seconds = 60 * float(os.environ.get("STOCKADE_MINUTES", "3"))
    seed = int(os.environ.get("STOCKADE_SEED", str(time.time_ns() % 1_000_000)))
    boxes = _boxes()
    print(f"STOCKADE_SEED={seed}, {seconds:.0f} s", flush=True)
    problems: list[str] = []
    held = [_held()]
    for share in (0.3, 0.7):
        if not problems:
            problems += _phase(seconds * share, seed, boxes)
            held.append(_held())
    print(f"held at first, after a third, and in the end: {held}", flush=True)
    # What the process keeps for later, such as arenas of threads and slots of pools, it has after a while; what leaks
    # goes on.
    problems += [
        f"left: {held[-1][what] - held[1][what]:,} {what} more than after the first third"
        for what, most in (("descriptors", 16), ("maps", 100))
        if held[-1][what] > held[1][what] + most
    ]
    print(", ".join(f"{number:,} {what}" for what, number in sorted(_done.items())))
    for problem in problems:
        print(problem)
    if not problems:
        print("left: nothing")
    return 1 if problems else 0


def _own_box() -> Sandbox:
    """One of its own, for handlers leave its names behind."""
    box = Sandbox(_POLICIES[0])
    box.host_function("env", "f")(_seven)
    return box


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
