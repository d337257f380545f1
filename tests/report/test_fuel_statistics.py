"""Statistics of fuel: trends, anomalies, and that the numbers always add up."""

from __future__ import annotations

import math
import re
import statistics
from collections import deque
from fractions import Fraction
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from stockade.report._fuel import (
    SAMPLES_KEPT,
    FuelAnomaly,
    FuelSample,
    FuelStatistics,
    Trend,
    anomalies_of_history,
    anomalies_of_run,
    history_of,
    run_statistics,
    trend_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NONE, ONE = Fraction(0), Fraction(1)
UNITS = st.integers(0, 2**63)
TIMES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True),
    st.sampled_from([0.0, -0.0, -1.0, 5e-324, 1e-300, 1e-9, 0.01, 1.0, 1e308]),
)
SAMPLES = st.lists(st.builds(FuelSample, UNITS, TIMES), max_size=SAMPLES_KEPT)


def series(*units: int, seconds: float = 1.0) -> list[FuelSample]:
    """Samples of these units, each of the same length."""
    return [FuelSample(number, seconds) for number in units]


def statistics_of(samples: Iterable[FuelSample] = (), **fields: object) -> FuelStatistics:
    """The statistics of a run that has plenty of fuel left."""
    values = {"initial": 10_000, "refilled": 0, "refills": 0, "left": 9_000, "exact": True, "seconds": 10.0, **fields}
    return run_statistics(**values, samples=samples)  # type: ignore[arg-type]


def kinds(anomalies: Iterable[FuelAnomaly]) -> list[str]:
    """What the anomalies are called."""
    return [anomaly.kind for anomaly in anomalies]


def of_run(samples: Iterable[FuelSample]) -> tuple[FuelAnomaly, ...]:
    """The anomalies of a run that has fuel left."""
    return anomalies_of_run(samples, left=1, seconds=10.0)


# -- trends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "trend"),
    [
        ([100, 101, 99, 100, 102, 98, 100, 101], Trend.STABLE),
        ([100, 110, 120, 130, 140, 150, 160, 170], Trend.RISING),
        ([170, 160, 150, 140, 130, 120, 110, 100], Trend.FALLING),
        ([1, 10, 100, 1000, 10_000, 100_000, 1_000_000], Trend.TOO_LITTLE_DATA),
        ([], Trend.TOO_LITTLE_DATA),
        ([0] * 8, Trend.STABLE),
        ([0] * 4 + [1] * 4, Trend.RISING),
        ([1] * 4 + [0] * 4, Trend.FALLING),
        # The borders: a quarter is not more than a quarter.
        ([4] * 4 + [5] * 4, Trend.STABLE),
        ([4] * 4 + [5] * 3 + [6], Trend.RISING),
        ([4] * 4 + [3] * 4, Trend.STABLE),
        ([4] * 4 + [3] * 3 + [2], Trend.FALLING),
        # The middle one of nine is in neither half, whatever it is.
        ([4] * 4 + [10**9] + [4] * 4, Trend.STABLE),
        ([4] * 4 + [0] + [6] * 4, Trend.RISING),
    ],
)
def test_trend_of_a_series(values: list[int], trend: Trend) -> None:
    """The later half against the earlier one, from eight values on."""
    assert trend_of(values) is trend
    assert trend_of([float(value) for value in values]) is trend


@given(st.lists(UNITS, max_size=SAMPLES_KEPT))
def test_trend_is_that_of_exact_means(values: list[int]) -> None:
    """The same comes out of exact fractions."""
    half = len(values) // 2
    if len(values) < 8:
        expected = Trend.TOO_LITTLE_DATA
    else:
        earlier, later = (Fraction(sum(part), half) for part in (values[:half], values[len(values) - half :]))
        if later > earlier * Fraction(5, 4):
            expected = Trend.RISING
        else:
            expected = Trend.FALLING if later < earlier * Fraction(3, 4) else Trend.STABLE

    assert trend_of(values) is expected


