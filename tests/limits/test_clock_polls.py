"""No poll tells more of the time than the guest's clock shows."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Policy, Sandbox
from stockade.policy import Clock, Limits, Mount
from tests.conftest import wat
from tests.limits._guests import ENOTSUP, SUCCESS, Script, clock_subscription, player

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("everywhere")

REALTIME, MONOTONIC = 0, 1
_NANOSECONDS = 1_000_000_000
BISECT = """
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  ;; The errno of the last poll; what the clock shows before it; the latest time that is past; the clock after it.
  (func (export "bisect") (param $clock i32) (result i32 i64 i64 i64)
    (local $low i64) (local $high i64) (local $middle i64) (local $errno i32)
    (local.set $high (i64.const 0x7fff_ffff_ffff_ffff))
    ;; Stdout, which is always ready, and an absolute deadline.
    (i32.store8 (i32.const 8) (i32.const 2))
    (i32.store (i32.const 16) (i32.const 1))
    (i32.store (i32.const 64) (local.get $clock))
    (i32.store16 (i32.const 88) (i32.const 1))
    (drop (call $time (local.get $clock) (i64.const 1) (i32.const 1024)))
    (loop $again
      (local.set $middle (i64.shr_u (i64.add (local.get $low) (local.get $high)) (i64.const 1)))
      (i64.store (i32.const 72) (local.get $middle))
      (i32.store (i32.const 512) (i32.const 0))
      (local.set $errno (call $poll (i32.const 0) (i32.const 256) (i32.const 2) (i32.const 512)))
      (if (i32.eq (i32.load (i32.const 512)) (i32.const 2))
        (then (local.set $low (local.get $middle)))
        (else (local.set $high (local.get $middle))))
      (br_if $again (i64.gt_u (i64.sub (local.get $high) (local.get $low)) (i64.const 1))))
    (drop (call $time (local.get $clock) (i64.const 1) (i32.const 1032)))
    (local.get $errno)
    (i64.load (i32.const 1024)) (local.get $low) (i64.load (i32.const 1032))))
"""


def bisect(clock: int, policy: Policy) -> list[tuple[int, int, int, int]]:
    """Bisects the time again and again."""
    with Sandbox(policy).open(wat(BISECT)) as session:
        return [tuple(session.call("bisect", clock).check().value) for _ in range(100)]


@pytest.mark.parametrize("clock", [REALTIME, MONOTONIC])
def test_a_deadline_cannot_be_bisected_under_a_coarse_clock(clock: int) -> None:
    """The attack: 63 polls of an absolute deadline beside what is ready halve the time down to the nanosecond."""
    resolution = 50_000_000
    found = bisect(clock, Policy(clock=Clock(mode="coarse", resolution=resolution / _NANOSECONDS)))

    # Where the clock moves on meanwhile, what is found is what the guest itself chose.
    still = [past for errno, before, past, after in found if errno == SUCCESS and before == after]
    assert still
    assert {past % resolution for past in still} == {0}
    assert all(past == before for errno, before, past, after in found if before == after)


@pytest.mark.parametrize("clock", [REALTIME, MONOTONIC])
def test_a_deadline_can_be_bisected_under_a_real_clock(clock: int) -> None:
    """The positive twin: there is something to find, by the same guest."""
    found = bisect(clock, Policy(clock=Clock(mode="real")))

    assert all(errno == SUCCESS for errno, _, _, _ in found)
    assert any(past % 1_000_000 for _, _, past, _ in found)


@pytest.mark.parametrize("preset", ["strict", "minimal"])
def test_presets_with_a_coarse_clock_tell_no_more(preset: str) -> None:
    """Their clock is cut to a millisecond, and so is what polls tell."""
    found = bisect(REALTIME, Policy.preset(preset))
    assert {past % 1_000_000 for _, before, past, after in found if before == after} == {0}


@pytest.mark.parametrize("clock", [REALTIME, MONOTONIC])
def test_no_time_can_be_waited_for_without_a_clock(clock: int) -> None:
    """It is refused, so that there is nothing to bisect; that is no violation."""
    found = bisect(clock, Policy(clock=Clock(mode="none")))
    assert {(errno, past) for errno, _, past, _ in found} == {(ENOTSUP, 0)}


def poll(script: Script, *subscriptions: bytes) -> tuple[int, int]:
    """Appends a poll; returns where the events and their count will stand."""
    at = script.put(b"".join(subscriptions))
    events = script.room(32 * len(subscriptions))
    count = script.cell()
    script.call("poll_oneoff", at, events, len(subscriptions), count.address)
    return events, count.address


def told(memory: bytes, events: int, count_at: int) -> list[tuple[int, int]]:
    """The user's data and the type of each event."""
    (count,) = struct.unpack_from("<I", memory, count_at)
    return [struct.unpack_from("<Q2xB", memory, events + 32 * number) for number in range(count)]


