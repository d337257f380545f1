"""Timing things in turn, so that a machine's drift hits all alike; and what a measured number may be."""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

__all__ = ["Promise", "Spread", "in_turn"]


class Promise(NamedTuple):
    """A measured number and what it may be, where that is promised.

    Attributes:
        what: What was measured.
        measured: The number.
        bound: What it may be at most, or at least; infinite where it is only told.
        least: Whether the bound is the least.
    """

    what: str
    measured: float
    bound: float = inf
    least: bool = False

    @property
    def kept(self) -> bool:
        """Whether it is within its bound."""
        return self.measured >= self.bound if self.least else self.measured <= self.bound


class Spread(NamedTuple):
    """How measured numbers are spread."""

    p50: float
    p95: float
    p99: float
    worst: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Self:
        """Sums numbers up, of which there must be one at least; the greatest is the worst."""
        ordered = sorted(numbers)

        def at(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

        return cls(at(0.5), at(0.95), at(0.99), ordered[-1])


def in_turn(jobs: dict[str, Callable[[], object]], rounds: int, warmup: int, batch: int = 1) -> dict[str, Spread]:
    """Times jobs in turn, a batch of each.

    Args:
        jobs: What to time, by name.
        rounds: How many batches of each are timed.
        warmup: How many batches of each are done before that.
        batch: How often a job is done before the next one's turn. Each time is taken by itself; short jobs want a
            batch, so that one does not pay for the caches and threads that the other left behind.

    Returns:
        For each job the spread of its times, in microseconds.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(warmup + rounds):
        for name, job in jobs.items():
            for _ in range(batch):
                begun = time.perf_counter_ns()
                job()
                taken = time.perf_counter_ns() - begun
                if number >= warmup:
                    times[name].append(taken / 1e3)
    return {name: Spread.of(taken) for name, taken in times.items()}
