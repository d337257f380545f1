"""Samples and alerts of real runs: nothing is missed, nothing is told twice, and nothing grows without bound.

Holds P-REPORT-5.
"""

from __future__ import annotations

import asyncio
import math
import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Monitoring, Outcome, Policy, Sandbox
from stockade.errors import UsageError
from stockade.execution._monitoring import RunMonitor
from stockade.report import Progress, RunLimits
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from stockade.report import Alert

GROW = """(module
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $n i32)
    (loop $more
      (drop (memory.grow (i32.const 1)))
      (call $work)
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $n) (i32.const 60)))))
  (func $work (local $n i32)
    (loop $more
      (drop (call $yield))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $n) (i32.const 30000)))))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "work") (call $work)))"""

POLICY = Policy().replace(memory=4 << 20, wall_time=60, fuel=10**10)


def test_an_alert_is_told_once_and_is_in_the_report() -> None:
    """In the order in which thresholds are reached, while the run goes on."""
    told: list[Alert] = []
    with Sandbox(POLICY, monitoring=Monitoring(alerts={"memory": (0.9, 0.5)}, on_alert=told.append)) as box:
        report = box.run(wat(GROW), run_id="mine")

    assert [(alert.limit, alert.threshold) for alert in told] == [("memory", 0.5), ("memory", 0.9)]
    assert report.alerts == tuple(told)
    for alert in told:
        assert alert.threshold <= alert.utilization <= 1
        assert alert.used / alert.allowed == alert.utilization
        assert 0 <= alert.at <= report.usage.wall_seconds
        assert (alert.run_id, alert.module) == ("mine", report.module.name)
    assert report.outcome is Outcome.OK


def test_what_was_reached_is_never_missed() -> None:
    """A run that is over before it halts for the first time is looked at in the end, where all is exact."""
    with Sandbox(Policy().replace(memory=1 << 16), monitoring=Monitoring(alerts={"memory": 1.0, "calls": 0.1})) as box:
        report = box.run(wat(HELLO))

    assert [(alert.limit, alert.utilization) for alert in report.alerts] == [("memory", 1.0)]


def test_a_share_that_is_not_reached_is_not_told() -> None:
    """One page less than the threshold is no alert; the page is."""
    watched = Monitoring(alerts={"memory": 0.5})
    with Sandbox(Policy().replace(memory=8 << 16), monitoring=watched) as box:
        below = box.call(wat(GROW), "grow", 2)
        at = box.call(wat(GROW), "grow", 3)

    assert (below.utilization["memory"], below.alerts) == (3 / 8, ())
    assert [alert.utilization for alert in at.alerts] == [0.5]


def test_asking_for_more_than_is_allowed_is_all_of_it() -> None:
    """Memory that was refused: the guest has little, and wanted all."""
    with Sandbox(POLICY, monitoring=Monitoring(alerts={"memory": 0.99})) as box:
        report = box.call(wat(GROW), "grow", 60_000)

    assert [(alert.limit, alert.utilization) for alert in report.alerts] == [("memory", 1.0)]
    assert report.utilization["memory"] < 0.1


def test_one_share_is_for_all_limits() -> None:
    """Also for limits that the run comes to late."""
    with Sandbox(Policy().replace(fuel=1000, stdout=4), monitoring=Monitoring(alerts=0.9)) as box:
        report = box.run(wat(HELLO))

    assert "stdout" in {alert.limit for alert in report.alerts}
    assert all(alert.utilization >= 0.9 for alert in report.alerts)


def test_what_on_alert_raises_ends_the_run() -> None:
    """As with every callback; the next run is none the worse."""

    def object_to(alert: Alert) -> None:
        raise KeyError(alert.limit)

    with Sandbox(POLICY, monitoring=Monitoring(alerts={"memory": 0.5}, on_alert=object_to)) as box:
        with pytest.raises(KeyError, match="memory"):
            box.run(wat(GROW))
        assert box.monitor() == {}
        assert box.run(wat(HELLO)).ok


def test_on_alert_may_cancel_the_run() -> None:
    """By the name that the alert has."""
    box = Sandbox(
        POLICY, monitoring=Monitoring(alerts={"memory": 0.3}, on_alert=lambda alert: box.cancel(alert.run_id))
    )
    with box:
        report = box.run(wat(GROW), run_id="greedy")

    assert report.outcome is Outcome.CANCELLED
    assert report.utilization["memory"] < 0.9


def test_alerts_of_awaited_runs_come_too() -> None:
    """On whatever thread drives the run."""
    told: list[Alert] = []

    async def main() -> list[stockade.Report]:
        watched = Monitoring(alerts={"memory": 0.5}, on_alert=told.append)
        async with Sandbox(POLICY, monitoring=watched) as box:
            return await asyncio.gather(*(box.run_async(wat(GROW), run_id=f"run {number}") for number in range(3)))

    reports = asyncio.run(main())

    assert sorted(alert.run_id for alert in told) == ["run 0", "run 1", "run 2"]
    assert all(len(report.alerts) == 1 for report in reports)


