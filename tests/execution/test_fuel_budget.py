"""Fuel as a budget: exact to the unit, refilled while a guest runs in a loop, told by statistics that add up.

Holds P-FUEL-1 and P-FUEL-2.
"""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stockade
from stockade import Outcome, Policy, Sandbox, Trend
from stockade.engine import FUEL_SLICE
from stockade.execution import _budget
from stockade.execution._calibrate import Calibration
from tests._examples import examples
from tests.conftest import wat

PATIENT = Policy().replace(fuel=5_000_000_000, wall_time=20.0)

COUNT = wat(
    """
    (module
      (func (export "count") (param $left i64)
        (loop $next
          (br_if $next (i64.ne (local.tee $left (i64.sub (local.get $left) (i64.const 1))) (i64.const 0)))))
      (func (export "spin") (loop br 0))
      (func (export "trap") unreachable))
    """
)
"""Counting to n costs the same for every step."""

SLEEPER = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "sleep") (param $milliseconds i64)
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.mul (local.get $milliseconds) (i64.const 1_000_000)))
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
      (func (export "sleep_then_count") (param $milliseconds i64) (param $left i64)
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.mul (local.get $milliseconds) (i64.const 1_000_000)))
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
        (loop $next
          (br_if $next (i64.ne (local.tee $left (i64.sub (local.get $left) (i64.const 1))) (i64.const 0))))))
    """
)


def cost_of(steps: int) -> int:
    """What counting costs, measured with more than enough."""
    report = Sandbox(PATIENT).call(COUNT, "count", steps)
    assert report.ok
    assert report.usage.fuel is not None
    return report.usage.fuel


def adds_up(report: stockade.Report) -> bool:
    """Whether consumed and left are together what there was."""
    fuel = report.fuel
    assert fuel is not None
    return fuel.consumed + fuel.left == fuel.initial + fuel.refilled and fuel.consumed == report.usage.fuel


@settings(max_examples=examples(60))
@given(
    fuel=st.one_of(st.integers(1, 3000), st.integers(1, 4 * FUEL_SLICE), st.integers(2**62, 2**63 - 1)),
    steps=st.integers(1, FUEL_SLICE // 2),
    refill=st.one_of(st.just(0), st.integers(1, 10 * FUEL_SLICE)),
    room=st.integers(0, FUEL_SLICE),
)
def test_consumed_and_left_are_what_there_was(fuel: int, steps: int, refill: int, room: int) -> None:
    """For any budget, with and without refills, exactly."""
    changes: dict[str, object] = {"fuel": fuel}
    if refill:
        most = min(2**63 - 1, fuel + room)
        changes |= {"fuel_refill": refill, "fuel_refill_interval": 0.001, "fuel_refill_max": most}
    report = Sandbox(PATIENT.replace(**changes)).call(COUNT, "count", steps)

    assert adds_up(report)
    assert report.fuel is not None
    assert report.fuel.exact
    assert report.fuel.initial == fuel
    if report.outcome is Outcome.FUEL:
        assert report.fuel.left == 0
        assert report.fuel.consumed == fuel + report.fuel.refilled
    else:
        assert report.outcome is Outcome.OK
        assert report.fuel.consumed == cost_of(steps)
    assert refill or report.fuel.refilled == report.fuel.refills == 0


@pytest.mark.parametrize("steps", [1, 1000, FUEL_SLICE, 3 * FUEL_SLICE])
def test_a_budget_is_exact_to_the_unit(steps: int) -> None:
    """What a job costs is enough, and one unit less is not; also across slices."""
    cost = cost_of(steps)

    enough = Sandbox(PATIENT.replace(fuel=cost)).call(COUNT, "count", steps)
    short = Sandbox(PATIENT.replace(fuel=cost - 1)).call(COUNT, "count", steps)

    assert enough.ok
    assert enough.fuel is not None
    assert (enough.fuel.consumed, enough.fuel.left) == (cost, 0)
    assert short.outcome is Outcome.FUEL
    assert short.fuel is not None
    assert (short.fuel.consumed, short.fuel.left) == (cost - 1, 0)


def test_refills_reach_a_guest_in_a_tight_loop() -> None:
    """A job of several times its budget is done where there are refills, and dies without."""
    steps = 20 * FUEL_SLICE
    cost = cost_of(steps)
    # A fifth of the job at once, and as much every millisecond: the loop takes longer than that for it.
    budget = PATIENT.replace(fuel=cost // 5)
    refilled = budget.replace(fuel_refill=cost // 5, fuel_refill_interval=0.001, fuel_refill_max=cost // 5)

    alone = Sandbox(budget).call(COUNT, "count", steps)
    helped = Sandbox(refilled).call(COUNT, "count", steps)

    assert alone.outcome is Outcome.FUEL
    assert alone.fuel is not None
    assert alone.fuel.consumed == cost // 5
    assert helped.outcome is Outcome.OK
    assert helped.fuel is not None
    assert helped.fuel.consumed == cost
    assert helped.fuel.refills >= 4
    assert adds_up(helped)


@pytest.mark.parametrize("fuel", range(500, 520))
def test_what_a_block_takes_beyond_its_fuel_is_paid_from_the_refill(fuel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a guest whose fuel is always used up in the middle of a block gets a part of each refill for nothing.

    Refills are always due, as they are on a machine so busy that a guest waits for its turn.
    """
    cost = cost_of(1_000)
    policy = PATIENT.replace(fuel=fuel, fuel_refill=500, fuel_refill_interval=0.001, fuel_refill_max=500 + fuel)
    now = itertools.count(1_000)
    monkeypatch.setattr(_budget, "time", SimpleNamespace(monotonic=lambda: next(now)))

    report = Sandbox(policy).call(COUNT, "count", 1_000)

    assert report.ok
    assert report.fuel is not None
    assert (report.fuel.consumed, report.fuel.exact) == (cost, True)
    assert report.fuel.refills > 0
    assert adds_up(report)


