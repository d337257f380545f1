"""Snapshots: what a guest holds between two calls, and guests that begin with it.

Holds P-SNAP-1, P-SNAP-2 and P-SNAP-3.
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Outcome, Policy, Sandbox, Session, Snapshot, SnapshotError, UsageError
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("everywhere")


KEEPER = wat("""
(module
  (memory (export "memory") 2)
  (memory $other 1)
  (global $count (mut i64) (i64.const 5))
  (global $half (mut f32) (f32.const nan:0x200001))
  (global $double (mut f64) (f64.const -0))
  (global $wide (mut v128) (v128.const i32x4 1 2 3 4))
  (global $fixed i32 (i32.const 9))
  (data (i32.const 16) "begins so")
  (func (export "put") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "get") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "put_other") (param i32 i32) (i32.store $other (local.get 0) (local.get 1)))
  (func (export "get_other") (param i32) (result i32) (i32.load $other (local.get 0)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "size") (result i32) (memory.size))
  (func (export "count") (result i64)
    (global.set $count (i64.add (global.get $count) (i64.const 1)))
    (global.get $count))
  (func (export "set_numbers")
    (global.set $half (f32.reinterpret_i32 (i32.const 0x7fa00002)))
    (global.set $double (f64.const 2.5))
    (global.set $wide (v128.const i32x4 5 6 7 8)))
  (func (export "half") (result i32) (i32.reinterpret_f32 (global.get $half)))
  (func (export "double") (result f64) (global.get $double))
  (func (export "wide") (result i32) (i32x4.extract_lane 3 (global.get $wide))))
