"""Simulates worlds for minutes, or replays one: `make simulate`, `STOCKADE_SEED=7 make simulate`."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
import traceback

from tests.simulation._scenes import simulate


def main() -> int:
    """Simulates; returns an exit status."""
    faulthandler.enable()
    if (chosen := os.environ.get("STOCKADE_SEED")) is not None:
        print(simulate(int(chosen)))
        return 0
    seconds = 60 * float(os.environ.get("STOCKADE_MINUTES", "3"))
    least = int(os.environ.get("STOCKADE_STEPS", "1000000"))
    most = int(os.environ.get("STOCKADE_SEEDS", "0"))
    begun = told = time.monotonic()
    seed = int(os.environ.get("STOCKADE_FIRST_SEED", "0"))
    first, steps, reports, failed = seed, 0, 0, 0
    while seed < first + most if most else time.monotonic() - begun < seconds or steps < least:
        try:
            more = simulate(seed)
        except Exception as problem:
            failed += 1
            print(f"STOCKADE_SEED={seed}: {problem!r}", flush=True)
            if failed == 1:
                traceback.print_exc()
            if failed >= 20:
                break
        else:
            steps, reports = steps + more[0], reports + more[1]
        seed += 1
        if time.monotonic() - told > 15:
            told = time.monotonic()
            print(f"{seed - first:,} seeds, {steps:,} steps, {reports:,} reports, {failed} failed", flush=True)
    print(f"{seed - first:,} seeds, {steps:,} steps, {reports:,} reports, {failed} failed")
    return 1 if failed else 0


sys.exit(main())
