"""Over any time, no more goes than the rate times that time and what a second allows.

The guest notes the time before each call and after it, by a clock that is not cut. So whatever the machine does
meanwhile, what went between two of these moments went in that time, and is compared with the limit exactly.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stockade
from stockade import Policy, Sandbox
from tests._examples import examples
from tests.conftest import wat
from tests.limits._guests import CREAT, EAGAIN, SUCCESS, Later, Script, clock_subscription, files_policy, player

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.usefixtures("everywhere")

_NANOSECONDS = 1_000_000_000


class Went(NamedTuple):
    """What went within a time: nanoseconds from, nanoseconds to, and how much."""

    begin: int
    end: int
    amount: int


def check(went: Sequence[Went], rate: int) -> None:
    """Over each time from the beginning of one to the end of another, no more than allowed.

    Args:
        went: In the order of time.
        rate: What may go in a second.
    """
    total = 0
    # The most that what went before a moment falls short of what the rate allows up to it.
    least = None
    for one in went:
        before = total * _NANOSECONDS - rate * one.begin
        least = before if least is None else min(least, before)
        total += one.amount
        over = total * _NANOSECONDS - rate * one.end - least
        assert over <= rate * _NANOSECONDS, f"{over / _NANOSECONDS - rate:,.3f} more than allowed, of {went}"


class Recording:
    """A script of calls, with the time before and after each."""

    def __init__(self) -> None:
        self.script = Script()
        self._clocks: list[Later] = [self.script.time()]
        self._counts: list[tuple[int, Later | int]] = []

    def note(self, count: Later | int) -> None:
        """Notes the time after the last call.

        Args:
            count: Where it tells how much went; or how much that is, if it succeeds.
        """
        self._counts.append((len(self.script) - 1, count))
        self._clocks.append(self.script.time())

    def play(
        self, policy: Policy, *, pieces: int = 1, stdin: Any = b"", rest: float = 0.0
    ) -> tuple[list[Went], list[int]]:
        """Plays it in so many calls of a session, after a rest in seconds. Returns what went, and the errnos."""
        image, start, errnos, count = self.script.image()
        entry = (errnos - start) // count
        with Sandbox(policy).open(player(), stdin=stdin) as session:
            session.write_memory(0, image)
            time.sleep(rest)
            for piece in range(pieces):
                first, last = count * piece // pieces, count * (piece + 1) // pieces
                if first < last:
                    assert session.call("play", start + first * entry, errnos + 4 * first, last - first).ok
            found = struct.unpack(f"<{count}I", session.read_memory(errnos, 4 * count))
            memory = session.read_memory(0, start)

        def number(place: Later, size: int) -> int:
            return int.from_bytes(memory[place.address : place.address + size], "little")

        went = []
        for (call, amount), before, after in zip(self._counts, self._clocks, self._clocks[1:], strict=False):
            moved = number(amount, 4) if isinstance(amount, Later) else amount
            went.append(Went(number(before, 8), number(after, 8), moved if found[call] == SUCCESS else 0))
        return went, [found[call] for call, _ in self._counts]


def nap(script: Script, seconds: float) -> None:
    """Appends a wait that stdin or a clock ends."""
    stdin = struct.pack("<QB7xI28x", 9, 1, 0)
    at = script.put(stdin + clock_subscription(seconds))
    script.call("poll_oneoff", at, script.room(64), 2, script.cell().address)


def nothing_yet(_: int) -> bytes | None:
    """A callback for stdin that has nothing."""
    return None


def data_at_once(_: int) -> bytes | None:
    """One that always has something."""
    return b"0123456789"


@contextmanager
def standard_input(kind: str) -> Iterator[Any]:
    """Standard input of a kind."""
    if kind == "file":
        with tempfile.TemporaryFile() as file:
            file.write(b"0123456789")
            file.seek(0)
            yield file
    elif kind == "pipe":
        reader, writer = os.pipe()
        with open(reader, "rb") as file:  # noqa: PTH123 - a descriptor
            yield file
        os.close(writer)
    else:
        yield {"empty": b"", "nothing yet": nothing_yet, "data at once": data_at_once}[kind]


stdins = st.sampled_from(["empty", "nothing yet", "data at once", "file", "pipe"])
sizes = st.one_of(st.integers(1, 30), st.sampled_from([500, 5_000, 40_000]))
moves = st.tuples(
    st.sampled_from(["read", "pread", "write", "pwrite"]),
    sizes,
    st.sampled_from([None, None, 0.0, 0.0, 0.004, 0.03]),
)


@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.too_slow])
@given(
    plan=st.lists(moves, min_size=10, max_size=40),
    rate=st.sampled_from([100_000, 400_000]),
    on_rate=st.sampled_from(["wait", "refuse"]),
    pieces=st.integers(1, 4),
    stdin=stdins,
)
def test_reading_and_writing_stay_within_their_rates(
    plan: list[tuple[str, int, float | None]], rate: int, on_rate: str, pieces: int, stdin: str
) -> None:
    """The attack: one large call, many small ones, naps of no time in which the host looks."""
    recording = Recording()
    script = recording.script
    fd = script.open("file", CREAT)
    kinds = []
    for kind, size, seconds in plan:
        if seconds is not None:
            nap(script, seconds)
        if kind == "read":
            script.seek(fd, 0)
            recording.note(script.read(fd, size)[0])
        elif kind == "pread":
            recording.note(script.pread(fd, size, 100))
        elif kind == "write":
            script.seek(fd, 0)
            recording.note(script.write(fd, b"x" * size))
        else:
            recording.note(script.pwrite(fd, b"x" * size, 100))
        kinds.append(kind.removeprefix("p"))
    with tempfile.TemporaryDirectory() as name, standard_input(stdin) as given:
        folder = Path(name)
        (folder / "file").write_bytes(b"a" * 50_000)
        policy = files_policy(folder, read_rate=rate, write_rate=rate // 2, on_rate=on_rate)
        went, errnos = recording.play(policy, pieces=pieces, stdin=given)
    assert set(errnos) <= ({SUCCESS} if on_rate == "wait" else {SUCCESS, EAGAIN})
    for wanted, most in (("read", rate), ("write", rate // 2)):
        check([one if kind == wanted else one._replace(amount=0) for one, kind in zip(went, kinds, strict=True)], most)


@pytest.mark.parametrize("on_rate", ["wait", "refuse"])
@pytest.mark.parametrize("naps", [False, True], ids=["at once", "with naps"])
def test_the_rate_of_reading_is_reached_and_never_passed(tmp_path: Path, on_rate: str, naps: bool) -> None:
    """Twice a second's worth: the first half goes at once, and not a byte too many of the rest in any time."""
    rate = 400_000
    recording = Recording()
    fd = recording.script.open("file")
    for _ in range(120):
        if naps:
            nap(recording.script, 0)
        recording.note(recording.script.pread(fd, 5_000, 0))
    (tmp_path / "file").write_bytes(b"a" * 5_000)
    went, errnos = recording.play(files_policy(tmp_path, read_rate=rate, on_rate=on_rate), pieces=3)

    check(went, rate)
    moved = sum(one.amount for one in went)
    assert moved >= rate
    assert moved < 120 * 5_000 or on_rate == "wait"
    assert EAGAIN not in errnos or on_rate == "refuse"
    # Two windows that are one byte too many are found: the check is no idle one.
    with pytest.raises(AssertionError):
        check([*went, went[-1]._replace(amount=moved + rate)], rate)


