"""Ways round the guard that a guest could try. Each has a defined outcome.

Holds P-GUARD-2 and P-SESSION-1.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade.guard import guard
from stockade.policy import Features, Limits, Policy
from tests.conftest import HELLO, wat
from tests.limits._guests import (
    APPEND,
    CREAT,
    EDQUOT,
    EMFILE,
    FOLLOW,
    MOUNT,
    SUCCESS,
    Script,
    clock_subscription,
    files_policy,
    kinds,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("everywhere")

WRITE = '(import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))'
RANDOM = '(import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))'


# -- naming what the guard appended ---------------------------------------------------------------------------------

NAMING = {
    "function": "(drop (call 2))",
    "guard function": "(drop (call 20 (i32.const 0)))",
    "function reference": "(drop (ref.func 3))",
    "memory": "(drop (i32.load 1 (i32.const 0)))",
    "memory store": "(i64.store 1 (i32.const 12304) (i64.const -1))",
    "memory copy": "(memory.copy 1 0 (i32.const 12304) (i32.const 0) (i32.const 8))",
    "memory grow": "(drop (memory.grow 1 (i32.const 1)))",
    "table": "(drop (table.get 1 (i32.const 0)))",
    "table call": "(drop (call_indirect 1 (type $yield) (i32.const 0)))",
    "table set": "(table.set 1 (i32.const 0) (ref.null func))",
    "global": "(drop (global.get 0))",
    "global set": "(global.set 0 (i32.const 0))",
    "type": "(drop (call_indirect 0 (type 7) (i32.const 0)))",
}

NAMING_GUEST = """
(module
  (type $yield (func (result i32)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $sched_yield (type $yield)))
  (memory (export "memory") 1)
  (table 1 funcref)
  (func (export "_start") {0}))
"""


@pytest.mark.parametrize("attack", NAMING)
def test_a_guest_that_names_what_the_guard_appended_is_refused(attack: str) -> None:
    """Attack: an index that is only valid in the woven module. The original is validated first, so it is refused."""
    module = _assembled(NAMING_GUEST.format(NAMING[attack]))
    with pytest.raises(stockade.InvalidModule):
        stockade.Sandbox(Policy(limits=Limits(memories=2), features=Features(multi_memory=True))).run(module)


@pytest.mark.parametrize(
    "own",
    [
        "(drop (call 0))",
        "(drop (i32.load 0 (i32.const 0)))",
        "(drop (call_indirect 0 (type $yield) (i32.const 0)))",
        "(drop (ref.func 0))",
    ],
)
def test_a_guest_that_names_its_own_is_not(own: str) -> None:
    """The positive twin: the guest's own indices are valid, and mean what they meant."""
    text = NAMING_GUEST.format(own).replace("(table 1 funcref)", "(table funcref (elem $sched_yield))")
    report = stockade.Sandbox().run(wat(text))

    assert report.ok
    assert report.usage.calls == ({"sched_yield": 1} if "call" in own else {})


def _assembled(text: str) -> bytes:
    """A module from text, valid or not: the assembler does not look at indices."""
    return wat(text).data


@pytest.mark.parametrize("name", ["stockade.state", "stockade.start", "stockade.natives"])
@pytest.mark.parametrize("kind", ["memory", "func", "table", "global"])
def test_an_export_that_is_called_as_the_guards_is_only_that(tmp_path: Path, name: str, kind: str) -> None:
    """Attack: an export of the guest's own, named like the one that the host looks for. Limits still hold."""
    index = {"memory": "$memory", "func": "$fake", "table": "$table", "global": "$global"}[kind]
    text = f"""
    (module
      {WRITE} {RANDOM}
      (import "wasi_snapshot_preview1" "path_open" (func $path_open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
      (memory $memory (export "memory") 1)
      (table $table 3 funcref)
      (global $global (mut i32) (i32.const 0))
      (global $started (mut i32) (i32.const 0))
      (export "{name}" ({kind} {index}))
      (func $fake (unreachable))
      (func $init (global.set $started (i32.const 1)))
      (start $init)
      (data (i32.const 64) "\\80\\00\\00\\00\\02\\00\\00\\00")
      (data (i32.const 128) "hi")
      (data (i32.const 192) "new")
      (func (export "_start")
        (if (i32.eqz (global.get $started)) (then (unreachable)))
        (memory.fill (i32.const 4096) (i32.const 255) (i32.const 60000))
        (if (i32.ne (call $random_get (i32.const 256) (i32.const 9)) (i32.const {EDQUOT})) (then (unreachable)))
        (if (i32.ne (i32.const 63) (call $path_open (i32.const 3) (i32.const 0) (i32.const 192) (i32.const 3)
              (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 0))) (then (unreachable)))
        (drop (call $fd_write (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 32)))))
    """
    report = stockade.Sandbox(files_policy(tmp_path, create=False, random_bytes=8)).run(wat(text))

    assert report.trap is None
    assert report.stdout == b"hi"
    assert report.usage.calls == {"fd_write": 1, "random_get": 1, "path_open": 1}
    assert "random_bytes" in kinds(report.violations)
    assert "create" in kinds(report.violations)
    assert list(tmp_path.iterdir()) == []