@given(st.lists(UNITS, max_size=SAMPLES_KEPT), st.integers(1, 10**12), st.integers(-60, 60))
def test_trend_knows_proportions_only(values: list[int], factor: int, power: int) -> None:
    """No absolute number decides, so that a small guest is judged as a large one is."""
    trend = trend_of(values)

    assert trend_of([value * factor for value in values]) is trend
    # Powers of two scale floats without rounding them.
    floats = [float(value) for value in values]
    assert trend_of([value * 2.0**power for value in floats]) is trend_of(floats)


def test_trend_takes_the_bounded_series_that_callers_keep() -> None:
    """Only the newest samples count, in whatever they are kept."""
    kept = deque([1] * 100 + [100] * SAMPLES_KEPT, maxlen=SAMPLES_KEPT)

    assert trend_of(kept) is Trend.STABLE
    assert trend_of([*kept, *[1] * SAMPLES_KEPT]) is Trend.FALLING


def test_trends_of_runs_and_modules_are_of_rate_and_units() -> None:
    """A run gets faster, runs get hungrier; the same samples can be steady in the other way."""
    faster = [FuelSample(100, 1.0)] * 4 + [FuelSample(100, 0.5)] * 4
    hungrier = [FuelSample(100, 1.0)] * 4 + [FuelSample(200, 2.0)] * 4

    assert (statistics_of(faster).trend, statistics_of(hungrier).trend) == (Trend.RISING, Trend.STABLE)
    for samples, trend in ((faster, Trend.STABLE), (hungrier, Trend.RISING)):
        history = history_of(samples)
        assert history is not None
        assert history.trend is trend


# -- anomalies of a run ------------------------------------------------------------------------------------------------


def test_normal_run_has_no_anomalies() -> None:
    """The twin of all that follow."""
    samples = series(100, 104, 97, 101, 99, 103, 98, 100, 102, 105)

    assert anomalies_of_run(samples, left=1, seconds=0.5) == ()
    assert anomalies_of_run(samples, left=0, seconds=10.0) == ()
    assert anomalies_of_run([], left=1, seconds=0.0) == ()


def test_high_consumption_is_more_than_twice_the_average_before() -> None:
    """Exactly twice is not high."""
    earlier = [50, 150] * 4

    assert of_run(series(*earlier, 201)) == (FuelAnomaly(kind="high_consumption", observed=201.0, expected=100.0),)
    assert of_run(series(*earlier, 200)) == ()


def test_high_consumption_weighs_samples_by_their_length() -> None:
    """Slices of no weight do not hide a rate that is twice what the run had."""
    earlier = [*series(*[100] * 7), FuelSample(1, 0.001)]

    assert FuelAnomaly(kind="high_consumption", observed=202.0, expected=701 / 7.001) in of_run(
        [*earlier, FuelSample(202, 1.0)]
    )
    assert "high_consumption" not in kinds(of_run([*earlier, FuelSample(200, 1.0)]))


def test_latest_sample_is_not_part_of_its_own_average() -> None:
    """With the latest in it, the average would be 122 and the bound 244."""
    anomalies = of_run(series(*[100] * 8, 220))

    assert anomalies == (
        FuelAnomaly(kind="high_consumption", observed=220.0, expected=100.0),
        FuelAnomaly(kind="unusual_rate", observed=220.0, expected=100.0),
    )


@given(st.lists(st.integers(0, 1000), min_size=8, max_size=20), st.integers(10**6, 2**63))
def test_expectation_does_not_depend_on_what_is_held_against_it(earlier: list[int], latest: int) -> None:
    """However high the latest is, it is found, and held against the same number."""
    for found in (of_run(series(*earlier, latest)), anomalies_of_history(series(*earlier, latest))):
        assert kinds(found) == ["high_consumption", "unusual_rate"]
        assert {anomaly.observed for anomaly in found} == {float(latest)}
        assert all(anomaly.expected == statistics.fmean(earlier) for anomaly in found)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_rates_are_held_against_no_fewer_than_eight(count: int) -> None:
    """The twin with eight is found."""
    assert of_run(series(*[100] * count, 10**6)) == ()
    assert kinds(of_run(series(*[100] * 8, 10**6))) == ["high_consumption", "unusual_rate"]


