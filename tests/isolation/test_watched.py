"""Samples and alerts of runs in workers: what hostile processes tell is believed as far as it makes sense. P-ISO-14."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from stockade import Monitoring, Outcome, Policy, Sandbox
from stockade.isolation._remote import RemoteGuest
from stockade.report import Progress
from stockade.runner import RunControl
from tests.conftest import HELLO, wat
from tests.execution.test_monitoring import GROW, POLICY

if TYPE_CHECKING:
    from stockade.report import Alert


def test_alerts_and_samples_are_told_in_the_course_of_a_run() -> None:
    """Each once, in the order in which thresholds are reached; samples go forward in time."""
    told: list[Alert] = []
    watched = Monitoring(samples=True, alerts={"memory": (0.9, 0.5)}, on_alert=told.append)
    with Sandbox(POLICY, monitoring=watched, isolation="process") as box:
        report = box.run(wat(GROW), run_id="mine")

    assert report.outcome is Outcome.OK
    assert [(alert.limit, alert.threshold) for alert in told] == [("memory", 0.5), ("memory", 0.9)]
    assert report.alerts == tuple(told)
    assert {(alert.run_id, alert.module) for alert in told} == {("mine", report.module.name)}
    assert len(report.samples) > 2
    assert all(before.at <= after.at for before, after in pairwise(report.samples[:-1]))
    assert report.samples[-1].memory_bytes == report.usage.memory_bytes


def test_what_was_reached_is_never_missed() -> None:
    """A run that is over before it is heard of is looked at in the end."""
    watched = Monitoring(alerts={"memory": 1.0})
    with Sandbox(Policy().replace(memory=1 << 16), monitoring=watched, isolation="process") as box:
        report = box.run(wat(HELLO))

    assert [(alert.limit, alert.utilization) for alert in report.alerts] == [("memory", 1.0)]


def test_what_on_alert_raises_ends_the_run() -> None:
    """As with every callback; the next run is none the worse."""

    def object_to(alert: Alert) -> None:
        raise KeyError(alert.limit)

    watched = Monitoring(alerts={"memory": 0.5}, on_alert=object_to)
    with Sandbox(POLICY, monitoring=watched, isolation="process") as box:
        with pytest.raises(KeyError, match="memory"):
            box.run(wat(GROW))
        assert box.monitor() == {}
        assert box.run(wat(HELLO)).ok


def test_each_call_of_a_session_is_watched_anew() -> None:
    watched = Monitoring(alerts={"memory": 0.5})
    with (
        Sandbox(Policy().replace(memory=8 << 16), monitoring=watched, isolation="process") as box,
        box.open(wat(GROW)) as session,
    ):
        below, at = session.call("grow", 2), session.call("grow", 1)

    assert below.alerts == ()
    assert [alert.utilization for alert in at.alerts] == [0.5]


def test_a_worker_does_not_say_what_is_allowed() -> None:
    """Attack: progress from the future, of another run with other limits, that goes back in time."""
    with Sandbox(POLICY, isolation="process") as box:
        context = box._contexts.under()
        plan = context.plan(wat(HELLO))

        class Silent:
            most_bytes, most_descriptors, status, refused = 1, 0, None, 0

            def close(self) -> bool:
                return False

        guest = RemoteGuest(plan, context.info, "process", RunControl(), Silent(), None, None, 0.0)  # type: ignore[arg-type]
        guest._started = guest._called = 0.0
        guest._hear_of(Progress(seconds=5.0, module="lies", policy="lies"))
        guest._hear_of(Progress(seconds=1.0))
        told = guest.progress()

    assert told is not None
    assert (told.seconds, told.module, told.policy) == (5.0, plan.info.name, context.info.name)
    assert told.limits == plan.run_limits
