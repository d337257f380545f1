"""Snapshots: guests that begin with one, forks of a session with much data, and guests that wait."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

import stockade
from benchmarks._measure import Promise, Spread, in_turn

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["snapshots"]

_DATA_BYTES = 100 << 20
_FORKS = 1_000
_CHANGED_FORKS = 50
_FIRST_FORKS = 5

_HOLDER = f"""
(module
  (memory (export "memory") {(_DATA_BYTES >> 16) + 1})
  (func (export "fill") (local $at i32)
    (loop $next
      (i32.store (local.get $at) (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 64))) (i32.const {_DATA_BYTES})))))
  (func (export "put") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "get") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "touch") (param $pages i32) (local $at i32)
    (loop $next
      (i32.store8 (i32.mul (local.get $at) (i32.const 8192)) (i32.const 7))
      (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (local.get $pages))))))
"""


def snapshots(console: Console) -> list[Promise]:
    """What it costs to begin with a snapshot, to fork, and to fork a thousand times."""
    policy = stockade.Policy().replace(memory="256MiB", wall_time="60s")
    with stockade.Sandbox(policy) as box:
        module = stockade.Module.load(_HOLDER.encode(), text=True)
        promises, session = _forks(console, box, module)
        with session:
            promises += _many_forks(console, session)
            promises += _begun(console, box, session.snapshot())
    return promises


def _forks(console: Console, box: stockade.Sandbox, module: stockade.Module) -> tuple[list[Promise], stockade.Session]:
    """Forks of a session with 100 MiB of data: the first, those of it as it is, and those after a change."""
    first: dict[bool, list[float]] = {False: [], True: []}
    filled: dict[bool, list[float]] = {False: [], True: []}
    same, changed = [], []
    for forks in (False, True) * _FIRST_FORKS:
        begun = time.process_time()
        session = box.open(module, forks=forks)
        session.call("fill").check()
        filled[forks].append(time.process_time() - begun)
        first[forks].append(_fork_seconds(session))
        session.close()
        # Memory is given back with the last snapshot.
        gc.collect()
    # As language sessions are: begun with a snapshot themselves.
    with box.open(module) as seed:
        seed.call("fill").check()
        session = seed.fork()
    for number in range(_CHANGED_FORKS):
        session.call("touch", 100).check()
        changed.append(_fork_seconds(session))
        same += [_fork_seconds(session) for _ in range(5)]
        if number % 10 == 9:
            gc.collect()
    table = Table(title="forks of a session with 100 MiB of data, ms")
    for heading in ("", "p50", "p95", "worst"):
        table.add_column(heading, justify="right")
    for name, seconds in (
        ("the first of a session opened with forks=True", first[True]),
        ("the first of any other: all of it is copied", first[False]),
        ("as it is since the last", same),
        ("after it has written to 100 pages", changed),
    ):
        spread = Spread.of(second * 1e3 for second in seconds)
        table.add_row(name, f"{spread.p50:.2f}", f"{spread.p95:.2f}", f"{spread.worst:.2f}")
    console.print(table)
    spent = {forks: Spread.of(second * 1e3 for second in seconds).p50 for forks, seconds in filled.items()}
    console.print(
        f"a session that is opened and writes 100 MiB: {spent[False]:.0f} ms of processor time, with forks=True "
        f"{spent[True]:.0f}",
        style="dim",
        highlight=False,
    )
    return [
        Promise(
            "the first fork of a session with 100 MiB of data, opened with forks=True, ms",
            Spread.of(first[True]).p50 * 1e3,
            5.0,
        ),
        Promise(
            "the first fork of any other session with 100 MiB of data, ms", Spread.of(first[False]).p50 * 1e3, 60.0
        ),
        Promise("a later fork of a session with 100 MiB of data, ms", Spread.of(same).p50 * 1e3, 5.0),
        Promise("the same after it has written to 100 pages, ms", Spread.of(changed).p50 * 1e3, 5.0),
    ], session


def _fork_seconds(session: stockade.Session) -> float:
    begun = time.perf_counter()
    fork = session.fork()
    taken = time.perf_counter() - begun
    fork.close()
    return taken


def _memory() -> tuple[int, int]:
    """What this process has for itself, and what it has with its share of what it shares: bytes, by the kernel."""
    told = dict.fromkeys(("Private_Dirty:", "Pss:"), 0)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, *rest = line.split()
        if name in told:
            told[name] = int(rest[0]) << 10
    return told["Private_Dirty:"], told["Pss:"]


def _many_forks(console: Console, session: stockade.Session) -> list[Promise]:
    """A thousand forks at once, each of which changes its copy: none sees another's."""
    gc.collect()
    before = _memory()
    forks = []
    begun = time.perf_counter()
    for number in range(_FORKS):
        fork = session.fork()
        fork.call("put", 50 << 20, number).check()
        forks.append(fork)
    seconds = time.perf_counter() - begun
    after = _memory()
    seen = sum(fork.call("get", 50 << 20).value == number for number, fork in enumerate(forks))
    shared = sum(fork.call("get", 4_096 * 999).value == 4_096 * 999 + 1 for fork in forks)
    of_session = session.call("get", 50 << 20).value == (50 << 20) + 1
    told = forks[0].call("get", 0).usage.memory_bytes
    for fork in forks:
        fork.close()
    own = (after[0] - before[0]) / _FORKS / 1024
    right = min(seen, shared) if of_session else 0
    console.print(
        f"{_FORKS:,} forks at once, each changed: {seconds * 1e3 / _FORKS:.3f} ms a fork and its call; own memory of a "
        f"fork {own:.0f} KiB (kernel: private dirty), {told / 2**20:.0f} MiB as its report tells, shared ones in full; "
        f"{(after[1] - before[1]) / 2**20:.0f} MiB for all (kernel: Pss)",
        style="dim",
        highlight=False,
    )
    return [
        Promise("of 1,000 forks, that see their own change only", right, _FORKS, least=True),
        Promise("own memory of a fork that has changed a page, KiB", own, 256),
    ]


def _begun(console: Console, box: stockade.Sandbox, snapshot: stockade.Snapshot) -> list[Promise]:
    """A guest that begins with a snapshot, and one that was made ahead: a call that writes to 400 pages."""
    opened = []
    for _ in range(300):
        begun = time.perf_counter()
        session = box.open(snapshot)
        opened.append(time.perf_counter() - begun)
        session.close()
    restored = Spread.of(second * 1e6 for second in opened)
    cold = in_turn({"cold": lambda: box.call(snapshot, "touch", 400)}, 6, 1, batch=50)["cold"]
    box.warm(snapshot, pool_size=64)
    for _ in range(4):
        box.call(snapshot, "touch", 400).check()
    time.sleep(1.0)
    warm = []
    for _ in range(5):
        for _ in range(30):
            begun = time.perf_counter()
            box.call(snapshot, "touch", 400)
            warm.append((time.perf_counter() - begun) * 1e6)
        time.sleep(1.0)
    box.warm(snapshot, pool_size=0)
    ready = Spread.of(warm)
    console.print(
        f"a guest that begins with 100 MiB: {restored.p50:.0f} µs (p95 {restored.p95:.0f}); a call that writes to 400 "
        f"pages {cold.p50:.0f} µs, from those that wait {ready.p50:.0f} µs",
        style="dim",
        highlight=False,
    )
    return [
        Promise("a session opened from a snapshot of 100 MiB, µs", restored.p50, 100),
        Promise("a call that writes to 400 pages: waited over not", ready.p50 / cold.p50, 0.6),
    ]
