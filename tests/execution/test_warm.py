"""Instances that are made ahead: each is used once, holds what the snapshot holds, and is bounded in memory.

Holds P-SNAP-6.
"""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from stockade import EngineError, Environment, Outcome, Policy, Sandbox, Snapshot, UsageError
from stockade.execution import Inputs
from tests._processes import live_instances, wait_for
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.execution._warm import WarmPool

COUNTER = wat("""
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 40)
  (global $count (mut i32) (i32.const 0))
  (func (export "count") (result i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (i32.store (i32.const 200000) (i32.add (i32.load (i32.const 200000)) (i32.const 1)))
    (i32.mul (global.get $count) (i32.load (i32.const 200000))))
  (func (export "touch") (param $pages i32) (local $at i32)
    (loop $next
      (i32.store8 (i32.mul (local.get $at) (i32.const 4096)) (i32.const 7))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $pages)))))
  (func (export "_start") (local $size i32)
    (drop (call $args (i32.const 0) (i32.const 4)))
    (i32.store (i32.const 16) (i32.const 64)) (i32.store (i32.const 20) (i32.const 100))
    (drop (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 32)))
    (i32.store (i32.const 60) (i32.add (i32.const 48) (i32.load (i32.const 0))))
    (i32.store (i32.const 16) (i32.const 60))
    (i32.store (i32.const 20) (i32.add (i32.const 4) (i32.load (i32.const 32))))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 32)))))
""")


ENVIRON = wat("""
(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "nothing"))
  (func (export "_start")
    (drop (call $sizes (i32.const 0) (i32.const 12)))
    (drop (call $get (i32.const 100) (i32.const 1000)))
    (i32.store (i32.const 8) (i32.const 1000))
    (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 20)))))
""")
"""Writes its environment to stdout."""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


@pytest.fixture
def snapshot(box: Sandbox) -> Snapshot:
    with box.open(COUNTER) as session:
        for _ in range(3):
            session.call("count").check()
        # So that every page is the snapshot's, and is copied when it is written to.
        session.write_memory(0, bytes([1]) * 200_000)
        return session.snapshot()


def pool_of(snapshot: Snapshot) -> WarmPool:
    (pool,) = snapshot._saved.warm.values()
    return pool


def test_what_waits_is_used_once_and_made_anew(box: Sandbox, snapshot: Snapshot) -> None:
    box.warm(snapshot, pool_size=6)
    pool = pool_of(snapshot)
    assert pool.ready == 6
    for _ in range(50):
        # Each begins with three, whatever the one before has done.
        assert box.call(snapshot, "count").value == 16
    with box.open(snapshot) as session:
        assert [session.call("count").value for _ in range(3)] == [16, 25, 36]
    wait_for(lambda: pool.ready > 3)


def test_guests_that_were_made_ahead_have_inputs_of_their_own(box: Sandbox, snapshot: Snapshot) -> None:
    cold = [box.run(snapshot, ["x"] * n, stdin=b"abc" * n).stdout for n in range(4)]
    box.warm(snapshot, pool_size=3)
    warm = [box.run(snapshot, ["x"] * n, stdin=b"abc" * n).stdout for n in range(4)]
    assert warm == cold == [b"1\0\0\0", b"2\0\0\0abc", b"3\0\0\0abcabc", b"4\0\0\0abcabcabc"]
    large = box.run(snapshot, ["y" * 100_000], stdin=bytes(5 << 20), policy=None)
    assert large.outcome is Outcome.OK


def test_guests_that_wait_are_whole_and_have_the_environment_of_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a guest that sees a variable that was withdrawn after it was made, or one that is another run's."""
    monkeypatch.setenv("SHOWN", "before")
    with Sandbox(Policy().replace(environment=Environment(mode="allow", names=("SHOWN",)))) as box:
        with box.open(ENVIRON) as session:
            session.call("nothing").check()
            snapshot = session.snapshot()
        box.warm(snapshot, pool_size=8)
        made = [found.guest for found in pool_of(snapshot)._ready]
        assert None not in made
        assert len(set(map(id, made))) == 8
        assert box.run(snapshot).stdout == b"SHOWN=before\0"
        assert box.run(snapshot, env={"OTHER": "x" * 5_000}).stdout == b"SHOWN=before\0OTHER=" + b"x" * 5_000 + b"\0"
        monkeypatch.setenv("SHOWN", "after")
        assert box.run(snapshot).stdout == b"SHOWN=after\0"
        monkeypatch.delenv("SHOWN")
        assert box.run(snapshot).stdout == b""


def test_a_guest_that_waits_begins_with_its_run(box: Sandbox, snapshot: Snapshot) -> None:
    """How long it has waited counts for nobody: neither for its time, nor as its beginning."""
    box.warm(snapshot, pool_size=2)
    (first, *_) = pool_of(snapshot)._ready
    assert first.guest is not None
    first.guest._made -= 1_000_000
    first.guest._control.cancel()
    report = box.call(snapshot, "count")
    assert (report.value, report.outcome) == (16, Outcome.OK)
    assert report.usage.wall_seconds < 1_000
    assert report.timings.instantiate < 1_000