""")
"""Two memories, one of them not exported, and globals of every type of number."""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(Policy().replace(memories=4, multi_memory=True)) as made:
        yield made


def value(session: Session, export: str, *args: int) -> object:
    return session.call(export, *args).check().value


def test_a_guest_begins_with_what_another_held(box: Sandbox) -> None:
    with box.open(KEEPER) as session:
        value(session, "put", 70_000, 42)
        value(session, "put_other", 8, 7)
        value(session, "count")
        value(session, "set_numbers")
        assert value(session, "grow", 3) == 2
        value(session, "put", 4 * 65_536, 77)
        snapshot = session.snapshot()
        value(session, "put", 70_000, 1)

    assert snapshot.memory_bytes == 6 * 65_536
    assert snapshot.module.sha256
    with box.open(snapshot) as restored:
        assert [value(restored, "get", at) for at in (16, 70_000, 4 * 65_536, 100_000)] == [
            struct.unpack("<I", b"begi")[0],
            42,
            77,
            0,
        ]
        assert value(restored, "get_other", 8) == 7
        assert value(restored, "size") == 5
        assert value(restored, "count") == 7
        # The bits of a signalling NaN, too.
        assert value(restored, "half") == 0x7FA00002
        assert value(restored, "double") == 2.5
        assert value(restored, "wide") == 8


def test_what_was_overwritten_by_zeros_is_zero(box: Sandbox) -> None:
    """What the module begins with must not show through, where the guest has replaced it by nothing."""
    with box.open(KEEPER) as session:
        for at in range(16, 28, 4):
            value(session, "put", at, 0)
        snapshot = session.snapshot()
    assert snapshot.stored_bytes == 0
    assert box.call(snapshot, "get", 16).value == 0
    assert box.call(KEEPER, "get", 16).value == struct.unpack("<I", b"begi")[0]


def test_forks_do_not_see_each_other(box: Sandbox) -> None:
    with box.open(KEEPER) as session:
        value(session, "put", 1_000, 1)
        with session.fork() as first, session.fork() as second:
            value(first, "put", 1_000, 2)
            value(second, "put", 1_000, 3)
            value(session, "put", 1_000, 4)
            assert [value(one, "get", 1_000) for one in (session, first, second)] == [4, 2, 3]
            # Of a fork, too.
            value(first, "put", 2_000, 5)
            with first.fork() as third:
                value(first, "put", 2_000, 6)
                assert [value(third, "get", at) for at in (16, 1_000, 2_000)] == [1768383842, 2, 5]
                value(third, "put", 1_000, 9)
            assert value(first, "get", 1_000) == 2
            assert value(first, "get", 2_000) == 6


def test_a_chain_of_forks_holds_all_that_was_written(box: Sandbox) -> None:
    """Each fork stores what has changed only; a long chain of them is stored anew."""
    sessions = [box.open(KEEPER)]
    value(sessions[0], "grow", 100)
    for number in range(300):
        value(sessions[-1], "put", number * 20_000, number + 1)
        sessions.append(sessions[-1].fork())
        sessions.pop(0).close()
    assert [value(sessions[0], "get", number * 20_000) for number in range(300)] == list(range(1, 301))
    sessions[0].close()


def test_the_same_snapshot_is_returned_until_something_changes(box: Sandbox) -> None:
    with box.open(KEEPER) as session:
        first = session.snapshot()
        assert session.snapshot() is first
        session.write_memory(0, b"x")
        second = session.snapshot()
        assert second is not first
        assert [box.call(one, "get", 0).value for one in (first, second)] == [0, ord("x")]


def test_start_functions_and_initializers_do_not_run_again(box: Sandbox) -> None:
    reactor = wat("""
    (module (memory (export "memory") 1) (global $begun (mut i32) (i32.const 0)) (global $made (mut i32) (i32.const 0))
      (func $start (global.set $begun (i32.add (global.get $begun) (i32.const 1))))
      (start $start)
      (func (export "_initialize") (global.set $made (i32.add (global.get $made) (i32.const 1))))
      (func (export "times") (result i32) (i32.add (i32.mul (i32.const 10) (global.get $begun)) (global.get $made))))
    """)
    with box.open(reactor) as session:
        assert session.initialization is not None
        assert value(session, "times") == 11
        snapshot = session.snapshot()
    assert box.call(snapshot, "times").value == 11
    with box.open(snapshot) as restored:
        assert restored.initialization is None
        assert value(restored, "times") == 11


def test_a_start_function_that_has_not_run_yet_runs_in_what_is_restored(box: Sandbox) -> None:
    plain = wat("""
    (module (memory (export "memory") 1) (global $begun (mut i32) (i32.const 0))
      (func $start (global.set $begun (i32.add (global.get $begun) (i32.const 1))))
      (start $start)
      (func (export "times") (result i32) (global.get $begun)))
    """)
    with box.open(plain) as session:
        early = session.snapshot()
        assert value(session, "times") == 1
    assert box.call(early, "times").value == 1


def test_a_command_runs_from_a_snapshot(box: Sandbox) -> None:
    """What initializes a command once, and then runs it many times with arguments of its own."""
    command = wat("""
    (module
      (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1)
      (func (export "prepare") (i32.store (i32.const 64) (i32.const 30)))
      (func (export "_start")
        (drop (call $sizes (i32.const 0) (i32.const 4)))
        (call $exit (i32.add (i32.load (i32.const 0)) (i32.load (i32.const 64))))))
    """)
    with box.open(command) as session:
        value(session, "prepare")
        snapshot = session.snapshot()
    assert box.run(snapshot, ["a", "b"]).exit_code == 33
    assert box.run(snapshot).exit_code == 31
    assert asyncio.run(box.run_async(snapshot, ["a"])).exit_code == 32


def test_snapshots_are_taken_and_opened_on_an_event_loop(box: Sandbox) -> None:
    async def main() -> None:
        async with await box.open_async(KEEPER) as session:
            await session.call("put", 0, 5)
            snapshot = await session.snapshot()
            async with await session.fork() as fork, await box.open_async(snapshot) as restored:
                await fork.call("put", 0, 6)
                assert [(await one.call("get", 0)).value for one in (session, fork, restored)] == [5, 6, 5]
            assert (await box.call_async(snapshot, "get", 0)).value == 5

    asyncio.run(main())


# -- limits, and what is each guest's own ------------------------------------------------------------------------------


def test_a_snapshot_counts_towards_memory(box: Sandbox) -> None:
    with box.open(KEEPER) as session:
        value(session, "grow", 637)
        snapshot = session.snapshot()
    assert snapshot.memory_bytes == 40 << 20
    small = Policy().replace(memory="32MiB", memories=4, multi_memory=True)
    with pytest.raises(stockade.LimitExceeded) as refused:
        box.open(snapshot, policy=small)
    assert str(refused.value) == (
        "<bytes>: the snapshot has 41,943,040 bytes of memory; the policy allows 33,554,432 (limits.memory)"
    )
    assert refused.value.report.outcome is Outcome.MEMORY
    report = box.call(snapshot, "size", policy=small)
    assert report.outcome is Outcome.MEMORY
    assert report.usage.wall_seconds < 60
    assert [violation.subject for violation in report.violations] == ["memory of the snapshot"]

    fits = Policy().replace(memory=(40 << 20) + 65_536, memories=4, multi_memory=True)
    report = box.call(snapshot, "grow", 1, policy=fits)
    assert (report.value, report.usage.memory_bytes) == (639, (40 << 20) + 65_536)
    assert box.call(snapshot, "grow", 2, policy=fits).value == -1


def test_a_restored_guest_has_limits_of_its_own(box: Sandbox) -> None:
    """The guard's state is no part of a snapshot: what the first guest had used up does not count."""
    drawer = wat("""
    (module (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "draw") (param i32) (result i32) (call $random (i32.const 0) (local.get 0))))
    """)
    policy = Policy().replace(random_bytes=100)
    with box.open(drawer, policy=policy) as session:
        assert value(session, "draw", 100) == 0
        assert value(session, "draw", 1) != 0
        snapshot = session.snapshot()
        with session.fork() as fork:
            assert value(fork, "draw", 100) == 0
            assert value(fork, "draw", 1) != 0
    assert box.call(snapshot, "draw", 101).value == 0
    assert box.call(snapshot, "draw", 101, policy=policy).value != 0