def test_each_call_of_a_session_is_watched_anew() -> None:
    """Thresholds that the one before has reached are told again, where they are reached."""
    with Sandbox(Policy().replace(memory=8 << 16), monitoring=Monitoring(alerts={"memory": 0.5}, samples=True)) as box:
        session = box.open(wat(GROW))
        first, second, third = (session.call("grow", pages) for pages in (1, 3, 0))
        session.close()

    assert [len(report.alerts) for report in (first, second, third)] == [0, 1, 1]
    assert [report.samples[0].memory_bytes >> 16 for report in (first, second, third)] == [1, 2, 5]
    assert all(report.samples[0].at == 0 for report in (first, second, third))


def test_samples_tell_the_course_of_a_run() -> None:
    """From its beginning to its end, in order, each counter only growing; in the end what the report says."""
    with Sandbox(POLICY, monitoring=Monitoring(samples=True)) as box:
        report = box.run(wat(GROW))
    samples = report.samples

    assert 3 <= len(samples) <= 512
    assert samples[0] == type(samples[0])(at=0.0, fuel=0, memory_bytes=1 << 16)
    last = samples[-1]
    assert (last.at, last.fuel, last.memory_bytes) == (
        report.usage.wall_seconds,
        report.usage.fuel,
        report.usage.memory_bytes,
    )
    assert last.calls == sum(report.usage.calls.values()) == 1_800_000
    for before, after in pairwise(samples):
        assert before.at <= after.at
        assert before.memory_bytes <= after.memory_bytes
        assert before.calls <= after.calls
        assert (before.fuel or 0) <= (after.fuel or 0)


def test_nothing_is_sampled_where_nobody_asked() -> None:
    """Nor told."""
    with Sandbox(POLICY) as box:
        report = box.run(wat(GROW))

    assert (report.samples, report.alerts) == ((), ())


@pytest.mark.parametrize("looks", [10, 509, 510, 511, 5_000, 100_000])
def test_samples_are_bounded_and_cover_all_of_a_run(monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    """However long it takes: at most 512, evenly over the whole, never fewer than half of that once there were more."""
    now = 0.0
    monkeypatch.setattr("stockade.execution._monitoring.time.monotonic", lambda: now)
    monitor = RunMonitor(Monitoring(samples=True))
    for number in range(looks):
        now = number * 0.01
        monitor.look(lambda now=now: Progress(seconds=now), None)  # type: ignore[misc]
    report = monitor.finish(stockade.Sandbox().run(wat(HELLO)), None)

    times = [sample.at for sample in report.samples[1:-1]]
    assert len(report.samples) <= 512
    assert len(times) >= min(looks, 250)
    steps = [after - before for before, after in pairwise(times)]
    assert max(steps) <= 2.01 * min(steps) + 0.02
    assert times[-1] >= 0.98 * (looks - 1) * 0.01 - 0.5


def test_what_a_guest_is_never_asked_is_how_it_wants_to_be_watched() -> None:
    """A guest that yields as often as it can is looked at as often as the clock allows."""
    asked = 0

    def progress() -> Progress:
        nonlocal asked
        asked += 1
        return Progress(seconds=0.0, limits=RunLimits(memory=100))

    monitor = RunMonitor(Monitoring(samples=True, alerts=0.5))
    clock = threading.Event()
    for _ in range(10_000):
        monitor.look(progress, None)
    clock.wait(0.002)
    monitor.look(progress, None)

    assert asked < 5_000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alerts": 0}, "alerts is 0: it must be a share of a limit, above 0 and up to 1, such as 0.8"),
        ({"alerts": 1.5}, "alerts is 1.5: it must be a share of a limit, above 0 and up to 1, such as 0.8"),
        ({"alerts": math.nan}, "alerts is nan: it must be a share of a limit, above 0 and up to 1, such as 0.8"),
        ({"alerts": True}, "alerts is True: it must be a share of a limit, above 0 and up to 1, such as 0.8"),
        ({"alerts": {"memory": "0.5"}}, "alerts['memory'] is '0.5': it must be a share of a limit"),
        ({"alerts": {"memory": [0.5, -1]}}, "alerts['memory'] is -1: it must be a share of a limit"),
        (
            {"alerts": {"memry": 0.5}},
            "alerts names memry, which is no limit that is measured: those are fuel, wall_time",
        ),
        ({"alerts": {"stack": 0.5}}, "alerts names stack, which is no limit that is measured"),
        ({"alerts": None}, "alerts is None: it must be a share"),
        ({"samples": 512}, "samples is 512: it must be True or False"),
        ({"on_alert": print}, "on_alert is never called: say with alerts of which limits to tell, such as alerts=0.8"),
        ({"alerts": 0.5, "on_alert": "print"}, "on_alert is str: give a function, or None"),
    ],
)
def test_mistakes_are_told(given: dict[str, object], message: str) -> None:
    """Before anything runs, with what to write instead."""
    with pytest.raises(UsageError) as caught:
        Monitoring(**given)  # type: ignore[arg-type]

    assert str(caught.value).startswith(message)


def test_monitoring_is_a_monitoring() -> None:
    """And nothing else, in sandboxes and languages."""
    for make in (Sandbox, stockade.Python):
        with pytest.raises(UsageError, match=r"monitoring is bool: give stockade.Monitoring\(...\)"):
            make(monitoring=True)  # type: ignore[call-arg]
