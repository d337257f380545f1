"""How late a run ends that makes one native call after another: the longest that any of them holds up a deadline."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

import stockade
from benchmarks._measure import Promise, Spread

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["late"]

_ENTRIES = 1_000
_MEMORY_PAGES = 1_700
_BUFFER, _BUFFER_BYTES = 1 << 16, 100 << 20
_PATH = 4_096
_LONGEST = "d/../" * 817 + "file"
"""A path that leads through as many folders as one may."""
_DEADLINE = 0.05
_RUNS = 12

_CALLS = {
    "fd_read of 100 MiB": "(drop (call $seek {fd} (i64.const 0) (i32.const 0) (i32.const 8)))"
    " (drop (call $read {fd} (i32.const 16) (i32.const 1) (i32.const 0)))",
    "fd_pread of 100 MiB": "(drop (call $pread {fd} (i32.const 16) (i32.const 1) (i64.const 0) (i32.const 0)))",
    "fd_write of 100 MiB": "(drop (call $seek {fd} (i64.const 0) (i32.const 0) (i32.const 8)))"
    " (drop (call $write {fd} (i32.const 16) (i32.const 1) (i32.const 0)))",
    "fd_pwrite of 100 MiB": "(drop (call $pwrite {fd} (i32.const 16) (i32.const 1) (i64.const 0) (i32.const 0)))",
    "fd_write of 100 MiB to stdout": "(drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 0)))",
    "random_get of 100 MiB": f"(drop (call $random (i32.const {_BUFFER}) (i32.const {_BUFFER_BYTES})))",
    "path_filestat_get": f"(drop (call $stat (i32.const 3) (i32.const 1) (i32.const {_PATH}) (i32.const"
    f" {len(_LONGEST)}) (i32.const 64)))",
    "path_open and fd_close": f"(drop (call $open (i32.const 3) (i32.const 1) (i32.const {_PATH}) (i32.const"
    f" {len(_LONGEST)}) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8)))"
    " (drop (call $close (i32.load (i32.const 8))))",
    "path_open of a FIFO": "(drop (call $open (i32.const 3) (i32.const 1) (i32.const 32) (i32.const 4) (i32.const 0)"
    " (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8)))",
    "path_filestat_set_times of a FIFO": "(drop (call $times (i32.const 3) (i32.const 1) (i32.const 32) (i32.const 4)"
    " (i64.const 0) (i64.const 0) (i32.const 10)))",
    "fd_readdir, little at a time": "(drop (call $readdir (i32.const 4) (i32.const 65536) (i32.const 64) (i64.const 0)"
    " (i32.const 0)))",
    "fd_readdir, all at once": f"(drop (call $readdir (i32.const 4) (i32.const 65536) (i32.const {_BUFFER_BYTES})"
    " (i64.const 0) (i32.const 0)))",
}
"""What is called again and again, by name. File descriptor 4 is a folder of so many entries, `{fd}` a large file."""

_GUEST = """
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_pread" (func $pread (param i32 i32 i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_pwrite" (func $pwrite (param i32 i32 i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_readdir" (func $readdir (param i32 i32 i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_filestat_get" (func $stat (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_filestat_set_times"
    (func $times (param i32 i32 i32 i32 i64 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") {pages})
  (data (i32.const 16) "\\00\\00\\01\\00\\00\\00\\40\\06")  ;; the buffer: 100 MiB
  (data (i32.const 32) "fifo")
  (data (i32.const 40) "large")
  (data (i32.const {path}) "{longest}")
  (func (export "_start")
    (if (call $open (i32.const 3) (i32.const 1) (i32.const 40) (i32.const 5) (i32.const 0) (i64.const 0x42)
          (i64.const 0) (i32.const 0) (i32.const 12))
      (then (unreachable)))
    (loop $again {call} (br $again))))
"""


def late(console: Console) -> list[Promise]:
    """Runs that make a call again and again until their time is up, and by how much they end too late."""
    promises = []
    table = Table(title=f"ended after the deadline, of {_RUNS} runs, ms")
    for heading in ("", "p50", "worst"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files" / "d").mkdir(parents=True)
        (folder / "files" / "file").touch()
        os.mkfifo(folder / "files" / "fifo")
        with (folder / "files" / "large").open("wb") as file:
            file.truncate(_BUFFER_BYTES)
        (folder / "many").mkdir()
        for number in range(_ENTRIES):
            (folder / "many" / f"{number:04}{'n' * 200}").touch()
        policy = stockade.Policy().replace(
            mounts=[stockade.Mount(f"{folder}/files", "/", "rw"), stockade.Mount(f"{folder}/many", "/many", "ro")],
            fuel=None, wall_time=_DEADLINE, memory=256 << 20, write_bytes=None, read_bytes=None, random_bytes=None,
        )  # fmt: skip
        with stockade.Sandbox(policy) as sandbox:
            for what, call in _CALLS.items():
                text = _GUEST.format(
                    pages=_MEMORY_PAGES, path=_PATH, longest=_LONGEST, call=call.format(fd="(i32.load (i32.const 12))")
                )
                module = stockade.Module.load(text.encode(), text=True)
                sandbox.run(module)
                times = []
                for _ in range(_RUNS):
                    begun = time.perf_counter()
                    report = sandbox.run(module)
                    times.append((time.perf_counter() - begun - report.timings.instantiate - _DEADLINE) * 1e3)
                    assert report.outcome is stockade.Outcome.TIMEOUT, report
                spread = Spread.of(times)
                table.add_row(what, f"{spread.p50:.1f}", f"{spread.worst:.1f}")
                promises.append(Promise(f"{what}: ends late by, ms", spread.worst, 100.0))
    console.print(table)
    return promises
