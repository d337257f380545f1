"""`make bench`: a run against the same job in idiomatic wasmtime-py, and a guarded call against a native one.

Exits with 1 when a promise is not kept: a run at least 8 times as fast, the guard at most 10 ns a call.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import wasmtime
from rich.console import Console
from rich.table import Table

import stockade
from benchmarks._measure import Spread, in_turn

HELLO = r"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\08\00\00\00\0c\00\00\00hello world\n")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))
"""

CLOCK = """
(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "calls") (param $times i32)
    (loop $next
      (drop (call $clock (i32.const 1) (i64.const 0) (i32.const 8)))
      (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1)))))))
"""

CALLS = 200_000
LEAST_SPEEDUP = 8.0
MOST_GUARD_NANOSECONDS = 10.0


def hello_jobs() -> tuple[stockade.Sandbox, dict[str, object]]:
    """The same job twice: a fresh, fuel- and time-limited hello world, its output captured."""
    wasm = bytes(wasmtime.wat2wasm(HELLO))
    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    engine = wasmtime.Engine(config)
    module = wasmtime.Module(engine, wasm)

    def idiomatic() -> bytes:
        output: list[bytes] = []
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        store = wasmtime.Store(engine)
        store.set_fuel(5_000_000_000)
        store.set_epoch_deadline(500)
        store.set_limits(memory_size=128 << 20)
        wasi = wasmtime.WasiConfig()
        wasi.stdout_custom = output.append
        store.set_wasi(wasi)
        instance = linker.instantiate(store, module)
        start = instance.exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
        store.close()
        return b"".join(output)

    sandbox = stockade.Sandbox()
    loaded = stockade.Module.load(wasm)

    def guarded() -> bytes:
        return sandbox.run(loaded).stdout

    assert guarded() == b"hello world\n"
    return sandbox, {"idiomatic wasmtime-py": idiomatic, "stockade": guarded}


def clock_nanoseconds() -> tuple[float, float]:
    """Nanoseconds of one `clock_time_get`: native, and through the guard; each the median of many runs."""
    wasm = bytes(wasmtime.wat2wasm(CLOCK))
    # The native side gets the same instrumentation, so that the difference is the guard alone.
    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    engine = wasmtime.Engine(config)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    store = wasmtime.Store(engine)
    store.set_fuel(1 << 60)
    store.set_epoch_deadline(1 << 60)
    store.set_wasi(wasmtime.WasiConfig())
    native = linker.instantiate(store, wasmtime.Module(engine, wasm)).exports(store)["calls"]
    assert isinstance(native, wasmtime.Func)
    policy = stockade.Policy().replace(fuel=1 << 60, wall_time=None)
    with stockade.Sandbox(policy) as sandbox, sandbox.open(wasm) as session:
        spread = in_turn(
            {"native": lambda: native(store, CALLS), "guarded": lambda: session.call("calls", CALLS)}, 40, 3
        )
    return spread["native"].p50 * 1e3 / CALLS, spread["guarded"].p50 * 1e3 / CALLS


def main() -> int:
    """Measures, shows a table, and says whether the promises are kept."""
    console = Console()
    _, jobs = hello_jobs()
    spread: dict[str, Spread] = in_turn(jobs, 60, 5, batch=50)  # type: ignore[arg-type]
    native, guarded = clock_nanoseconds()
    table = Table(title=f"one fresh hello world ({platform.machine()}, {os.cpu_count()} cores), µs")
    for heading in ("", "p50", "p95", "p99", "worst"):
        table.add_column(heading, justify="right")
    for name, times in spread.items():
        table.add_row(name, *(f"{value:,.1f}" for value in times))
    console.print(table)
    speedup = spread["idiomatic wasmtime-py"].p50 / spread["stockade"].p50
    added = guarded - native
    rows = [
        ("run: times as fast, p50", f"{speedup:.1f}", f"≥ {LEAST_SPEEDUP:g}", speedup >= LEAST_SPEEDUP),
        ("clock_time_get: ns added", f"{added:.1f}", f"≤ {MOST_GUARD_NANOSECONDS:g}", added <= MOST_GUARD_NANOSECONDS),
    ]
    promises = Table(title=f"promises (native call {native:.0f} ns, guarded {guarded:.0f} ns)")
    for heading in ("", "measured", "promised", ""):
        promises.add_column(heading, justify="right")
    for what, measured, promised, kept in rows:
        promises.add_row(what, measured, promised, "[green]kept[/]" if kept else "[red]MISSED[/]")
    console.print(promises)
    return 0 if all(kept for *_, kept in rows) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    # The custom stdout of wasmtime-py can abort the interpreter at exit; nothing is left to do by then.
    status = main()
    sys.stdout.flush()
    os._exit(status)