# -- memories -------------------------------------------------------------------------------------------------------

TWO_MEMORIES = f"""
(module
  {WRITE} {RANDOM}
  (memory $first 1)
  (memory $second (export "memory") 1)
  (data (memory $first) (i32.const 0) "\\10\\00\\00\\00\\05\\00\\00\\00        wrong")
  (data (memory $second) (i32.const 0) "\\10\\00\\00\\00\\05\\00\\00\\00        right")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
    (drop (call $random_get (i32.const 64) (i32.const 8)))
    (if (i32.load $first (i32.const 32)) (then (unreachable)))
    (if (i64.ne (i64.load $first (i32.const 64)) (i64.const 0)) (then (unreachable)))
    (if (i64.eq (i64.load $second (i32.const 64)) (i64.const 0)) (then (unreachable)))
    (if (i32.eq (memory.grow $first (i32.const 1)) (i32.const -1)) (then (unreachable)))
    (if (i32.ne (memory.grow $second (i32.const 9)) (i32.const -1)) (then (unreachable)))))
"""


def test_of_two_memories_the_exported_one_is_meant() -> None:
    """Attack: the guard and native WASI disagree on which memory a pointer means. Growth of both is one budget."""
    policy = Policy(limits=Limits(memories=2, memory=3 << 16), features=Features(multi_memory=True))
    report = stockade.Sandbox(policy).run(wat(TWO_MEMORIES))

    assert report.trap is None
    assert report.stdout == b"right"
    assert report.usage.memory_bytes == 3 << 16
    assert kinds(report.violations) == ["memory"]


def test_two_memories_need_a_policy_that_allows_them() -> None:
    """The twin: under `strict` a module has one memory."""
    with pytest.raises(stockade.InvalidModule, match="memories"):
        stockade.Sandbox("strict").run(wat(TWO_MEMORIES))


@pytest.mark.parametrize("module", ["env", "wasi_snapshot_preview1", "guest"])
def test_an_imported_memory_is_refused(module: str) -> None:
    """Attack: a guest that brings no memory of its own but asks for one by name. Nothing provides it."""
    text = f'(module (import "{module}" "memory" (memory 1)) (func (export "_start")))'
    with pytest.raises(stockade.LinkError, match="memory"):
        stockade.Sandbox().run(wat(text))


# -- entering the guest ---------------------------------------------------------------------------------------------


def test_start_can_be_called_twice() -> None:
    """A command called twice in a session runs twice in the same instance, each time with counts of its own."""
    with stockade.Sandbox(Policy(limits=Limits(calls=2))).open(wat(HELLO)) as session:
        for _ in range(2):
            report = session.call("_start")
            assert report.ok
            assert report.stdout == b"hello world\n"
            assert report.usage.calls == {"fd_write": 1}
            assert report.violations == ()


def test_a_session_has_one_quota_for_all_its_calls() -> None:
    """The attack: a quota that each call of a session begins anew is none."""
    with stockade.Sandbox(Policy(limits=Limits(calls=1))).open(wat(HELLO)) as session:
        assert session.call("_start").stdout == b"hello world\n"
        report = session.call("_start")
    assert report.stdout == b""
    assert report.usage.denied == {"fd_write": 1}
    (violation,) = report.violations
    assert (violation.kind, violation.limit, violation.observed) == ("calls", 1, 2)


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_a_start_function_is_held_to_the_limits(limit: int) -> None:
    """Attack: WASI calls in the start function, which engines run before anyone could set a limit."""
    text = f"""
    (module
      {RANDOM}
      (memory (export "memory") 1)
      (global $made (mut i32) (i32.const 0))
      (func $ask (if (i32.eqz (call $random_get (i32.const 0) (i32.const 8)))
        (then (global.set $made (i32.add (global.get $made) (i32.const 1))))))
      (start $ask)
      (func (export "go") (result i32) (call $ask) (global.get $made)))
    """
    report = stockade.Sandbox(Policy(limits=Limits(calls=limit))).call(wat(text), "go")

    assert report.value == min(limit, 2)
    assert report.usage.calls == {"random_get": 2}
    assert report.usage.random_bytes == 8 * min(limit, 2)
    assert kinds(report.violations) == (["calls"] if limit < 2 else [])


