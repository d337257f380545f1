"""What fuel went for: statistics of a run and of the runs of a module.

Plain data and pure functions. A run is sampled slice by slice, the runs of a module run by run; whoever samples keeps
the newest `SAMPLES_KEPT`. Every threshold is relative to what was seen before, and the latest sample is never part of
the average that it is held against: units and seconds mean something else on every machine and for every guest.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "SAMPLES_KEPT",
    "FuelAnomaly",
    "FuelHistory",
    "FuelSample",
    "FuelStatistics",
    "Trend",
    "anomalies_of_history",
    "anomalies_of_run",
    "history_of",
    "run_statistics",
    "trend_of",
]

SAMPLES_KEPT: Final = 64
"""How many samples are kept of a run or a module, so that memory is bounded whatever the guest does."""

_ENOUGH: Final = 8
"""From so many samples on there is a trend, and a rate to hold another against."""

_ENOUGH_RUNS: Final = 3
"""From so many runs on there is a consumption to hold another against."""

_HIGH: Final = 2
"""Above so many times the average, consumption is high."""

_DEVIATIONS: Final = 3
"""So many standard deviations from the mean, a rate is unusual."""

_RAPID: Final = 1.0
"""Fuel that is gone within less than so many seconds went rapidly."""

_CLOCK_STEP: Final = 1e-9
"""The least time that counts as one, in seconds: clocks tell no less, and no quotient can come near infinity."""


class Trend(StrEnum):
    """Where a series of numbers is going."""

    STABLE = "stable"
    """The later half is within a quarter of the earlier one."""
    RISING = "rising"
    """The later half is more than a quarter above the earlier one."""
    FALLING = "falling"
    """The later half is more than a quarter below the earlier one."""
    TOO_LITTLE_DATA = "too little data"
    """There are fewer than 8 numbers."""


class FuelAnomaly(msgspec.Struct, frozen=True, kw_only=True):
    """Something about the fuel that is out of the ordinary. It is told, and nothing is done about it.

    Attributes:
        kind: What is out of the ordinary. `high_consumption`: the latest sample is more than twice the average of those
            before it, in units per second within a run, in units of fuel over the runs of a module. `rapid_depletion`:
            all fuel was gone within less than a second, in seconds. `unusual_rate`: the latest rate is more than three
            standard deviations and more than a quarter away from the mean of those before it, in units per second.
        observed: What was measured.
        expected: The average, or for `rapid_depletion` the bound, that it is held against; in the same unit.
    """

    kind: Literal["high_consumption", "rapid_depletion", "unusual_rate"]
    observed: float
    expected: float


class FuelSample(NamedTuple):
    """One measurement: a slice of a run, or a whole run.

    Attributes:
        units: Units of fuel that were consumed in it.
        seconds: How long it ran, by the clock on the wall, waits left out; 0 where that was too short to measure.
    """

    units: int
    seconds: float


class FuelStatistics(msgspec.Struct, frozen=True):
    """What a run did with its fuel. What was consumed and what is left are together what it was given.

    Attributes:
        initial: Units that it began with.
        consumed: Units that it consumed.
        left: Units that were left at its end.
        exact: Whether these are exact. Where a run was stopped in the middle of a loop they are not: then `consumed`
            means "at least" and `left` means "at most".
        seconds: How long it ran, waits left out.
        average_rate: Units per second over the whole run; 0 where no time was measured.
        refilled: Units that were added while it ran.
        refills: How often units were added.
        rate: Units per second in the latest slice that was measured; 0 where none was.
        trend: Where the rate was going, slice by slice.
        anomalies: What was out of the ordinary.

    Raises:
        ValueError: The numbers contradict each other. That is a mistake of whoever made them.
    """

    initial: int
    consumed: int
    left: int
    exact: bool
    seconds: float
    average_rate: float
    refilled: int = 0
    refills: int = 0
    rate: float = 0.0
    trend: Trend = Trend.TOO_LITTLE_DATA
    anomalies: tuple[FuelAnomaly, ...] = ()

    def __post_init__(self) -> None:
        if self.consumed + self.left != self.initial + self.refilled or self.consumed < 0 or self.left < 0:
            raise ValueError(
                f"{self.consumed} units consumed and {self.left} left are not the {self.initial} at the start and "
                f"{self.refilled} added"
            )

    @property
    def utilization(self) -> float:
        """The part of all units it was given that it consumed, from 0 to 1; 0 where it was given none."""
        budget = self.initial + self.refilled
        return self.consumed / budget if budget else 0.0


class FuelHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What the latest runs of a module did with their fuel.

    Attributes:
        runs: How many runs are looked at: the latest ones, at most `SAMPLES_KEPT`.
        average: Units that a run consumed on average.
        least: Units that the most frugal of them consumed.
        most: Units that the hungriest of them consumed.
        latest: Units that the latest run consumed.
        average_rate: Units per second over all of them; 0 where no time was measured.
        trend: Where the units per run are going.
        anomalies: What was out of the ordinary about the latest run.
    """

    runs: int
    average: float
    least: int
    most: int
    latest: int
    average_rate: float
    trend: Trend
    anomalies: tuple[FuelAnomaly, ...]


