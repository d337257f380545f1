"""Commands that have begun ahead, and wait for the standard input of a run.

Holds P-SNAP-7.
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from stockade import Outcome, Policy, Sandbox, UsageError
from stockade.execution import Inputs
from stockade.execution._starts import starts
from stockade.runner import FOREVER, RunControl, run_blocking
from tests._processes import live_instances, wait_for
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stockade import Module
    from stockade.execution._parked import ParkedPool, ParkedRun
    from stockade.runner import RunCoroutine
    from tests._timeline import Timeline

_TEXT = """
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 128) "ready: ")
  (func $say (param $at i32) (param $size i32)
    (i32.store (i32.const 16) (local.get $at)) (i32.store (i32.const 20) (local.get $size))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 32))))
  (func (export "_start") (local $n i32)
    (loop $work (br_if $work (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 100000))))
    (drop (call $args (i32.const 0) (i32.const 4)))
    (drop (call $environ (i32.const 8) (i32.const 12)))
    (call $say (i32.const 128) (i32.const 7))
    (loop $more
      (i32.store (i32.const 16) (i32.const 1024)) (i32.store (i32.const 20) (i32.const 16))
      (drop (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 32)))
      (if (i32.load (i32.const 32)) (then (call $say (i32.const 1024) (i32.load (i32.const 32))) (br $more))))
    (call $exit (i32.add (i32.mul (i32.const 10) (i32.load (i32.const 8))) (i32.load (i32.const 0))))))
