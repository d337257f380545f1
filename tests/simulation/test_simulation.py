"""Lifetimes and waits hold under every interleaving: simulated worlds, each decided by its seed.

Holds P-RUN-1.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stockade
from tests._examples import examples
from tests.simulation._scenes import simulate
from tests.simulation.undone import ALL

_SEEDS = 1000
_AT_ONCE = 100
_FIRST = examples(_AT_ONCE)
_SHARES = (
    (0, _FIRST),
    *(
        pytest.param(first, _AT_ONCE, marks=pytest.mark.slow)
        for first in range(_AT_ONCE if _FIRST == _AT_ONCE else 0, _SEEDS, _AT_ONCE)
    ),
)


@pytest.mark.parametrize(("first", "count"), _SHARES)
def test_worlds(first: int, count: int) -> None:
    """Whatever happens next, a store is freed once and not while it is polled, runs end by their deadlines, output and
    input arrive once and in order, times and fuel add up, nobody waits for ever, and nothing is left in the end.

    A seed that fails is told with the error, and replays.
    """
    # In a process of its own: what other tests have left behind is part of no world, and a hash is the same each time.
    ended = subprocess.run(
        [sys.executable, "-m", "tests.simulation"],
        env={**os.environ, "STOCKADE_FIRST_SEED": str(first), "STOCKADE_SEEDS": str(count), "PYTHONHASHSEED": "0"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    *_, last = ended.stdout.splitlines()
    told = re.fullmatch(r"([\d,]+) seeds, ([\d,]+) steps, ([\d,]+) reports, (\d+) failed", last)
    assert told is not None, ended.stdout + ended.stderr
    seeds, steps, reports, failed = (int(number.replace(",", "")) for number in told.groups())
    assert (seeds, failed) == (count, 0), ended.stdout + ended.stderr
    # The worlds are no empty ones.
    assert steps > 50 * count
    assert reports > count


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12),
    reason="Python 3.12 traces a line that goes on behind a call, or does not: what was traced before decides",
)
def test_a_world_replays() -> None:
    """What a seed decides, it decides again."""
    for seed in range(examples(20)):
        # What it needs may be imported the first time.
        simulate(seed)
        assert simulate(seed) == simulate(seed)
    # As it was before: worlds leave nothing frozen.
    gc.freeze()


def test_what_can_be_undone_is_there() -> None:
    """A safeguard whose place is not found any more is one that nobody has taken out."""
    for undone in ALL:
        text = Path(stockade.__file__).parent.joinpath(undone.file).read_text(encoding="utf-8")
        assert text.count(undone.old) == 1, undone.what
