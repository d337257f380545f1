"""What time a guest sees, how long it may wait, and what randomness it gets.

Holds P-LIMIT-1.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stockade
from stockade.policy import Clock, Limits, Policy, Random
from tests._examples import examples
from tests.conftest import wat
from tests.limits._guests import EINVAL, ENOTCAPABLE, SUCCESS, Later, Script, clock_subscription, kinds

if TYPE_CHECKING:
    from pathlib import Path

    from tests._timeline import Timeline

pytestmark = pytest.mark.usefixtures("everywhere")

REALTIME, MONOTONIC = 0, 1
START = 946_684_800 * 10**9


def times(script: Script, policy: Policy, places: list[Later]) -> list[int]:
    """Plays a script that only reads clocks."""
    played = script.play(policy)
    assert played.errnos == [SUCCESS] * len(script)
    return [played.number(place, 8) for place in places]


# -- clocks ---------------------------------------------------------------------------------------------------------


def test_a_real_clock_tells_the_time() -> None:
    """Time of day as the host's, and a monotonic clock that never goes back."""
    script = Script()
    places = [script.time(REALTIME), script.time(MONOTONIC), script.time(MONOTONIC)]
    begun = time.time_ns()
    day, first, second = times(script, Policy(), places)

    assert begun <= day <= time.time_ns()
    assert first <= second


def test_a_coarse_clock_is_cut_to_its_resolution() -> None:
    """A guest cannot time things finer than the resolution."""
    script = Script()
    places = [script.time(clock) for clock in (REALTIME, MONOTONIC) * 500]
    begun = time.time_ns()
    found = times(script, Policy(clock=Clock(mode="coarse", resolution=1e-3)), places)

    assert {number % 1_000_000 for number in found} == {0}
    assert begun - 1_000_000 < found[0] <= time.time_ns()
    assert found[1::2] == sorted(found[1::2])


def test_a_real_clock_is_finer_than_that() -> None:
    """The positive twin: what the test above looks for is there without the policy."""
    script = Script()
    places = [script.time(MONOTONIC) for _ in range(100)]

    assert len({number % 1_000_000 for number in times(script, Policy(), places)}) > 10


def test_the_strict_preset_has_no_fine_clock() -> None:
    """A clock of a millisecond or coarser."""
    script = Script()
    places = [script.time(clock) for clock in (REALTIME, MONOTONIC) * 5]

    assert {number % 1_000_000 for number in times(script, Policy.preset("strict"), places)} == {0}


@pytest.mark.parametrize("resolution", [1e-9, 0.25, 7.0])
def test_any_resolution_can_be_asked_for(resolution: float) -> None:
    """The time is a multiple of the resolution, and clock_res_get says so."""
    script = Script()
    places = [script.time(REALTIME)]
    places.append(script.cell())
    script.call("clock_res_get", REALTIME, places[-1].address)
    begun = time.time_ns()
    found, told = times(script, Policy(clock=Clock(mode="coarse", resolution=resolution)), places)

    assert told == round(resolution * 1e9)
    assert found % told == 0
    assert begun - told < found <= time.time_ns()


@pytest.mark.parametrize(
    ("clock", "told"),
    [
        (Clock(mode="coarse", resolution=2e-3), 2_000_000),
        (Clock(mode="virtual", step=5e-6), 5_000),
        (Clock(mode="virtual", step=0), 1),
    ],
    ids=["coarse", "virtual", "virtual, standing"],
)
def test_the_resolution_that_is_told_is_the_clocks(clock: Clock, told: int) -> None:
    """clock_res_get agrees with what clock_time_get gives; a clock that does not exist has none."""
    script = Script()
    places = [script.cell(), script.cell(), script.cell()]
    for number, place in enumerate(places):
        script.call("clock_res_get", 9 if number == 2 else number, place.address)
    played = script.play(Policy(clock=clock))

    if played.errnos:
        assert played.errnos[2] != SUCCESS
        assert [played.number(place, 8) for place in places[:2]] == [told, told]
    else:
        # Native WASI ends a guest that names an unknown clock.
        assert played.report.trap is not None
        assert played.report.trap.code == "host"


def test_a_virtual_clock_starts_where_told_and_moves_by_its_step() -> None:
    """Two clocks on one time line, the same in every run."""
    clock = Clock(mode="virtual", start=1_000_000.5, step=2e-3)
    script = Script()
    places = [script.time(number) for number in (REALTIME, MONOTONIC, REALTIME, MONOTONIC)]
    expected = [1_000_000_500_000_000, 2_000_000, 1_000_000_504_000_000, 6_000_000]

    for _ in range(2):
        assert times(script, Policy(clock=clock), places) == expected