def test_a_start_function_can_end_the_run() -> None:
    """A guest that leaves in its start function has left: its entry is not called."""
    text = """
    (module
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1)
      (func $start (call $exit (i32.const 7)))
      (start $start)
      (func (export "_start") (unreachable)))
    """
    report = stockade.Sandbox().run(wat(text))

    assert report.outcome is stockade.Outcome.EXIT
    assert report.exit_code == 7


def test_every_way_to_reach_an_import_leads_through_the_guard() -> None:
    """Attack: reach a native call by a table, a reference, a global, a tail call or an export. All are counted."""
    text = """
    (module
      (type $yield (func (result i32)))
      (import "wasi_snapshot_preview1" "sched_yield" (func $sched_yield (type $yield)))
      (memory (export "memory") 1)
      (table $table 4 funcref)
      (elem (table $table) (i32.const 0) func $sched_yield)
      (elem $passive funcref (ref.func $sched_yield))
      (elem declare func $sched_yield)
      (global $reference funcref (ref.func $sched_yield))
      (export "direct" (func $sched_yield))
      (func $tail (result i32) (return_call $sched_yield))
      (func (export "go") (result i32)
        (table.init $table $passive (i32.const 1) (i32.const 0) (i32.const 1))
        (table.set $table (i32.const 2) (global.get $reference))
        (table.set $table (i32.const 3) (ref.func $sched_yield))
        (i32.add (i32.add (i32.add (call_indirect $table (type $yield) (i32.const 0))
                                   (call_indirect $table (type $yield) (i32.const 1)))
                          (i32.add (call_indirect $table (type $yield) (i32.const 2))
                                   (call_indirect $table (type $yield) (i32.const 3))))
                 (i32.add (call $tail) (call $sched_yield)))))
    """
    module = wat(text)
    report = stockade.Sandbox().call(module, "go")
    assert report.value == 0
    assert report.usage.calls == {"sched_yield": 6}

    denied = stockade.Sandbox(Policy(limits=Limits(calls=0)))
    assert denied.call(module, "go").value == 6 * 63
    assert denied.call(module, "direct").value == 63


# -- pointers -------------------------------------------------------------------------------------------------------

_END = 128 << 16


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (_END - 4, 5),
        (_END, 1),
        (0xFFFF_FFF8, 8),
        (0xFFFF_FFFC, 8),
        (16, 0xFFFF_FFF0),
        (16, 0xFFFF_FFFF),
        (0xFFFF_FFFF, 0xFFFF_FFFF),
    ],
)
@pytest.mark.parametrize("call", ["fd_write stdout", "fd_write file", "fd_read stdin", "fd_read file", "random_get"])
def test_a_buffer_outside_memory_traps(tmp_path: Path, call: str, address: int, size: int) -> None:
    """Attack: a buffer beyond the end, or whose end wraps round 2^32. The run ends; nothing was written."""
    (tmp_path / "data").write_bytes(b"0123456789")
    script = Script()
    fd = script.open("data")
    result = script.cell()
    name, _, target = call.partition(" ")
    if name == "random_get":
        script.call("random_get", address, size)
    else:
        number = {"stdout": 1, "stdin": 0, "file": fd}[target]
        script.call(name, number, script.iovec((address, size)), 1, result.address)
    played = script.play(files_policy(tmp_path, random_bytes=None))

    if call == "fd_read stdin":
        # There is nothing to read, so the buffer is not touched.
        assert played.report.outcome in (stockade.Outcome.OK, stockade.Outcome.TRAP)
    elif played.report.outcome is not stockade.Outcome.TRAP:
        # Too much for a limit before it could be outside of memory.
        assert played.errnos[-1] != SUCCESS
    assert played.report.stdout == b""
    assert played.report.usage.read_bytes == 0
    assert played.report.usage.written_bytes == 0
    assert (tmp_path / "data").read_bytes() == b"0123456789"


