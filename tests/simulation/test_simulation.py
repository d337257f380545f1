"""Lifetimes and waits hold under every interleaving: simulated worlds, each decided by its seed.

Holds P-RUN-1.
"""

from __future__ import annotations

import pytest

from tests.simulation._scenes import simulate

_SEEDS = 1000
_AT_ONCE = 100


@pytest.mark.parametrize("first", range(0, _SEEDS, _AT_ONCE))
def test_worlds(first: int) -> None:
    """Whatever happens next, a store is freed once and not while it is polled, runs end by their deadlines, output and
    input arrive once and in order, times and fuel add up, nobody waits for ever, and nothing is left in the end.

    A seed that fails is told with the error, and replays.
    """
    steps = reports = 0
    for seed in range(first, first + _AT_ONCE):
        more = simulate(seed)
        steps, reports = steps + more[0], reports + more[1]
    # The worlds are no empty ones.
    assert steps > 50 * _AT_ONCE
    assert reports > _AT_ONCE


def test_a_world_replays() -> None:
    """What a seed decides, it decides again."""
    for seed in range(20):
        assert simulate(seed) == simulate(seed)