def test_without_a_clock_none_is_told() -> None:
    """Both clock calls are refused, and noted."""
    script = Script()
    place = script.time(REALTIME)
    script.call("clock_res_get", REALTIME, place.address)
    played = script.play(Policy(clock=Clock(mode="none")))

    assert played.errnos == [ENOTCAPABLE, ENOTCAPABLE]
    assert played.number(place, 8) == 0
    assert [(v.kind, v.subject) for v in played.report.violations] == [
        ("call", "clock_time_get"),
        ("call", "clock_res_get"),
    ]


@pytest.mark.parametrize("seconds", [0.5, 3_600.0, 86_400.0 * 365])
@pytest.mark.parametrize("clock", [REALTIME, MONOTONIC])
def test_waiting_on_a_virtual_clock_takes_no_time_and_moves_it(timeline: Timeline, seconds: float, clock: int) -> None:
    """A wait is over at once; afterwards the clock is where it would have been. Idle limits do not bite."""
    script = Script()
    before = script.time(MONOTONIC)
    events = script.sleep(seconds, clock=clock)
    after, day = script.time(MONOTONIC), script.time(REALTIME)
    played = script.play(Policy(clock=Clock(mode="virtual"), limits=Limits(idle_time=0.1)))

    assert timeline.passed == 0
    assert played.errnos == [SUCCESS] * 4
    assert played.number(events) == 1
    waited = round(seconds * 1e9)
    assert played.number(after, 8) - played.number(before, 8) == waited + 1_000
    assert played.number(day, 8) - START == played.number(after, 8) + 1_000
    assert played.report.usage.idle_seconds == 0


def poll(script: Script, *subscriptions: bytes) -> tuple[int, Later]:
    """Appends a `poll_oneoff`; returns where the events and their count will stand."""
    events, count = script.room(32 * len(subscriptions)), script.cell()
    script.call("poll_oneoff", script.put(b"".join(subscriptions)), events, len(subscriptions), count.address)
    return events, count


@pytest.mark.parametrize(("mode", "seconds"), [("real", 0.03), ("virtual", 0.0), ("coarse", 0.03)])
def test_the_earliest_of_several_waits_ends_it(timeline: Timeline, mode: str, seconds: float) -> None:
    """Of three clock subscriptions only that which is due is reported, with its own user data."""
    script = Script()
    events, count = poll(
        script,
        clock_subscription(60, userdata=1),
        clock_subscription(0.03, userdata=2),
        clock_subscription(50, clock=REALTIME, userdata=3),
    )
    timeline.sleeps = True
    played = script.play(Policy(clock=Clock(mode=mode)))  # type: ignore[arg-type]

    assert played.errnos == [SUCCESS]
    assert played.number(count) == 1
    assert struct.unpack_from("<QHB", played.memory, events) == (2, 0, 0)
    # A coarse clock is a little late.
    assert timeline.passed == pytest.approx(seconds, abs=0.01)


@pytest.mark.parametrize("mode", ["real", "virtual"])
def test_an_absolute_time_that_has_passed_is_due_at_once(mode: str) -> None:
    """A deadline in the past ends the wait with an event."""
    script = Script()
    events, count = poll(script, clock_subscription(1, clock=REALTIME, absolute=True, userdata=9))
    played = script.play(Policy(clock=Clock(mode=mode)))  # type: ignore[arg-type]

    assert played.errnos == [SUCCESS]
    assert played.number(count) == 1
    assert struct.unpack_from("<Q", played.memory, events) == (9,)


def test_an_absolute_time_on_the_virtual_clock_is_waited_for() -> None:
    """After a wait for a time of day, that is the time of day."""
    script = Script()
    poll(script, clock_subscription(946_684_800 + 100, clock=REALTIME, absolute=True))
    poll(script, clock_subscription(150, clock=MONOTONIC, absolute=True))
    day = script.time(REALTIME)
    played = script.play(Policy(clock=Clock(mode="virtual")))

    assert played.errnos == [SUCCESS] * 3
    assert played.number(day, 8) == START + 150 * 10**9


def test_an_endless_wait_on_the_virtual_clock_ends() -> None:
    """Attack: the longest wait there is, so that sums wrap round: defined, and nothing hangs."""
    script = Script()
    for _ in range(2):
        poll(script, struct.pack("<QB7xI4xQQH6x", 1, 0, 1, (1 << 64) - 1, 0, 0))
    played = script.play(Policy(clock=Clock(mode="virtual"), limits=Limits(wall_time=60)))

    assert played.errnos == [SUCCESS] * 2