@pytest.mark.parametrize("call", ["fd_write", "fd_read", "fd_pwrite", "fd_pread"])
@pytest.mark.parametrize("count", [1 << 29, (1 << 29) + 1, 0xFFFF_FFFF, 1025])
def test_an_array_of_buffers_whose_size_wraps_round_is_an_error(tmp_path: Path, call: str, count: int) -> None:
    """Attack: so many buffers that their array has 2^32 bytes, which is 0 to a careless sum."""
    (tmp_path / "data").write_bytes(b"0123456789")
    for fd in (0, 1, 4):
        script = Script()
        script.open("data")
        arguments = [fd, script.iovec((script.room(8), 8)), count]
        script.call(call, *arguments, *([0] if call[3] == "p" else []), script.cell().address)
        played = script.play(files_policy(tmp_path))
        assert played.errnos[1:] != [SUCCESS]
        assert played.report.stdout == b""
        assert played.report.usage.read_bytes == 0
    assert (tmp_path / "data").read_bytes() == b"0123456789"


def test_lengths_whose_sum_wraps_round_are_written_in_part() -> None:
    """Attack: buffers of stdout whose lengths sum to more than 2^32. The write is short, as POSIX lets it be."""
    text = f"""
    (module
      {WRITE}
      (memory (export "memory") 1025)
      (func (export "go") (result i32)
        (local $at i32)
        (loop $next
          (i32.store (i32.add (i32.const 4096) (local.get $at)) (i32.const 0))
          (i32.store (i32.add (i32.const 4100) (local.get $at)) (i32.const 0x4000000))
          (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 8))) (i32.const 800))))
        (if (call $fd_write (i32.const 1) (i32.const 4096) (i32.const 100) (i32.const 0)) (then (unreachable)))
        (i32.load (i32.const 0))))
    """
    report = stockade.Sandbox().call(wat(text), "go")

    assert report.value is not None
    written = int(report.value) & 0xFFFF_FFFF  # type: ignore[arg-type]
    assert written == 63 * 0x4000000
    assert report.usage.stdout_bytes == written
    assert len(report.stdout) == 1 << 20


def test_overlapping_buffers_are_read_and_written_in_order(tmp_path: Path) -> None:
    """Attack: buffers that overlap each other and the count. What is kept is what stood there when it was written."""
    script = Script()
    text = script.put(b"abcdefgh")
    written = script.cell()
    script.call("fd_write", 1, script.iovec((text, 8), (text + 2, 4), (text, 8)), 3, written.address)
    iovec = script.iovec((text, 3))
    script.call("fd_write", 1, iovec, 1, iovec)
    played = script.play(files_policy(tmp_path))

    assert played.errnos == [SUCCESS, SUCCESS]
    assert played.report.stdout == b"abcdefghcdefabcdefghabc"
    assert played.number(written) == 20


def test_a_read_over_its_own_array_of_buffers_reads_what_the_array_said(tmp_path: Path) -> None:
    """Attack: stdin or a file is read onto the array of buffers, so that its next entry is the guest's new choice."""
    (tmp_path / "data").write_bytes(struct.pack("<IIII", 0x100, 8, 0x0FFF_FFF0, 0xFFFF) + bytes(100))
    script = Script(low=bytes(range(128)))
    fd = script.open("data")
    array = len(script.data)
    script.iovec((array, 16), (array, 16))
    taken = script.cell()
    script.call("fd_read", fd, array, 2, taken.address)
    played = script.play(files_policy(tmp_path, read_bytes=200))

    assert played.errnos == [SUCCESS, SUCCESS]
    assert played.number(taken) == 16 == played.report.usage.read_bytes
    assert played.memory[:128] == bytes(range(128))


