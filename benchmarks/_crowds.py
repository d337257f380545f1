"""Many guests at once: asleep, waiting for input, held to a share, beside an event loop, and as fast as they go."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from tests.conftest import program_path

import stockade
from benchmarks._guests import HELLO, SLEEP, SPIN
from benchmarks._idiomatic import idiomatic_hello
from benchmarks._measure import Promise, Spread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from rich.console import Console

__all__ = ["asleep", "heartbeat", "parked", "shares", "throughput"]

_ASLEEP = 5_000
_DEADLINES = tuple(5.0 + 2.0 * number / 11 for number in range(12))
"""Seconds; late enough that all sleep at once for a while. A sandbox keeps 16 narrowed policies ready."""
_MOST_TRIED = 20_000
"""Guests asleep, where the kernel lets a process have more memory maps than it does by default."""
_BATCH = 25
"""Runs that are begun before the event loop has its turn."""

_PARKED = 50
_PARK_SECONDS = float(os.environ.get("STOCKADE_BENCH_PARK", "5"))
_ANSWERING = "import sys\nprint('ready', flush=True)\nfor line in sys.stdin: print(eval(line), flush=True)"

_SPIN_SECONDS = 2.0
_BEAT_SECONDS = 0.005
_BEATEN_SECONDS = 3.0
_SPINNING = 4
_CROWDED = 100
"""Guests that compute at once, far more than there are cores: each ends when its turn comes after its deadline."""

_THREADS = 2
_GATHERED = 200
_ROUNDS = 5
_OURS_A_ROUND = 3_000
_THEIRS_A_ROUND = 600


def _spread_table(title: str, rows: dict[str, Spread], digits: int = 1) -> Table:
    table = Table(title=title)
    for heading in ("", "p50", "p95", "p99", "worst"):
        table.add_column(heading, justify="right")
    for name, spread in rows.items():
        table.add_row(name, *(f"{value:,.{digits}f}" for value in spread))
    return table


def _told(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right", overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _module(text: str) -> stockade.Module:
    return stockade.Module.load(text.encode(), text=True)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - an object for each would take long


def _maps() -> int:
    return Path("/proc/self/maps").read_bytes().count(b"\n")


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _beats(stop: asyncio.Event) -> list[float]:
    """By how many milliseconds the event loop is late, again and again, until it is stopped."""
    late = []
    while not stop.is_set():
        begun = time.monotonic()
        await asyncio.sleep(_BEAT_SECONDS)
        late.append((time.monotonic() - begun - _BEAT_SECONDS) * 1e3)
    return late


# -- asleep -----------------------------------------------------------------------------------------------------------


def asleep(console: Console) -> list[Promise]:
    """Thousands of guests asleep, each with a deadline; then as many as there is room for."""
    return asyncio.run(_asleep(console))


async def _asleep(console: Console) -> list[Promise]:
    sleeping = _module(SLEEP)
    sandbox = stockade.Sandbox(stockade.Policy().replace(wall_time=3600.0))
    policies = [stockade.Policy().replace(wall_time=deadline) for deadline in _DEADLINES]
    for policy in policies:
        # One after another, so that what makes policies ready needs one thread.
        warm = asyncio.create_task(sandbox.run_async(sleeping, policy=policy, run_id="warm"))
        while "warm" not in sandbox.monitor():
            await asyncio.sleep(0.001)
        sandbox.cancel("warm")
        await warm
    late: list[float] = []
    late_here: list[float] = []

    async def sleep(number: int) -> str:
        deadline = _DEADLINES[number % len(_DEADLINES)]
        begun = time.monotonic()
        report = await sandbox.run_async(sleeping, policy=policies[number % len(policies)])
        # The time at which it stood in line, and was made, counts against us here.
        late_here.append((time.monotonic() - begun - deadline) * 1e3)
        late.append((report.usage.wall_seconds - deadline) * 1e3)
        return str(report.outcome)

    stop = asyncio.Event()
    beats = asyncio.create_task(_beats(stop))
    resident, maps, begun = _resident_bytes(), _maps(), time.monotonic()
    tasks = await _begin_many(sleep, _ASLEEP)
    starting = time.monotonic() - begun
    # On a thread, for it looks at each of them.
    while (under_way := len(await asyncio.to_thread(sandbox.monitor))) < _ASLEEP:
        if time.monotonic() - begun > _DEADLINES[0]:
            break
        await asyncio.sleep(0.05)
    resident, maps, threads = _resident_bytes() - resident, _maps() - maps, _threads()
    outcomes = Counter(await asyncio.gather(*tasks))
    stop.set()
    spreads = {
        "report: wall_seconds - deadline": Spread.of(late),
        "event loop: await returned - (begun + deadline)": Spread.of(late_here),
        "event loop: lateness of a 5 ms sleep meanwhile": Spread.of(await beats),
    }
    console.print(_spread_table(f"{_ASLEEP:,} guests asleep at once, each until its deadline, ms", spreads))
    told = {
        "asleep at once": f"{under_way:,}",
        "all begun within": f"{starting:.1f} s",
        "threads of the process": f"{threads}",
        "memory a guest": f"{resident / _ASLEEP / 1024:.0f} KiB",
        "memory maps a guest": f"{maps / _ASLEEP:.1f}",
        "outcomes": ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items()),
    }
    promises = [
        Promise("guests asleep at once", under_way, _ASLEEP, least=True),
        Promise("asleep: ended by their deadline, %", outcomes["timeout"] / _ASLEEP * 100, 100.0, least=True),
        Promise("asleep: deadlines as reported, p99 ms late", spreads["report: wall_seconds - deadline"].p99, 100.0),
        Promise("asleep: threads of the process", threads, 19),
    ]
    promises += await _most_asleep(sandbox, sleeping, told)
    console.print(_told("what sleeping guests take", told))
    return promises


async def _begin_many(begin: Callable[[int], Coroutine[None, None, str]], count: int) -> list[asyncio.Task[str]]:
    tasks = []
    for first in range(0, count, _BATCH):
        tasks += [asyncio.create_task(begin(number)) for number in range(first, min(first + _BATCH, count))]
        await asyncio.sleep(0.005)
    return tasks


async def _most_asleep(sandbox: stockade.Sandbox, sleeping: stockade.Module, told: dict[str, str]) -> list[Promise]:
    """Has guests fall asleep until there is no room for another; then wakes all, and goes on."""
    problems: list[stockade.StockadeError] = []
    asleep: set[str] = set()

    async def sleep(number: int) -> str:
        name = f"sleeper-{number}"
        asleep.add(name)
        try:
            return str((await sandbox.run_async(sleeping, run_id=name)).outcome)
        except stockade.StockadeError as problem:
            problems.append(problem)
            return "none"
        finally:
            asleep.discard(name)

    tasks: list[asyncio.Task[str]] = []
    while not problems and len(tasks) < _MOST_TRIED:
        first = len(tasks)
        tasks += [asyncio.create_task(sleep(first + number)) for number in range(_BATCH)]
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.5)
    most, maps = len(asleep), _maps()
    begun = time.monotonic()
    for name in tuple(asleep):
        sandbox.cancel(name)
    outcomes = Counter(await asyncio.gather(*tasks))
    waking = time.monotonic() - begun
    told["most asleep at once"] = f"{most:,}" if problems else f"more than {most:,}: not tried"
    told["memory maps of the process then"] = f"{maps:,}"
    told["all of them cancelled within"] = f"{waking:.2f} s"
    clear = all(isinstance(problem, stockade.EngineError) and "max_map_count" in str(problem) for problem in problems)
    for problem in problems[:1]:
        told[f"one more: {type(problem).__name__}"] = str(problem)
    report = await sandbox.run_async(_module(HELLO)) if problems else None
    goes_on = report is None or report.stdout == b"hello world\n"
    return [
        Promise("no room: clear errors, %", 100.0 if clear else 0.0, 100.0, least=True),
        Promise("no room: cancelled afterwards, %", outcomes["cancelled"] / max(1, most) * 100, 100.0, least=True),
        Promise("no room: the process goes on", float(goes_on), 1.0, least=True),
    ]


# -- waiting for input ------------------------------------------------------------------------------------------------


class _Prompt:
    """A CPython that waits for a line."""

    def __init__(self, sandbox: stockade.Sandbox, module: stockade.Module) -> None:
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._answer = asyncio.Event()
        self._wanted = b"ready\n"
        self._got = b""
        self.answered_at = 0.0
        self._run = asyncio.create_task(
            sandbox.run_async(module, ["-c", _ANSWERING], stdin=self._lines, on_stdout=self._take)
        )

    def _take(self, piece: bytes) -> None:
        self.answered_at = time.perf_counter()
        self._got += piece
        if self._got == self._wanted:
            self._answer.set()

    async def ready(self) -> None:
        """Waits until it waits for its first line."""
        waits = asyncio.create_task(self._answer.wait())
        await asyncio.wait([waits, self._run], return_when=asyncio.FIRST_COMPLETED)
        assert waits.done(), self._run.result()

    async def ask(self, number: int) -> float:
        """Has it multiply, and returns the milliseconds from the line to its answer."""
        self._answer.clear()
        self._got, self._wanted = b"", b"%d\n" % (number * 1_000_003)
        begun = time.perf_counter()
        self._lines.put_nowait(b"%d * 1000003\n" % number)
        await self._answer.wait()
        return (self.answered_at - begun) * 1e3

    async def end(self) -> stockade.Report:
        """Ends its input."""
        self._lines.put_nowait(None)
        return await self._run


def parked(console: Console) -> list[Promise]:
    """Programs that wait for a line of input, side by side: how soon they answer one."""
    return asyncio.run(_parked(console))


async def _parked(console: Console) -> list[Promise]:
    sandbox = stockade.Sandbox(stockade.Policy().replace(wall_time=None, fuel=None))
    module = sandbox.prepare(program_path("python"))
    begun, resident = time.monotonic(), _resident_bytes()
    prompts = [_Prompt(sandbox, module) for _ in range(_PARKED)]
    for prompt in prompts:
        await prompt.ready()
    starting, resident = time.monotonic() - begun, _resident_bytes() - resident
    await asyncio.sleep(0.2)
    before = time.process_time()
    await asyncio.sleep(_PARK_SECONDS)
    busy = (time.process_time() - before) / _PARK_SECONDS
    first = [await prompt.ask(number) for number, prompt in enumerate(prompts)]
    again = [await prompt.ask(number) for _ in range(4) for number, prompt in enumerate(prompts)]
    together = await asyncio.gather(*(prompt.ask(number) for number, prompt in enumerate(prompts)))
    reports = await asyncio.gather(*(prompt.end() for prompt in prompts))
    spreads = {
        f"one after another, after {_PARK_SECONDS:g} s": Spread.of(first),
        "one after another, again": Spread.of(again),
        "all at once": Spread.of(together),
    }
    console.print(_spread_table(f"CPython, {_PARKED} side by side: from a line to its answer, ms", spreads, 2))
    console.print(
        f"{_PARKED} CPython were ready after {starting:.1f} s, {resident / _PARKED / 1e6:.1f} MB each; waiting, all of "
        f"them used {busy * 100:.1f}% of a core",
        style="dim",
    )
    return [
        Promise("CPython parked on stdin: line to answer, p50 ms", Spread.of(first).p50, 2.0),
        Promise(
            "CPython parked on stdin: ended well, %",
            sum(report.ok for report in reports) / _PARKED * 100,
            100.0,
            least=True,
        ),
    ]


# -- computing --------------------------------------------------------------------------------------------------------


def shares(console: Console) -> list[Promise]:
    """Guests that compute, held to half a core."""
    spinning = _module(SPIN)
    table = Table(title=f"cpu_percent = 50, a guest that computes for {_SPIN_SECONDS:g} s")
    for heading in ("", "CPU s", "wall s", "% of a core"):
        table.add_column(heading, justify="right")
    promises = []
    for what, fuel in (("unmetered", None), ("metered", 1 << 60)):
        policy = stockade.Policy().replace(cpu_percent=50, wall_time=_SPIN_SECONDS, fuel=fuel)
        with stockade.Sandbox(policy) as sandbox:
            for how, report in (
                ("run", sandbox.run(spinning)),
                ("run_async", asyncio.run(sandbox.run_async(spinning))),
            ):
                usage = report.usage
                percent = usage.cpu_seconds / usage.wall_seconds * 100
                table.add_row(
                    f"{what}, {how}", f"{usage.cpu_seconds:.2f}", f"{usage.wall_seconds:.2f}", f"{percent:.1f}"
                )
                promises += [
                    Promise(f"cpu_percent = 50, {what}, {how}: % of a core, at most", percent, 55.0),
                    Promise(f"cpu_percent = 50, {what}, {how}: % of a core, at least", percent, 45.0, least=True),
                ]
    console.print(table)
    return promises


def heartbeat(console: Console) -> list[Promise]:
    """An event loop beside guests that compute."""
    return asyncio.run(_heartbeat(console))


async def _heartbeat(console: Console) -> list[Promise]:
    spinning = _module(SPIN)
    with stockade.Sandbox(stockade.Policy().replace(wall_time=_BEATEN_SECONDS, fuel=None)) as sandbox:
        sandbox.prepare(spinning)
        stop = asyncio.Event()
        beats = asyncio.create_task(_beats(stop))
        reports = await asyncio.gather(*(sandbox.run_async(spinning) for _ in range(_SPINNING)))
        stop.set()
        late = Spread.of(await beats)
    policy = stockade.Policy().replace(wall_time=_SPIN_SECONDS, fuel=None)
    with stockade.Sandbox(policy) as sandbox:
        crowd = await asyncio.gather(*(sandbox.run_async(spinning) for _ in range(_CROWDED)))
    spreads = {
        f"a 5 ms sleep of the event loop beside {_SPINNING} guests that compute": late,
        f"deadlines of {_CROWDED} guests that compute": Spread.of(
            (report.usage.wall_seconds - _SPIN_SECONDS) * 1e3 for report in crowd
        ),
    }
    console.print(_spread_table("ms late", spreads))
    used = sorted(report.usage.cpu_seconds for report in reports)
    over = max(report.usage.wall_seconds for report in reports) - _BEATEN_SECONDS
    console.print(
        f"the guests had {used[0]:.2f} to {used[-1]:.2f} s of processor time each, {sum(used):.2f} s in all, and ended "
        f"{over * 1e3:.1f} ms late at worst",
        style="dim",
    )
    crowded = spreads[f"deadlines of {_CROWDED} guests that compute"]
    return [
        Promise(f"event loop beside {_SPINNING} guests that compute: worst ms late", late.worst, 50.0),
        Promise(f"deadlines of {_CROWDED} guests that compute: worst ms late", crowded.worst, 100.0),
    ]


# -- as fast as they go -----------------------------------------------------------------------------------------------


def _loop(job: Callable[[], object], count: int) -> None:
    for _ in range(count):
        job()


def _threaded(job: Callable[[], object], count: int) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        for done in [pool.submit(_loop, job, count // _THREADS) for _ in range(_THREADS)]:
            done.result()


async def _gathered(begin: Callable[[], Coroutine[None, None, object]], count: int) -> None:
    for _ in range(count // _GATHERED):
        await asyncio.gather(*(begin() for _ in range(_GATHERED)))


def _rates(ways: dict[str, Callable[[int], object]], count: int) -> dict[str, float]:
    """Runs a second in each way: the median of rounds in turn."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_ROUNDS + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way(count)
            if number:
                found[name].append(count / (time.perf_counter() - begun))
    return {name: statistics.median(rates) for name, rates in found.items()}


