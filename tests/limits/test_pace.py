"""Shares and speeds: a part of a core, growth by the second.

Holds P-TIME-5.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stockade
from stockade import Outcome, Policy, Sandbox
from stockade.execution import _halted, _run, _throttle
from stockade.runner import GO_ON
from tests._processes import cancelling
from tests._timeline import Timeline
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Iterator

SPIN = '(module (memory (export "memory") 1) (func (export "_start") (loop br 0)))'
WAIT_THEN_SPIN = """
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 500000000))
    (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
    (loop br 0)))
"""
GROW = """
(module
  (memory (export "memory") 1)
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "twice") (param i32 i32) (result i32)
    (drop (memory.grow (local.get 0)))
    (memory.grow (local.get 1))))
"""
TABLES = """
(module
  (memory (export "memory") 1) (table 0 funcref)
  (func (export "grow") (param i32 i32) (result i32 i32)
    (table.grow 0 (ref.null func) (local.get 0))
    (memory.grow (local.get 1))))
"""
GROW_FOR_LONG = """
(module
  (memory (export "memory") 1)
  (func (export "until") (param $pages i32) (loop $again
    (drop (memory.grow (i32.const 1)))
    (br_if $again (i32.lt_u (memory.size) (local.get $pages))))))
"""


@pytest.mark.parametrize("percent", [20, 50])
def test_busy_guest_gets_its_share_of_a_core(percent: int) -> None:
    """CPU time over wall time is the share, or less where others keep the machine busy.

    It is not held back for longer than its share asks for: `test_throttle_rests_no_longer_than_the_share_asks_for`.
    """
    report = Sandbox(Policy().replace(cpu_percent=percent, fuel=None, wall_time=1.5)).run(wat(SPIN))

    assert report.outcome is Outcome.TIMEOUT
    assert 0 < report.usage.cpu_seconds / report.usage.wall_seconds <= percent / 100 * 1.1


COUNT = """
(module (func (export "count") (param $i i32) (result i32)
  (loop $next (br_if $next (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))
  (i32.const 7)))
"""


def test_short_calls_of_a_session_are_held_to_its_share() -> None:
    """The attack: many calls that are each over before anybody looks, under an account that began anew at each.

    What they used in CPU time took as long as its share says, however busy the machine was.
    """
    used = 0.0
    with Sandbox(Policy().replace(cpu_percent=20, fuel=None, wall_time=None)).open(wat(COUNT)) as session:
        begun = time.monotonic()
        for _ in range(200):
            report = session.call("count", 1_000_000)
            assert (report.outcome, report.value) == (Outcome.OK, 7)
            used += report.usage.cpu_seconds
        # The last call is paid for by the next one.
        used -= report.usage.cpu_seconds
        elapsed = time.monotonic() - begun

    assert used <= 0.2 * elapsed + 0.02


class Hungry:
    """The module `time`, under whose hands a guest has used more CPU time than it took."""

    def __init__(self) -> None:
        self.cpu = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def thread_time(self) -> float:
        """CPU time of this thread."""
        return time.thread_time() + self.cpu


EATS = """
(module
  (import "env" "eat" (func $eat))
  (func (export "eat") (call $eat))
  (func (export "go on") (call $eat) (loop br 0))
  (func (export "fine") (result i32) (i32.const 7)))
"""


def eating(clock: Hungry | Timeline, seconds: float, **changes: object) -> Sandbox:
    """A sandbox whose guests can use so many seconds of CPU time in no time."""
    box = Sandbox(Policy().replace(fuel=None, **changes))

    @box.host_function("env", "eat")
    def eat() -> None:
        clock.cpu += seconds

    return box


@contextmanager
def never_held_back() -> Iterator[None]:
    """A guest does not wait for its share: a busy machine may look after it in the middle of a call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_throttle.Throttle, "until", lambda *_: GO_ON)
        yield