def test_a_refill_that_comes_too_late_does_not_come() -> None:
    """All is spent before the first refill is due, to the unit."""
    fuel = 3 * FUEL_SLICE + 12_345
    policy = PATIENT.replace(fuel=fuel, fuel_refill=fuel, fuel_refill_interval=60.0, fuel_refill_max=fuel)

    report = Sandbox(policy).call(COUNT, "spin")

    assert report.outcome is Outcome.FUEL
    assert report.fuel is not None
    assert (report.fuel.consumed, report.fuel.left, report.fuel.refilled, report.fuel.exact) == (fuel, 0, 0, True)
    assert [(v.kind, v.subject, v.limit, v.observed) for v in report.violations] == [
        ("fuel", "limits.fuel", fuel, fuel)
    ]


def test_no_more_piles_up_than_may() -> None:
    """A guest that sleeps through a hundred refills finds what may be in hand, and no more."""
    fuel = 100_000
    policy = PATIENT.replace(fuel=fuel, fuel_refill=50_000, fuel_refill_interval=0.002, fuel_refill_max=fuel + 10_000)

    report = Sandbox(policy).call(SLEEPER, "sleep_then_count", 200, 50_000)

    assert report.fuel is not None
    assert report.outcome in (Outcome.OK, Outcome.FUEL)
    # Before its first yield it was full: what was due in its sleep is lost but for the room that there is.
    assert report.fuel.refilled <= 10_000 + (report.fuel.consumed // 50_000 + 1) * 50_000
    assert adds_up(report)


def test_refills_stop_at_the_fuel_of_a_time() -> None:
    """`fuel_time` limits all fuel of the run, refills included."""
    policy = PATIENT.replace(fuel=10_000, fuel_refill=10_000_000, fuel_refill_interval=0.001, fuel_refill_max=10**12)
    policy = policy.replace(fuel_time=0.02)
    most = stockade.calibrate().fuel(0.02)

    report = Sandbox(policy).call(SLEEPER, "sleep_then_count", 5, 10**12)

    assert report.fuel is not None
    assert report.outcome is Outcome.FUEL
    assert report.fuel.consumed <= most


def test_fuel_of_a_time_ends_a_run_and_says_so() -> None:
    """`~20ms` is a number of units here, and the violation names where it comes from."""
    report = Sandbox(PATIENT.replace(fuel="~20ms")).call(COUNT, "spin")

    units = stockade.calibrate().fuel(0.02)
    assert report.outcome is Outcome.FUEL
    assert report.usage.fuel == units
    assert [(v.kind, v.subject, v.limit, v.observed) for v in report.violations] == [
        ("fuel", "limits.fuel_time", units, units)
    ]


def test_fuel_and_wall_time_are_different_reasons() -> None:
    """Half a second of computing under a second is done, whatever fuel a second is worth."""
    counted = Sandbox(PATIENT.replace(fuel=None, wall_time=0.2)).call(COUNT, "spin")
    starved = Sandbox(PATIENT.replace(fuel=1_000_000, wall_time=10.0)).call(COUNT, "spin")

    assert counted.outcome is Outcome.TIMEOUT
    assert counted.fuel is None
    assert counted.usage.fuel is None
    assert starved.outcome is Outcome.FUEL


def test_a_run_stopped_in_a_loop_says_that_its_fuel_is_at_least_that() -> None:
    """What a loop keeps in a register is not known, and at most a slice."""
    box = Sandbox(PATIENT.replace(fuel=2**62))

    def look(progress: stockade.Progress) -> None:
        if (progress.fuel or 0) > 10 * FUEL_SLICE:
            box.cancel("it")

    report = box.run(wat('(module (func (export "_start") (loop br 0)))'), run_id="it", on_progress=look)

    assert report.outcome is Outcome.CANCELLED
    assert report.fuel is not None
    assert report.fuel.consumed > 10 * FUEL_SLICE
    assert adds_up(report)


def test_statistics_of_a_steady_guest() -> None:
    """A loop that does the same all the time has a stable rate, and nothing strange about it."""
    report = Sandbox(PATIENT.replace(fuel=2**62, wall_time=0.5)).call(COUNT, "spin")

    fuel = report.fuel
    assert fuel is not None
    assert 0 < fuel.seconds <= report.usage.wall_seconds
    assert fuel.average_rate == pytest.approx(fuel.consumed / fuel.seconds)
    assert fuel.rate > 0
    assert fuel.trend in (Trend.STABLE, Trend.RISING, Trend.FALLING)


def test_sleep_is_not_running() -> None:
    """The rate is of the time in which the guest ran."""
    begun = time.monotonic()
    report = Sandbox(PATIENT).call(SLEEPER, "sleep", 300)
    elapsed = time.monotonic() - begun

    assert report.fuel is not None
    assert report.usage.wall_seconds >= 0.3
    assert 0 < report.fuel.seconds <= elapsed - 0.3


def test_all_gone_at_once_is_told() -> None:
    """A budget that is gone within a second."""
    report = Sandbox(PATIENT.replace(fuel=1000)).call(COUNT, "spin")

    assert report.fuel is not None
    assert [anomaly.kind for anomaly in report.fuel.anomalies] == ["rapid_depletion"]


def test_history_of_a_module() -> None:
    """Over the runs of a module: the one that takes much more than those before is told."""
    box = Sandbox(PATIENT)
    assert box.fuel_history(COUNT) is None
    for _ in range(10):
        box.call(COUNT, "count", 1000)
    calm = box.fuel_history(COUNT)
    box.call(COUNT, "count", 5000)
    alarmed = box.fuel_history(COUNT)

    assert calm is not None
    assert (calm.runs, calm.trend, calm.least) == (10, Trend.STABLE, calm.most)
    assert "high_consumption" not in [anomaly.kind for anomaly in calm.anomalies]
    assert alarmed is not None
    assert alarmed.latest > 4 * calm.average
    assert "high_consumption" in [anomaly.kind for anomaly in alarmed.anomalies]


def test_history_is_bounded() -> None:
    """Whatever number of runs, so many are looked at."""
    box = Sandbox(PATIENT)
    for _ in range(100):
        box.call(COUNT, "count", 1)

    history = box.fuel_history(COUNT)

    assert history is not None
    assert history.runs == 64


def test_each_call_of_a_session_has_a_budget_of_its_own() -> None:
    """Refills, too, begin anew."""
    cost = cost_of(1000)
    with Sandbox(PATIENT.replace(fuel=cost + 1)).open(COUNT) as session:
        for _ in range(3):
            report = session.call("count", 1000)
            assert report.ok
            assert report.fuel is not None
            assert (report.fuel.initial, report.fuel.left) == (cost + 1, 1)


def test_a_session_that_waited_counts_its_fuel_right() -> None:
    """Ticks that came while nothing ran are not taken for those of the guest's own time."""
    steps = 6 * FUEL_SLICE
    cost = cost_of(steps)
    policy = PATIENT.replace(fuel=cost // 2, fuel_refill=cost, fuel_refill_interval=0.001, fuel_refill_max=10 * cost)
    with Sandbox(policy).open(COUNT) as session:
        for _ in range(5):
            time.sleep(0.03)
            report = session.call("count", steps)
            assert report.ok
            assert report.fuel is not None
            assert report.fuel.consumed == cost
            assert adds_up(report)


@given(st.floats(0, 1e30), st.floats(0, 1e30))
def test_more_seconds_are_more_fuel(first: float, second: float) -> None:
    """Monotone, and saturated, at most what can be counted."""
    calibration = Calibration(units_per_second=1e9, least=1e9, most=1e9)
    units = sorted((first, second))

    fuel = [calibration.fuel(seconds) for seconds in units]

    assert fuel == sorted(fuel)
    assert 1 <= fuel[0] <= fuel[1] <= 2**63 - 1
    assert calibration.fuel(2.0) == 2_000_000_000


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_what_is_no_time_has_no_fuel(seconds: float) -> None:
    """What is no time has no fuel."""
    calibration = Calibration(units_per_second=1e9, least=1e9, most=1e9)
    with pytest.raises(stockade.UsageError) as caught:
        calibration.fuel(seconds)

    assert str(caught.value) == f"seconds is {seconds!r}: it must be a number from 0 on"


def test_calibration_is_kept_and_can_be_made_anew() -> None:
    """What was measured once holds for the process."""
    first = stockade.calibrate()

    assert stockade.calibrate() is first
    again = stockade.calibrate(again=True)
    assert again is not first
    assert stockade.calibrate() is again
    assert 0 < again.least <= again.units_per_second <= again.most