def test_a_read_of_stdin_over_its_own_array_stays_within_stdin() -> None:
    """Attack: stdin overwrites the entry that says where the rest of it goes; then a hostile length is next."""
    text = """
    (module
      (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "\\08\\00\\00\\00\\08\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00")
      (func (export "go") (result i32)
        (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 2) (i32.const 32)) (then (unreachable)))
        (i32.load (i32.const 32))))
    """
    box = stockade.Sandbox()
    with box.open(wat(text), stdin=struct.pack("<II", 100, 0xFFFF_FFFF) + b"rest") as session:
        assert session.call("go").value == 12
        assert session.read_memory(100, 8) == b"rest\0\0\0\0"
    # The rest would go beyond the end of memory.
    with box.open(wat(text), stdin=struct.pack("<II", 0xFFFE, 0xFFFF_FFFF) + b"rest") as session:
        assert session.call("go").outcome is stockade.Outcome.TRAP


@pytest.mark.parametrize("shift", [-24, -16, 0, 16, 40])
def test_events_may_stand_over_their_subscriptions(shift: int) -> None:
    """Attack: events are written over the subscriptions. They were copied before, and the event is right."""
    script = Script()
    script.room(64)
    subscription = script.put(clock_subscription(0.001))
    script.room(64)
    count = script.cell()
    script.call("poll_oneoff", subscription, subscription + shift, 1, count.address)
    played = script.play(Policy())

    assert played.errnos == [SUCCESS]
    assert played.number(count) == 1
    assert struct.unpack_from("<QHB", played.memory, subscription + shift) == (7, 0, 0)


@pytest.mark.parametrize("shift", [-31, 47])
def test_events_at_an_odd_address_trap(shift: int) -> None:
    """As native WASI has it; and nothing is written."""
    script = Script()
    script.room(64)
    subscription = script.put(clock_subscription(0.001))
    script.room(64)
    script.call("poll_oneoff", subscription, subscription + shift, 1, script.cell().address)

    assert script.play(Policy()).report.outcome is stockade.Outcome.TRAP


@pytest.mark.parametrize("shift", [-32, 48])
def test_events_next_to_their_subscriptions_are_fine(shift: int) -> None:
    """The positive twin: as near as they can stand without an overlap."""
    script = Script()
    script.room(64)
    subscription = script.put(clock_subscription(0.001))
    script.room(64)
    count = script.cell()
    script.call("poll_oneoff", subscription, subscription + shift, 1, count.address)
    played = script.play(Policy())

    assert played.errnos == [SUCCESS]
    assert played.number(count) == 1
    assert played.memory[subscription : subscription + 48] == clock_subscription(0.001)


def test_a_count_of_events_over_the_subscriptions_or_events_is_harmless() -> None:
    """Attack: the count of events is to be written into a subscription or an event. Nothing beyond them changes."""
    for place in range(-8, 64, 4):
        script = Script(low=bytes(range(128)))
        subscriptions = script.put(clock_subscription(0.001, userdata=1) + clock_subscription(0.002, userdata=2))
        events = script.room(64)
        guardian = script.put(b"\xaa" * 64)
        script.call("poll_oneoff", subscriptions, events, 2, events + place)
        played = script.play(Policy(limits=Limits(wall_time=1)))
        if played.errnos:
            assert played.memory[:128] == bytes(range(128))
            assert played.memory[guardian : guardian + 64] == b"\xaa" * 64


# -- the lowest bytes of memory: no place of the guest is special ------------------------------------------------------

PATTERN = bytes((7 * number + 1) % 251 for number in range(128))


def test_the_guard_leaves_the_guests_memory_alone(tmp_path: Path) -> None:
    """The guard asks native WASI many things of its own accord: no byte of the guest's memory changes by it."""
    (tmp_path / "data").write_bytes(b"0123456789")
    script = Script(low=PATTERN)
    script.open("missing", CREAT)  # create is off: it looks whether the file exists
    fd = script.open("data", CREAT)
    script.call("path_rename", MOUNT, "data", MOUNT, "renamed")
    script.call("path_rename", MOUNT, "renamed", MOUNT, "data")
    script.write(fd, b"x")  # asks for the position
    appending = script.open("data", fdflags=APPEND)
    script.write(appending, b"y")  # asks for the size
    script.write(fd, bytes(100))  # too large
    script.read(fd, 3)
    script.read(fd, 3)
    script.read(fd, 3)
    script.pread(fd, 3, 0)  # nothing left: asks for the size
    script.sleep(0.03)
    script.open("../outside")  # a violation, with its time
    script.call("random_get", script.room(16), 16)
    script.time()
    policy = files_policy(
        tmp_path, create=False, file_size=20, read_bytes=9, read_rate=1000, write_rate=1000, call_rate=1000
    )
    played = script.play(policy)

    assert played.errnos.count(SUCCESS) >= 9
    assert {"create", "file_size", "read_bytes", "path"} <= set(kinds(played.report.violations))
    assert played.memory[:128] == PATTERN


