"""How runs end: cancelled at any moment, with nobody to take their output, and beside runs of another length."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import stockade
from benchmarks._measure import Promise
from stockade.engine import Engine
from stockade.runner._executor import Executor, WorkItem

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["cancelled", "disconnected", "lengths"]

_CANCELS = int(os.environ.get("STOCKADE_BENCH_CANCELS", "10000"))
_AT_ONCE = 40
_PIECE_BYTES = 100
_LONGEST_SECONDS = 0.03

_WRITER = f"""
(module
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local i32)
    (drop (call $args (i32.const 64) (i32.const 256)))
    (drop (call $open (i32.const 3) (i32.const 0) (i32.load (i32.const 68)) (i32.const 6) (i32.const 1)
      (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 16)))
    (i32.store (i32.const 0) (i32.const 4096))
    (i32.store (i32.const 4) (i32.const {_PIECE_BYTES}))
    (loop $more
      (drop (call $write (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set 0 (i32.const 20000))
      (loop $busy (br_if $busy (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
      (br $more))))
"""

_CLIENTS = 1000
_CLIENT_SECONDS = 0.2
_GONE_SECONDS = 0.5

_TALKER = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\08\\00\\00\\00")
  (func (export "_start")
    (loop $more (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br $more))))
"""

_SPIN = """
(module
  (func (export "spin") (param i32)
    (loop $more (br_if $more (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))))
"""
_LENGTHS = {"long": 0.05, "short": 0.002}
_PARALLEL = 8
_WINDOW_SECONDS = 4.0


def _module(text: str) -> stockade.Module:
    return stockade.Module.load(text.encode(), text=True)


def _alive() -> int:
    return sum(engine.live_instances for engine in Engine._engines.values())


# -- cancelled --------------------------------------------------------------------------------------------------------


def cancelled(console: Console) -> list[Promise]:
    """Writers that are cancelled at a random moment, twice: the report must say what is in the folder."""
    # On a file system in memory, where there is one: what is measured is no disk.
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        policy = stockade.Policy().replace(mounts=[stockade.Mount(folder, "/out", "rw")], wall_time=60.0, fuel=None)
        with stockade.Sandbox(policy) as sandbox:
            found = asyncio.run(_cancel_all(sandbox, sandbox.prepare(_module(_WRITER)), Path(folder)))
    wrong, others, written = found
    console.print(
        f"{_CANCELS:,} writers cancelled at random moments, twice each: {written:,} bytes written, {wrong} reports "
        f"that do not say what was, {others} runs that ended otherwise, {_alive()} instances left",
        style="dim",
    )
    return [
        Promise("cancelled writers whose report does not say what they wrote", wrong, 0),
        Promise("cancelled writers that ended otherwise", others, 0),
        Promise("instances left", _alive(), 0),
    ]


async def _cancel_all(sandbox: stockade.Sandbox, writer: stockade.Module, folder: Path) -> tuple[int, int, int]:
    chance = random.Random(13)
    turns = asyncio.Semaphore(_AT_ONCE)
    wrong = others = written = 0

    async def one(number: int) -> None:
        nonlocal wrong, others, written
        name = f"{number:06}"
        async with turns:
            run = asyncio.ensure_future(sandbox.run_async(writer, [name], run_id=name))
            await asyncio.sleep(chance.random() * _LONGEST_SECONDS)
            sandbox.cancel(name)
            await asyncio.sleep(chance.random() * 0.002)
            sandbox.cancel(name)
            report = await run
        path = folder / name
        size = path.stat().st_size if path.exists() else 0
        counted = report.usage.written_bytes
        others += report.outcome != "cancelled"
        # What a run was in the middle of when it ended may be counted, and not done; never the other way.
        wrong += not size <= counted <= size + _PIECE_BYTES or report.usage.files_created < path.exists()
        written += size
        path.unlink(missing_ok=True)

    await asyncio.gather(*map(one, range(_CANCELS)))
    return wrong, others, written


# -- disconnected -----------------------------------------------------------------------------------------------------


def disconnected(console: Console) -> list[Promise]:
    """Guests whose output nobody takes any more: their time ends them all the same."""
    with stockade.Sandbox(stockade.Policy().replace(wall_time=_CLIENT_SECONDS, fuel=None)) as sandbox:
        sandbox.prepare(_module(_TALKER))
        begun, took, left = asyncio.run(_leave_alone(sandbox, sandbox.prepare(_module(_TALKER))))
    console.print(
        f"{_CLIENTS:,} runs whose output is not taken, under wall_time = {_CLIENT_SECONDS}: begun within {begun:.2f} "
        f"s, all over {took:.2f} s after the last had begun, {left} instances left",
        style="dim",
    )
    return [
        Promise("disconnected clients: seconds until nothing is left", took, _GONE_SECONDS),
        Promise("disconnected clients: instances left", left, 0),
    ]


async def _leave_alone(sandbox: stockade.Sandbox, talker: stockade.Module) -> tuple[float, float, int]:
    never = asyncio.get_running_loop().create_future()

    async def take(_: bytes) -> None:
        await asyncio.shield(never)

    start = time.monotonic()
    runs = [asyncio.ensure_future(sandbox.run_async(talker, on_stdout=take)) for _ in range(_CLIENTS)]
    while len(sandbox.monitor()) < _CLIENTS and not all(run.done() for run in runs):
        await asyncio.sleep(0.005)
        if sum(run.done() for run in runs) + len(sandbox.monitor()) >= _CLIENTS:
            break
    last = time.monotonic()
    reports = await asyncio.gather(*runs)
    took = time.monotonic() - last
    assert {report.outcome for report in reports} == {stockade.Outcome.TIMEOUT}
    never.cancel()
    return last - start, took, _alive()


# -- long and short ---------------------------------------------------------------------------------------------------


def lengths(console: Console) -> list[Promise]:
    """Two tenants, whose tasks differ in length by a factor of 25: each gets half of the processors.

    What is done for a guest in Python is its tenant's as well, and more with short tasks.
    """
    spin = _module(_SPIN)
    used = dict.fromkeys(_LENGTHS, 0.0)
    put_away = Executor._put_away

    def count(executor: Executor, errand: WorkItem[Any], seconds: float, until: float, *, over: bool) -> None:
        if begin < time.monotonic() < end:
            used[errand.tenant] += seconds
        put_away(executor, errand, seconds, until, over=over)

    with stockade.Sandbox(stockade.Policy().replace(wall_time=60.0, fuel=None)) as sandbox:
        sandbox.prepare(spin)
        many = 20_000_000
        rate = many / sandbox.call(spin, "spin", many).usage.cpu_seconds
        begin = time.monotonic() + 0.5
        end = begin + _WINDOW_SECONDS
        Executor._put_away = count  # type: ignore[method-assign]
        with stockade.Scheduler(sandbox, concurrency=_PARALLEL) as scheduler:

            def submit(tenant: str) -> None:
                while time.monotonic() < end:
                    task = stockade.Task(
                        module=spin,
                        export="spin",
                        args=(int(rate * _LENGTHS[tenant]),),
                        tenant=tenant,
                    )
                    scheduler.submit(task).result()

            threads = [threading.Thread(target=submit, args=(tenant,)) for tenant in _LENGTHS for _ in range(_PARALLEL)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        Executor._put_away = put_away  # type: ignore[method-assign]
    console.print(
        f"tasks of {_LENGTHS['long'] * 1e3:.0f} ms had {used['long']:.2f} s of processors, those of "
        f"{_LENGTHS['short'] * 1e3:.0f} ms {used['short']:.2f} s",
        style="dim",
    )
    ratio = max(used.values()) / max(1e-9, min(used.values()))
    return [Promise("processor time of two tenants, the greater over the lesser", ratio, 1.1)]
