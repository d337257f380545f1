"""Runs in worker processes: one that is made for each, one that waits, as many as go, and what one has of memory."""

from __future__ import annotations

import os
import re
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


def _after_pauses(jobs: dict[str, Callable[[], object]]) -> dict[str, Spread]:
    """Times jobs in turn, each after a pause: in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(_ROUNDS):
        for name, job in jobs.items():
            time.sleep(_PAUSE_SECONDS)
            begun = time.perf_counter_ns()
            job()
            times[name].append((time.perf_counter_ns() - begun) / 1e3)
    return {name: Spread.of(taken) for name, taken in times.items()}


def workers(console: Console) -> list[Promise]:
    """A jailed process for each hello world, made when it is asked for, and made ahead."""
    loaded = stockade.Module.load(HELLO.encode(), text=True)
    here, there = stockade.Sandbox("strict"), stockade.Sandbox("strict", isolation="process")
    assert there.run(loaded).stdout == here.run(loaded).stdout
    ahead, _ahead.MOST_FOR_ONE = _ahead.MOST_FOR_ONE, 0  # type: ignore[misc]
    times = in_turn(
        {
            "fork of this process": _fork,
            "in this process": lambda: here.run(loaded),
            "in a worker": lambda: there.run(loaded),
        },
        _ROUNDS,
        5,
    )
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
    hub.end()
    asleep = _asleep(stockade.Sandbox(stockade.Policy(), isolation="process"))
    table = Table(title="one hello world, ms")
    for heading in ("", "p50", "p95", "p99", "worst"):
        table.add_column(heading, justify="right")
    for name, spread in times.items():
        table.add_row(name, *(f"{value / 1e3:,.2f}" for value in spread))
    console.print(table)
    console.print(f"{a_second:,.0f} runs a second in workers; one that sleeps has {asleep:,.1f} MiB of its own")
    return [
        Promise("a fresh jailed worker: hello world, ms", times["in a worker"].p50 / 1e3),
        Promise("a fresh jailed worker: runs a second", a_second),
        Promise("a jailed worker that waits: hello world, ms more than in this process", more / 1e3),
        Promise("a fresh jailed worker: MiB of its own while its guest sleeps", asleep),
    ]
