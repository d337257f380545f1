"""`make bench`: runs against idiomatic wasmtime-py, guarded calls against native ones, limits against none, crowds.

Every promise about cost is a ratio or a difference taken in one run. Exits with 1 when one is not kept.
`python -m benchmarks PART...` measures some parts only; with `--json`, figures are written as JSON to standard output,
and tables to standard error. `languages` is measured only where it is asked for: it installs packages of others.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import wasmtime
from rich.console import Console
from rich.table import Table

import stockade
from benchmarks._audit import audit
from benchmarks._bare import bare_hello
from benchmarks._compiles import compiles
from benchmarks._compute import compute
from benchmarks._crowds import asleep, heartbeat, parked, shares, throughput
from benchmarks._ends import cancelled, disconnected, lengths
from benchmarks._gate import gate
from benchmarks._guests import CALLS, HELLO, MANY_IMPORTS
from benchmarks._host_calls import host_calls
from benchmarks._idiomatic import idiomatic_hello, native_engine
from benchmarks._isolation import workers
from benchmarks._languages import languages
from benchmarks._late import late
from benchmarks._loading import hostile_files
from benchmarks._measure import Promise, in_turn
from benchmarks._modules import cached_start_milliseconds, shares_of_compiling
from benchmarks._snapshots import snapshots
from benchmarks._start import start
from benchmarks._trace import trace
from benchmarks._worst import aside, worst

if TYPE_CHECKING:
    from collections.abc import Callable

_CALL_ROUNDS = {
    "clock_time_get": 100_000,
    "fd_read": 5_000,
    "fd_write": 5_000,
    "path_open": 2_000,
    "fd_read of 1 MiB": 50,
    "fd_write of 1 MiB": 50,
}


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


def hello_world(console: Console) -> list[Promise]:
    """A fresh, limited hello world, its output captured: as C calls, idiomatic, and ours under several policies."""
    bare, idiomatic = bare_hello(), idiomatic_hello()
    loaded = stockade.Module.load(HELLO.encode(), text=True)
    default, limited, unlimited = (
        stockade.Sandbox(policy) for policy in (stockade.Policy(), _every_limit(), _no_limit())
    )
    assert default.run(loaded).stdout == b"hello world\n"
    least = in_turn({"bare C calls": bare, "stockade beside them": lambda: default.run(loaded)}, 8, 1, batch=500)
    against = in_turn({"idiomatic wasmtime-py": idiomatic, "stockade": lambda: default.run(loaded)}, 8, 1, batch=500)
    # Measured apart: the threads that the idiomatic way leaves behind would disturb what is closer to the noise.
    limits = in_turn(
        {"every limit set": lambda: limited.run(loaded), "no limit set": lambda: unlimited.run(loaded)},
        8,
        1,
        batch=500,
    )
    table = Table(title=f"one fresh hello world ({platform.machine()}, {os.cpu_count()} cores), µs")
    for heading in ("", "p50", "p95", "p99", "worst"):
        table.add_column(heading, justify="right")
    for name, times in (least | against | limits).items():
        table.add_row(name, *(f"{value:,.1f}" for value in times))
    console.print(table)
    return [
        Promise(
            "hello world: over the bare C calls for it",
            least["stockade beside them"].p50 / least["bare C calls"].p50,
            1.5,
        ),
        Promise(
            "hello world: times as fast as idiomatic wasmtime-py",
            against["idiomatic wasmtime-py"].p50 / against["stockade"].p50,
            8.0,
            least=True,
        ),
        Promise("hello world: every limit over none", limits["every limit set"].p50 / limits["no limit set"].p50, 1.1),
    ]


def calls(_: Console) -> list[Promise]:
    """What the guard adds to making an instance, and to a call."""
    with tempfile.TemporaryDirectory() as folder:
        return [*instantiation(), *single_calls(Path(folder))]


def single_calls(folder: Path) -> list[Promise]:
    """Single WASI calls through the guard with every limit on, over the same natively."""
    wasm = bytes(wasmtime.wat2wasm(CALLS))
    (folder / "file").write_bytes(bytes(1 << 20))
    engine, linker = native_engine()
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
            ratio = spread["guarded"].p50 / spread["native"].p50
            if "MiB" in name:
                promises.append(Promise(f"{name}: guarded over native, bytes a second", 1 / ratio, 0.75, least=True))
                continue
            what = f"{name} and fd_close" if name == "path_open" else name
            promises.append(Promise(f"{what}: guarded over native", ratio, 1.2))
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
    codes = (wasm, weave(wasm, guard()).wasm)
    original, woven = (LinkedModule(CompiledModule(engine, code), parks=True) for code in codes)

    def instantiate(linked: LinkedModule) -> None:
        owner = engine.acquire(linked.claim)
        assert owner is not None
        Instance(linked, owner, fuel=1 << 60, memory_bytes=128 << 20, table_elements=10_000).close()

    spread = in_turn({"native": lambda: instantiate(original), "woven": lambda: instantiate(woven)}, 8, 1, batch=500)
    return [
        Promise("instantiation with 43 imports: woven over native", spread["woven"].p50 / spread["native"].p50, 1.2)
    ]


def modules(console: Console) -> list[Promise]:
    """What happens to a module before it runs."""
    promises = []
    for large in (False, True):
        shares, told = shares_of_compiling("python", large=large)
        console.print(told, style="dim")
        promises += [Promise(what, share, bound) for what, share, bound in shares]
    promises.append(Promise("CPython ready in a second process, ms", cached_start_milliseconds("python"), 100.0))
    return promises


_PARTS: dict[str, Callable[[Console], list[Promise]]] = {
    "start": start,
    "worst": worst,
    "aside": aside,
    "compiles": compiles,
    "asleep": asleep,
    "parked": parked,
    "shares": shares,
    "heartbeat": heartbeat,
    "cancelled": cancelled,
    "disconnected": disconnected,
    "lengths": lengths,
    "modules": modules,
    "loading": hostile_files,
    "calls": calls,
    "compute": compute,
    "host-calls": host_calls,
    "trace": trace,
    "gate": gate,
    "audit": lambda _: audit(),
    "late": late,
    "throughput": throughput,
    "snapshots": snapshots,
    "workers": workers,
    "hello": hello_world,
}
"""In the order in which they run: first what forks, last the idiomatic way, whose threads stay around."""

_ASKED_FOR = {"languages": languages}
"""Parts that are measured only where they are named."""

_CROWDS = ("asleep", "parked", "shares", "heartbeat", "throughput")


def _documents(figures: list[Promise]) -> list[dict[str, object]]:
    return [
        {"what": figure.what, "measured": figure.measured}
        | ({"bound": figure.bound, "least": figure.least} if math.isfinite(figure.bound) else {})
        for figure in figures
    ]


def main(names: list[str]) -> int:
    """Measures, shows tables, and says whether the promises are kept.

    Args:
        names: Parts; none for all of them, `crowds` for those with many guests. `--json` for figures as JSON.
    """
    as_json = "--json" in names
    names = [name for name in names if name != "--json"]
    parts = _ASKED_FOR | _PARTS
    wanted = {part for name in names or _PARTS for part in (_CROWDS if name == "crowds" else (name,))}
    if unknown := wanted - parts.keys():
        print(f"no such part: {', '.join(sorted(unknown))}. There are: crowds, {', '.join(parts)}", file=sys.stderr)
        return 2
    console = Console(stderr=as_json)
    figures = [figure for name, part in parts.items() if name in wanted for figure in part(console)]
    if as_json:
        print(json.dumps({"machine": platform.machine(), "cores": os.cpu_count(), "figures": _documents(figures)}))
    promises = [figure for figure in figures if math.isfinite(figure.bound)]
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
    status = main(sys.argv[1:])
    sys.stdout.flush()
    # wasmtime-py's custom stdout can abort the interpreter at exit; nothing is left to do by now.
    os._exit(status)