def throughput(console: Console) -> list[Promise]:
    """Hello worlds a second, in every way to run many; beside each the same in idiomatic wasmtime-py.

    Ours first: the idiomatic way leaves threads behind. It is faster in some runs than in others by half, as its output
    thread is woken sooner or later; what is promised holds where it is at its best.
    """
    sandbox = stockade.Sandbox()
    module = sandbox.prepare(_module(HELLO))
    assert sandbox.run(module).stdout == b"hello world\n"

    def mapped(count: int) -> None:
        with stockade.Scheduler(sandbox) as scheduler:
            assert all(report.ok for report in scheduler.map(stockade.Task(module=module) for _ in range(count)))

    names = "plain loop", f"{_THREADS} threads", f"asyncio, {_GATHERED} at a time", "Scheduler.map"
    ours = _rates(
        {
            names[0]: lambda count: _loop(lambda: sandbox.run(module), count),
            names[1]: lambda count: _threaded(lambda: sandbox.run(module), count),
            names[2]: lambda count: asyncio.run(_gathered(lambda: sandbox.run_async(module), count)),
            names[3]: mapped,
        },
        _OURS_A_ROUND,
    )
    idiomatic = idiomatic_hello()
    theirs = _rates(
        {
            names[0]: lambda count: _loop(idiomatic, count),
            names[1]: lambda count: _threaded(idiomatic, count),
            names[2]: lambda count: asyncio.run(_gathered(lambda: asyncio.to_thread(idiomatic), count)),
        },
        _THEIRS_A_ROUND,
    )
    table = Table(title="hello worlds a second")
    for heading in ("", "stockade", "idiomatic wasmtime-py", "times"):
        table.add_column(heading, justify="right")
    for name, rate in ours.items():
        other = theirs.get(name)
        table.add_row(
            name,
            f"{rate:,.0f}",
            "" if other is None else f"{other:,.0f}",
            "" if other is None else f"{rate / other:.1f}",
        )
    console.print(table)
    return [
        Promise(f"throughput, {name}: times idiomatic wasmtime-py", ours[name] / theirs[name], bound, least=True)
        for name, bound in zip(names[:3:2], (3.5, 2.5), strict=True)
    ]
