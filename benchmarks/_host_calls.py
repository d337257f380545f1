"""Functions of the embedder: what a call takes, and a thousand guests in a coroutine function at once."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import wasmtime

import stockade
from benchmarks._measure import Promise, in_turn

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["host_calls"]

_CALLS = 20_000
_GUESTS = 1_000

_MANY = """
(module
  (import "env" "f" (func $f (param i32) (result i32)))
  (func (export "many") (param i32) (result i32)
    (loop $next
      (drop (call $f (local.get 0)))
      (br_if $next (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
    (i32.const 0))
  (func (export "one") (param i32) (result i32) (call $f (local.get 0))))
"""


def host_calls(console: Console) -> list[Promise]:
    """A plain function against one of wasmtime-py's, and a crowd in a coroutine function."""
    return [*_plain_calls(), *asyncio.run(_crowd(console))]


def _plain_calls() -> list[Promise]:
    sandbox = stockade.Sandbox(stockade.Policy().replace(fuel=None, wall_time=None))

    @sandbox.host_function("env")
    def f(number: int) -> int:
        return number

    engine = wasmtime.Engine()
    store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
    i32 = wasmtime.ValType.i32()
    linker.define_func("env", "f", wasmtime.FuncType([i32], [i32]), f)
    many = linker.instantiate(store, wasmtime.Module(engine, _MANY)).exports(store)["many"]
    assert isinstance(many, wasmtime.Func)
    with sandbox.open(stockade.Module.load(_MANY.encode(), text=True)) as session:
        spread = in_turn(
            {
                "idiomatic": lambda: many(store, _CALLS),
                "stockade": lambda: session.call("many", _CALLS).check(),
            },
            10,
            2,
        )
    return [
        Promise("a host function: µs a call", spread["stockade"].p50 / _CALLS, 8.0),
        Promise("a host function: over idiomatic wasmtime-py", spread["stockade"].p50 / spread["idiomatic"].p50, 1.0),
    ]


async def _crowd(console: Console) -> list[Promise]:
    sandbox = stockade.Sandbox()

    @sandbox.host_function("env")
    async def f(number: int) -> int:
        await asyncio.sleep(1.0)
        return number + 1

    module = sandbox.prepare(stockade.Module.load(_MANY.encode(), text=True))
    threads = 0

    async def watch() -> None:
        nonlocal threads
        while True:
            threads = max(threads, threading.active_count())
            await asyncio.sleep(0.01)

    watching = asyncio.ensure_future(watch())
    begun = time.perf_counter()
    reports = await asyncio.gather(*(sandbox.call_async(module, "one", number) for number in range(_GUESTS)))
    seconds = time.perf_counter() - begun
    watching.cancel()
    assert [report.value for report in reports] == [*range(1, _GUESTS + 1)]
    console.print(f"{_GUESTS:,} guests in a coroutine function of 1 s: {seconds:.2f} s, {threads} threads", style="dim")
    return [
        Promise(f"{_GUESTS:,} guests in a coroutine function of 1 s: s", seconds, 2.0),
        Promise(f"{_GUESTS:,} guests in a coroutine function: threads", threads, 19),
    ]