@pytest.mark.parametrize("limits", [{"call_rate": 2}, {"write_rate": 3}, {"read_rate": 3}], ids=str)
def test_the_guests_memory_is_left_alone_while_it_waits_for_a_rate(tmp_path: Path, limits: dict[str, int]) -> None:
    """To wait, the guard asks the host, and by no call of the guest's."""
    (tmp_path / "data").write_bytes(b"0123456789")
    script = Script(low=PATTERN)
    fd = script.open("data", rights=1 << 6 | 1 << 1)
    if "read_rate" in limits:
        script.read(fd, 3)
        script.read(fd, 1)
    else:
        script.write(fd, b"abc")
        script.write(fd, b"x")
    played = script.play(files_policy(tmp_path, **limits))

    assert played.errnos == [SUCCESS] * 3
    assert played.report.usage.calls.get("poll_oneoff") is None
    assert played.memory[:128] == PATTERN
    assert kinds(played.report.violations) == list(limits)


@pytest.mark.parametrize("place", [0, 4, 8, 16, 40, 48, 64, 80, 92, 96])
def test_results_may_stand_anywhere(tmp_path: Path, place: int) -> None:
    """Attack: pointers for results into the lowest bytes of memory. All else is as it was."""
    (tmp_path / "data").write_bytes(b"0123456789")
    script = Script(low=PATTERN)
    script.call("path_open", MOUNT, FOLLOW, "data", CREAT, 1 << 1 | 1 << 6, 0, 0, place)
    policy = files_policy(tmp_path, create=False, file_size=20, read_rate=1 << 20)
    played = script.play(policy)
    assert played.errnos == [SUCCESS]
    assert played.memory[:128] == PATTERN[:place] + struct.pack("<I", 4) + PATTERN[place + 4 :]

    script = Script(low=PATTERN)
    fd = script.open("data", rights=1 << 1 | 1 << 6)
    script.call("fd_write", fd, script.iovec((script.put(b"xyz"), 3)), 1, place)
    played = script.play(policy)
    assert played.errnos == [SUCCESS, SUCCESS]
    assert played.memory[:128] == PATTERN[:place] + struct.pack("<I", 3) + PATTERN[place + 4 :]

    script = Script(low=PATTERN)
    fd = script.open("data", rights=1 << 1 | 1 << 6)
    script.call("fd_read", fd, script.iovec((script.room(8), 5)), 1, place)
    played = script.play(files_policy(tmp_path, read_bytes=4, read_rate=1 << 20))
    assert played.errnos == [SUCCESS, SUCCESS]
    assert played.memory[:128] == PATTERN[:place] + struct.pack("<I", 4) + PATTERN[place + 4 :]

    script = Script(low=PATTERN)
    subscription = script.put(clock_subscription(0.012))
    script.call("poll_oneoff", subscription, script.room(32), 1, place)
    played = script.play(policy)
    assert played.errnos == [SUCCESS]
    assert played.memory[:128] == PATTERN[:place] + struct.pack("<I", 1) + PATTERN[place + 4 :]


@pytest.mark.parametrize("place", [0, 16, 32, 48])
def test_a_poll_may_stand_anywhere(place: int) -> None:
    """Attack: subscriptions, events and their count all in the lowest bytes of memory, while slices are waited for."""
    low = bytearray(PATTERN)
    low[place : place + 48] = clock_subscription(0.025, userdata=99)
    events, count = 4096 - 64, 4096 - 8
    if place == 48:
        events, count = 8, 0
    script = Script(low=bytes(low))
    script.call("poll_oneoff", place, events, 1, count)
    played = script.play(Policy())

    assert played.errnos == [SUCCESS]
    assert struct.unpack_from("<QHB", played.memory, events) == (99, 0, 0)
    assert struct.unpack_from("<I", played.memory, count) == (1,)
    assert played.memory[place : place + 48] == bytes(low[place : place + 48])
    assert played.memory[96:128] == PATTERN[96:]
    assert played.report.usage.idle_seconds >= 0.025