def test_what_a_session_owes_is_no_part_of_the_next_calls_time(timeline: Timeline) -> None:
    """A call that has to wait for its share has all of its own time when its first instruction runs."""
    with eating(timeline, 0.075, cpu_percent=5, wall_time=1.0).open(wat(EATS)) as session:
        with never_held_back():
            assert session.call("eat").outcome is Outcome.OK
        report = session.call("fine")

    assert (report.outcome, report.value) == (Outcome.OK, 7)
    # It has waited longer than it may take, and that is not told as its own.
    assert timeline.passed == pytest.approx(1.5)
    assert report.usage.wall_seconds == 0


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> Hungry:
    """CPU time that goes by as the test says."""
    clock = Hungry()
    for module in (_run, _halted):
        monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_session_that_waits_for_its_share_can_be_cancelled(hungry: Hungry) -> None:
    """Cancelling does not wait for what is owed, which is more than a day here: nothing of the guest runs."""
    with eating(hungry, 1000.0, cpu_percent=1, wall_time=None).open(wat(EATS)) as session:
        with never_held_back():
            assert session.call("eat").outcome is Outcome.OK
        with cancelling(session.cancel):
            report = session.call("fine")

    assert (report.outcome, report.value) == (Outcome.CANCELLED, None)


@given(st.integers(1, 99), st.lists(st.tuples(st.floats(0, 0.1), st.floats(0, 1)), min_size=1, max_size=50))
def test_the_account_of_a_share(percent: int, calls: list[tuple[float, float]]) -> None:
    """Whatever calls use, and however long lies between them: at any moment at which one may begin, what was used is at
    most the share of the time since the beginning, and what may be saved.
    """
    now = [1000.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_throttle.time, "monotonic", lambda: now[0])
        throttle = _throttle.Throttle(percent)
        used = 0.0
        for cpu, between in calls:
            until = throttle.begin()
            now[0] = max(now[0], until)
            assert used <= (now[0] - 1000.0) * percent / 100 + 1e-9
            now[0] += cpu
            used += cpu
            throttle.settle(cpu)
            now[0] += between


@pytest.mark.parametrize("percent", [1, 20, 50, 99])
def test_throttle_rests_no_longer_than_the_share_asks_for(percent: int) -> None:
    """A guest that always computes gets its whole share, by a clock of the test's own."""
    now = [1000.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_throttle.time, "monotonic", lambda: now[0])
        throttle = _throttle.Throttle(percent)
        until, used = throttle.begin(), 0.0
        while now[0] < 1060.0:
            now[0] = max(now[0], until) + 0.002
            used += 0.002
            until = throttle.until(used)

    assert used / (now[0] - 1000.0) == pytest.approx(percent / 100, rel=0.01)


def test_waiting_saves_up_no_share() -> None:
    """The attack: a guest sleeps, and then takes the whole core for as long as it slept."""
    report = Sandbox(Policy().replace(cpu_percent=20, fuel=None, wall_time=1.5)).run(wat(WAIT_THEN_SPIN))

    assert report.outcome is Outcome.TIMEOUT
    assert report.usage.cpu_seconds <= 0.2 * 1.0 + 0.1


def test_a_halted_guest_can_be_stopped(hungry: Hungry) -> None:
    """The deadline holds while the guest is halted for being over its share, by more than a day here."""
    report = eating(hungry, 1000.0, cpu_percent=1, wall_time=0.3).call(wat(EATS), "go on")

    assert report.outcome is Outcome.TIMEOUT
    assert report.usage.cpu_seconds > 1000
    assert report.usage.wall_seconds < 60


@pytest.mark.usefixtures("timeline")
def test_memory_grows_by_so_many_pages_a_second() -> None:
    """Ten pages are granted, the eleventh within the second is not, and that is reported."""
    sandbox = Sandbox(Policy().replace(memory_growth=10))

    granted = sandbox.call(wat(GROW), "twice", 4, 6)
    refused = sandbox.call(wat(GROW), "twice", 5, 6)

    assert (granted.value, granted.violations, granted.usage.memory_bytes) == (5, (), 11 * 65536)
    assert (refused.value, refused.usage.memory_bytes) == (-1, 6 * 65536)
    (violation,) = refused.violations
    assert (violation.kind, violation.subject, violation.call) == (
        "memory_growth",
        "limits.memory_growth",
        "memory.grow",
    )
    assert (violation.limit, violation.observed, violation.action, violation.count) == (10, 11, "deny", 1)