@pytest.mark.parametrize("latest", [60, 140])
def test_unusual_rate_is_away_in_either_direction(latest: int) -> None:
    """Far outside of what the run did before, up or down."""
    assert of_run(series(*[99, 101] * 4, latest)) == (
        FuelAnomaly(kind="unusual_rate", observed=float(latest), expected=100.0),
    )


@pytest.mark.parametrize("latest", [75, 125])
def test_unusual_rate_needs_more_than_a_quarter(latest: int) -> None:
    """Exactly a quarter is not enough, however steady the run was before; one more is."""
    further = latest + (1 if latest > 100 else -1)

    assert of_run(series(*[100] * 8, latest)) == ()
    assert kinds(of_run(series(*[100] * 8, further))) == ["unusual_rate"]


def test_unusual_rate_needs_more_than_three_deviations() -> None:
    """Half as much again is not unusual for a run whose rate swings; it is for a steady one."""
    assert of_run(series(*[50, 150] * 4, 150)) == ()
    assert kinds(of_run(series(*[99, 101] * 4, 150))) == ["unusual_rate"]


def test_rapid_depletion_is_within_less_than_a_second() -> None:
    """A whole second is not rapid, and neither is fuel that is left."""
    assert anomalies_of_run([], left=0, seconds=0.999) == (
        FuelAnomaly(kind="rapid_depletion", observed=0.999, expected=1.0),
    )
    assert anomalies_of_run([], left=0, seconds=1.0) == ()
    assert anomalies_of_run([], left=1, seconds=0.999) == ()


def test_a_run_can_have_all_anomalies() -> None:
    """One does not hide another."""
    anomalies = anomalies_of_run(series(*[100] * 8, 250, seconds=0.0625), left=0, seconds=0.5625)

    assert kinds(anomalies) == ["high_consumption", "rapid_depletion", "unusual_rate"]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_samples_without_a_time_are_ignored(seconds: float) -> None:
    """They are neither the latest, nor counted, nor in an average."""
    timeless = FuelSample(10**9, seconds)
    normal = series(*[100] * 8)

    assert of_run([*normal, timeless]) == ()
    assert of_run([timeless, *normal[1:], FuelSample(300, 1.0)]) == ()
    assert of_run([timeless, *normal, FuelSample(300, 1.0), timeless]) == of_run([*normal, FuelSample(300, 1.0)]) != ()
    assert statistics_of([*normal, timeless]).rate == 100.0


@given(st.lists(st.integers(0, 1000), min_size=9, max_size=SAMPLES_KEPT))
@example([100] * 8 + [126])
@example([50, 150] * 4 + [201])
def test_anomalies_are_those_of_exact_arithmetic(rates: list[int]) -> None:
    """The same comes out of exact fractions, where no float is on the border itself."""
    *earlier, latest = rates
    mean = Fraction(sum(earlier), len(earlier))
    away, spread = abs(latest - mean), 3 * math.sqrt(statistics.variance(map(Fraction, earlier)))
    assume(abs(float(away) - spread) > 1e-6)
    assume(abs(away - mean / 4) > Fraction(1, 10**6) or away == mean == 0)
    assume(abs(latest - 2 * mean) > Fraction(1, 10**6) or latest == mean == 0)

    expected = ["high_consumption"] if latest > 2 * mean else []
    expected += ["unusual_rate"] if away > spread and away > mean / 4 else []

    assert kinds(of_run(series(*rates))) == expected
    assert kinds(anomalies_of_history(series(*rates))) == expected


# -- anomalies of the runs of a module ---------------------------------------------------------------------------------


def test_normal_runs_have_no_anomalies() -> None:
    """The twin of all that follow; a run that is short and empty is not rapid."""
    assert anomalies_of_history(series(100, 104, 97, 101, 99, 103, 98, 100, 102, 105, seconds=0.001)) == ()
    assert anomalies_of_history([]) == ()


