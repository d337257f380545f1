"""What holding a guest costs where it computes: on the bare engine, under the guard, and with fuel metered besides.

The same modules, compiled by the same engine, on the same core: CPython runs a program, SQLite and zlib (which are C in
it), and a matrix product is WebAssembly text. What counts is processor time, from instantiating to the end.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import wasmtime
from rich.table import Table
from tests.conftest import program_path

import stockade
from benchmarks._measure import Promise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

__all__ = ["compute"]

_ROUNDS = 5

_PYTHON = """
def solve(n, row=0, columns=0, left=0, right=0):
    if row == n:
        return 1
    found, free = 0, ~(columns | left | right) & ((1 << n) - 1)
    while free:
        bit = free & -free
        free ^= bit
        found += solve(n, row + 1, columns | bit, (left | bit) << 1, (right | bit) >> 1)
    return found
words = {}
for number in range(60_000):
    words.setdefault(str(number * 7919 % 1000), []).append(number)
print(solve(8), sum(len(found) for found in words.values()))
"""

_SQLITE = """
import sqlite3
base = sqlite3.connect(":memory:")
base.execute("create table t (k integer primary key, word text, n integer)")
base.executemany("insert into t values (?, ?, ?)", ((k, f"word{k * 7919 % 5000}", k % 97) for k in range(30_000)))
base.execute("create index i on t (word)")
print(base.execute("select count(*), sum(a.n * b.n) from t a join t b on a.word = b.word").fetchone())
print(base.execute("select word, count(*) from t where word like '%99%' group by word order by 2 desc, 1").fetchone())
"""

_ZLIB = """
import zlib
text = b"".join(b"%d squared is %d; " % (n, n * n) for n in range(60_000))
packed = zlib.compress(text, 9)
print(len(text), zlib.decompress(packed) == text, zlib.crc32(text))
"""

_SIZE = 300
_MATRIX = f"""
(module
  (memory (export "memory") 48)
  (func (export "_start") (local $i i32) (local $j i32) (local $k i32) (local $sum f64)
    (loop $fill
      (f64.store (i32.shl (local.get $i) (i32.const 3)) (f64.convert_i32_s (i32.rem_u (local.get $i) (i32.const 17))))
      (br_if $fill (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {2 * _SIZE * _SIZE}))))
    (local.set $i (i32.const 0))
    (loop $rows
      (local.set $j (i32.const 0))
      (loop $columns
        (local.set $k (i32.const 0))
        (local.set $sum (f64.const 0))
        (loop $products
          (local.set $sum (f64.add (local.get $sum) (f64.mul
            (f64.load (i32.shl (i32.add (i32.mul (local.get $i) (i32.const {_SIZE})) (local.get $k)) (i32.const 3)))
            (f64.load offset={8 * _SIZE * _SIZE}
              (i32.shl (i32.add (i32.mul (local.get $k) (i32.const {_SIZE})) (local.get $j)) (i32.const 3))))))
          (br_if $products (i32.lt_u (local.tee $k (i32.add (local.get $k) (i32.const 1))) (i32.const {_SIZE}))))
        (f64.store offset={16 * _SIZE * _SIZE}
          (i32.shl (i32.add (i32.mul (local.get $i) (i32.const {_SIZE})) (local.get $j)) (i32.const 3))
          (local.get $sum))
        (br_if $columns (i32.lt_u (local.tee $j (i32.add (local.get $j) (i32.const 1))) (i32.const {_SIZE}))))
      (br_if $rows (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {_SIZE}))))))
"""
"""The product of two matrices of 300 by 300 64-bit floats, as one would write it in C."""


class _Job(NamedTuple):
    """Something to compute.

    Attributes:
        name: What it is called.
        module: What runs: `python`, or the matrix product.
        args: The guest's arguments.
    """

    name: str
    module: str
    args: tuple[str, ...] = ()


_JOBS = (
    _Job("CPython", "python", ("-c", _PYTHON)),
    _Job("SQLite", "python", ("-c", _SQLITE)),
    _Job("zlib", "python", ("-c", _ZLIB)),
    _Job("matrix product", "matrix"),
)

_PROMISED = (
    ("guarded", "time limit", 1.1),
    ("guarded and metered", "guarded", 1.6),
)
"""What one way may cost over another. Over the bare engine nothing is promised: that a run can be stopped at all costs
what the engine makes of it, little in programs and much in a loop of a few instructions."""


def _native(wasm: bytes, *, stoppable: bool) -> Callable[[Sequence[str]], bytes]:
    """The engine without a guard, with WASI for arguments and output: as it comes, or so that it can be stopped."""
    config = wasmtime.Config()
    config.epoch_interruption = stoppable
    engine = wasmtime.Engine(config)
    module = wasmtime.Module(engine, wasm)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    folder = Path(tempfile.mkdtemp())

    def run(args: Sequence[str]) -> bytes:
        out = folder / "stdout"
        store = wasmtime.Store(engine)
        if stoppable:
            store.set_epoch_deadline(1 << 60)
        wasi = wasmtime.WasiConfig()
        wasi.argv = ["main.wasm", *args]
        wasi.stdout_file = str(out)
        store.set_wasi(wasi)
        start = linker.instantiate(store, module).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        try:
            start(store)
        except wasmtime.ExitTrap as leave:
            if leave.code:
                raise
        store.close()
        return out.read_bytes()

    return run


def _held(wasm: bytes, policy: stockade.Policy) -> Callable[[Sequence[str]], bytes]:
    """Ours, under a policy."""
    sandbox = stockade.Sandbox(policy)
    module = sandbox.prepare(stockade.Module.load(wasm))
    return lambda args: sandbox.run(module, args).check().stdout


def compute(console: Console) -> list[Promise]:
    """Measures each job each way, in turn."""
    unlimited = stockade.Policy().replace(wall_time=None)
    wasm = {"python": program_path("python").read_bytes(), "matrix": bytes(wasmtime.wat2wasm(_MATRIX))}
    ways = {
        name: {
            "bare": _native(data, stoppable=False),
            "time limit": _native(data, stoppable=True),
            "guarded": _held(data, unlimited),
            "guarded and metered": _held(data, unlimited.replace(fuel=1 << 60)),
        }
        for name, data in wasm.items()
    }
    table = Table(title="one run that computes: milliseconds of processor time, and over the bare engine")
    for heading in ("", "bare engine", "with a time limit", "guarded", "guarded and metered"):
        table.add_column(heading, justify="right")
    promises = []
    for job in _JOBS:
        times: dict[str, list[float]] = {way: [] for way in ways[job.module]}
        for number in range(1 + _ROUNDS):
            printed = set()
            for way, run in ways[job.module].items():
                begun = time.process_time()
                printed.add(run(job.args))
                if number:
                    times[way].append(time.process_time() - begun)
            assert len(printed) == 1, f"{job.name} prints the same, however it is held: {printed}"
        cells = (f"{median(taken) * 1e3:,.0f} ({_over(taken, times['bare']):.2f})" for taken in times.values())
        table.add_row(job.name, *cells)
        for way, other, bound in _PROMISED:
            promises.append(Promise(f"{job.name}: {way} over {other}", _over(times[way], times[other]), bound))
    console.print(table)
    return promises


def _over(times: Sequence[float], others: Sequence[float]) -> float:
    """One way over another, pair by pair, for what the machine does in between."""
    return median(one / other for one, other in zip(times, others, strict=True))