@settings(max_examples=examples(10), suppress_health_check=[HealthCheck.too_slow])
@given(
    rate=st.sampled_from([100, 1_000, 3_000]),
    on_rate=st.sampled_from(["wait", "refuse"]),
    pieces=st.sampled_from([1, 7, 60]),
    seconds=st.sampled_from([None, 0.0, 0.002]),
    stdin=stdins,
)
def test_calls_stay_within_their_rate(rate: int, on_rate: str, pieces: int, seconds: float | None, stdin: str) -> None:
    """The attack: a session of many short calls, each of which begins anew what a report tells; and waits for stdin, of
    which something is left in the waits for a rate.
    """
    recording = Recording()
    for number in range(rate * 6 // 10):
        if seconds is not None and number % 20 == 0:
            nap(recording.script, seconds)
            recording.note(1)
        recording.script.call("sched_yield")
        recording.note(1)
    policy = Policy().replace(call_rate=rate, on_rate=on_rate, fuel=None, wall_time=20.0)
    with standard_input(stdin) as given:
        went, _ = recording.play(policy, pieces=pieces, stdin=given)

    check_calls(went, rate)


def check_calls(went: Sequence[Went], rate: int) -> None:
    """The same for calls that are noted one by one. The clock is a call, too."""
    timed: list[Went] = []
    amount, begin = 0, None
    for one in went:
        begin = one.begin if begin is None and one.begin else begin
        amount += one.amount
        # One that was refused has left no time: what went before it is taken for a part of what follows.
        if one.end and begin is not None:
            timed.append(Went(begin, one.end, amount + 1))
            amount, begin = 0, None
    check(timed, rate)
    assert sum(one.amount for one in timed) >= rate * 9 // 10


def test_what_is_saved_up_before_a_call_goes_once() -> None:
    """The attack: a session rests for longer than a second. There is a second's worth then, and not as much again."""
    rate = 2_000
    recording = Recording()
    for _ in range(3 * rate // 4):
        recording.script.call("sched_yield")
        recording.note(1)
    policy = Policy().replace(call_rate=rate, on_rate="refuse", fuel=None, wall_time=20.0)
    went, errnos = recording.play(policy, rest=1.1)

    check_calls(went, rate)
    assert EAGAIN in errnos


GROW = """
(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  (table $table 0 funcref)
  ;; Tries so often, and writes down when, when again, and by how many pages it grew.
  (func (export "grow") (param $at i32) (param $count i32) (param $pages i32)
    (loop $again
      (drop (call $time (i32.const 1) (i64.const 1) (local.get $at)))
      (i32.store offset=16 (local.get $at)
        (select (i32.const 0) (local.get $pages)
          (i32.eq
            (if (result i32) (i32.and (local.get $count) (i32.const 1))
              (then (memory.grow (local.get $pages)))
              (else (table.grow $table (ref.null func) (i32.shl (local.get $pages) (i32.const 13)))))
            (i32.const -1))))
      (drop (call $time (i32.const 1) (i64.const 1) (i32.add (local.get $at) (i32.const 8))))
      (local.set $at (i32.add (local.get $at) (i32.const 24)))
      (br_if $again (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))))
"""


@pytest.mark.parametrize("pages", [1, 3])
def test_growth_stays_within_its_rate(pages: int) -> None:
    """Memory and a table grow in turn, over several calls of a session: together never by more than allowed."""
    rate, tries = 20, 400
    policy = Policy().replace(memory_growth=rate, table_elements=10_000_000, fuel=None, wall_time=20.0)
    went = []
    with stockade.Sandbox(policy).open(wat(GROW)) as session:
        for _ in range(10):
            assert session.call("grow", 64, tries, pages).ok
            raw = session.read_memory(64, 24 * tries)
            went += [Went(*struct.unpack_from("<QQI", raw, 24 * number)) for number in range(tries)]

    check(went, rate)
    assert sum(one.amount for one in went) >= rate - pages