def trend_of(values: Sequence[float]) -> Trend:
    """Tells where a series is going, by its later half against its earlier one.

    Only proportions count: the trend stays the same when all values are multiplied by the same positive factor.

    Args:
        values: The series in order, none of them negative. The middle one of an odd number belongs to neither half.
    """
    series = tuple(values)  # A deque has no slices.
    if len(series) < _ENOUGH:
        return Trend.TOO_LITTLE_DATA
    half = len(series) // 2
    # The halves are of the same size, so that their sums tell what their means would: without a division that could
    # fail or, for whole numbers, be inexact.
    earlier, later = sum(series[:half]), sum(series[-half:])
    if 4 * later > 5 * earlier:
        return Trend.RISING
    if 4 * later < 3 * earlier:
        return Trend.FALLING
    return Trend.STABLE


def anomalies_of_run(samples: Iterable[FuelSample], *, left: int, seconds: float) -> tuple[FuelAnomaly, ...]:
    """Finds what is out of the ordinary in a run.

    Args:
        samples: The slices of the run in order. Those that were too short to measure are ignored.
        left: Units that are left.
        seconds: How long it ran, waits left out.
    """
    found: list[FuelAnomaly] = []
    measured = _measured(samples)
    if len(measured) > _ENOUGH:
        latest, average = _rate(*measured[-1]), _average_rate(measured[:-1])
        if latest > _HIGH * average:
            found.append(FuelAnomaly(kind="high_consumption", observed=latest, expected=average))
    if left == 0 and seconds < _RAPID:
        found.append(FuelAnomaly(kind="rapid_depletion", observed=seconds, expected=_RAPID))
    return (*found, *_unusual_rate(measured))


def anomalies_of_history(samples: Iterable[FuelSample]) -> tuple[FuelAnomaly, ...]:
    """Finds what is out of the ordinary about the latest run of a module.

    Args:
        samples: The runs in order. A run that was too short to measure counts by its units, and has no rate.
    """
    runs = tuple(samples)
    found: list[FuelAnomaly] = []
    if len(runs) > _ENOUGH_RUNS:
        latest, earlier = runs[-1].units, [run.units for run in runs[:-1]]
        if latest * len(earlier) > _HIGH * sum(earlier):
            found.append(
                FuelAnomaly(kind="high_consumption", observed=float(latest), expected=sum(earlier) / len(earlier))
            )
    # Where the latest run has no rate, that of the run before it is old news.
    if _measured(runs[-1:]):
        found.extend(_unusual_rate(_measured(runs)))
    return tuple(found)


def run_statistics(
    *,
    initial: int,
    refilled: int = 0,
    refills: int = 0,
    left: int,
    exact: bool,
    seconds: float,
    samples: Iterable[FuelSample] = (),
) -> FuelStatistics:
    """Makes the statistics of a run.

    Args:
        initial: Units that it began with.
        refilled: Units that were added.
        refills: How often units were added.
        left: Units that are left; no more than it was given.
        exact: Whether that is exact.
        seconds: How long it ran, waits left out.
        samples: Its slices in order, as far as they are kept.

    Raises:
        ValueError: More is left than it was given, or a number is negative.
    """
    consumed = initial + refilled - left
    measured = _measured(samples)
    return FuelStatistics(
        initial=initial,
        refilled=refilled,
        refills=refills,
        consumed=consumed,
        left=left,
        exact=exact,
        seconds=seconds,
        rate=_rate(*measured[-1]) if measured else 0.0,
        average_rate=_rate(consumed, seconds),
        trend=trend_of([_rate(*sample) for sample in measured]),
        anomalies=anomalies_of_run(measured, left=left, seconds=seconds),
    )


def history_of(samples: Iterable[FuelSample]) -> FuelHistory | None:
    """Makes the history of a module.

    Args:
        samples: Its runs in order, as far as they are kept.

    Returns:
        The history; None where there was no run.
    """
    runs = tuple(samples)
    if not runs:
        return None
    units = [run.units for run in runs]
    return FuelHistory(
        runs=len(runs),
        average=sum(units) / len(units),
        least=min(units),
        most=max(units),
        latest=units[-1],
        average_rate=_average_rate(_measured(runs)),
        trend=trend_of(units),
        anomalies=anomalies_of_history(runs),
    )


def _measured(samples: Iterable[FuelSample]) -> tuple[FuelSample, ...]:
    """The samples that took a time; the others have no rate."""
    return tuple(sample for sample in samples if 0 < sample.seconds < math.inf)


def _rate(units: int, seconds: float) -> float:
    """Units per second; 0 where no time was measured."""
    return units / max(seconds, _CLOCK_STEP) if seconds > 0 else 0.0


def _average_rate(measured: Sequence[FuelSample]) -> float:
    """All units by all seconds, so that a long sample weighs more than a short one; 0 where there are no samples."""
    # Not `math.fsum`, which raises where a sum overflows.
    return _rate(sum(sample.units for sample in measured), sum(sample.seconds for sample in measured))


def _unusual_rate(measured: Sequence[FuelSample]) -> tuple[FuelAnomaly, ...]:
    """The anomaly of a latest rate that is unlike the earlier ones, if it is."""
    if len(measured) <= _ENOUGH:
        return ()
    *earlier, latest = [_rate(*sample) for sample in measured]
    mean = math.fsum(earlier) / len(earlier)
    deviation = math.sqrt(math.fsum((rate - mean) ** 2 for rate in earlier) / (len(earlier) - 1))
    away = abs(latest - mean)
    # The quarter is for rates so even that chance, or the last bit of a number, would be three deviations.
    if away > _DEVIATIONS * deviation and away > mean / 4:
        return (FuelAnomaly(kind="unusual_rate", observed=latest, expected=mean),)
    return ()
