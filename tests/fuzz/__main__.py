"""Fuzzes for some minutes: `python -m tests.fuzz MINUTES [SEED]`. A failure says the seed that leads to it again."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
import traceback

from tests.fuzz._differential import check, check_mutant, check_run
from tests.fuzz._generator import Choices, generate

_RUN_ONE_IN = 20
_MUTANTS = 4


def one(seed: int) -> tuple[bytes, int]:
    """Makes the module of a seed and checks it; returns it, and how many mutants of it were valid."""
    source = random.Random(seed)
    data = generate(Choices(source.randrange))
    check(data)
    if source.randrange(_RUN_ONE_IN) == 0:
        check_run(data)
    valid = 0
    for _ in range(_MUTANTS):
        mutant = bytearray(data)
        for _ in range(source.choice((1, 1, 2, 4))):
            mutant[source.randrange(8, len(mutant))] = source.choice(
                (source.randrange(256), 0x63, 0x70, 0x80, 0x10, 0x40)
            )
        valid += check_mutant(bytes(mutant))
    return data, valid


def main(minutes: float, seed: int) -> int:
    """Fuzzes until the time is up or something is found; returns the exit status."""
    begun = time.monotonic()
    count = mutants = size = 0
    while time.monotonic() - begun < minutes * 60:
        try:
            data, valid = one(seed)
        except Exception:
            traceback.print_exc()
            print(
                f"found after {time.monotonic() - begun:.1f} s and {count:,} modules: python -m tests.fuzz 0.001 {seed}"
            )
            return 1
        seed, count, mutants, size = seed + 1, count + 1, mutants + valid, size + len(data)
    print(f"nothing found: {count:,} modules of {size // max(count, 1):,} bytes on average, {mutants:,} valid mutants")
    return 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"STOCKADE_CACHE": folder, "STOCKADE_STATE": folder, "STOCKADE_FUZZING": "1"}
        given = [float(argument) for argument in sys.argv[1:]]
        sys.exit(main(given[0] if given else 5, int(given[1]) if len(given) > 1 else time.time_ns() // 1_000_000))
