"""What an audit log costs: runs that are told to a file, over runs that are told to nobody."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import stockade
from benchmarks._guests import HELLO
from benchmarks._measure import Promise
from stockade.audit import verify

if TYPE_CHECKING:
    from collections.abc import Callable

_RUNS = 10_000
_ROUNDS = 9


class _Taken(NamedTuple):
    """How long something took, and how much processor time of all threads, and of the process that writes logs."""

    seconds: float
    cpu_seconds: float


def _writer_seconds() -> float:
    """Processor time of the process beside this one that writes audit logs; 0 where there is none."""
    seconds = 0.0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes()
            # It is told whose it is.
            if b"stockade.audit._writer" in words and b", %d)" % os.getpid() in words:
                threads = (process / "task").glob("*/schedstat")
                seconds += sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    return seconds


def _timed(box: stockade.Sandbox, module: stockade.Module, then: Callable[[], object]) -> _Taken:
    gc.collect()
    beside = _writer_seconds()
    begun, used = time.perf_counter(), time.process_time()
    for _ in range(_RUNS):
        box.run(module)
    then()
    return _Taken(time.perf_counter() - begun, time.process_time() - used + _writer_seconds() - beside)


def audit() -> list[Promise]:
    """10,000 hello worlds with an audit log, until all events are in its file, over as many without; in turn.

    The disk is not waited for: that takes as long as the disk does, and no run waits for it unless it is asked to.
    """
    module = stockade.Module.load(HELLO.encode(), text=True)
    slower, dearer, lost = [], [], 0
    with tempfile.TemporaryDirectory() as folder, stockade.Sandbox() as plain:
        os.environ.setdefault("STOCKADE_STATE", folder)
        plain.run(module)
        for number in range(_ROUNDS):
            path = Path(folder) / f"audit{number}.jsonl"
            without = _timed(plain, module, lambda: None)
            with stockade.AuditLog(path, fsync="never") as log, stockade.Sandbox(audit=log) as box:
                # As the other has, too: what the first run takes is another matter.
                box.run(module)
                told = _timed(box, module, log.flush)
            slower.append(told.seconds / without.seconds)
            dearer.append(told.cpu_seconds / without.cpu_seconds)
            text = path.read_bytes()
            lost += 2 * (_RUNS + 1) - text.count(b'"run_started"') - text.count(b'"run_ended"')
            assert verify(path).ok
    return [
        Promise("10,000 runs with an audit log, over runs without", statistics.median(slower), 1.15),
        Promise("processor time of these, over that of runs without", statistics.median(dearer)),
        Promise("events of these that are not in the log", lost, 0.0),
    ]