@pytest.mark.parametrize("place", [0, 24, 60, 90])
def test_paths_and_buffers_may_stand_anywhere(tmp_path: Path, place: int) -> None:
    """Attack: the path and the data are in the lowest bytes of memory."""
    (tmp_path / "data").write_bytes(b"0123456789")
    low = bytearray(PATTERN)
    low[place : place + 4] = b"data"
    script = Script(low=bytes(low))
    result = script.cell()
    script.call("path_open", MOUNT, FOLLOW, place, 4, CREAT, 1 << 1 | 1 << 6, 0, 0, result.address)
    script.call("path_rename", MOUNT, place, 4, MOUNT, place, 4)
    script.call("fd_write", result, script.iovec((place, 4)), 1, script.cell().address)
    played = script.play(files_policy(tmp_path, file_size=20, write_rate=1 << 20))

    assert played.errnos == [SUCCESS] * 3
    assert played.memory[:128] == bytes(low)
    assert (tmp_path / "data").read_bytes() == b"data456789"


def test_a_guest_with_little_memory_is_served() -> None:
    """Attack: a memory of no pages at all. Nothing can be borrowed, and nothing of the host's is reached."""
    text = """
    (module
      (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 0)
      (func (export "random") (result i32) (call $random (i32.const 0) (i32.const 0)))
      (func (export "poll") (result i32) (call $poll (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0))))
    """
    box = stockade.Sandbox(Policy(limits=Limits(call_rate=10)))
    assert box.call(wat(text), "poll").outcome is stockade.Outcome.TRAP
    report = box.call(wat(text), "random")
    assert report.outcome is stockade.Outcome.OK
    assert report.value == SUCCESS


# -- descriptors ----------------------------------------------------------------------------------------------------


def test_captured_streams_stay_captured_under_any_number(tmp_path: Path) -> None:
    """Attack: move stdout to another number and a file to its place, to write where nobody looks."""
    script = Script()
    fd = script.open("new", CREAT)
    other = script.open("other", CREAT)
    script.call("fd_renumber", 1, other)  # stdout is now where other was
    script.call("fd_renumber", fd, 2)  # and the file is stderr's number
    script.write(other, b"out")
    script.write(2, b"123")
    script.write(2, b"4567")
    played = script.play(files_policy(tmp_path, write_bytes=5))

    assert played.errnos == [SUCCESS] * 6 + [EDQUOT]
    assert played.report.stdout == b"out"
    assert played.report.stderr == b""
    assert (tmp_path / "new").read_bytes() == b"123"
    assert (tmp_path / "other").read_bytes() == b""


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_mount_moved_to_the_number_of_a_stream_is_no_stream(tmp_path: Path, number: int) -> None:
    """Attack: the mount takes the number of stdin, stdout or stderr. What is written there is not output."""
    script = Script()
    script.call("fd_renumber", MOUNT, number)
    script.open("new", CREAT, fd=number)
    script.write(number, b"text")
    script.read(number, 4)
    played = script.play(files_policy(tmp_path))

    assert played.errnos[:2] == [SUCCESS, SUCCESS]
    assert played.errnos[2] != SUCCESS
    assert played.errnos[3] != SUCCESS
    assert played.report.stdout + played.report.stderr == b""


def test_a_closed_stream_is_closed(tmp_path: Path) -> None:
    """A file that is opened under stdout's old number is a file, and limits on files hold for it."""
    script = Script()
    script.close(1)
    script.write(1, b"gone")
    fd = script.open("new", CREAT)
    script.write(fd, b"123456")
    script.open("new")
    played = script.play(files_policy(tmp_path, file_size=5, open_files=1))

    assert played.errnos[:3] == [SUCCESS, 8, SUCCESS]
    assert played.number(fd) in (1, 4)
    assert played.errnos[4] == EMFILE
    assert played.report.stdout == b""
    assert kinds(played.report.violations) == ["file_size", "open_files"]


def test_the_table_of_descriptors_cannot_be_overrun(tmp_path: Path) -> None:
    """Attack: descriptors beyond the guard's table, whose kinds would stand in the entries of violations."""
    most = guard().layout.constants["MAX_DESCRIPTORS"]
    script = Script()
    for number in (most - 1, most, most + 1, 4096 + 8192, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
        script.call("fd_renumber", 1, number)
        script.write(number, b"x")
        script.close(number)
    played = script.play(files_policy(tmp_path))

    assert SUCCESS not in played.errnos
    assert played.report.violations == ()
    assert played.report.stdout == b""
