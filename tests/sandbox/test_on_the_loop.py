"""Runs awaited that are over within a moment: done on the loop's own thread, of which others have their share."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from stockade import Outcome, Policy, Report, Sandbox
from stockade.execution._pace import BRIEF_SECONDS, Pace
from stockade.runner._executor import Executor, WorkItem
from tests.conftest import HELLO, wat

LOOPS = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "loops") (param $rounds i64) (result i64)
        (loop $next
          (local.set $rounds (i64.sub (local.get $rounds) (i64.const 1)))
          (br_if $next (i64.gt_s (local.get $rounds) (i64.const 0))))
        (i64.const 7)))
    """
)
FOR_EVER = 1 << 60

_MANY = 40
"""Runs of which a few may halt in their middle: the clock that makes guests look up ticks at any moment."""


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was handed to the executor, by tenant."""
    told: list[str] = []
    begin = Executor.begin

    def tell(self: Executor, item: WorkItem[Any]) -> None:
        told.append(item.tenant)
        begin(self, item)

    monkeypatch.setattr(Executor, "begin", tell)
    return told


def told(report: Report) -> tuple[object, ...]:
    return report.outcome, report.exit_code, report.value, report.stdout, report.usage.calls


def test_a_run_that_is_over_within_a_moment_is_not_handed_on(handed_on: list[str]) -> None:
    box = Sandbox()
    module = wat(HELLO)
    expected = [told(box.run(module)) for _ in range(3)][-1]

    async def scenario() -> list[Report]:
        return [await box.run_async(module) for _ in range(_MANY)]

    assert {told(report) == expected for report in asyncio.run(scenario())} == {True}
    assert len(handed_on) < _MANY / 2
    assert box.monitor() == {}


def test_what_was_never_run_is_handed_on(handed_on: list[str]) -> None:
    box = Sandbox()
    module = wat(HELLO)

    assert asyncio.run(box.run_async(module)).ok
    assert handed_on == [""]


def test_what_is_given_something_is_handed_on(handed_on: list[str]) -> None:
    box = Sandbox()
    module = wat(HELLO)
    for _ in range(3):
        box.run(module)

    assert asyncio.run(box.run_async(module, ["argument"], tenant="other")).ok
    assert handed_on == ["other"]


def test_a_guest_that_turns_out_to_be_long_goes_on_elsewhere_and_is_not_trusted_again(handed_on: list[str]) -> None:
    """Attack: a guest is brief until it is begun on the loop's own thread, and then computes for ever."""
    box = Sandbox(Policy().replace(wall_time=1.0))
    for _ in range(3):
        assert box.call(LOOPS, "loops", 1).value == 7

    async def scenario() -> tuple[int, Report]:
        beats = 0

        async def heart() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.005)
                beats += 1

        for _ in range(_MANY):
            assert (await box.call_async(LOOPS, "loops", 1, tenant="brief")).value == 7
        assert handed_on.count("brief") < _MANY / 2
        beating = asyncio.create_task(heart())
        await asyncio.sleep(0)
        report = await box.call_async(LOOPS, "loops", FOR_EVER, tenant="long")
        beating.cancel()
        for _ in range(_MANY):
            assert (await box.call_async(LOOPS, "loops", 1, tenant="after")).value == 7
        return beats, report

    beats, report = asyncio.run(scenario())

    assert report.outcome is Outcome.TIMEOUT
    assert report.usage.wall_seconds >= 1.0
    assert beats > 3
    assert handed_on.count("long") == 1
    assert handed_on.count("after") == _MANY


def test_others_on_the_loop_have_their_turn() -> None:
    """Attack: a coroutine awaits one run after the other and nothing else, so that nobody else comes to his turn."""
    box = Sandbox()
    for _ in range(3):
        box.call(LOOPS, "loops", 1)

    async def scenario() -> int:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async def for_ever() -> None:
            while turns < 4:
                await box.call_async(LOOPS, "loops", 1)

        task = asyncio.create_task(other())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                await for_ever()
        task.cancel()
        return turns

    assert asyncio.run(scenario()) > 3


def test_a_run_is_on_the_list_and_off_it_again() -> None:
    box = Sandbox()
    for _ in range(3):
        box.call(LOOPS, "loops", 1)

    async def scenario() -> Report:
        await box.call_async(LOOPS, "loops", 1, run_id="mine")
        return await box.call_async(LOOPS, "loops", 1, run_id="mine")

    assert asyncio.run(scenario()).value == 7
    assert not box.cancel("mine")
    assert box.monitor() == {}


def test_pace() -> None:
    pace = Pace()
    assert pace.wary
    pace.note(BRIEF_SECONDS)
    assert not pace.wary
    pace.note(BRIEF_SECONDS * 2)
    for _ in range(100):
        assert pace.wary
        pace.note(0.0)
    assert not pace.wary
