"""What an audit log costs: runs that are told to a file, over runs that are told to nobody."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from pathlib import Path

import stockade
from benchmarks._guests import HELLO
from benchmarks._measure import Promise
from stockade.audit import verify

_RUNS = 10_000
_ROUNDS = 5


def _timed(box: stockade.Sandbox, module: stockade.Module) -> float:
    begun = time.perf_counter()
    for _ in range(_RUNS):
        box.run(module)
    return time.perf_counter() - begun


def audit() -> list[Promise]:
    """10,000 hello worlds with an audit log, until all events are in its file, over as many without; in turn."""
    module = stockade.Module.load(HELLO.encode(), text=True)
    ratios, lost = [], 0
    with tempfile.TemporaryDirectory() as folder, stockade.Sandbox() as plain:
        os.environ.setdefault("STOCKADE_STATE", folder)
        plain.run(module)
        for number in range(_ROUNDS):
            path = Path(folder) / f"audit{number}.jsonl"
            gc.collect()
            without = _timed(plain, module)
            gc.collect()
            with stockade.AuditLog(path) as log, stockade.Sandbox(audit=log) as box:
                begun = time.perf_counter()
                _timed(box, module)
                # It is the time until everything is there.
                log.flush()
                ratios.append((time.perf_counter() - begun) / without)
            text = path.read_bytes()
            lost += 2 * _RUNS - text.count(b'"run_started"') - text.count(b'"run_ended"')
            assert verify(path).ok
    return [
        Promise("10,000 runs with an audit log, over runs without", statistics.median(ratios)),
        Promise("events of these that are not in the log", lost, 0.0),
    ]
