"""Runs in worker processes: one that is made for each, one that waits, as many as go, and what one has of memory."""

from __future__ import annotations

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

import stockade
from benchmarks._guests import HELLO, SLEEP
from benchmarks._measure import Promise, Spread, in_turn
from stockade.isolation import _ahead
from stockade.isolation._hub import hub

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

__all__ = ["workers"]

_ROUNDS = 100
_AT_ONCE = 200

_PAUSE_SECONDS = 0.05
"""Between two runs, so that the next worker waits when it is asked for."""

_CPYTHON = "cpython-3.15"
"""The interpreter that begins with a snapshot."""

_CPYTHON_PAUSE_SECONDS = 0.2
_CPYTHON_CODE = "print(1+1)"


def _fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def _own_kilobytes(worker: int) -> int:
    """What a process has of memory that it shares with nobody."""
    told = Path(f"/proc/{worker}/smaps_rollup").read_text()
    return sum(int(found) for found in re.findall(r"^Private_(?:Clean|Dirty): +(\d+)", told, re.MULTILINE))


def _asleep(box: stockade.Sandbox) -> float:
    """Megabytes of a worker whose guest sleeps."""
    sleep = stockade.Module.load(SLEEP.encode(), text=True)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(box.run, sleep, run_id="asleep")
        while not box.monitor():
            time.sleep(0.01)
        server = hub._server
        assert server is not None
        (worker,) = server.workers.values()
        told = Path(f"/proc/self/fdinfo/{worker._process}").read_text()
        found = re.search(r"^Pid:\t(\d+)", told, re.MULTILINE)
        assert found is not None
        megabytes = _own_kilobytes(int(found[1])) / 1024
        box.cancel("asleep")
        run.result()
    return megabytes


def _after_pauses(jobs: dict[str, Callable[[], object]], pause_seconds: float = _PAUSE_SECONDS) -> dict[str, Spread]:
    """Times jobs in turn, each after a pause: in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(_ROUNDS):
        for name, job in jobs.items():
            time.sleep(pause_seconds)
            begun = time.perf_counter_ns()
            job()
            times[name].append((time.perf_counter_ns() - begun) / 1e3)
    return {name: Spread.of(taken) for name, taken in times.items()}


def _none_ahead(jobs: dict[str, Callable[[], object]]) -> dict[str, Spread]:
    """Times jobs in turn while no worker is made ahead: in microseconds."""
    ahead, _ahead.MOST_FOR_ONE = _ahead.MOST_FOR_ONE, 0  # type: ignore[misc]
    try:
        return in_turn(jobs, _ROUNDS, 5)
    finally:
        _ahead.MOST_FOR_ONE = ahead  # type: ignore[misc]


def _cpython(console: Console, fork_us: float) -> tuple[dict[str, Spread], list[Promise]]:
    """Times a little code in an interpreter that begins with a snapshot; nothing where that is not installed.

    Args:
        console: Where it is told what takes long.
        fork_us: What it takes to fork this process, of which a fresh worker cannot take less: machines differ in that.
    """
    # Large guests lie where no language finds them.
    sys.path.append(str(Path(sys.prefix) / "large-guests"))
    try:
        if _CPYTHON not in stockade.Python.runtimes():
            console.print(f"left out: {_CPYTHON} is not installed", style="yellow")
            return {}, []
        here, there = (stockade.Python(runtime=_CPYTHON, isolation=isolation) for isolation in ("inprocess", "process"))
        with here, there:
            with console.status(f"making {_CPYTHON} ready: minutes, at the first time"):
                for language in (here, there):
                    language.prepare()
                    assert language.run(_CPYTHON_CODE).stdout == "2\n"
            within, fresh, waits = (
                f"{_CPYTHON} from a snapshot, {where}"
                for where in ("in this process", "in a fresh worker", "in a worker that waits")
            )
            times = _none_ahead({within: lambda: here.run(_CPYTHON_CODE), fresh: lambda: there.run(_CPYTHON_CODE)})
            there.run(_CPYTHON_CODE)
            times |= _after_pauses({waits: lambda: there.run(_CPYTHON_CODE)}, _CPYTHON_PAUSE_SECONDS)
        more = (times[fresh].p50 - fork_us) / 1e3
        return times, [
            Promise(f"{fresh}: p50, ms", times[fresh].p50 / 1e3),
            Promise(f"{fresh}: p50, ms more than forking this process", more, 5.0),
            Promise(f"{waits}: p50, ms", times[waits].p50 / 1e3, 8.0),
        ]
    finally:
        sys.path.pop()


def workers(console: Console) -> list[Promise]:
    """A jailed process for each hello world, made when it is asked for, and made ahead."""
    loaded = stockade.Module.load(HELLO.encode(), text=True)
    here, there = stockade.Sandbox("strict"), stockade.Sandbox("strict", isolation="process")
    assert there.run(loaded).stdout == here.run(loaded).stdout
    times = _none_ahead(
        {
            "fork of this process": _fork,
            "in this process": lambda: here.run(loaded),
            "in a worker": lambda: there.run(loaded),
        }
    )
    ahead, _ahead.MOST_FOR_ONE = _ahead.MOST_FOR_ONE, 0  # type: ignore[misc]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        begun = time.perf_counter()
        for report in pool.map(lambda _: there.run(loaded), range(_AT_ONCE)):
            assert report.ok
        a_second = _AT_ONCE / (time.perf_counter() - begun)
    _ahead.MOST_FOR_ONE = ahead  # type: ignore[misc]
    there.run(loaded)
    times |= _after_pauses(
        {
            "in this process, after a pause": lambda: here.run(loaded),
            "in a worker that waits": lambda: there.run(loaded),
        }
    )
    more = times["in a worker that waits"].p50 - times["in this process, after a pause"].p50
    over_fork = times["in a worker"].p50 - times["fork of this process"].p50
    hub.end()
    asleep = _asleep(stockade.Sandbox(stockade.Policy(), isolation="process"))
    hub.end()
    of_cpython, told = _cpython(console, times["fork of this process"].p50)
    hub.end()
    table = Table(title="one run, of hello world or of a line of Python, ms")
    for heading in ("", "p50", "p95", "p99", "worst"):
        table.add_column(heading, justify="right")
    for name, spread in (times | of_cpython).items():
        table.add_row(name, *(f"{value / 1e3:,.2f}" for value in spread))
    console.print(table)
    console.print(f"{a_second:,.0f} runs a second in workers; one that sleeps has {asleep:,.1f} MiB of its own")
    return [
        Promise("a fresh jailed worker: hello world, ms", times["in a worker"].p50 / 1e3),
        Promise("a fresh jailed worker: hello world, ms more than forking this process", over_fork / 1e3, 3.0),
        Promise("a fresh jailed worker: runs a second", a_second),
        Promise("a jailed worker that waits: hello world, ms more than in this process", more / 1e3, 0.5),
        Promise("a fresh jailed worker: MiB of its own while its guest sleeps", asleep),
        *told,
    ]