def test_a_run_is_high_against_three_earlier_runs() -> None:
    """By units, not by rate; exactly twice is not high, and two runs are no average."""
    slow = FuelSample(201, 1000.0)

    assert anomalies_of_history([*series(50, 150, 100), slow]) == (
        FuelAnomaly(kind="high_consumption", observed=201.0, expected=100.0),
    )
    assert anomalies_of_history(series(50, 150, 100, 200)) == ()
    assert anomalies_of_history(series(100, 100, 10**9)) == ()


def test_a_run_too_short_to_measure_counts_by_its_units() -> None:
    """It has no rate, but it has consumed what it has."""
    assert kinds(anomalies_of_history(series(100, 100, 100, 201, seconds=0.0))) == ["high_consumption"]
    assert anomalies_of_history(series(100, 100, 100, 200, seconds=0.0)) == ()


def test_a_rate_is_unusual_against_eight_earlier_runs() -> None:
    """The latest run took the same fuel in a fifth of the time."""
    fast = FuelSample(100, 0.2)

    assert anomalies_of_history([*series(*[100] * 8), fast]) == (
        FuelAnomaly(kind="unusual_rate", observed=500.0, expected=100.0),
    )
    assert anomalies_of_history([*series(*[100] * 7), fast]) == ()


def test_an_unusual_rate_is_told_of_the_latest_run_only() -> None:
    """A run without a rate does not repeat what was told of the run before it."""
    runs = [*series(*[100] * 8), FuelSample(100, 0.2)]

    assert kinds(anomalies_of_history(runs)) == ["unusual_rate"]
    assert anomalies_of_history([*runs, FuelSample(100, 0.0)]) == ()


# -- put together ------------------------------------------------------------------------------------------------------


def test_statistics_of_a_run() -> None:
    """Statistics of a run."""
    found = run_statistics(
        initial=1000,
        refilled=500,
        refills=5,
        left=300,
        exact=False,
        seconds=4.0,
        samples=[FuelSample(400, 2.0), FuelSample(800, 2.0)],
    )

    assert found == FuelStatistics(
        initial=1000,
        refilled=500,
        refills=5,
        consumed=1200,
        left=300,
        exact=False,
        seconds=4.0,
        rate=400.0,
        average_rate=300.0,
        trend=Trend.TOO_LITTLE_DATA,
        anomalies=(),
    )
    assert found.utilization == 0.8


def test_statistics_of_a_run_that_was_not_measured() -> None:
    """No time and no budget make no rate and no part of it, rather than an error."""
    found = statistics_of(initial=0, left=0, seconds=0.0)

    assert (found.rate, found.average_rate, found.utilization) == (0.0, 0.0, 0.0)
    assert statistics_of(initial=5, left=0).utilization == 1.0
    assert statistics_of(initial=5, left=5).utilization == 0.0


def test_history_of_a_module() -> None:
    """History of a module."""
    history = history_of(deque(series(*[100, 200] * 4, 600, seconds=0.5), maxlen=SAMPLES_KEPT))

    assert history is not None
    assert msgspec.structs.asdict(history) == {
        "runs": 9,
        "average": 200.0,
        "least": 100,
        "most": 600,
        "latest": 600,
        "average_rate": 400.0,
        "trend": Trend.RISING,
        "anomalies": (
            FuelAnomaly(kind="high_consumption", observed=600.0, expected=150.0),
            FuelAnomaly(kind="unusual_rate", observed=1200.0, expected=300.0),
        ),
    }


def test_no_runs_have_no_history() -> None:
    """One run is the counterpart."""
    assert history_of([]) is None
    history = history_of(series(0, seconds=0.0))
    assert history is not None
    assert (history.runs, history.average, history.average_rate) == (1, 0.0, 0.0)


GOOD = statistics_of(series(*[100] * 8, 300), refilled=5, refills=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"left": 8_999}, "1005 units consumed and 8999 left are not the 10000 at the start and 5 added"),
        (
            {"consumed": -1, "left": 10_006},
            "-1 units consumed and 10006 left are not the 10000 at the start and 5 added",
        ),
        (
            {"consumed": 10_006, "left": -1},
            "10006 units consumed and -1 left are not the 10000 at the start and 5 added",
        ),
    ],
)
def test_statistics_that_contradict_themselves_are_refused(fields: dict[str, object], message: str) -> None:
    """Consumed and left are what was given, always. What `GOOD` is made of is the twin."""
    good = msgspec.structs.asdict(GOOD)

    assert FuelStatistics(**good) == GOOD
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FuelStatistics(**good | fields)