@pytest.mark.usefixtures("timeline")
def test_tables_grow_at_the_same_pace() -> None:
    """The attack: memory that is asked for as elements of a table, 8,192 to a page. One pace holds for both."""
    sandbox = Sandbox(Policy().replace(memory_growth=2, table_elements=1_000_000))

    granted = sandbox.call(wat(TABLES), "grow", 8192, 1)
    # Half a page more than there is for both, which comes back within a quarter of a second.
    refused = sandbox.call(wat(TABLES), "grow", 12288, 1)

    assert (granted.value, granted.violations) == ([0, 1], ())
    assert (refused.value, refused.usage.memory_bytes) == ([0, -1], 65536 + 12288 * 8)
    (violation,) = refused.violations
    assert (violation.kind, violation.call, violation.limit, violation.observed) == (
        "memory_growth",
        "memory.grow",
        2,
        3,
    )
    (other,) = sandbox.call(wat(TABLES), "grow", 16385, 2).violations
    assert (other.kind, other.call, other.limit, other.observed) == ("memory_growth", "table.grow", 2, 3)


@pytest.mark.usefixtures("timeline")
def test_refused_growth_does_not_count() -> None:
    """What was refused leaves room for what fits."""
    report = Sandbox(Policy().replace(memory_growth=10)).call(wat(GROW), "twice", 11, 10)

    assert (report.value, report.usage.memory_bytes) == (1, 11 * 65536)


def test_growth_can_go_on_in_the_next_second() -> None:
    """Also in a guest that has no clock: the host tells it the time. Nobody else's seconds are meant."""
    report = Sandbox(Policy().replace(memory_growth=10, fuel=None, wall_time=100.0)).call(
        wat(GROW_FOR_LONG), "until", 25
    )

    assert report.outcome is Outcome.OK
    assert report.usage.memory_bytes == 25 * 65536
    # Ten pages at once, fifteen a tenth of a second each; it begins with one.
    assert report.usage.wall_seconds >= 1.4


@pytest.mark.usefixtures("timeline")
def test_growth_that_is_too_quick_can_end_the_run() -> None:
    """As the policy says."""
    policy = Policy().replace(memory_growth=10, on_memory_denied="stop")

    report = Sandbox(policy).call(wat(GROW), "grow", 11)

    assert report.outcome is Outcome.MEMORY
    assert report.violations[0].action == "stop"
    assert Sandbox(policy).call(wat(GROW), "grow", 10).ok


def test_minimal_preset_runs() -> None:
    """It uses both, and half a megabyte is enough for a start."""
    report = stockade.run(wat('(module (memory 2) (func (export "_start")))'), policy="minimal")

    assert report.ok


def test_a_guest_that_only_naps_is_held_to_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: waits of a nanosecond without end, which cost the guest nothing and keep the host busy."""
    module = wat(
        """
        (module
          (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "_start")
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 1))
            (loop $nap
              (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
              (br $nap))))
        """
    )
    Timeline(monkeypatch, work_seconds=0.0001)
    held = Sandbox(Policy().replace(cpu_percent=20, fuel=None, wall_time=1.0)).run(module)
    free = Sandbox(Policy().replace(fuel=None, wall_time=1.0)).run(module)

    assert held.outcome is free.outcome is Outcome.TIMEOUT
    assert free.usage.cpu_seconds > 0.4
    assert held.usage.cpu_seconds <= 0.2 + 0.02
    assert held.usage.calls["poll_oneoff"] < free.usage.calls["poll_oneoff"] / 2
