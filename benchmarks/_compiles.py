"""Many modules to be compiled at once, and a run that has nothing to do with them."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import stockade
from benchmarks._guests import HELLO
from benchmarks._measure import Promise, Spread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

__all__ = ["compiles"]

_AT_ONCE = 40
_ALONE = 8
_FUNCTIONS = 1_150
_PAUSE_SECONDS = 0.005


def _slow(number: int) -> stockade.Module:
    """A module that takes more than half a second to compile, unlike those of other numbers."""
    body = " ".join(
        f"(local.set $x (i64.add (i64.mul (local.get $x) (i64.const {number * 1000 + step})) (i64.load (i32.wrap_i64 "
        f"(local.get $x)))))"
        for step in range(40)
    )
    function = f"(func (param $x i64) (result i64) {body} (local.get $x))"
    text = f'(module (memory 1) (func (export "_start")) {function * _FUNCTIONS})'
    return stockade.Module.load(text.encode(), text=True)


def _one_by_one(sandbox: stockade.Sandbox, modules: list[stockade.Module]) -> float:
    """Compiles modules one after another, and returns how many seconds that took."""
    begun = time.perf_counter()
    for module in modules:
        sandbox.prepare(module)
    return time.perf_counter() - begun


async def _all(sandbox: stockade.Sandbox, modules: Iterable[stockade.Module]) -> None:
    reports = await asyncio.gather(
        *(sandbox.run_async(module, tenant=f"tenant {number % 4}") for number, module in enumerate(modules))
    )
    assert all(report.ok for report in reports)


async def _beside(sandbox: stockade.Sandbox, small: stockade.Module, modules: list[stockade.Module]) -> list[float]:
    """Times small runs while modules are compiled, in milliseconds."""
    compiling = asyncio.create_task(_all(sandbox, modules))
    found = []
    while not compiling.done():
        begun = time.perf_counter()
        report = await sandbox.run_async(small, tenant="small")
        found.append((time.perf_counter() - begun) * 1e3)
        assert report.ok
        await asyncio.sleep(_PAUSE_SECONDS)
    await compiling
    return found


def compiles(console: Console) -> list[Promise]:
    """Forty modules at once, against one after another; and small runs of another tenant meanwhile."""
    kept, os.environ["STOCKADE_CACHE"] = os.environ.get("STOCKADE_CACHE"), "off"
    try:
        modules = [_slow(number) for number in range(_ALONE + _AT_ONCE)]
        with stockade.Sandbox(stockade.Policy().replace(wall_time=60.0)) as sandbox:
            small = sandbox.prepare(stockade.Module.load(HELLO.encode(), text=True))
            sandbox.prepare(_slow(-1))
            # Half of them before, half after: what else the machine does may become more, or less.
            half = _ALONE // 2
            alone = _one_by_one(sandbox, modules[:half])
            begun = time.perf_counter()
            waited = Spread.of(asyncio.run(_beside(sandbox, small, modules[half:-half])))
            together = (time.perf_counter() - begun) / _AT_ONCE
            alone = (alone + _one_by_one(sandbox, modules[-half:])) / _ALONE
    finally:
        if kept is None:
            del os.environ["STOCKADE_CACHE"]
        else:
            os.environ["STOCKADE_CACHE"] = kept
    console.print(
        f"{_AT_ONCE} modules that take {alone:.2f} s each to compile: {together * _AT_ONCE:.1f} s all at once, "
        f"{alone * _AT_ONCE:.1f} s one after another; small runs beside them: {waited.p50:.2f} ms (p50), "
        f"{waited.p99:.1f} ms (p99), {waited.worst:.1f} ms (worst)",
        style="dim",
    )
    return [
        Promise(f"{_AT_ONCE} modules compiled at once, over one after another", together / alone, 1.2),
        Promise("small runs beside them: p99, ms", waited.p99, 20.0),
    ]