def test_a_wait_without_a_clock_tells_only_that_it_is_over() -> None:
    """The attack: a thousand waits, each a microsecond longer than the last one. How many are over tells the time."""
    waits = [clock_subscription((number + 1) / 1e6, userdata=number) for number in range(1000)]
    script = Script()
    polls = [poll(script, *reversed(waits)) for _ in range(5)]
    played = script.play(Policy(clock=Clock(mode="none")))

    assert [told(played.memory, *poll) for poll in polls] == [[(0, 0)]] * 5


def test_the_longest_wait_does_not_turn_a_virtual_clock_back() -> None:
    """Attack: a deadline at the end of time, beyond which sums wrap round."""
    script = Script()
    times = [script.time()]
    for absolute in (True, False, True):
        longest = struct.pack("<QB7xI4xQQH6x", 1, 0, MONOTONIC, (1 << 64) - 1, 0, absolute)
        poll(script, longest)
        times += [script.time(MONOTONIC), script.time(MONOTONIC)]
    day = script.time(REALTIME)
    played = script.play(Policy(clock=Clock(mode="virtual"), limits=Limits(wall_time=20.0)))

    assert played.errnos == [SUCCESS] * len(script)
    moments = [played.number(time, 8) for time in times]
    assert moments == sorted(moments)
    assert moments[-1] == played.number(day, 8) == (1 << 64) - 1


STDIN = struct.pack("<QB7xI28x", 9, 1, 0)


@pytest.mark.differs("what of standard input is there, a worker asks by a message, and no time passes until it is told")
@pytest.mark.parametrize(
    ("pieces", "expected", "passed"),
    [
        pytest.param([b"there"], (9, 1), 0, id="there"),
        pytest.param([b""], (9, 1), 0, id="at its end"),
        pytest.param([None], (7, 0), 5, id="nothing yet"),
    ],
)
def test_stdin_comes_before_a_time_that_has_not(
    pieces: list[bytes | None], expected: tuple[int, int], passed: int
) -> None:
    """On a virtual clock a wait is over at once. What of stdin is there by then is seen first, and no time passes."""
    script = Script()
    before = script.time()
    polled = poll(script, clock_subscription(5), STDIN)
    after = script.time()
    image, start, errnos, count = script.image()
    policy = Policy(clock=Clock(mode="virtual", step=0.001), limits=Limits(wall_time=20.0))
    given = iter(pieces)
    with Sandbox(policy).open(player(), stdin=lambda _: next(given)) as session:
        session.write_memory(0, image)
        assert session.call("play", start, errnos, count).ok
        memory = session.read_memory(0, start)

    assert told(memory, *polled) == [expected]
    moments = [int.from_bytes(memory[place.address :][:8], "little") for place in (before, after)]
    assert moments[1] - moments[0] == (passed * 1000 + 1) * 1_000_000


STAT_AT_THE_END = """
(module
  (import "wasi_snapshot_preview1" "fd_filestat_get" (func $stat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_filestat_get" (func $path_stat (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 65536)
  (data (i32.const 0) "file")
  (func (export "fd") (param $at i32) (result i32 i64 i64 i64)
    (call $stat (i32.const 3) (local.get $at))
    (i64.load offset=40 (local.get $at)) (i64.load offset=48 (local.get $at)) (i64.load offset=56 (local.get $at)))
  (func (export "path") (param $at i32) (result i32 i64 i64 i64)
    (call $path_stat (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (local.get $at))
    (i64.load offset=40 (local.get $at)) (i64.load offset=48 (local.get $at)) (i64.load offset=56 (local.get $at))))
"""


@pytest.mark.parametrize("mode", ["coarse", "virtual", "none"])
def test_times_of_files_are_cut_at_the_very_end_of_memory(tmp_path: Path, mode: str) -> None:
    """Attack: an answer that ends where 32 bits end, so that a loop over its fields never begins or never ends."""
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        os.utime(path, ns=(1_234_567_890_123_456_789, 1_234_567_890_987_654_321))
    policy = Policy(clock=Clock(mode=mode, resolution=1.0), limits=Limits(memory=1 << 32, wall_time=20.0))  # type: ignore[arg-type]
    policy = policy.replace(mounts=(Mount(str(tmp_path), "/", "rw"),))
    with stockade.Sandbox(policy).open(wat(STAT_AT_THE_END)) as session:
        for name in ("fd", "path"):
            for at in ((1 << 32) - 64, (1 << 32) - 72, 1024):
                errno, accessed, modified, changed = session.call(name, at).check().value
                assert errno == SUCCESS
                if mode == "coarse":
                    assert (accessed, modified) == (1_234_567_890_000_000_000,) * 2
                    assert changed % _NANOSECONDS == 0
                else:
                    assert accessed == modified == changed
                    assert accessed in (0, 946_684_800 * _NANOSECONDS)