# -- what cannot be taken ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("(table.set 0 (i32.const 0) (ref.null func))", "changes tables"),
        ("(table.fill 0 (i32.const 0) (ref.null func) (i32.const 1))", "changes tables"),
        ("(table.copy 0 0 (i32.const 0) (i32.const 0) (i32.const 1))", "changes tables"),
        ("(table.init 0 $elements (i32.const 0) (i32.const 0) (i32.const 1))", "changes tables"),
        ("(drop (table.grow 0 (ref.null func) (i32.const 1)))", "grows tables"),
        ("(elem.drop $elements)", "drops element segments"),
        ("(data.drop $data)", "drops data segments"),
    ],
)
def test_what_cannot_be_read_back_is_refused(box: Sandbox, instruction: str, reason: str) -> None:
    module = wat(f"""
    (module (memory (export "memory") 1) (table 2 funcref) (elem $elements func $f) (data $data "x")
      (func $f) (func (export "f") {instruction}))
    """)
    with box.open(module) as session:
        with pytest.raises(SnapshotError, match=reason):
            session.snapshot()
        with pytest.raises(SnapshotError, match="Open a new session instead"):
            session.fork()
        session.call("f")


def test_globals_that_hold_references_are_refused(box: Sandbox) -> None:
    module = wat('(module (global (mut funcref) (ref.null func)) (func (export "f")))')
    with box.open(module) as session, pytest.raises(SnapshotError, match="globals that hold references"):
        session.snapshot()


def test_a_table_that_code_only_reads_is_no_obstacle(box: Sandbox) -> None:
    module = wat("""
    (module (memory (export "memory") 1) (table 2 funcref) (elem (i32.const 1) $seven)
      (func $seven (result i32) (i32.const 7))
      (func (export "f") (result i32) (call_indirect (result i32) (i32.const 1))))
    """)
    with box.open(module) as session:
        assert value(session, "f") == 7
        assert box.call(session.snapshot(), "f").value == 7


FILES = wat("""
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "file")
  (func (export "open") (result i32)
    (drop (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0)
      (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
    (i32.load (i32.const 16)))
  (func (export "close") (param i32) (result i32) (call $close (local.get 0)))
  (func (export "renumber") (param i32 i32) (result i32) (call $renumber (local.get 0) (local.get 1))))
""")


