"""Timing two things in turn, so that a machine's drift hits both alike."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Spread", "in_turn"]


class Spread(NamedTuple):
    """Times of one job, in microseconds."""

    p50: float
    p95: float
    p99: float
    worst: float


def in_turn(jobs: dict[str, Callable[[], object]], rounds: int, warmup: int, batch: int = 1) -> dict[str, Spread]:
    """Times jobs in turn, a batch of each.

    Args:
        jobs: What to time, by name.
        rounds: How many batches of each are timed.
        warmup: How many batches of each are done before that.
        batch: How often a job is done before the next one's turn. Each time is taken by itself; short jobs want a
            batch, so that one does not pay for the caches and threads that the other left behind.

    Returns:
        For each job the spread of its times.
    """
    times: dict[str, list[int]] = {name: [] for name in jobs}
    for number in range(warmup + rounds):
        for name, job in jobs.items():
            for _ in range(batch):
                begun = time.perf_counter_ns()
                job()
                taken = time.perf_counter_ns() - begun
                if number >= warmup:
                    times[name].append(taken)
    return {name: _spread(sorted(taken)) for name, taken in times.items()}


def _spread(ordered: list[int]) -> Spread:
    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e3

    return Spread(at(0.5), at(0.95), at(0.99), ordered[-1] / 1e3)