def test_a_poll_leaves_its_subscriptions_as_they_were() -> None:
    """What the guard changes in them for each slice is put back."""
    subscriptions = clock_subscription(0.03, clock=REALTIME) + clock_subscription(0.05)
    script = Script()
    poll(script, subscriptions)
    place = script.data.index(subscriptions)
    played = script.play(Policy())

    assert played.memory[place : place + 96] == subscriptions


@pytest.mark.parametrize("count", [0, 1025, 1 << 31])
def test_a_poll_of_nothing_or_of_too_much_is_an_error(count: int) -> None:
    """Attack: a count whose product with the size of a subscription wraps round."""
    script = Script()
    script.call("poll_oneoff", script.put(clock_subscription(60)), script.room(32), count, script.cell().address)

    assert script.play(Policy()).errnos == [EINVAL]


# -- waiting --------------------------------------------------------------------------------------------------------


def test_a_wait_shorter_than_idle_time_is_fine(timeline: Timeline) -> None:
    """Several waits, together longer than the limit, each of them shorter; idle time is counted."""
    script = Script()
    for _ in range(5):
        script.sleep(0.06)
    timeline.sleeps = True
    played = script.play(Policy(limits=Limits(idle_time=0.2)))

    assert played.report.ok
    assert played.errnos == [SUCCESS] * 5
    assert played.report.violations == ()
    assert played.report.usage.idle_seconds == pytest.approx(0.3)


def test_a_wait_longer_than_idle_time_ends_the_run(timeline: Timeline) -> None:
    """Outcome idle, at the limit, with a violation that tells both numbers in seconds."""
    script = Script()
    script.sleep(30)
    played = script.play(Policy(limits=Limits(idle_time=0.1)))

    assert played.report.outcome is stockade.Outcome.IDLE
    assert timeline.passed == pytest.approx(0.1)
    violation = played.only_violation()
    assert (violation.kind, violation.call, violation.action, violation.limit) == ("idle", "poll_oneoff", "stop", 0.1)
    assert violation.observed == pytest.approx(0.1)
    assert played.report.usage.idle_seconds == pytest.approx(0.1)


def test_a_deadline_holds_while_a_guest_sleeps(timeline: Timeline) -> None:
    """Attack: sleep for a minute under a deadline of a fifth of a second."""
    script = Script()
    script.sleep(60)
    played = script.play(Policy(limits=Limits(wall_time=0.2)))

    assert played.report.outcome is stockade.Outcome.TIMEOUT
    assert timeline.passed == pytest.approx(0.2)


def test_a_wait_takes_its_time(timeline: Timeline) -> None:
    """A wait lasts as long as was asked for, cut in slices or not."""
    script = Script()
    script.sleep(0.25)
    timeline.sleeps = True
    played = script.play(Policy())

    assert played.errnos == [SUCCESS]
    assert timeline.passed == pytest.approx(0.25)
    assert played.report.usage.idle_seconds == pytest.approx(0.25)


# -- randomness -----------------------------------------------------------------------------------------------------


def splitmix64(seed: int, *sizes: int) -> list[bytes]:
    """What the seeded generator gives for requests of these sizes, as the paper defines it."""
    mask = (1 << 64) - 1
    found = []
    for size in sizes:
        taken = bytearray()
        while len(taken) < size:
            seed = (seed + 0x9E3779B97F4A7C15) & mask
            z = seed
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
            z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
            taken += (z ^ z >> 31).to_bytes(8, "little")
        found.append(bytes(taken[:size]))
    return found


def test_the_model_is_splitmix64() -> None:
    """The model of these tests against the numbers that are published for the seed 1234567."""
    numbers = struct.unpack("<5Q", splitmix64(1234567, 40)[0])

    assert numbers == (
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    )


@settings(max_examples=examples(60))
@given(
    seed=st.one_of(st.sampled_from([0, 1, 42, (1 << 63), (1 << 64) - 1]), st.integers(0, (1 << 64) - 1)),
    sizes=st.lists(st.integers(0, 100), min_size=1, max_size=6),
)
def test_seeded_randomness_is_splitmix64(seed: int, sizes: list[int]) -> None:
    """A documented generator, so anyone can tell what the guest got. Nothing beside is written."""
    script = Script()
    buffers = []
    for size in sizes:
        buffers.append(script.put(b"\xaa" * (size + 16)))
        script.call("random_get", buffers[-1] + 8, size)
    played = script.play(Policy(random=Random(mode="seeded", seed=seed)))

    assert played.errnos == [SUCCESS] * len(sizes)
    for buffer, size, expected in zip(buffers, sizes, splitmix64(seed, *sizes), strict=True):
        assert played.memory[buffer : buffer + size + 16] == b"\xaa" * 8 + expected + b"\xaa" * 8
    assert played.report.usage.random_bytes == sum(sizes)