def test_more_left_than_was_given_is_refused() -> None:
    """All of it is the counterpart."""
    assert statistics_of(initial=10, left=10).consumed == 0
    with pytest.raises(ValueError, match="-1 units consumed and 11 left are not"):
        statistics_of(initial=10, left=11)


def test_statistics_cannot_be_changed() -> None:
    """They are what they were when they were made."""
    with pytest.raises(AttributeError):
        GOOD.left = 0  # type: ignore[misc]


def test_statistics_read_back_from_json() -> None:
    """JSON loses nothing, and contradictions are refused there too."""
    encoded = msgspec.json.encode(GOOD)

    assert kinds(GOOD.anomalies) == ["high_consumption", "unusual_rate"]
    assert msgspec.json.decode(encoded, type=FuelStatistics) == GOOD
    with pytest.raises(msgspec.ValidationError, match="1005 units consumed"):
        msgspec.json.decode(encoded.replace(b'"left":9000', b'"left":1'), type=FuelStatistics)


def numbers(anomalies: Sequence[FuelAnomaly]) -> list[float]:
    """All numbers in the anomalies."""
    return [number for anomaly in anomalies for number in (anomaly.observed, anomaly.expected)]


@given(
    samples=SAMPLES,
    initial=UNITS,
    refilled=UNITS,
    part=st.fractions(0, 1),
    seconds=st.floats(0, allow_infinity=False, allow_subnormal=True),
)
@example(samples=[FuelSample(2**63, 5e-324)] * 9, initial=2**63, refilled=0, part=NONE, seconds=5e-324)
@example(samples=[*[FuelSample(0, 1.0)] * 8, FuelSample(2**63, 5e-324)], initial=0, refilled=0, part=ONE, seconds=0.0)
@example(samples=[FuelSample(2**63, 1e308)] * 9, initial=1, refilled=0, part=ONE, seconds=1e308)
def test_whatever_was_measured_makes_sound_statistics(
    samples: list[FuelSample], initial: int, refilled: int, part: Fraction, seconds: float
) -> None:
    """Attack: a guest that makes slices of such a kind that the report breaks or holds NaN."""
    left = int((initial + refilled) * part)
    found = run_statistics(
        initial=initial, refilled=refilled, refills=1, left=left, exact=True, seconds=seconds, samples=samples
    )

    assert found.consumed + found.left == found.initial + found.refilled == initial + refilled
    assert 0.0 <= found.utilization <= 1.0
    assert all(
        math.isfinite(number) and number >= 0 for number in (found.rate, found.average_rate, *numbers(found.anomalies))
    )
    assert len(set(kinds(found.anomalies))) == len(found.anomalies) <= 3
    assert msgspec.json.decode(msgspec.json.encode(found), type=FuelStatistics) == found

    history = history_of(samples)
    assert (history is None) is (not samples)
    if history is not None:
        assert history.runs == len(samples)
        assert history.least <= history.latest <= history.most
        assert float(history.least) <= history.average <= float(history.most)
        assert all(
            math.isfinite(number) and number >= 0 for number in (history.average_rate, *numbers(history.anomalies))
        )
        assert "rapid_depletion" not in kinds(history.anomalies)


@given(UNITS, st.floats(1e-6, 1e6), st.integers(0, SAMPLES_KEPT))
def test_a_steady_guest_is_never_out_of_the_ordinary(units: int, seconds: float, count: int) -> None:
    """Whatever its size and speed; no rounding makes an anomaly of it."""
    samples = [FuelSample(units, seconds)] * count

    assert of_run(samples) == ()
    assert anomalies_of_history(samples) == ()
    assert statistics_of(samples).trend is (Trend.STABLE if count >= 8 else Trend.TOO_LITTLE_DATA)