def test_what_guests_touch_first_is_in_place(box: Sandbox, snapshot: Snapshot) -> None:
    box.warm(snapshot, pool_size=4)
    pool = pool_of(snapshot)
    for _ in range(4):
        box.call(snapshot, "touch", 30).check()
    assert snapshot._saved.pages.learned
    wait_for(lambda: pool.own_bytes >= 4 * 30 * 4_096)
    with box.open(snapshot) as session:
        held = session.read_memory(0, 40 * 65_536)
    # It holds what it would hold.
    assert held == bytes([1]) * 200_000 + b"\3\0\0\0"[:4] + bytes(40 * 65_536 - 200_004)


def test_another_one_is_made_when_that_is_said(box: Sandbox, snapshot: Snapshot) -> None:
    """So that nothing is done in the background while a run goes on; what was used is freed there, too."""
    before = live_instances()
    tidied: list[int] = []
    kept = box.warm_one(snapshot, Inputs(), lambda: tidied.append(pool.ready))
    pool = pool_of(snapshot)
    assert pool.ready == 1
    assert box.call(snapshot, "count").value == 16
    assert (pool.ready, pool.filling, live_instances()) == (0, False, before + 1)
    # One is left for the background, the others are freed at once.
    for _ in range(3):
        assert box.call(snapshot, "count").value == 16
    assert (pool.ready, pool.filling, live_instances()) == (0, False, before + 1)
    kept.tend()
    wait_for(lambda: pool.ready == 1 and not pool.filling)
    assert live_instances() == before + 1
    # What whoever tends to it wants done comes first.
    assert tidied == [0]
    assert box.call(snapshot, "count").value == 16
    pool.close()
    assert live_instances() == before


def test_what_waits_is_bounded_in_memory(box: Sandbox, snapshot: Snapshot) -> None:
    box.warm(snapshot, pool_size=4, memory_bytes=4 * 10 * 4_096)
    pool = pool_of(snapshot)
    for _ in range(4):
        box.call(snapshot, "touch", 30).check()
    wait_for(lambda: pool.ready == 4 and pool.own_bytes > 0)
    assert pool.own_bytes <= 4 * 10 * 4_096


def test_threads_share_what_waits(box: Sandbox, snapshot: Snapshot) -> None:
    box.warm(snapshot, pool_size=8)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: box.call(snapshot, "count").value, range(200)))
    assert found == [16] * 200


def test_what_waits_is_for_one_policy(box: Sandbox, snapshot: Snapshot) -> None:
    """The attack: a guest that gets an instance that was made for more."""
    box.warm(snapshot, pool_size=2)
    pool = pool_of(snapshot)
    small = Policy().replace(memory="3MiB")
    assert box.call(snapshot, "count", policy=small).value == 16
    assert pool.ready == 2
    box.warm(snapshot, pool_size=2, policy=small)
    assert len(snapshot._saved.warm) == 2
    with pytest.raises(UsageError, match=r"the snapshot has 2,621,440 bytes of memory; the policy allows 1,048,576"):
        box.warm(snapshot, policy=Policy().replace(memory="1MiB"))


def test_what_waits_is_given_back(box: Sandbox, snapshot: Snapshot) -> None:
    before = live_instances()
    for size in (5, 2, 0):
        box.warm(snapshot, pool_size=size)
        wait_for(lambda most=before + size: live_instances() <= most)
        assert [pool.ready for pool in snapshot._saved.warm.values()] == ([size] if size else [])
    box.warm(snapshot, pool_size=5)
    box.close()
    gc.collect()
    wait_for(lambda: live_instances() <= before)


def test_what_cannot_be_made_is_told(box: Sandbox, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    before = live_instances()
    for arguments, message in (
        ({"pool_size": -1}, "pool_size is -1: it must be a whole number from 0 to 1000"),
        ({"memory_bytes": "1MiB"}, "memory_bytes is '1MiB': it must be a whole number from 0 on"),
    ):
        with pytest.raises(UsageError) as refused:
            box.warm(snapshot, **arguments)  # type: ignore[arg-type]
        assert str(refused.value) == message
    with pytest.raises(UsageError, match="begin with a snapshot are given arguments and environment when they run"):
        box.warm(snapshot, ["x"])

    box.warm(snapshot, pool_size=2)
    pool = pool_of(snapshot)

    def fail(*_: object) -> None:
        raise EngineError("as if there were no room")

    with monkeypatch.context() as patch:
        patch.setattr("stockade.execution._warm.put_guest_state", fail)
        for _ in range(4):
            assert box.call(snapshot, "count").value == 16
        wait_for(lambda: not pool.filling)
        assert pool.ready == 0
        with pytest.raises(EngineError, match="as if there were no room"):
            box.warm(snapshot, pool_size=2)
    wait_for(lambda: live_instances() <= before)
    box.warm(snapshot, pool_size=2)
    assert box.call(snapshot, "count").value == 16