def test_open_files_and_changed_descriptors_are_refused(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    policy = Policy.loads(f'[filesystem]\nmounts = [{{ host = "{tmp_path}", guest = "/data", mode = "ro" }}]')
    with Sandbox(policy) as granted:
        with granted.open(FILES) as session:
            number = value(session, "open")
            assert isinstance(number, int)
            with pytest.raises(SnapshotError, match="1 file open"):
                session.snapshot()
            assert value(session, "close", number) == 0
            # As it was at first.
            assert granted.call(session.snapshot(), "open").value == number
            assert value(session, "close", 1) == 0
            with pytest.raises(SnapshotError, match=r"closed or renumbered descriptors \(1\)"):
                session.snapshot()
        with granted.open(FILES) as session:
            assert value(session, "close", 3) == 0
            with pytest.raises(SnapshotError, match=r"closed or renumbered descriptors \(3\)"):
                session.snapshot()
        with granted.open(FILES) as session:
            value(session, "renumber", 0, 2)
            with pytest.raises(SnapshotError, match=r"closed or renumbered descriptors \(0, 2\)"):
                session.snapshot()


def test_a_session_that_is_over_or_in_use_gives_no_snapshot(box: Sandbox) -> None:
    module = wat(
        '(module (import "env" "now" (func $now)) (func (export "trap") unreachable) (func (export "f") (call $now)))'
    )
    told: list[str] = []

    @box.host_function("env", "now")
    def now() -> None:
        try:
            session.snapshot()
        except UsageError as problem:
            told.append(str(problem))

    session = box.open(module)
    session.call("f").check()
    assert told == ["the session is in use by another thread: give each thread a session of its own"]
    session.snapshot()
    session.call("trap")
    with pytest.raises(UsageError, match="the guest has ended, so there is nothing to take a snapshot of"):
        session.snapshot()
    session.close()
    with pytest.raises(UsageError, match="the session is closed"):
        session.snapshot()
    with pytest.raises(UsageError, match="the session is closed"):
        session.fork()


def test_a_closed_sandbox_forks_no_session() -> None:
    box = Sandbox(Policy().replace(memories=4, multi_memory=True))
    with box.open(KEEPER) as session:
        box.close()
        with pytest.raises(UsageError, match="the sandbox is closed"):
            session.fork()


def test_a_snapshot_is_of_one_module_and_opens_in_any_sandbox(box: Sandbox) -> None:
    with box.open(KEEPER) as session:
        value(session, "put", 0, 3)
        snapshot = session.snapshot()
    assert isinstance(snapshot, Snapshot)
    with Sandbox(Policy.preset("strict").replace(memories=4, multi_memory=True)) as other:
        report = other.call(snapshot, "get", 0)
        assert report.value == 3
        assert report.module is not None
        assert report.module.sha256 == snapshot.module.sha256
    with Sandbox(Policy().replace(memories=1)) as narrow, pytest.raises(stockade.InvalidModule, match="memories"):
        narrow.call(snapshot, "get", 0)


def test_a_pool_of_sessions_opens_a_snapshot(box: Sandbox) -> None:
    with box.open(KEEPER) as session:
        value(session, "put", 0, 3)
        snapshot = session.snapshot()
    assert box.prepare(snapshot) is snapshot.module
    with stockade.SessionPool(box, snapshot, size=2) as pool:
        for _ in range(4):
            with pool.lease() as leased:
                assert value(leased, "get", 0) == 3
                value(leased, "put", 0, 4)


@pytest.mark.slow
def test_many_snapshots_of_a_restored_guest_keep_its_memory_maps_bounded(box: Sandbox) -> None:
    """The attack: a guest that writes here and there, so that each snapshot of it has more stretches of memory."""

    def maps() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    with box.open(KEEPER) as session:
        value(session, "grow", 1_500)
        with session.fork() as restored:
            before = maps()
            for number in range(120):
                value(restored, "put", (number * 7 % 120) * 800_000, number + 1)
                restored.snapshot()
            assert maps() - before < 200
            with restored.fork() as fork:
                for number in range(120):
                    assert value(fork, "get", (number * 7 % 120) * 800_000) == number + 1


def test_what_is_no_module_is_refused_where_a_snapshot_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="module is str: give a Module"):
        Snapshot.load(tmp_path / "x", "x.wasm")  # type: ignore[arg-type]