def test_seeds_are_reproducible_and_differ() -> None:
    """The same seed gives the same bytes in every run, another seed others."""
    script = Script()
    buffer = script.room(4096)
    script.call("random_get", buffer, 4096)
    found = [script.play(Policy(random=Random(mode="seeded", seed=seed))).memory[buffer:] for seed in (1, 1, 2)]

    assert found[0] == found[1] != found[2]


def test_full_randomness_is_the_hosts() -> None:
    """Two runs get different bytes, over all of a buffer that is served in pieces."""
    script = Script()
    buffer = script.room(10_001)
    script.call("random_get", buffer, 10_001)
    first, second = (script.play(Policy()).memory[buffer : buffer + 10_001] for _ in range(2))

    assert first != second
    for at in range(0, 10_001 - 16, 1000):
        assert any(first[at : at + 16])
    assert any(first[-17:-1])


def test_without_randomness_none_is_given() -> None:
    """Random_get is refused, and the buffer is left alone."""
    script = Script()
    buffer = script.put(b"." * 16)
    script.call("random_get", buffer, 16)
    played = script.play(Policy(random=Random(mode="none")))

    assert played.errnos == [ENOTCAPABLE]
    assert played.memory[buffer : buffer + 16] == b"." * 16
    assert [(v.kind, v.subject) for v in played.report.violations] == [("call", "random_get")]
    assert played.report.usage.random_bytes == 0


GREEDY = """
(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1700)
  (func (export "go") (param $times i32)
    (loop $next
      (drop (call $random (i32.const 0) (i32.const 100000000)))
      (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1)))))))
"""


@pytest.mark.parametrize("mode", ["full", "seeded"])
def test_a_huge_request_for_randomness_costs_fuel(mode: str) -> None:
    """Attack: 100 MB of randomness for a handful of instructions. Fuel ends it."""
    limits = Limits(fuel=200_000, random_bytes=None, wall_time=100)
    box = stockade.Sandbox(Policy(limits=limits, random=Random(mode=mode)))  # type: ignore[arg-type]

    assert box.call(wat(GREEDY), "go", 1).outcome is stockade.Outcome.FUEL


@pytest.mark.parametrize("mode", ["full", "seeded"])
def test_a_huge_request_for_randomness_ends_at_the_deadline(mode: str) -> None:
    """Attack: a million times 100 MB, which takes hours, unmetered. The deadline ends it."""
    limits = Limits(fuel=None, random_bytes=None, wall_time=0.2)
    box = stockade.Sandbox(Policy(limits=limits, random=Random(mode=mode)))  # type: ignore[arg-type]
    module = box.prepare(wat(GREEDY))
    begun = time.monotonic()
    report = box.call(module, "go", 1_000_000)

    assert report.outcome is stockade.Outcome.TIMEOUT
    assert time.monotonic() - begun < 60
    assert kinds(report.violations) == ["timeout"]


def test_a_huge_request_for_randomness_is_refused_by_its_own_limit() -> None:
    """The default policy hands out 64 MiB: a request for more is refused as a whole."""
    report = stockade.Sandbox().call(wat(GREEDY), "go", 3)

    assert report.ok
    assert report.usage.random_bytes == 0
    (violation,) = report.violations
    assert (violation.kind, violation.observed, violation.count) == ("random_bytes", 100_000_000, 3)


@pytest.mark.parametrize("mode", ["real", "coarse", "virtual", "none"])
def test_file_times_tell_no_more_than_the_clock(
    mode: Literal["real", "coarse", "virtual", "none"], tmp_path: Path
) -> None:
    """Attack: the time that the clock hides is read off a file that was just written."""
    (tmp_path / "file").write_text("content")
    os.utime(tmp_path / "file", ns=(1_234_567_891, 1_234_567_891))
    module = wat(
        """
        (module
          (import "wasi_snapshot_preview1" "path_filestat_get"
            (func $stat (param i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 8) "file")
          (func (export "modified") (result i64)
            (if (call $stat (i32.const 3) (i32.const 0) (i32.const 8) (i32.const 4) (i32.const 64))
              (then (unreachable)))
            (i64.load (i32.const 112))))
        """
    )
    clock = Clock(mode=mode, resolution=0.001, start=5.0)
    policy = Policy(clock=clock).replace(mounts=[stockade.Mount(str(tmp_path), "/data")])

    report = stockade.Sandbox(policy).call(module, "modified")

    expected = {"real": 1_234_567_891, "coarse": 1_234_000_000, "virtual": 5_000_000_000, "none": 0}
    assert report.value == expected[mode]
