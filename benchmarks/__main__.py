"""`make bench`: runs against idiomatic wasmtime-py, guarded calls against native ones, limits against none.

Every promise is a ratio or a difference taken in one run. Exits with 1 when one is not kept.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import wasmtime
from rich.console import Console
from rich.table import Table

import stockade
from benchmarks._guests import CALLS, HELLO, MANY_IMPORTS
from benchmarks._measure import Spread, in_turn
from benchmarks._modules import cached_start_milliseconds, weaving_share

_CALL_ROUNDS = {"clock_time_get": 100_000, "fd_read": 5_000, "fd_write": 5_000, "path_open": 2_000}


class Promise(NamedTuple):
    """A measured number and what it may be.

    Attributes:
        what: What was measured.
        measured: The number.
        bound: What it may be at most, or at least.
        least: Whether the bound is the least.
    """

    what: str
    measured: float
    bound: float
    least: bool = False

    @property
    def kept(self) -> bool:
        """Whether it is within its bound."""
        return self.measured >= self.bound if self.least else self.measured <= self.bound


def _native_engine() -> tuple[wasmtime.Engine, wasmtime.Linker]:
    """An engine with the same instrumentation as ours, so that a difference is the guard alone."""
    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    engine = wasmtime.Engine(config)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    return engine, linker


def _every_limit(**changes: object) -> stockade.Policy:
    """A policy with every limit set, none of which these jobs reach."""
    limits: dict[str, object] = {
        "fuel": 1 << 60,
        "wall_time": 3600.0,
        "idle_time": 60.0,
        "open_files": 100,
        "files_created": 10**9,
        "file_size": 10**9,
        "read_bytes": 10**15,
        "write_bytes": 10**15,
        "read_rate": 10**10,
        "write_rate": 10**10,
        "random_bytes": 10**9,
        "calls": 10**12,
        "call_rate": 10**10,
    }
    return stockade.Policy().replace(**(limits | changes))


def _no_limit() -> stockade.Policy:
    """The same without any limit that can be left out."""
    unlimited = "files_created file_size read_bytes write_bytes read_rate write_rate random_bytes calls call_rate"
    return stockade.Policy().replace(fuel=1 << 60, wall_time=None, **dict.fromkeys(unlimited.split()))


def hello_world() -> tuple[dict[str, Spread], list[Promise]]:
    """A fresh, fuel- and time-limited hello world, its output captured: idiomatic, and ours under two policies."""
    wasm = bytes(wasmtime.wat2wasm(HELLO))
    engine, _ = _native_engine()
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
        start = linker.instantiate(store, module).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
        store.close()
        return b"".join(output)

    loaded = stockade.Module.load(wasm)
    default, limited, unlimited = (
        stockade.Sandbox(policy) for policy in (stockade.Policy(), _every_limit(), _no_limit())
    )
    assert default.run(loaded).stdout == b"hello world\n"
    against = in_turn({"idiomatic wasmtime-py": idiomatic, "stockade": lambda: default.run(loaded)}, 8, 1, batch=500)
    # Measured apart: the threads that the idiomatic way leaves behind would disturb what is closer to the noise.
    limits = in_turn(
        {"every limit set": lambda: limited.run(loaded), "no limit set": lambda: unlimited.run(loaded)},
        8,
        1,
        batch=500,
    )
    return against | limits, [
        Promise(
            "hello world: times as fast as idiomatic wasmtime-py",
            against["idiomatic wasmtime-py"].p50 / against["stockade"].p50,
            8.0,
            least=True,
        ),
        Promise("hello world: every limit over none", limits["every limit set"].p50 / limits["no limit set"].p50, 1.15),
    ]


def single_calls(folder: Path) -> list[Promise]:
    """Single WASI calls through the guard with every limit on, over the same natively."""
    wasm = bytes(wasmtime.wat2wasm(CALLS))
    (folder / "file").write_bytes(bytes(4096))
    engine, linker = _native_engine()
    store = wasmtime.Store(engine)
    store.set_fuel(1 << 60)
    store.set_epoch_deadline(1 << 60)
    wasi = wasmtime.WasiConfig()
    wasi.preopen_dir(str(folder), "/data")
    store.set_wasi(wasi)
    exports = linker.instantiate(store, wasmtime.Module(engine, wasm)).exports(store)
    policy = _every_limit(mounts=[stockade.Mount(str(folder), "/data", "rw")])
    promises = []
    with stockade.Sandbox(policy) as sandbox, sandbox.open(wasm) as session:
        prepare = exports["prepare"]
        assert isinstance(prepare, wasmtime.Func)
        prepare(store)
        session.call("prepare").check()
        for name, times in _CALL_ROUNDS.items():
            native = exports[name]
            assert isinstance(native, wasmtime.Func)
            spread = in_turn(
                {
                    "native": lambda native=native, times=times: native(store, times),
                    "guarded": lambda name=name, times=times: session.call(name, times).check(),
                },
                30,
                3,
            )
            what = f"{name} and fd_close" if name == "path_open" else name
            promises.append(Promise(f"{what}: guarded over native", spread["guarded"].p50 / spread["native"].p50, 1.2))
            if name == "clock_time_get":
                added = (spread["guarded"].p50 - spread["native"].p50) * 1e3 / times
                promises.append(Promise("clock_time_get: nanoseconds added", added, 10.0))
    return promises


def instantiation() -> list[Promise]:
    """Instantiating a woven module with 43 WASI imports, over the original linked straight to native WASI."""
    from stockade.engine import CompiledModule, Engine, EngineConfig, Instance, LinkedModule
    from stockade.guard import guard, weave

    wasm = bytes(wasmtime.wat2wasm(MANY_IMPORTS))
    engine = Engine.shared(EngineConfig(fuel=True, stack_bytes=512 << 10))
    original, woven = (LinkedModule(CompiledModule(engine, code)) for code in (wasm, weave(wasm, guard()).wasm))

    def instantiate(linked: LinkedModule) -> None:
        Instance(linked, fuel=1 << 60, memory_bytes=128 << 20, table_elements=10_000).close()

    spread = in_turn({"native": lambda: instantiate(original), "woven": lambda: instantiate(woven)}, 8, 1, batch=500)
    return [
        Promise("instantiation with 43 imports: woven over native", spread["woven"].p50 / spread["native"].p50, 1.2)
    ]


def modules(console: Console) -> list[Promise]:
    """What happens to a module before it runs."""
    promises = []
    for large in (False, True):
        what, share, told = weaving_share("python", large=large)
        console.print(told, style="dim")
        promises.append(Promise(what, share, 0.08))
    promises.append(Promise("CPython ready in a second process, ms", cached_start_milliseconds("python"), 100.0))
    return promises


def main() -> int:
    """Measures, shows tables, and says whether the promises are kept."""
    console = Console()
    before = modules(console)
    # Ours first: the threads of the idiomatic way stay around.
    with tempfile.TemporaryDirectory() as folder:
        promises = [*instantiation(), *single_calls(Path(folder))]
    spread, more = hello_world()
    promises = [*more, *promises, *before]
    table = Table(title=f"one fresh hello world ({platform.machine()}, {os.cpu_count()} cores), µs")
    for heading in ("", "p50", "p95", "p99", "worst"):
        table.add_column(heading, justify="right")
    for name, times in spread.items():
        table.add_row(name, *(f"{value:,.1f}" for value in times))
    console.print(table)
    kept = Table(title="promises")
    for heading in ("", "measured", "promised", ""):
        kept.add_column(heading, justify="right", overflow="fold")
    for promise in promises:
        verdict = "[green]kept[/]" if promise.kept else "[red]MISSED[/]"
        bound = f"{'≥' if promise.least else '≤'} {promise.bound:g}"
        kept.add_row(promise.what, f"{promise.measured:.2f}", bound, verdict)
    console.print(kept)
    return 0 if all(promise.kept for promise in promises) else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # wasmtime-py's custom stdout can abort the interpreter at exit; nothing is left to do by now.
    os._exit(status)