"""

GREETER = wat(_TEXT)
"""Computes, says that it is ready, repeats its input, and ends with the numbers of its variables and its arguments."""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


@pytest.fixture
def metered() -> Iterator[Sandbox]:
    """One whose guests yield by what they compute."""
    with Sandbox(Policy().replace(fuel=1 << 40)) as made:
        yield made


def pool_of(box: Sandbox) -> ParkedPool:
    (pool,) = box._contexts.under()._parked.values()
    return pool


def test_a_run_takes_a_command_that_waits(box: Sandbox) -> None:
    cold = box.run(GREETER, ["x"], stdin=b"hello, this is long enough", env={"A": "1"})
    box.warm(GREETER, ["x"], env={"A": "1"}, pool_size=4)
    pool = pool_of(box)
    warm = box.run(GREETER, ["x"], stdin=b"hello, this is long enough", env={"A": "1"})
    assert pool.ready == 3
    assert warm.stdout == cold.stdout == b"ready: hello, this is long enough"
    assert (warm.outcome, warm.exit_code) == (cold.outcome, cold.exit_code) == (Outcome.EXIT, 12)
    # All that the guest has done, also before it had its input.
    assert warm.usage.calls == cold.usage.calls
    assert warm.usage.memory_bytes == cold.usage.memory_bytes
    for number in range(20):
        assert box.run(GREETER, ["x"], stdin=f"{number}", env={"A": "1"}).stdout == f"ready: {number}".encode()
    wait_for(lambda: pool.ready > 1)


def test_what_differs_is_run_afresh(box: Sandbox) -> None:
    box.warm(GREETER, ["x"], pool_size=4)
    pool = pool_of(box)
    assert box.run(GREETER, ["x", "y"]).exit_code == 3
    assert box.run(GREETER, ["x"], env={"A": "1"}).exit_code == 12
    assert box.run(GREETER, ["x"], policy=Policy().replace(wall_time="4s")).exit_code == 2
    pieces: list[bytes] = []
    box.run(GREETER, ["x"], stdin=b"a", on_stdout=pieces.append)
    assert b"".join(pieces) == b"ready: a"
    assert pool.ready == 4
    assert box.run(GREETER, ["x"]).exit_code == 2
    assert pool.ready == 3


def test_the_time_of_a_run_begins_when_it_begins(timeline: Timeline) -> None:
    """Waiting in the pool counts for nobody: neither the wall time nor the idle time of the policy."""
    policy = Policy().replace(wall_time="500ms", idle_time="100ms")
    with Sandbox(policy) as box:
        box.warm(GREETER, pool_size=4)
        timeline.now += 0.8
        for _ in range(2):
            report = box.run(GREETER, stdin=b"x")
            assert (report.outcome, report.stdout) == (Outcome.EXIT, b"ready: x")
            assert report.usage.idle_seconds == report.usage.wall_seconds == 0


def test_a_run_is_held_to_its_limits_and_cancelled(box: Sandbox) -> None:
    endless = wat("""
    (module
      (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "_start")
        (drop (call $read (i32.const 0) (i32.const 16) (i32.const 0) (i32.const 32)))
        (i32.store (i32.const 16) (i32.const 1024)) (i32.store (i32.const 20) (i32.const 16))
        (drop (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 32)))
        (loop $more (br $more))))
    """)
    short = Policy().replace(wall_time="200ms")
    box.warm(endless, pool_size=2, policy=short)
    time.sleep(0.3)
    assert box.run(endless, policy=short).outcome is Outcome.TIMEOUT

    async def main() -> None:
        patient = Policy().replace(wall_time="60s")
        box.warm(endless, pool_size=1, policy=patient)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await box.run_async(endless, policy=patient)

    asyncio.run(main())


def test_awaited_runs_take_them_too(box: Sandbox) -> None:
    async def main() -> list[bytes]:
        reports = await asyncio.gather(*(box.run_async(GREETER, stdin=b"%d" % number) for number in range(20)))
        return [report.stdout for report in reports]

    box.warm(GREETER, pool_size=4)
    assert asyncio.run(main()) == [b"ready: %d" % number for number in range(20)]


def test_what_cannot_wait_is_told(box: Sandbox) -> None:
    before = live_instances()
    ends = wat('(module (func (export "_start")))')
    with pytest.raises(UsageError, match="has ended before it has read its standard input"):
        box.warm(ends)
    traps = wat('(module (func (export "_start") unreachable))')
    with pytest.raises(UsageError, match=r"has ended before it has read its standard input \(.*unreachable"):
        box.warm(traps)
    with pytest.raises(UsageError, match=r"has 65,536 bytes of memory when it waits; each of 8 may have 8,192"):
        box.warm(GREETER, memory_bytes=65_536)
    repeated = Policy.loads('[clock]\nmode = "virtual"\n[random]\nmode = "seeded"\nseed = 1')
    with pytest.raises(UsageError, match="runs are equal to the last unit of fuel"):
        box.warm(GREETER, policy=repeated)
    wait_for(lambda: live_instances() <= before)


def test_those_that_wait_are_given_back(box: Sandbox) -> None:
    before = live_instances()
    for size in (5, 2, 0):
        box.warm(GREETER, pool_size=size)
        wait_for(lambda most=before + size: live_instances() <= most)
        assert [pool.ready for pool in box._contexts.under()._parked.values()] == ([size] if size else [])
    box.warm(GREETER, pool_size=3)
    box.close()
    wait_for(lambda: live_instances() <= before)
    with Sandbox() as other:
        other.warm(GREETER, pool_size=3)
    wait_for(lambda: live_instances() <= before)


def test_what_was_used_is_freed_in_the_next_pause(box: Sandbox) -> None:
    """Not in the time of the run that has used it; and what was left when all is closed is freed then."""
    before = live_instances()
    tidied: list[int] = []
    kept = box.warm_one(GREETER, Inputs(), lambda: tidied.append(live_instances() - before))
    pool = pool_of(box)
    for _ in range(2):
        assert box.run(GREETER, stdin="x").outcome is Outcome.EXIT
        assert (pool.ready, live_instances()) == (0, before + 1)
        kept.tend()
        wait_for(lambda: pool.ready == 1 and not pool.filling)
        assert live_instances() == before + 1
    assert tidied == [0, 0]
    box.run(GREETER, stdin="x")
    box.close()
    wait_for(lambda: live_instances() <= before)


SLOW = wat(_TEXT.replace("100000", "4000000"))
"""The same, but that it computes for several steps before it has started."""


def begun(box: Sandbox) -> tuple[ParkedPool, RunCoroutine[ParkedRun | None]]:
    """Returns a pool in which none waits, and one is being made; and the rest of the steps that make it."""
    box.warm_one(SLOW, Inputs(), lambda: None)
    pool = pool_of(box)
    assert box.run(SLOW, stdin=b"x").stdout == b"ready: x"
    making = pool._make(RunControl())
    next(making)
    assert (pool.ready, pool.steps_taken) == (0, 1)
    return pool, making


def test_a_run_takes_the_one_that_is_being_made(metered: Sandbox) -> None:
    """It goes on from where that is; whoever was making it has nothing to do any more."""
    pool, making = begun(metered)
    made, instances = pool._made, live_instances()
    steps, control = metered.steps(SLOW, stdin=b"taken")
    next(steps)
    assert (live_instances(), pool.steps_taken, starts().urgent) == (instances, 0, 1)
    assert made is not None
    assert made.is_claimed
    report = run_blocking(steps, control)
    assert (report.outcome, report.stdout) == (Outcome.EXIT, b"ready: taken")
    assert starts().urgent == 0
    with pytest.raises(StopIteration) as end:
        next(making)
    assert end.value.value is None
    assert (pool.ready, starts().ahead) == (0, 0)
    # Of one that is made, one run has it: the next makes its own.
    assert metered.run(SLOW, stdin=b"fresh").stdout == b"ready: fresh"


def test_a_run_waits_for_the_step_that_is_under_way(metered: Sandbox) -> None:
    pool, making = begun(metered)
    made = pool._made
    assert made is not None
    step = made._steps.pop()
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(metered.run, SLOW, stdin=b"taken")
        wait_for(lambda: made._taker is not None)
        assert not run.done()
        made._steps.append(step)
        assert made._taker is not None
        made._taker.wake()
        assert run.result().stdout == b"ready: taken"
    making.close()


def test_a_run_that_ends_while_it_waits_for_a_step_frees_the_guest_after_it(metered: Sandbox) -> None:
    pool, making = begun(metered)
    made, instances = pool._made, live_instances()
    assert made is not None
    step = made._steps.pop()
    steps, _ = metered.steps(SLOW, stdin=b"taken")
    assert next(steps) == FOREVER
    with ThreadPoolExecutor(1) as threads:
        end = threads.submit(steps.close)
        wait_for(end.running)
        assert live_instances() == instances
        made._steps.append(step)
        end.result()
    making.close()
    metered.close()
    wait_for(lambda: live_instances() < instances)


def test_runs_are_served_while_nothing_can_be_made_ahead(metered: Sandbox) -> None:
    """However many find none waiting: each makes its own, and the pool is filled when processors are free again."""
    metered.warm(SLOW, pool_size=2)
    pool = pool_of(metered)
    for number in range(os.cpu_count() or 1):
        starts().begin_urgent(number)
    try:
        for number in range(6):
            assert metered.run(SLOW, stdin=b"%d" % number).stdout == b"ready: %d" % number
        assert pool.ready == 0
    finally:
        for number in range(os.cpu_count() or 1):
            starts().end_urgent(number)
    wait_for(lambda: pool.ready == 2)


def test_hints_are_read_before_the_input_of_a_run(box: Sandbox) -> None:
    """Where there is time: a run that takes one before does without those that are left."""
    for stop, expected in ((None, b"ready: abX"), (1, b"ready: aX"), (0, b"ready: X")):
        context = box._contexts.under()
        pool = context.park(GREETER, Inputs(), 1, 1 << 30, lambda: None, (b"a", b"b"))
        assert pool is not None
        if stop is not None:
            taken = pool.take()
            taken.guest.close()
            made = pool._begun()
            pool._made = made
            while not made.stdin.waiting:
                made.step()
            if stop:
                made.stdin.give(b"a", is_all=False)
        assert box.run(GREETER, stdin=b"X").stdout == expected


def test_cpython_that_waits_runs_its_program(box: Sandbox, load_program: Callable[[str], Module]) -> None:
    python = load_program("python")
    box.warm(python, ["-"], pool_size=2)
    for number in range(4):
        report = box.run(python, ["-"], stdin=f"import sys; print({number} + 1); sys.exit({number})")
        assert (report.stdout, report.exit_code) == (b"%d\n" % (number + 1), number)
